"""Golden values: what lies between the nodes of a model while it answers without faults, batch by batch.

One session of the whole model has every value that some route takes among its outputs, so that a value has the same
bits whichever of them are asked for. Values are kept while they fit into a number of bytes, those of the batch at hand
in any case; the oldest go first, and what is gone is computed again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from onnxfi.errors import EngineError
from onnxfi.runtime.batches import Batch, Feeds
from onnxfi.runtime.data import Data
from onnxfi.runtime.engines import Session
from onnxfi.runtime.evaluation import sample_axes
from onnxfi.runtime.ports import Array, Port, element_type

Values = dict[str, Array]


class GoldenValues:
    """The values of one model on one set of data, `size` samples a batch, `budget_bytes` of them kept."""

    def __init__(self, session: Session, data: Data, size: int, budget_bytes: int) -> None:
        self.session, self.data, self.size, self.budget_bytes = session, data, size, budget_bytes
        self.ports: dict[str, Port] = {port.name: port for port in (*session.inputs, *session.outputs)}
        self.axes = sample_axes(session, data)
        self.kept_bytes = 0
        self._in_use: set[tuple[int, str]] = set()
        self._kept: OrderedDict[tuple[int, str], Array] = OrderedDict()
        self._stream: Iterator[Batch] = iter(())
        self._next = 0
        self._pieces: list[Batch] = []
        self._whole = False

    @cached_property
    def fits(self) -> bool:
        """Whether all values of all batches may be kept: then one run of each batch gives them, once for all."""
        first = self._read(0)
        return first is not None and self._fit(first.feeds)

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

    def values(self, k: int, names: Sequence[str]) -> Values:
        """Golden values of batch k, also of the model's inputs."""
        found = {name: self._kept[k, name] for name in names if (k, name) in self._kept}
        if len(found) < len(names):
            found |= self._fetched(k, [name for name in names if name not in found])
        for name in names:
            self._kept.move_to_end((k, name))
            self._in_use.add((k, name))
        return found

    def release(self) -> None:
        """What was taken so far is in use no longer, and goes where there is no room for it."""
        self._in_use.clear()
        self._bound()

    def has(self, k: int, name: str) -> bool:
        """Whether a value of batch k is at hand."""
        return (k, name) in self._kept

    def derived(self, k: int, name: str, make: Callable[[], Array]) -> Array:
        """A value that is computed from golden ones, kept like them."""
        if (k, name) not in self._kept:
            self._keep(k, {name: make()})
        self._kept.move_to_end((k, name))
        self._in_use.add((k, name))
        return self._kept[k, name]

    def _fetched(self, k: int, names: list[str]) -> Values:
        piece = self._read(k)
        if piece is None:
            raise EngineError(f"the data has no batch {k} any more; a source of data must give the same each time")
        fed = {name: piece.feeds[name] for name in names if name in piece.feeds}
        every = [name for name in self.ports if name not in piece.feeds]
        asked = every if self.fits else [name for name in names if name not in fed]
        found = fed | (self.session.run(piece.feeds, asked) if asked else {})
        self._keep(k, found)
        return {name: found[name] for name in names}

    def _keep(self, k: int, found: Values) -> None:
        for name, array in found.items():
            if (k, name) not in self._kept:
                self.kept_bytes += array.nbytes
            self._kept[k, name] = array
            self._in_use.add((k, name))
        self._bound()

    def _bound(self) -> None:
        for key in list(self._kept):
            if self.kept_bytes <= self.budget_bytes:
                return
            if key not in self._in_use:
                self.kept_bytes -= self._kept.pop(key).nbytes

    def _fit(self, feeds: Feeds) -> bool:
        symbols = {
            symbol: size
            for name, array in feeds.items()
            for symbol, size in zip(self.ports[name].shape or (), array.shape, strict=False)
            if isinstance(symbol, str)
        }
        total = 0
        for name, port in self.ports.items():
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
