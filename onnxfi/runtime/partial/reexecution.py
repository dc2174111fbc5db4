"""Running again what a fault can change: one route, ready to run on any batch, disarmed or with faulty words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import EngineError, SegmentMismatchError
from onnxfi.faults.words import Words
from onnxfi.graph.partition.output_channels import Channels
from onnxfi.graph.partition.route import Route
from onnxfi.graph.partition.segmentation import EntrySubgraph, FaultPath
from onnxfi.graph.partition.subgraph import Home, array_of
from onnxfi.graph.partition.subgraph_model import Part, extract
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.data.sample_outputs import scored
from onnxfi.runtime.engine.engines import Session
from onnxfi.runtime.engine.model_io import Array, same_by, same_bytes, words_of
from onnxfi.runtime.engine.turn_taking import claim
from onnxfi.runtime.partial.conv_delta import narrowed
from onnxfi.runtime.partial.entry_subgraph import EntrySession, Strike
from onnxfi.runtime.partial.golden_cache import of_golden_shapes
from onnxfi.runtime.partial.segmented_model import Rows, Spine, among


@dataclass
class Change:
    """What becomes of the tensors of a trial: by home the elements (flat, row-major; each once) and their words.

    `flying` are changes of values in flight, for the batch that they are given. `sessions` are those of the faulty
    copies, by piece and cut, where the route makes some; `ahead` is what was made ready, by batch.
    """

    words: Mapping[Home, tuple[NDArray[np.int64], Words]]
    flying: Mapping[str, Callable[[Batch, Array], Array]] = field(default_factory=dict, repr=False)
    sessions: dict[int, dict[int, Session]] = field(default_factory=dict, repr=False)
    ahead: dict[int, Array] = field(default_factory=dict, repr=False)

    def of(self, home: Home) -> tuple[NDArray[np.int64], Words]:
        """Elements and words of one tensor."""
        return self.words[home]


#: The samples for which outputs differ from golden, and the outputs.
Found = tuple[Rows, dict[str, Array]]


class Rerun:
    """A route, opened: sessions of its heads, and the tensors themselves.

    `cost_bytes` is about what its sessions and tensors take. Opening raises EngineError where the runtime does not take
    the parts.
    """

    def __init__(self, spine: Spine, name: Route, output: str | None, route: FaultPath | None = None) -> None:
        self.spine, self.golden, self.name, self.output, self.route = spine, spine.golden, name, output, route
        self.heads: list[EntrySession] = []
        self.cost_bytes = 0

    def scores(self, k: int, change: Change | None = None) -> Array:
        """The scored output of batch k, golden where nothing changes."""
        if change is None:
            self._disarm(k)
            return golden_scores(self.spine, k, self.output)
        with of_golden_shapes():
            rows, found = self._run(k, change)
        if not found:
            return golden_scores(self.spine, k, self.output)
        whole = self.spine.whole(rows, found) if rows.some is not None else found
        return scored_batch(self.spine, k, whole, self.output)

    #: Changes that are made ready together.
    at_once = 1

    def ready(self, k: int, changes: Sequence[Change]) -> None:
        """Compute for batch k what these changes, `at_once` of them at most, can share."""

    def _disarm(self, k: int) -> None:
        """Hold the heads to golden; SegmentMismatchError where one of them gives other bits without a fault."""
        for head in self.heads:
            head.hold(Rows(self.golden, k))

    def _run(self, k: int, change: Change) -> Found:
        raise NotImplementedError

    def _prepared(self, part: Part) -> Session:
        self.cost_bytes += part.size_bytes
        return self.spine.chain.prepare(part)

    def _opened(
        self, head: EntrySubgraph, stored: Mapping[str, Array] | None = None, home: Home | None = None
    ) -> EntrySession:
        return EntrySession(self.spine, head, self._prepared, stored or {}, home)


def golden_scores(spine: Spine, k: int, output: str | None) -> Array:
    """The scored output of batch k without a fault."""
    return spine.golden.derived(k, ("scores", output), lambda: np.array(scored_batch(spine, k, {}, output)))


def scored_batch(spine: Spine, k: int, outputs: Mapping[str, Array], output: str | None) -> Array:
    """The scored output of batch k where these outputs differ from golden."""
    piece = spine.golden.piece(k)
    assert piece is not None
    wanted = [output] if output is not None else list(spine.outputs)
    rest = spine.golden.values(k, [name for name in wanted if name not in outputs])
    every = {name: outputs[name] if name in outputs else rest[name] for name in wanted}
    return scored(piece, every, spine.golden.axes, output)


class Baked(Rerun):
    """The pieces that several tensors lie in, from faulty copies."""

    def __init__(self, spine: Spine, route: FaultPath, output: str | None) -> None:
        super().__init__(spine, route.route, output, route)
        self.heads = [self._opened(head) for head in route.heads]

    def _faulty(self, change: Change) -> dict[int, dict[int, Session]]:
        """Sessions of the cuts that hold struck tensors."""
        wiring = self.spine.routes.wiring
        faulty = {home: _Struck(array_of(wiring, home), change, home).__enter__() for home in change.words}
        for head in self.heads:
            made = change.sessions.setdefault(head.head.piece, {})
            for number in range(len(head.head.cuts)):
                here = {home: array for home, array in faulty.items() if head.holds(number, home)}
                if here and number not in made:
                    made[number] = self.spine.chain.prepare(head.part(number, here))
        return change.sessions

    def _run(self, k: int, change: Change) -> Found:
        self._disarm(k)
        sessions = change.sessions or self._faulty(change)
        struck = {head.head.piece: Strike(head, sessions=sessions[head.head.piece]) for head in self.heads}
        return self.spine.follow(Rows(self.golden, k), {}, min(struck), struck)


class Fed(Rerun):
    """What one tensor reaches, the tensor being fed."""

    def __init__(self, spine: Spine, route: FaultPath, output: str | None) -> None:
        super().__init__(spine, route.route, output, route)
        self.home = route.home
        self.tensor = array_of(spine.routes.wiring, route.home)
        self.cost_bytes += self.tensor.nbytes
        self.heads = [self._opened(head, {route.home.fed: self.tensor}, route.home) for head in route.heads]

    def scores(self, k: int, change: Change | None = None) -> Array:
        """The scored output of batch k, golden where nothing changes; the tensor is struck where it lies."""
        with claim(self):
            return super().scores(k, change)

    def _run(self, k: int, change: Change) -> Found:
        self._disarm(k)
        struck = {head.head.piece: Strike(head) for head in self.heads}
        with _Struck(self.tensor, change, self.home):
            return self.spine.follow(Rows(self.golden, k), {}, min(struck), struck)


class Flying(Rerun):
    """What values in flight reach, behind the first of them that is struck: all of them, or `any_of` them."""

    def __init__(self, spine: Spine, values: Sequence[str], output: str | None, *, any_of: bool = False) -> None:
        super().__init__(spine, Route.PARTIAL, output)
        found = spine.routes.in_flight(values, any_of=any_of)
        if found is None:
            raise EngineError(f"the model cannot be cut at {values[0]!r}")
        self.heads = [self._opened(head) for head in found]
        if not self.heads and not any(map(spine.routes.goes_on, values)):
            raise EngineError(f"no output changes with {values[0]!r}")

    def _run(self, k: int, change: Change) -> Found:
        self._disarm(k)
        piece = self.golden.piece(k)
        assert piece is not None
        patches = {name: partial(patch, piece) for name, patch in change.flying.items()}
        heads = [head for head in self.heads if not head.flown.isdisjoint(patches)]
        struck = {head.head.piece: Strike(head, patches=patches) for head in heads}
        passed = [max(0, self.spine.routes.makers[name]) for name in patches if self.spine.routes.goes_on(name)]
        start = min([*passed, *struck])
        return self.spine.follow(Rows(self.golden, k), {}, start, struck, patches)


class Resumed(Rerun):
    """The channels of one operator that hold faults apart, and then what its output reaches.

    They are computed by a small operator that stores slices of the tensors, as the whole one stores all of them, so
    that the runtime takes the same kernel. Samples whose channels come out as in the golden run are masked and stop
    there. Raises SegmentMismatchError where channels without a fault have other bits than in the whole.
    """

    def __init__(self, spine: Spine, route: FaultPath, output: str | None) -> None:
        super().__init__(spine, route.route, output, route)
        routes = spine.routes
        assert route.channels is not None and route.apart is not None
        self.home, self.channels, self.apart = route.home, route.channels, route.apart
        self.tensors = {name: array_of(routes.wiring, Home(name)) for name in self.channels.sliced}
        self.tensor = self.tensors[self.home.fed]
        self.cost_bytes += sum(tensor.nbytes for tensor in self.tensors.values())
        self._into = spine.chain.feeds([*self.apart.crossings, self.channels.output])
        self.piece = routes.within[self.channels.output]
        heads = () if routes.goes_on(self.channels.output) else routes.in_flight([self.channels.output]) or ()
        self.heads = [self._opened(head) for head in heads]
        self._narrow = narrowed(spine, heads[0], self._prepared) if heads else None
        self._disarmed = False

    @property
    def at_once(self) -> int:  # type: ignore[override]
        """As many changes as together make no more channels than the operator has."""
        return max(1, self.channels.count // self.channels.least)

    def ready(self, k: int, changes: Sequence[Change]) -> None:
        """Compute the channels of all these changes in one run: what a runtime makes of the input is shared."""
        made = changes[0].sessions.setdefault(self.piece, {})
        every = [self._computing(change)[1] for change in changes]
        if len(changes) not in made:
            parts = [self._slices(one, change) for one, change in zip(every, changes, strict=True)]
            made[len(changes)] = self._opened_apart(parts)
        ends = np.cumsum([len(one) for one in every])[:-1]
        found = made[len(changes)].run(self._fed(k, every))[self.channels.output]
        for change, array in zip(changes, np.split(found, ends, self.channels.axis), strict=True):
            change.ahead[k] = array

    def _disarm(self, k: int) -> None:
        super()._disarm(k)
        if not self._disarmed:
            first = _blocks(np.zeros(1, np.int64), self.channels)
            found = self._opened_apart([self._slices(first)]).run(self._fed(k, [first]))
            if not same_bytes(found[self.channels.output], self._golden_of(k, first)):
                raise SegmentMismatchError(
                    f"channels of {self.channels.output!r} apart have other bits than in the whole"
                )
            self._disarmed = True

    def _slices(self, computed: NDArray[np.int64], change: Change | None = None) -> dict[str, Array]:
        """These channels of the stored tensors, with the faults of a change."""
        with _Struck(self.tensor, change, self.home):
            return {name: np.take(self.tensors[name], computed, axis) for name, axis in self.channels.sliced.items()}

    def _opened_apart(self, parts: Sequence[Mapping[str, Array]]) -> Session:
        """A session of the operator that stores these slices, one behind the other."""
        sliced = self.channels.sliced
        stored = {Home(name): np.concatenate([part[name] for part in parts], axis) for name, axis in sliced.items()}
        feeds = {name: self._into[name] for name in self.apart.crossings}
        if (beside := self.channels.beside) in feeds:
            kind, shape = feeds[beside]
            count = sum(len(next(iter(part.values()))) for part in parts)
            feeds[beside] = kind, [count if axis == self.channels.axis else d for axis, d in enumerate(shape or ())]
        wiring = self.spine.routes.wiring
        return self.spine.chain.prepare(extract(wiring, self.apart.nodes, feeds, [self.channels.output], faulty=stored))

    def _fed(self, k: int, computed: Sequence[NDArray[np.int64]]) -> dict[str, Array]:
        """What the operator takes of a batch for these channels."""
        feeds = dict(self.golden.values(k, self.apart.crossings))
        if (beside := self.channels.beside) in feeds:
            if feeds[beside].shape != self.golden.values(k, [self.channels.output])[self.channels.output].shape:
                raise SegmentMismatchError(f"{beside!r} is added to all channels alike")
            feeds[beside] = np.take(feeds[beside], np.concatenate(computed), self.channels.axis)
        return feeds

    def _computing(self, change: Change) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The channels that hold faults of a change, and those that are computed for it."""
        axis = self.channels.sliced[self.home.fed]
        faulty = np.unique(np.unravel_index(change.of(self.home)[0], self.tensor.shape)[axis])
        return faulty, _blocks(faulty, self.channels)

    def _golden_of(self, k: int, computed: NDArray[np.int64]) -> Array:
        """The golden values of these channels."""
        name = self.channels.output
        return np.take(self.golden.values(k, [name])[name], computed, self.channels.axis)

    def _run(self, k: int, change: Change) -> Found:
        self._disarm(k)
        if k not in change.ahead:
            self.ready(k, [change])
        faulty, computed = self._computing(change)
        own, found = self._golden_of(k, computed), change.ahead.pop(k)
        if not same_by(own, found, self.channels.axis)[~np.isin(computed, faulty)].all():
            raise SegmentMismatchError(f"channels of {self.channels.output!r} apart have other bits than in the whole")
        return self._resumed(Rows(self.golden, k), computed, words_of(found) != words_of(own), found)

    def _resumed(self, rows: Rows, computed: NDArray[np.int64], differs: NDArray[np.bool_], faulty: Array) -> Found:
        """What becomes of the samples in which these channels differ."""
        size, name, piece = self.spine.size(rows), self.channels.output, self.piece
        if not differs.any():
            return rows, {}
        if faulty.ndim and len(faulty) == size and self.channels.axis % faulty.ndim:
            keep = np.flatnonzero(differs.reshape(size, -1).any(1))
            few = among(len(keep))
            head = self.heads[0].can if self.heads else partial(self.spine.apart, piece)
            if 2 * few <= size and head(few):
                rows = rows.pick(keep)
                faulty, differs = faulty[keep], differs[keep]
        value = np.array(rows.values([name])[name])
        where: list[Any] = [slice(None)] * value.ndim
        where[self.channels.axis] = computed
        value[tuple(where)] = np.where(differs, faulty, value[tuple(where)])
        if not self.heads:
            return self.spine.follow(rows, {name: value}, piece + 1)
        narrow = self._narrow.strike(rows, {name: value}) if self._narrow is not None else None
        struck = {head.head.piece: Strike(head, {name: value}) for head in self.heads}
        return self.spine.follow(rows, {}, piece, struck if narrow is None else {piece: narrow})


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


def opened(spine: Spine, route: FaultPath, output: str | None) -> Rerun:
    """A route ready to run; EngineError where the runtime does not take its parts."""
    kind = Resumed if route.channels is not None else Baked if route.baked else Fed
    return kind(spine, route, output)


def _blocks(faulty: NDArray[np.int64], channels: Channels) -> NDArray[np.int64]:
    """Channels that are computed for the faulty ones: whole blocks, and all where that is most of them."""
    count, least = channels.count, channels.least
    if count <= 2 * least:
        return np.arange(count)
    starts = np.unique(np.minimum(faulty // least * least, count - least))
    found = np.unique((starts[:, None] + np.arange(least)).ravel())
    return np.arange(count) if 2 * len(found) > count else found
