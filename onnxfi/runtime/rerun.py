"""Running again what a fault can change: one route, ready to run on any batch, disarmed or with faulty words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import EngineError
from onnxfi.faults.words import Words
from onnxfi.graph.downstream import Cut, Home, array_of
from onnxfi.graph.fronts import Fronts
from onnxfi.graph.parts import Feed, Part, extract
from onnxfi.graph.routes import LEAST_CHANNELS, Route, Routes
from onnxfi.graph.targets import DATA_TYPES
from onnxfi.runtime.batches import Batch
from onnxfi.runtime.engines import OrtEngine, Session
from onnxfi.runtime.evaluation import scored
from onnxfi.runtime.golden import GoldenValues
from onnxfi.runtime.pieces import Pieces
from onnxfi.runtime.ports import Array, Port, same_bytes


class UnlikeError(EngineError):
    """A part of an operator gives other bits than the whole of it."""


@dataclass
class Change:
    """What becomes of the tensors of a trial: by home the elements (flat, row-major; each once) and their words.

    `flying` are changes of values in flight, for the batch that they are given. `sessions` are those of the faulty
    copies, where the route makes some.
    """

    words: Mapping[Home, tuple[NDArray[np.int64], Words]]
    flying: Mapping[str, Callable[[Batch, Array], Array]] = field(default_factory=dict, repr=False)
    sessions: dict[int, Session] = field(default_factory=dict, repr=False)

    def of(self, home: Home) -> tuple[NDArray[np.int64], Words]:
        """Elements and words of one tensor."""
        return self.words[home]


class Rerun:
    """A route, opened: sessions of its parts, and the tensors themselves.

    `cost_bytes` is about what its sessions take. Opening raises EngineError where the runtime does not take the parts.
    """

    def __init__(
        self, engine: OrtEngine, routes: Routes, route: Route, golden: GoldenValues, output: str | None
    ) -> None:
        self.routes, self.route, self.golden, self.output = routes, route, golden, output
        self.engine = engine
        self.name = route.name
        self.cost_bytes = 0

    @property
    def key(self) -> str:
        """What tells this route's golden from others'."""
        return f"{self.name} {self.route.homes[0].fed}"

    def scores(self, k: int, change: Change | None = None) -> Array:
        """The scored output of batch k, golden where nothing changes."""
        if change is None:
            return self.golden.derived(k, f"scores of {self.key}", lambda: self._run(k, None))
        return self._run(k, change)

    def _run(self, k: int, change: Change | None) -> Array:
        raise NotImplementedError

    def _prepared(self, part: Part) -> Session:
        self.cost_bytes += part.size_bytes
        return self.engine.prepare_part(part.data, part.stored)

    def _once(self, part: Part) -> Session:
        return self.engine.prepare_part(part.data, part.stored)

    def _ports(self, names: Sequence[str]) -> dict[str, Feed]:
        return {name: feed_of(self.golden.ports[name]) for name in names}

    def _opened(self, cut: Cut, fed: Mapping[str, Feed], ends: Fronts = (), lifted: Home | None = None) -> Pieces:
        """A cut, opened in pieces."""
        routes = self.routes
        rows = routes.pieces(cut, tuple(fed), ends)
        late, golden = routes.late, self.golden
        return Pieces(self._prepared, routes.wiring, cut, rows, fed, self._ports, golden, lifted=lifted, late=late)

    def _scored(self, k: int, outputs: Mapping[str, Array]) -> Array:
        piece = self.golden.piece(k)
        assert piece is not None
        wanted = [self.output] if self.output is not None else list(self.routes.wiring.outputs)
        rest = self.golden.values(k, [name for name in wanted if name not in outputs and name in self.golden.ports])
        every = {**rest, **outputs}
        outputs = {name: every[name] for name in wanted if name in every}
        return scored(piece, outputs, self.golden.axes, self.output)


class Baked(Rerun):
    """What several tensors reach, from a faulty copy of that part."""

    def __init__(
        self, engine: OrtEngine, routes: Routes, route: Route, golden: GoldenValues, output: str | None
    ) -> None:
        super().__init__(engine, routes, route, golden, output)
        self._pieces = self._opened(route.cut, {}, routes.ends(route))

    @property
    def key(self) -> str:
        """Routes of the same nodes share one golden."""
        return f"{self.name} {self.route.cut.nodes}"

    def _faulty(self, change: Change) -> dict[int, Session]:
        """Sessions of the pieces that hold struck tensors."""
        faulty = {home: _Struck(array_of(self.routes.wiring, home), change, home).__enter__() for home in change.words}
        for number in range(len(self._pieces.pieces)):
            here = {home: array for home, array in faulty.items() if self._pieces.holds(number, home)}
            if here and number not in change.sessions:
                change.sessions[number] = self._once(self._pieces.part(number, here))
        return change.sessions

    def _run(self, k: int, change: Change | None) -> Array:
        if change is None:
            return self._scored(k, self._pieces.disarmed(k, {}))
        self._pieces.meet(k, {})
        found = self._pieces.run(k, {}, faulty=change.sessions or self._faulty(change))
        return self.scores(k) if found is None else self._scored(k, found)


class Fed(Rerun):
    """What one tensor reaches, the tensor being fed."""

    def __init__(
        self, engine: OrtEngine, routes: Routes, route: Route, golden: GoldenValues, output: str | None
    ) -> None:
        super().__init__(engine, routes, route, golden, output)
        self.tensor = array_of(routes.wiring, route.home)
        lifted = route.home if route.home.node >= 0 else None
        self._pieces = self._opened(route.cut, {route.home.fed: _feed(self.tensor)}, lifted=lifted)

    def _run(self, k: int, change: Change | None) -> Array:
        fed = {self.route.home.fed: self.tensor}
        if change is None:
            return self._scored(k, self._pieces.disarmed(k, fed))
        self._pieces.meet(k, fed)
        with _Struck(self.tensor, change, self.route.home):
            found = self._pieces.run(k, fed)
        return self.scores(k) if found is None else self._scored(k, found)


class Flying(Rerun):
    """What values in flight reach, behind the first of them."""

    def __init__(
        self, engine: OrtEngine, routes: Routes, values: Sequence[str], golden: GoldenValues, output: str | None
    ) -> None:
        found = routes.in_flight(values)
        if found is None or not golden.ports.keys() >= set(values):
            raise EngineError(f"the model cannot be cut at {values[0]!r}")
        cut, fed, ends = found
        if not golden.ports.keys() >= {n for p in routes.pieces(cut, fed, ends) for n in (*p.crossings, *p.outputs)}:
            raise EngineError(f"what lies between values like {values[0]!r} is not kept")
        super().__init__(engine, routes, Route(tuple(map(Home, values)), cut), golden, output)
        self._pieces = self._opened(cut, self._ports(fed), ends)

    @property
    def key(self) -> str:
        """What tells its golden from others'."""
        return f"{self.name} {[home.fed for home in self.route.homes]}"

    def _run(self, k: int, change: Change | None) -> Array:
        if change is None:
            return self._scored(k, self._pieces.disarmed(k, {}))
        self._pieces.meet(k, {})
        piece = self.golden.piece(k)
        assert piece is not None
        found = self._pieces.run(k, {}, {name: partial(patch, piece) for name, patch in change.flying.items()})
        return self.scores(k) if found is None else self._scored(k, found)


