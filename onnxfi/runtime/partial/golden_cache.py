"""Golden values: what lies between the nodes of a model while it answers without faults, batch by batch.

The model runs in pieces, one behind the other. What goes on from a piece to others has the bits that the piece gives
when nothing else is asked of it. What lies within a piece comes from a second session of it, which has every value that
some route takes among its outputs, so that a value has the same bits whichever of them are asked for. Values are kept
while they fit into a number of bytes, those in use in any case; the oldest go first, and are computed again if need be.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from onnxfi.errors import DataError, EngineError, SegmentMismatchError
from onnxfi.graph.model.stored_tensors import DATA_TYPES
from onnxfi.graph.partition.segmentation import Segmentation
from onnxfi.graph.partition.subgraph_model import Feed, Part, extract
from onnxfi.runtime.data.batches import Batch, Feeds
from onnxfi.runtime.data.sources import Data
from onnxfi.runtime.engine.engines import OrtEngine, Session
from onnxfi.runtime.engine.model_io import Array, Port, element_type
from onnxfi.runtime.engine.turn_taking import claim

Values = dict[str, Array]
#: TensorProto's number of each element type.
NUMBERS = {word.name: number for number, word in DATA_TYPES.items()} | {"string": 8}


def feed_of(port: Port) -> Feed:
    """How a value that a session puts out is fed to another; EngineError where it is no tensor."""
    if port.dtype not in NUMBERS:
        raise EngineError(f"{port.name!r} is no tensor")
    return NUMBERS[port.dtype], port.shape


def array_feed(array: Array) -> Feed:
    """How a stored tensor is fed."""
    return NUMBERS[array.dtype.name], list(array.shape)


@contextmanager
def of_golden_shapes() -> Iterator[None]:
    """Run segments on tensors of the golden run's shapes; SegmentMismatchError for other shapes."""
    try:
        yield
    except DataError as error:
        raise SegmentMismatchError(f"a fault changes a shape between the parts of the model: {error}") from error


def check_shapes(found: Mapping[str, Array], golden: Mapping[str, Array]) -> None:
    """SegmentMismatchError where a fault changes the shape of what goes on from a part of a model."""
    for name, array in golden.items():
        if found[name].shape != array.shape:
            raise SegmentMismatchError(f"a fault changes the shape of {name!r}")


class Chain:
    """A model in pieces, each opened once for all that runs through it.

    Of the sessions that show what lies within pieces, those that fit into `inner_bytes` stay open, the last one in any
    case; others are opened again. Opening raises EngineError where the runtime does not take a piece, or what goes on
    from one is no tensor.
    """

    def __init__(self, engine: OrtEngine, routes: Segmentation, inputs: Sequence[Port], inner_bytes: int) -> None:
        self.engine, self.routes, self.inner_bytes = engine, routes, inner_bytes
        self.ports: dict[str, Port] = {port.name: port for port in inputs}
        self.sessions = [self._opened(number, ())[0] for number in range(len(routes.pieces))]
        self._inner: OrderedDict[int, tuple[Session, int]] = OrderedDict()

    def prepare(self, part: Part) -> Session:
        """A session of a part of the model."""
        return self.engine.prepare_part(part.data, part.stored)

    def inner(self, number: int) -> Session:
        """The session of a piece that shows what lies within it."""
        if number not in self._inner:
            self._inner[number] = self._opened(number, self.routes.inner[number])
        self._inner.move_to_end(number)
        while len(self._inner) > 1 and sum(size for _, size in self._inner.values()) > self.inner_bytes:
            self._inner.popitem(last=False)
        return self._inner[number][0]

    def feeds(self, names: Sequence[str]) -> dict[str, Feed]:
        """How values are fed."""
        for number, names_within in enumerate(self.routes.inner):
            if not self.ports.keys() >= {name for name in names if name in names_within}:
                self.inner(number)
        missing = [name for name in names if name not in self.ports]
        if missing:
            raise EngineError(f"{missing[0]!r} is not kept")
        return {name: feed_of(self.ports[name]) for name in names}

    def _opened(self, number: int, inner: Sequence[str]) -> tuple[Session, int]:
        """A session of a piece, and about the bytes that it takes."""
        piece = self.routes.pieces[number]
        feeds = {name: feed_of(self.ports[name]) for name in piece.crossings if name in self.ports}
        if len(feeds) < len(piece.crossings):
            raise EngineError(f"what goes into piece {number} is no tensor")
        part = extract(self.routes.wiring, piece.nodes, feeds, inner or piece.outputs)
        session = self.prepare(part)
        self.ports |= {port.name: port for port in session.outputs}
        return session, part.size_bytes


