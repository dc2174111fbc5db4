"""Golden activations of a model on its data, batch by batch.

The model runs in segments, one after the other. Activations at the end of a segment are computed by a session with
these outputs alone. Activations within a segment come from a second session, whose outputs are all activations that
some route reads, so that their bits do not depend on which of them are read. Activations are kept within a memory
limit, and those in use always; the oldest are dropped first, and recomputed if needed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from threading import get_ident
from typing import Any

from onnxfi.errors import DataError, EngineError, SegmentMismatchError
from onnxfi.graph.partition.segments import Segmentation
from onnxfi.graph.partition.subgraph_model import InputType, SubgraphModel, extract_model
from onnxfi.graph.passes.node_builder import NUMBER
from onnxfi.runtime.data.batches import Batch, Feeds
from onnxfi.runtime.data.open_data import Data
from onnxfi.runtime.data.sample_outputs import Reduce
from onnxfi.runtime.engine.device_array import DeviceArray
from onnxfi.runtime.engine.ports import Array, Port, element_type
from onnxfi.runtime.engine.protocols import Engine, Session
from onnxfi.runtime.engine.recently_used import RecentlyUsed
from onnxfi.runtime.engine.worker_thread_lock import claim

Values = dict[str, Array]
#: TensorProto's number of each element type.
NUMBERS = NUMBER | {"string": 8}
#: Golden activations take this share of a device's memory: one part in so many. Sessions need the rest.
_DEVICE_SHARE = 4


def feed_of(port: Port) -> InputType:
    """Return the input type that takes an output of another session; EngineError if it is not a tensor."""
    if port.dtype not in NUMBERS:
        raise EngineError(f"{port.name!r} is not a tensor")
    return NUMBERS[port.dtype], port.shape


def array_feed(array: Array) -> InputType:
    """Return the input type that takes an array."""
    return NUMBERS[array.dtype.name], list(array.shape)


@contextmanager
def of_golden_shapes() -> Iterator[None]:
    """Run segments on tensors of the golden run's shapes; SegmentMismatchError for other shapes."""
    try:
        yield
    except DataError as error:
        raise SegmentMismatchError(f"a fault changes a shape between the parts of the model: {error}") from error


def check_shapes(found: Mapping[str, Array], golden: Mapping[str, Array]) -> None:
    """Raise SegmentMismatchError if a fault changes the shape of an output of a segment."""
    for name, array in golden.items():
        if found[name].shape != array.shape:
            raise SegmentMismatchError(f"a fault changes the shape of {name!r}")


class SegmentSessions:
    """The sessions of a model's segments, which all trials share.

    Of the sessions that give the activations within segments, those that fit into `inner_bytes` stay open, the last one
    in any case; others are opened again. Opening raises EngineError if the runtime does not take a segment, or an
    activation between two of them is not a tensor.
    """

    def __init__(self, engine: Engine, routes: Segmentation, inputs: Sequence[Port], inner_bytes: int) -> None:
        self.engine, self.segmentation, self.inner_bytes = engine, routes, inner_bytes
        self.ports: dict[str, Port] = {port.name: port for port in inputs}
        self.sessions = [self._opened(number, ())[0] for number in range(len(routes.segments))]
        self._inner = RecentlyUsed[tuple[Session, int]](inner_bytes, itemgetter(1))

    def prepare(self, part: SubgraphModel) -> Session:
        """Return a session of a part of the model."""
        return self.engine.prepare_part(part.data, part.stored)

    def inner(self, number: int) -> Session:
        """Return the session of a segment that gives the activations within it; its own where no route reads any."""
        if not self.segmentation.inner[number]:
            return self.sessions[number]
        return self._inner.of(number, lambda: self._opened(number, self.segmentation.inner[number]))[0]

    def feeds(self, names: Sequence[str]) -> dict[str, InputType]:
        """Return the input types that take these activations."""
        for number, names_within in enumerate(self.segmentation.inner):
            if not self.ports.keys() >= {name for name in names if name in names_within}:
                self.inner(number)
        missing = [name for name in names if name not in self.ports]
        if missing:
            raise EngineError(f"{missing[0]!r} is not kept")
        return {name: feed_of(self.ports[name]) for name in names}

    def _opened(self, number: int, inner: Sequence[str]) -> tuple[Session, int]:
        """Return a session of a segment, and about the bytes that it takes."""
        segment = self.segmentation.segments[number]
        feeds = {name: feed_of(self.ports[name]) for name in segment.inputs if name in self.ports}
        if len(feeds) < len(segment.inputs):
            raise EngineError(f"what goes into segment {number} is not a tensor")
        part = extract_model(self.segmentation.net, segment.nodes, feeds, inner or segment.outputs)
        session = self.prepare(part)
        self.ports |= {port.name: port for port in session.outputs}
        return session, part.size_bytes