class Resumed(Rerun):
    """The struck channels of one operator apart, and then what its output reaches.

    Samples whose channels come out as golden are masked and stop there, where a sample has the same bits among few as
    among many: each run of some samples takes one of those along as a witness, first and last, which must come out as
    golden.
    """

    def __init__(
        self, engine: OrtEngine, routes: Routes, route: Route, golden: GoldenValues, output: str | None
    ) -> None:
        super().__init__(engine, routes, route, golden, output)
        assert route.channels is not None and route.apart is not None and route.behind is not None
        self.channels, self.apart, self.behind = route.channels, route.apart, route.behind
        self.tensors = {name: array_of(routes.wiring, Home(name)) for name in self.channels.sliced}
        self.tensor = self.tensors[route.home.fed]
        self._channels = self._prepared(self._part(None) if route.baked else self._fed_part())
        made = self._channels.outputs[0]
        if made.shape is None:
            raise EngineError("the shape of the channels is not known")
        shape = list(made.shape)
        shape[self.channels.axis] = self.channels.count
        feeds = self._ports(self.behind.crossings) | {made.name: (_NUMBERS[made.dtype], shape)}
        self._rest: Session | None = None
        self._apart = golden.data.layout.fixed is None and (output is None or output in self.behind.outputs)
        if self.behind.outputs:
            self._rest = self._prepared(extract(routes.wiring, self.behind.nodes, feeds, self.behind.outputs))

    @property
    def fallback(self) -> Route:
        """The route for a trial whose slice is not what it is in the whole."""
        return replace(self.route, channels=None, apart=None, behind=None)

    def _fed_part(self) -> Part:
        """A model of the operator that takes any number of channels."""
        feeds = self._ports(self.apart.crossings)
        for name, axis in self.channels.sliced.items():
            kind, shape = _feed(self.tensors[name])
            along = axis % len(shape)
            feeds[name] = kind, [None if a == along else d for a, d in enumerate(shape)]
        return extract(self.routes.wiring, self.apart.nodes, feeds, [self.channels.output])

    def _part(self, computed: NDArray[np.int64] | None) -> Part:
        """A model of the operator with these channels of its tensors as they are now."""
        faulty = {Home(name): self._slice(name, computed) for name in self.channels.sliced}
        feeds = self._ports(self.apart.crossings)
        return extract(self.routes.wiring, self.apart.nodes, feeds, [self.channels.output], faulty=faulty)

    def _slice(self, name: str, computed: NDArray[np.int64] | None) -> Array:
        whole = self.tensors[name]
        return whole if computed is None else np.take(whole, computed, self.channels.sliced[name])

    def _run(self, k: int, change: Change | None) -> Array:
        made = self.golden.derived(k, f"channels of {self.channels.output}", lambda: np.array(self._computed(k)))
        if change is None:
            return self._behind(k, made)
        axis = self.channels.sliced[self.route.home.fed]
        struck = np.unique(np.unravel_index(change.of(self.route.home)[0], self.tensor.shape)[axis])
        computed = _blocks(struck, self.channels.count)
        with _Struck(self.tensor, change, self.route.home):
            faulty = self._computed(k, computed, change)
        where: list[Any] = [slice(None)] * made.ndim
        where[self.channels.axis] = computed
        at = tuple(where)
        before = made[at]
        same = _same_by(before, faulty, self.channels.axis)
        if not same[~np.isin(computed, struck)].all():
            raise UnlikeError(f"channels of {self.channels.output!r} apart have other bits than in the whole")
        made[at] = faulty
        try:
            return self._stopped_early(k, made, _same_by(before, faulty, 0))
        finally:
            made[at] = before

    def _stopped_early(self, k: int, made: Array, masked: NDArray[np.bool_]) -> Array:
        """Batch k's scores, golden for the samples that are masked already."""
        rows, piece = np.flatnonzero(~masked), self.golden.piece(k)
        if not len(rows):
            return self.scores(k)
        few = piece is not None and len(masked) == piece.size and len(rows) + 2 < piece.valid and rows[-1] < piece.valid
        if not few or not self._apart or self._rest is None:
            return self._behind(k, made)
        own = self.scores(k)
        witness = np.flatnonzero(masked)[:1]
        some = np.concatenate([witness, rows, witness])
        feeds = {**self.golden.values(k, self.behind.crossings), self.channels.output: made}
        if all(array.ndim and len(array) == len(masked) for array in feeds.values()):
            outputs = self._rest.run({name: array[some] for name, array in feeds.items()})
            found = scored(Batch(0, {}, None, len(some), len(some)), outputs, self.golden.axes, self.output)
            alike = found.shape == (len(some), *own.shape[1:])
            if alike and same_bytes(found[[0, -1]], own[np.repeat(witness, 2)]):
                scores = np.array(own)
                scores[rows] = found[1:-1]
                return scores
        self._apart = False
        return self._behind(k, made)

    def _behind(self, k: int, made: Array) -> Array:
        outputs = {self.channels.output: made}
        if self._rest is not None:
            outputs |= self._rest.run(self.golden.values(k, self.behind.crossings) | outputs)
        return np.array(self._scored(k, outputs))  # what is scored may be `made` itself

    def _computed(self, k: int, computed: NDArray[np.int64] | None = None, change: Change | None = None) -> Array:
        """Output channels of batch k, with the tensors as they are now."""
        feeds = dict(self.golden.values(k, self.apart.crossings))
        session = self._channels
        if self.route.baked and change is not None:
            if 0 not in change.sessions:
                change.sessions[0] = self._once(self._part(computed))
            session = change.sessions[0]
        elif not self.route.baked:
            feeds |= {name: self._slice(name, computed) for name in self.channels.sliced}
        return session.run(feeds)[self.channels.output]