class GoldenValues:
    """The values of one model on one set of data, `size` samples a batch, `budget_bytes` of them kept.

    `axes` say where outputs hold samples.
    """

    def __init__(
        self, chain: Chain, data: Data, size: int, budget_bytes: int, axes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.chain, self.data, self.size, self.budget_bytes, self.axes = chain, data, size, budget_bytes, axes
        self.kept_bytes = 0
        self._in_use: dict[int, set[tuple[int, Hashable]]] = {}  # by thread
        self._kept: OrderedDict[tuple[int, Hashable], Array] = OrderedDict()
        self._stream: Iterator[Batch] = iter(())
        self._next = 0
        self._pieces: list[Batch] = []
        self._whole = False
        self._fits: bool | None = None

    @property
    def fits(self) -> bool:
        """Whether all values of all batches may be kept: then each is computed once for all."""
        with claim((id(self), "fits")):
            if self._fits is None:
                first = self._read(0)
                self._fits = first is not None and self._fit(first.feeds)
            return self._fits

    def piece(self, k: int) -> Batch | None:
        """The k-th batch without its feeds; None behind the last one."""
        while not self._whole and k >= len(self._pieces):
            self._read(len(self._pieces))
        return self._pieces[k] if k < len(self._pieces) else None

    def pieces(self) -> Iterator[tuple[int, Batch]]:
        """All batches without their feeds, with their numbers."""
        k = 0
        while (piece := self.piece(k)) is not None:
            yield k, piece
            k += 1

    def place(self, sample: int) -> tuple[int, int]:
        """The batch of a sample, and its row there."""
        return next((k, sample - p.start) for k, p in self.pieces() if p.start <= sample < p.start + p.valid)

    def values(self, k: int, names: Sequence[str]) -> Values:
        """Golden values of batch k: the model's inputs, what goes on from its pieces, and what routes take in them."""
        found = {}
        for name in names:
            if (k, name) not in self._kept:
                self._fetch(k, name)
            found[name] = self.kept(k, name)
        return found

    def release(self) -> None:
        """What was taken so far is in use no longer, and goes where there is no room for it."""
        self._in_use.pop(get_ident(), None)
        self._bound()

    def has(self, k: int, name: Hashable) -> bool:
        """Whether a value of batch k is at hand."""
        return (k, name) in self._kept

    def derived(self, k: int, name: Hashable, make: Callable[[], Array]) -> Array:
        """A value that is computed from golden ones, kept like them."""
        if (k, name) not in self._kept:
            self._keep(k, {name: make()})
        return self.kept(k, name)

    def kept(self, k: int, name: Hashable) -> Array:
        """A value that is at hand; KeyError where it is not."""
        self._kept.move_to_end((k, name))
        self._use(k, name)
        return self._kept[k, name]

    def _fetch(self, k: int, name: str) -> None:
        """Compute a value of batch k, and what comes with it."""
        routes = self.chain.routes
        number = routes.makers.get(name)
        if number == -1:
            piece = self._read(k)
            if piece is None:
                raise EngineError(f"the data has no batch {k} any more; a source of data must give the same each time")
            self._keep(k, piece.feeds)
            return
        if number is not None:
            found = self.chain.sessions[number].run(self._into(k, number), None)
        else:
            number = routes.within.get(name, -1)
            if number < 0 or name not in routes.inner[number]:
                raise EngineError(f"{name!r} is not kept")
            found = self.chain.inner(number).run(self._into(k, number), None if self.fits else [name])
        self._keep(k, found)

    def _into(self, k: int, number: int) -> Values:
        """What goes into a piece: what earlier ones make of the same batch."""
        return self.values(k, self.chain.routes.pieces[number].crossings)

    def _keep(self, k: int, found: Mapping[Any, Array]) -> None:
        for name, array in found.items():
            if (k, name) not in self._kept:
                self.kept_bytes += array.nbytes
            self._kept[k, name] = array
            self._use(k, name)
        self._bound()

    def _use(self, k: int, name: Hashable) -> None:
        self._in_use.setdefault(get_ident(), set()).add((k, name))

    def _bound(self) -> None:
        for key in list(self._kept) if self.kept_bytes > self.budget_bytes else ():
            if self.kept_bytes <= self.budget_bytes:
                return
            if not any(key in used for used in self._in_use.values()):
                self.kept_bytes -= self._kept.pop(key).nbytes

    def _fit(self, feeds: Feeds) -> bool:
        ports = self.chain.ports
        for number in range(len(self.chain.routes.pieces)):
            self.chain.inner(number)
        symbols = {
            symbol: size
            for name, array in feeds.items()
            for symbol, size in zip(ports[name].shape or (), array.shape, strict=False)
            if isinstance(symbol, str)
        }
        total = 0
        for name, port in ports.items():
            dims = [symbols.get(d) if isinstance(d, str) else d for d in port.shape or ()]
            if None in dims or not port.is_tensor or port.dtype == "string":
                return False
            total += 0 if name in feeds else math.prod(d or 0 for d in dims) * element_type(port.dtype).itemsize
        return 2 * total * math.ceil(self.data.samples / self.size) <= self.budget_bytes

    def _read(self, k: int) -> Batch | None:
        """Batch k with its feeds; the data is read on from where it stands, or once more from the start."""
        if k < self._next:
            self._stream, self._next = iter(()), 0
        if self._next == 0:
            self._stream = self.data.batches(self.size)
        for piece in self._stream:
            if self._next == len(self._pieces):
                self._pieces.append(Batch(piece.start, {}, None, piece.size, piece.valid))
            self._next += 1
            if self._next == k + 1:
                return piece
        self._whole, self._next = True, 0
        return None