class GoldenCache:
    """The golden activations of one model on one set of data.

    Parameters
    ----------
    segment_sessions : SegmentSessions
        The segments of the model.
    data : Data
        The data.
    size : int
        Samples in a batch.
    budget_bytes : int
        Bytes of activations that are kept.
    axes : mapping of str to tuple of int
        The axes of outputs that hold samples.
    reduce : callable, optional
        What is kept of the outputs of a batch.

    Notes
    -----
    Where sessions leave their outputs on a device, activations stay there too, up to a quarter of the memory that the
    process may take of it; others are copied there when they are fed.
    """

    def __init__(
        self,
        segment_sessions: SegmentSessions,
        data: Data,
        size: int,
        budget_bytes: int,
        axes: Mapping[str, tuple[int, ...]],
        reduce: Reduce | None = None,
    ) -> None:
        self.segment_sessions, self.data, self.size, self.budget_bytes, self.axes = (
            segment_sessions,
            data,
            size,
            budget_bytes,
            axes,
        )
        self.reduce = reduce
        self.kept_bytes = 0
        self._device_left_bytes = segment_sessions.engine.device_memory_bytes // _DEVICE_SHARE
        self._in_use: dict[int, set[tuple[int, Hashable]]] = {}  # by thread
        self._kept: OrderedDict[tuple[int, Hashable], Array] = OrderedDict()
        self._stream: Iterator[Batch] = iter(())
        self._next = 0
        self._batches: list[Batch] = []
        self._whole = False
        self._fits: bool | None = None

    @property
    def fits(self) -> bool:
        """Return whether all activations of all batches may be kept, so that each is computed once."""
        with claim((id(self), "fits")):
            if self._fits is None:
                first = self._read(0)
                self._fits = first is not None and self._fit(first.feeds)
            return self._fits

    def batch(self, k: int) -> Batch | None:
        """Return batch k without its feeds; None after the last one."""
        while not self._whole and k >= len(self._batches):
            self._read(len(self._batches))
        return self._batches[k] if k < len(self._batches) else None

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield all batches without their feeds, with their numbers."""
        k = 0
        while (batch := self.batch(k)) is not None:
            yield k, batch
            k += 1

    def place(self, sample: int) -> tuple[int, int]:
        """Return the batch of a sample, and its row there."""
        return next((k, sample - p.start) for k, p in self.batches() if p.start <= sample < p.start + p.valid)

    def values(self, k: int, names: Sequence[str]) -> Values:
        """Return golden activations of batch k: inputs, outputs of segments, and what routes read within these."""
        found = {}
        for name in names:
            if (k, name) not in self._kept:
                self.compute(k, name)
            found[name] = self.kept(k, name)
        return found

    def release(self) -> None:
        """Mark what was read so far as not in use, and drop what does not fit."""
        self._in_use.pop(get_ident(), None)
        self._drop_oldest()

    def has(self, k: int, name: Hashable) -> bool:
        """Return whether a value of batch k is kept."""
        return (k, name) in self._kept

    def derived(self, k: int, name: Hashable, make: Callable[[], Array]) -> Array:
        """Return a value that is computed from golden activations, kept like them."""
        if (k, name) not in self._kept:
            self._keep(k, {name: make()})
        return self.kept(k, name)

    def kept(self, k: int, name: Hashable) -> Array:
        """Return a value that is kept; KeyError if it is not."""
        self._kept.move_to_end((k, name))
        self._use(k, name)
        return self._kept[k, name]

    def compute(self, k: int, name: str) -> None:
        """Compute an activation of batch k, with the other outputs of its session."""
        routes = self.segment_sessions.segmentation
        number = routes.makers.get(name)
        if number == -1:
            batch = self._read(k)
            if batch is None:
                raise EngineError(f"the data has no batch {k} any more; a source of data must give the same each time")
            self._keep(k, batch.feeds)
            return
        if number is not None:
            found = self.segment_sessions.sessions[number].run(self._into(k, number), None)
        else:
            number = routes.within.get(name, -1)
            if number < 0 or name not in routes.inner[number]:
                raise EngineError(f"{name!r} is not kept")
            found = self.segment_sessions.inner(number).run(self._into(k, number), None if self.fits else [name])
        self._keep(k, found)

    def _into(self, k: int, number: int) -> Values:
        """Return the inputs of a segment: outputs of earlier ones for the same batch."""
        return self.values(k, self.segment_sessions.segmentation.segments[number].inputs)

    def _keep(self, k: int, found: Mapping[Any, Array]) -> None:
        for name, array in found.items():
            if (k, name) not in self._kept:
                self.kept_bytes += array.nbytes
            self._kept[k, name] = array
            self._use(k, name)
            if isinstance(array, DeviceArray):
                if array.nbytes > self._device_left_bytes:
                    array.leave_device()
                self._device_left_bytes -= array.device_bytes
        self._drop_oldest()

    def _use(self, k: int, name: Hashable) -> None:
        self._in_use.setdefault(get_ident(), set()).add((k, name))

    def _drop_oldest(self) -> None:
        for key in list(self._kept) if self.kept_bytes > self.budget_bytes else ():
            if self.kept_bytes <= self.budget_bytes:
                return
            if not any(key in used for used in self._in_use.values()):
                array = self._kept.pop(key)
                self.kept_bytes -= array.nbytes
                self._device_left_bytes += array.device_bytes if isinstance(array, DeviceArray) else 0

    def _fit(self, feeds: Feeds) -> bool:
        ports = self.segment_sessions.ports
        symbols = {
            symbol: size
            for name, array in feeds.items()
            for symbol, size in zip(ports[name].shape or (), array.shape, strict=False)
            if isinstance(symbol, str)
        }
        declared = dict.fromkeys(feeds, 0)
        for number in range(len(self.segment_sessions.segmentation.segments)):
            self.segment_sessions.inner(number)
            for name, port in [(name, port) for name, port in ports.items() if name not in declared]:
                dims = [symbols.get(d) if isinstance(d, str) else d for d in port.shape or ()]
                if not port.is_tensor or port.dtype == "string":
                    return False
                if None in dims:  # before the sessions of further segments are opened
                    return self._within(self._measured_bytes())
                declared[name] = math.prod(d or 0 for d in dims) * element_type(port.dtype).itemsize
        return self._within(sum(declared.values()))

    def _within(self, batch_bytes: int | None) -> bool:
        """Return whether so many bytes of each batch may be kept."""
        return batch_bytes is not None and (
            2 * batch_bytes * math.ceil(self.data.samples / self.size) <= self.budget_bytes
        )

    def _measured_bytes(self) -> int | None:
        """Return the bytes of all activations of a batch, by a run of one sample, as where sizes are not declared.

        None where the model does not run one sample.
        """
        if self.data.layout.fixed is not None:
            return None
        known, total = dict[str, Any](next(iter(self.data.batches(1))).feeds), 0
        try:
            for number, segment in enumerate(self.segment_sessions.segmentation.segments):
                into = {name: known[name] for name in segment.inputs}
                found = {**self.segment_sessions.sessions[number].run(into, None)}
                known |= found
                if self.segment_sessions.segmentation.inner[number]:
                    found |= self.segment_sessions.inner(number).run(into, None)
                total += sum(array.nbytes for array in found.values())
        except (EngineError, DataError):
            return None
        return total * self.size

    def _read(self, k: int) -> Batch | None:
        """Return batch k with its feeds; the data is read on from its position, or again from the start."""
        if k < self._next:
            self._stream, self._next = iter(()), 0
        if self._next == 0:
            self._stream = self.data.batches(self.size)
        for batch in self._stream:
            if self._next == len(self._batches):
                self._batches.append(Batch(batch.start, {}, None, batch.size, batch.valid))
            self._next += 1
            if self._next == k + 1:
                return batch
        self._whole, self._next = True, 0
        return None
