"""Convolutions whose input differs from the golden activation in few channels.

Only the terms of these channels (conv_partial_sums.py) are computed, and added to the golden terms of the others in the
order in which the runtime adds them; what lies after the convolution runs as an entry subgraph. Each batch is checked:
the sum of the golden terms must be the golden output, bit for bit; otherwise the convolution runs as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from onnxfi.errors import EngineError
from onnxfi.graph.partition.conv_partial_sums import ConvSum, block_input, block_output, block_sizes, partial_sum_model
from onnxfi.graph.partition.segments import EntrySubgraph
from onnxfi.graph.partition.subgraph import TensorLocation, array_at
from onnxfi.graph.partition.subgraph_model import SubgraphModel
from onnxfi.runtime.engine.ports import Array, same_by, same_bytes
from onnxfi.runtime.engine.protocols import Session
from onnxfi.runtime.engine.worker_thread_lock import claim, released
from onnxfi.runtime.partial.entry_subgraph import EntrySession, FaultyEntry
from onnxfi.runtime.partial.segmented_model import SampleRows, SegmentedModel, among, padded

#: Largest share of the memory for golden activations that the terms of one convolution may take: 1 / this.
_SHARE = 8
#: Multiplications from which a convolution takes longer than its terms: about a millisecond of one core.
WORTH = 1 << 27


class ConvDelta:
    """An entry subgraph without its first convolution, and the terms of that convolution.

    Opening raises EngineError if the runtime does not take a part.
    """

    def __init__(
        self,
        segmented: SegmentedModel,
        conv: ConvSum,
        entry: EntrySubgraph,
        prepare: Callable[[SubgraphModel], Session],
    ) -> None:
        self.segmented, self.conv, self.golden = segmented, conv, segmented.golden
        self.entry = EntrySession(segmented, entry, prepare, {})
        net = segmented.segmentation.net
        self._prepare = prepare
        self._shape = tuple(net.stored[conv.weight].dims)
        self._bias = array_at(net, TensorLocation(conv.bias)) if conv.bias else None
        #: Channels that the runtime sums at a time, as the first batch shows (0: unknown; None: not tried yet).
        self.block_size: int | None = None
        #: The batches for which the sum is golden, and for which not: by batch, so that the order of trials does not
        #: matter.
        self._exact_in, self._inexact = set[int](), set[int]()
        self._session: Session | None = None

    def faulty_entry(self, rows: SampleRows, values: Mapping[str, Array]) -> FaultyEntry | None:
        """Return the faulty entry for activations that differ; None if the convolution runs as a whole."""
        value = values.get(self.conv.input)
        if value is None or rows.alone or self.block_size == 0 or rows.k in self._inexact or not self.golden.fits:
            return None
        if self.conv.addend in values:
            return None
        try:
            if not self._worth(rows) or (rows.some is not None and not self.entry.keeps_bits(among(len(rows.some)))):
                return None
            if not self.conv.addend:
                self.entry.check_golden(SampleRows(self.golden, rows.k))
            given = self._output(rows, value)
        except (EngineError, MemoryError):  # no fault causes this
            self._inexact.add(rows.k)
            return None
        fed = {name: values[name] for name in self.entry.values if name in values}
        if given is None:
            return None
        return FaultyEntry(self.entry, {**fed, self.conv.output: given}, exact=bool(self.conv.addend))

    def _worth(self, rows: SampleRows) -> bool:
        """Return whether the whole convolution takes longer than its faulty terms."""
        whole = self.golden.values(rows.k, [self.conv.output])[self.conv.output]
        share = 1.0 if rows.some is None else len(rows.some) / max(1, len(whole))
        return bool(whole.size * share * math.prod(self._shape[1:]) >= WORTH)

    def _output(self, rows: SampleRows, value: Array) -> Array | None:
        """Return the output of the convolution for these samples."""
        known = rows.values([self.conv.input])[self.conv.input]
        if value.shape != known.shape:
            return None
        differs = np.flatnonzero(~same_by(value, known, 1))
        with claim((id(self), "terms")):
            if self.block_size is None:
                self.block_size = self._size_of_blocks()
            size, golden = self.block_size, self._terms(rows.k, self.block_size) if self.block_size else None
            session = self._opened(size) if golden is not None else None
        if golden is None or session is None:
            self._inexact.add(rows.k)
            return None
        faulty = dict.fromkeys((differs // size).tolist())
        if not faulty or 2 * len(faulty) > len(golden):
            return None
        made = _faulty_terms(session, rows, value, size, [*faulty])
        every = (made[n] if n in made else rows.pick_of(partial(_one_of, golden, n)) for n in range(len(golden)))
        return self._sum(rows, [*every])

    def _size_of_blocks(self) -> int:
        """Return how many channels the runtime sums at a time; 0 if it is unknown, or the terms take too much."""
        whole = self.golden.values(0, [self.conv.output])[self.conv.output]
        batches = -(-self.golden.data.samples // self.golden.size)
        for size in block_sizes(self.segmented.segmentation.net, self.conv):
            many = -(-self._shape[1] // size) * batches
            if many * whole.nbytes * _SHARE <= self.golden.budget_bytes and self._terms(0, size) is not None:
                return size
            self._session = None
        return 0

    def _terms(self, k: int, size: int) -> list[Array] | None:
        """Return the golden terms of a batch, of so many channels each; None if their sum is not golden."""
        golden, name = self.golden, self.conv.output
        numbers = range(-(-self._shape[1] // size))
        if all(golden.has(k, (name, size, number)) for number in numbers):
            made = [golden.kept(k, (name, size, number)) for number in numbers]
        else:
            into = golden.values(k, [self.conv.input])[self.conv.input]
            feeds = {block_input(n): np.ascontiguousarray(into[:, n * size : (n + 1) * size]) for n in numbers}
            made = [*self._opened(size).run(feeds).values()]
        if k not in self._exact_in:  # the terms of another entry are the same, its outputs may differ
            if not self._is_exact(k, self._sum(SampleRows(golden, k), made)):
                return None
            self._exact_in.add(k)
        return [golden.derived(k, (name, size, n), partial(made.__getitem__, n)) for n in numbers]

    def _opened(self, size: int) -> Session:
        """Return the session that computes terms of so many channels each."""
        if self._session is None:
            net = self.segmented.segmentation.net
            self._session = self._prepare(
                partial_sum_model(net, self.conv, array_at(net, TensorLocation(self.conv.weight)), size)
            )
        return self._session

    def _is_exact(self, k: int, given: Array) -> bool:
        """Return whether the sum of the golden terms is the output of the convolution.

        With an addition after it, a runtime does not show that output: those of the entry subgraph must be golden.
        """
        if not self.conv.addend:
            return same_bytes(given, self.golden.values(k, [self.conv.output])[self.conv.output])
        rows = SampleRows(self.golden, k)
        found = self.entry.outputs(rows, {}, FaultyEntry(self.entry, {self.conv.output: given}))
        return all(same_bytes(found[name], array) for name, array in rows.values(self.entry.output_names).items())

    def _sum(self, rows: SampleRows, of: Sequence[Array]) -> Array:
        """Return the sum of these terms, the addend and the bias, in the order of the runtime."""
        added = list(rows.values([self.conv.addend]).values()) if self.conv.addend else []
        bias = [] if self._bias is None else [self._bias.reshape(-1, *[1] * (of[0].ndim - 2))]
        return _sum([*added, *of, *bias])


def _faulty_terms(
    session: Session, rows: SampleRows, value: Array, size: int, faulty: Sequence[int]
) -> dict[int, Array]:
    """Return the terms of these blocks for an input that differs."""
    names = [block_output(number) for number in faulty]
    every = {n: value[:, n * size : (n + 1) * size] for n in range(-(-value.shape[1] // size))}
    # Of the other blocks no sample: a runtime takes all inputs that a model has.
    none = {block_input(n): block[:0] for n, block in every.items() if n not in faulty}

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return session.run({**none, **feeds}, names)

    feeds = {block_input(n): np.ascontiguousarray(every[n]) for n in faulty}
    found = run(feeds) if rows.some is None else padded(run, feeds, len(rows.some))
    return dict(zip(faulty, found.values(), strict=True))


def _sum(arrays: Sequence[Array]) -> Array:
    """Return the sum of arrays from the first to the last, in memory of its own."""
    with released(), np.errstate(all="ignore"):
        total = np.array(arrays[0])
        for array in arrays[1:]:
            np.add(array, total, out=total)
    return total


def _one_of(arrays: Sequence[Array], number: int, k: int) -> Array:
    return arrays[number]


class FirstSegments:
    """The convolutions at the start of segments, each opened when its segment is the first to run."""

    def __init__(self, segmented: SegmentedModel) -> None:
        self.segmented = segmented
        self.opened: dict[int, ConvDelta | None] = {}

    def run(self, number: int, rows: SampleRows, differing: Mapping[str, Array]) -> dict[str, Array] | None:
        """Return the outputs of a segment; None if it runs as it is."""
        with claim((id(self), number)):
            if number not in self.opened:
                self.opened[number] = open_conv_delta(
                    self.segmented,
                    EntrySubgraph(number, (self.segmented.segmentation.segments[number],)),
                    self.segmented.segment_sessions.prepare,
                )
        delta = self.opened[number]
        faulty = None if delta is None else delta.faulty_entry(rows, differing)
        return None if faulty is None else faulty.run(rows, differing)


def open_conv_delta(
    segmented: SegmentedModel, entry: EntrySubgraph, prepare: Callable[[SubgraphModel], Session]
) -> ConvDelta | None:
    """Open an entry subgraph whose first convolution may be computed in terms; None if it has none."""
    found = segmented.segmentation.conv_entry(entry)
    if found is None or segmented.exact:
        return None
    try:
        return ConvDelta(segmented, *found, prepare)
    except EngineError:
        return None