class _Struck:
    """A tensor with faulty words while it is in use; its own words afterwards."""

    def __init__(self, tensor: Array, change: Change | None, home: Home) -> None:
        none = np.zeros(0, np.int64), np.zeros(0, np.uint64)
        self.index, words = none if change is None else change.of(home)
        self.tensor, self.held = tensor, tensor.reshape(-1).view(f"u{tensor.itemsize}")
        self.words, self.kept = words.astype(self.held.dtype), self.held[self.index]

    def __enter__(self) -> Array:
        self.held[self.index] = self.words
        return self.tensor

    def __exit__(self, *_: object) -> None:
        self.held[self.index] = self.kept


def opened(engine: OrtEngine, routes: Routes, route: Route, golden: GoldenValues, output: str | None) -> Rerun:
    """A route ready to run; EngineError where the runtime does not take its parts."""
    kind = Resumed if route.channels is not None else Baked if route.baked else Fed
    return kind(engine, routes, route, golden, output)


def _blocks(struck: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Channels that are computed for the struck ones: whole blocks, and all where that is most of them."""
    if count <= 2 * LEAST_CHANNELS:
        return np.arange(count)
    starts = np.unique(np.minimum(struck // LEAST_CHANNELS * LEAST_CHANNELS, count - LEAST_CHANNELS))
    found = np.unique((starts[:, None] + np.arange(LEAST_CHANNELS)).ravel())
    return np.arange(count) if 2 * len(found) > count else found


def _same_by(one: Array, other: Array, axis: int) -> NDArray[np.bool_]:
    """For each place along an axis, whether all bits there are equal."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return np.zeros(one.shape[axis], np.bool_)
    kind = f"u{one.itemsize}"
    equal = np.ascontiguousarray(one).view(kind) == np.ascontiguousarray(other).view(kind)
    along = axis % one.ndim
    return np.asarray(equal.all(axis=tuple(a for a in range(one.ndim) if a != along)))


#: TensorProto's number of each element type.
_NUMBERS = {word.name: number for number, word in DATA_TYPES.items()} | {"string": 8}


def _feed(array: Array) -> tuple[int, list[int]]:
    return _NUMBERS[array.dtype.name], list(array.shape)


def feed_of(port: Port) -> Feed:
    """How a value that a session puts out is fed to another."""
    return _NUMBERS[port.dtype], port.shape
