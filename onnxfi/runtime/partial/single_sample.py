"""Faults in an activation of one sample: the nodes that it reaches are executed for that sample alone.

Trials with faults in one activation share a run after its segment, each in a row of its own, where rows have the bits
that they have in their batches: then it does not matter which trials a worker gets together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxfi.errors import SegmentMismatchError
from onnxfi.graph.partition.subgraph_model import SubgraphModel
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.data.sample_outputs import Outputs, outputs_of
from onnxfi.runtime.engine.ports import Array, same_bytes
from onnxfi.runtime.engine.protocols import Session
from onnxfi.runtime.partial.entry_subgraph import EntrySession, FaultyEntry
from onnxfi.runtime.partial.golden_cache import check_shapes, of_golden_shapes
from onnxfi.runtime.partial.reexecution import golden_outputs
from onnxfi.runtime.partial.segmented_model import ActivationChange, SampleRows, SegmentedModel

#: A batch, and a row of it.
_Place = tuple[int, int]
#: Rows of a run that several trials share.
_ROWS = 8


class SingleSample:
    """The part of a model that one activation reaches, ready to run for any one sample.

    Opening raises SegmentMismatchError if the model cannot be cut there, or does not keep samples apart.
    """

    def __init__(self, segmented: SegmentedModel, value: str) -> None:
        self.segmented, self.value, self.golden = segmented, value, segmented.golden
        routes, self.cost_bytes = segmented.segmentation, 0
        found = routes.activation_entries([value])
        if found is None or len(found) > 1 or not (found or routes.is_boundary(value)):
            raise SegmentMismatchError(f"the model cannot be cut at {value!r}")
        self.start = (found[0].segment if found else routes.makers[value]) + 1
        self._entry = EntrySession(segmented, found[0], self._prepared, {}) if found else None
        first = self.start - 1 if found else self.start
        keeps_apart = first >= len(routes.segments) or segmented.keeps_apart(first, 1)
        if keeps_apart and self._entry is not None:
            # A shape may have as many numbers as there are samples.
            taken = self.golden.values(0, [*self._entry.entry.inputs]).values()
            keeps_apart = all(array.ndim > 1 for array in taken) or self._entry.keeps_bits(1)
        if not keeps_apart:
            raise SegmentMismatchError(f"samples are not apart behind {value!r}")

    def _prepared(self, part: SubgraphModel) -> Session:
        self.cost_bytes += part.size_bytes
        return self.segmented.segment_sessions.prepare(part)

    def outputs(self, sample: int, change: ActivationChange | None = None) -> Outputs:
        """Return the outputs of one sample ([1, …]) with its faulty activation."""
        [found] = self.shared([(sample, change)])
        return found

    def shared(self, asked: Sequence[tuple[int, ActivationChange | None]]) -> list[Outputs]:
        """Return the same for several samples with the change of each, in as few runs as possible."""
        found = [self._golden(sample) for sample, _ in asked]
        running: list[tuple[int, _Place, dict[str, Array]]] = []
        for number, (sample, change) in enumerate(asked):
            differing = self._injected(self.golden.place(sample), change) if change is not None else {}
            if differing:
                running.append((number, self.golden.place(sample), differing))
        for first in range(0, len(running), _ROWS):
            some = running[first : first + _ROWS]
            rows = self.run_together([place for _, place, _ in some], [differing for _, _, differing in some])
            for (number, _, _), row in zip(some, rows, strict=True):
                found[number] = row if row is not None else found[number]
        return found

    def _golden(self, sample: int) -> Outputs:
        k, row = self.golden.place(sample)
        whole = golden_outputs(self.segmented, k)
        if not whole.has_rows:
            raise SegmentMismatchError("the outputs have no row for each sample")
        return whole.take(np.array([row]))

    def _injected(self, place: _Place, change: ActivationChange) -> dict[str, Array]:
        """Return what differs after the segment in which the activation of one sample is faulty."""
        rows = SampleRows(self.golden, place[0], ((*place, 0),), alone=True)
        before = rows.values([self.value])[self.value]
        after = change(before)
        if same_bytes(after, before):
            return {}
        if self._entry is None:
            return {self.value: after}
        with of_golden_shapes():
            found = FaultyEntry(self._entry, {self.value: after}).run(rows, {})
        golden = rows.values([*found])
        check_shapes(found, golden)
        return {name: found[name] for name, array in golden.items() if not same_bytes(found[name], array)}

    def run_together(self, places: Sequence[_Place], lives: Sequence[Mapping[str, Array]]) -> list[Outputs | None]:
        """Return the outputs of each, several to a run; None if the fault is masked."""
        some = tuple((k, row, number) for number, (k, row) in enumerate(places))
        rows = SampleRows(self.golden, places[0][0], some, alone=True)
        differing = rows.values([*dict.fromkeys(name for differing in lives for name in differing)])
        for number, one in enumerate(lives):
            for name, array in one.items():
                differing[name][number] = array[0]
        with of_golden_shapes():
            ended, found = self.segmented.run_from(rows, differing, self.start)
        assert ended.some is not None
        size = len(ended.some)
        names = self.segmented.segmentation.outputs
        wanted = names or self.segmented.outputs
        known = ended.values([name for name in wanted if name not in found])
        every = {name: found[name] if name in found else known[name] for name in wanted}
        outputs = outputs_of(Batch(0, {}, None, size, size), every, self.golden.axes, names)
        if not outputs.has_rows:
            raise SegmentMismatchError("the outputs of one sample are not one row")
        out: list[Outputs | None] = [None] * len(lives)
        for at, (k, row, number) in enumerate(ended.some):
            batch = self.golden.batch(k)
            assert batch is not None
            own = replace(outputs.take(np.array([at])), samples=np.array([batch.start + row]))
            out[number] = own if self.golden.reduce is None else self.golden.reduce(own)
        return out
