"""A model in segments: a trial runs from its fault on, as long as activations differ from the golden ones.

Late start and early stop: nothing runs before the fault, a segment whose inputs all equal the golden ones does not run,
and samples in which the fault is masked are dropped. The state of a trial is the set of activations that differ from
the golden ones.

A runtime may compute few samples differently from many. That depends on shapes alone, so each segment runs once with so
many golden samples from both ends of a batch before it runs for that many; where one differs, all samples run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, EngineError, SegmentMismatchError
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Array, same_by, same_bytes
from onnxfi.runtime.partial.golden_cache import GoldenCache, check_shapes

#: Operators whose result depends on all samples together.
_TOGETHER = frozenset(("If", "Loop"))
#: A function of an activation that returns the faulty activation.
ActivationChange = Callable[[Array], Array]


@dataclass(frozen=True)
class SampleRows:
    """Samples that run together: all of batch k, or some rows, each with its batch, its row there, and its number."""

    golden: GoldenCache
    k: int
    some: tuple[tuple[int, int, int], ...] | None = None
    alone: bool = False

    def values(self, names: Sequence[str]) -> dict[str, Array]:
        """Return their golden activations."""
        if self.some is None:
            return self.golden.values(self.k, names)
        batches = {k: self.golden.values(k, names) for k in dict.fromkeys(k for k, _, _ in self.some)}
        for k, values in batches.items():
            batch = self.golden.batch(k)
            if without := [n for n, a in values.items() if batch is None or not a.ndim or len(a) != batch.size]:
                raise SegmentMismatchError(f"{without[0]!r} has no row for each sample")
        return {name: self.pick_of(lambda k, name=name: batches[k][name]) for name in names}  # type: ignore[misc]

    def pick_of(self, whole: Callable[[int], Array]) -> Array:
        """Return their rows of an array of each batch."""
        if self.some is None:
            return whole(self.k)
        if len({k for k, _, _ in self.some}) == 1:
            return whole(self.some[0][0])[self.places]
        return np.stack([whole(k)[row] for k, row, _ in self.some])

    @property
    def places(self) -> NDArray[np.int64]:
        """Return their rows in their batch."""
        return np.array([row for _, row, _ in self.some or ()], np.int64)

    def pick(self, keep: NDArray[np.int64]) -> SampleRows:
        """Return some of them."""
        batch = self.golden.batch(self.k)
        assert batch is not None
        every = self.some or tuple((self.k, row, row) for row in range(batch.size))
        return SampleRows(self.golden, self.k, tuple(every[at] for at in keep.tolist()), self.alone)


class SegmentReplacement(Protocol):
    """The replacement of a segment that has a fault in it."""

    @property
    def changed_inside(self) -> frozenset[str]:
        """Return the activations that it changes itself."""
        ...

    def run(self, rows: SampleRows, differing: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of the segment, where `differing` differs from the golden activations."""
        ...


class FirstSegment(Protocol):
    """The replacement of the first segment that runs for a trial."""

    def run(self, number: int, rows: SampleRows, differing: Mapping[str, Array]) -> dict[str, Array] | None:
        """Return the outputs of the segment; None if it runs as it is."""
        ...


class SegmentedModel:
    """The segments of a model, and the golden activations between them.

    Parameters
    ----------
    golden : GoldenCache
        The golden activations.
    late : bool
        Whether a trial starts at its fault.
    exact : bool
        Whether every convolution is computed as a whole, never as a sum of terms.
    """

    def __init__(self, golden: GoldenCache, *, late: bool = True, exact: bool = False) -> None:
        self.golden, self.late, self.exact = golden, late, exact
        self.segment_sessions, self.segmentation = golden.segment_sessions, golden.segment_sessions.segmentation
        self.outputs = self.segmentation.outputs or self.segmentation.net.outputs
        self._keeps_apart: dict[tuple[int, int], bool] = {}
        self.first: FirstSegment | None = None
        #: Of each batch what the task keeps of its golden outputs.
        self.reduced: dict[int, Outputs] = {}

    def run_from(
        self,
        rows: SampleRows,
        differing: Mapping[str, Array],
        start: int,
        faulty: Mapping[int, SegmentReplacement] | None = None,
        changes: Mapping[str, ActivationChange] | None = None,
    ) -> tuple[SampleRows, dict[str, Array]]:
        """Run the segments from `start` on, as far as activations differ from the golden ones.

        Parameters
        ----------
        rows : SampleRows
            The samples that run.
        live : mapping of str to array
            The activations that differ before the first segment.
        start : int
            The number of the first segment.
        faulty : mapping of int to SegmentReplacement, optional
            The segments that have faults in them.
        changes : mapping of str to callable, optional
            The changes of activations between segments.

        Returns
        -------
        rows : SampleRows
            The samples whose outputs may differ.
        outputs : dict of str to array
            The outputs of the model that differ, for these samples.

        Raises
        ------
        SegmentMismatchError
            If the samples cannot run alone, or a fault changes the shape of an activation between segments.
        """
        faulty, changes, differing = faulty or {}, dict(changes or {}), dict(differing)
        last = max(
            [
                start - 1,
                *faulty,
                *(self.segmentation.makers[name] for name in changes if name in self.segmentation.makers),
            ]
        )
        self._inject(rows, differing, changes, -1)
        first = self.first
        for number in range(start if self.late else 0, len(self.segmentation.segments)):
            segment, entry = self.segmentation.segments[number], faulty.get(number)
            begun = number >= start
            if entry is not None or not (begun and differing.keys().isdisjoint(segment.inputs)):
                if number > last:
                    rows, differing = self._fewer(rows, differing, number)
                found = None
                if entry is not None:
                    found = entry.run(rows, differing)
                elif first is not None:
                    found, first = first.run(number, rows, differing), None
                found = self.run_segment(number, rows, differing) if found is None else found
                golden = rows.values(list(found))
                check_shapes(found, golden)
                for name, array in golden.items():
                    if same_bytes(found[name], array):
                        differing.pop(name, None)
                    else:
                        differing[name] = found[name]
            self._inject(rows, differing, changes, number, entry.changed_inside if entry is not None else frozenset())
        return rows, {name: array for name, array in differing.items() if name in self.outputs}

    def _inject(
        self, rows: SampleRows, differing: dict[str, Array], changes: Mapping[str, ActivationChange], maker: int,
        done: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        """Change the faulty outputs of a segment (−1: the inputs of the model), but for those that are `done`."""
        for name in changes:
            if self.segmentation.makers.get(name) == maker and name not in done:
                [before] = rows.values([name]).values()
                after = changes[name](differing.get(name, before))
                if same_bytes(after, before):
                    differing.pop(name, None)
                else:
                    differing[name] = after

    def run_segment(self, number: int, rows: SampleRows, differing: Mapping[str, Array]) -> dict[str, Array]:
        """Run a segment on inputs that differ, with golden values for the others."""
        segment = self.segmentation.segments[number]
        known = rows.values([name for name in segment.inputs if name not in differing])
        feeds = {name: differing[name] if name in differing else known[name] for name in segment.inputs}
        session = self.segment_sessions.sessions[number]
        return session.run(feeds) if rows.some is None else padded(session.run, feeds, len(rows.some))

    def _fewer(self, rows: SampleRows, differing: dict[str, Array], number: int) -> tuple[SampleRows, dict[str, Array]]:
        """Return the samples that still differ, where the segments from here on can run them alone."""
        size = self.size(rows)
        # To compare each sample of the spikes of all steps costs more than the segments after them.
        free = self.golden.data.layout.fixed is None and not self.segmentation.steps
        if free and differing and all(array.ndim and len(array) == size for array in differing.values()):
            masked = np.ones(size, np.bool_)
            for name, array in rows.values([*differing]).items():
                masked &= same_by(differing[name], array, 0) if masked.any() else False
            keep = np.flatnonzero(~masked)
            if len(keep) < size and self._can(number, len(keep), size):
                return rows.pick(keep), {name: array[keep] for name, array in differing.items()}
        if rows.some is None or self.keeps_apart(number, among(size)):
            return rows, differing
        if rows.alone:
            raise SegmentMismatchError(f"segment {number} does not keep samples apart")
        return SampleRows(self.golden, rows.k), self.whole(rows, differing)

    def _can(self, number: int, few: int, size: int) -> bool:
        """Return whether a segment may run so few samples, and that is worth it."""
        return few > 0 and 2 * among(few) <= size and self.keeps_apart(number, among(few))

    def size(self, rows: SampleRows) -> int:
        """Return the number of samples that run."""
        batch = self.golden.batch(rows.k)
        assert batch is not None
        return batch.size if rows.some is None else len(rows.some)

    def whole(self, rows: SampleRows, differing: Mapping[str, Array]) -> dict[str, Array]:
        """Return the golden activations of a batch with those of some samples in their place."""
        found = {name: np.array(array) for name, array in self.golden.values(rows.k, list(differing)).items()}
        for name, array in found.items():
            array[rows.places] = differing[name]
        return found

    def keeps_apart(self, number: int, few: int) -> bool:
        """Return whether a segment gives so many samples the bits that they have in their batch."""
        if (number, few) not in self._keeps_apart:
            segment, nodes = self.segmentation.segments[number], self.segmentation.net.proto.graph.node
            self._keeps_apart[number, few] = _TOGETHER.isdisjoint(
                nodes[k].op_type for k in segment.nodes
            ) and self.keeps_bits(self.segment_sessions.sessions[number].run, segment.inputs, segment.outputs, few)
        return self._keeps_apart[number, few]

    def keeps_bits(
        self,
        run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
        taken: Sequence[str],
        given: Sequence[str],
        few: int,
    ) -> bool:
        """Return whether runs of the first samples of the first batch, and of its last, give their golden activations.

        They run in another order, and from both ends: what depends on all samples together, as their largest value
        does, differs in one of the two.
        """
        first = self.golden.batch(0)
        if self.golden.data.layout.fixed is not None or first is None or few > first.size:
            return False
        into = self.golden.values(0, taken)
        known = self.golden.values(0, given)
        if any(not array.ndim or len(array) != first.size for array in (*into.values(), *known.values())):
            return False
        try:
            for index in (np.arange(few)[::-1], np.arange(first.size - few, first.size)):
                found = run({name: np.ascontiguousarray(array[index]) for name, array in into.items()})
                if not all(same_bytes(found[name], known[name][index]) for name in given):
                    return False
        except (EngineError, DataError):  # as where a shape has as many numbers as there are samples
            return False
        return True


def among(few: int) -> int:
    """Return the number of samples that so few run with: kernels may depend on it, so there are few such numbers."""
    return 1 << max(0, few - 1).bit_length()


def padded(
    run: Callable[[Mapping[str, Array]], dict[str, Array]], feeds: Mapping[str, Array], few: int
) -> dict[str, Array]:
    """Run so few samples, the last one repeated as often as needed."""
    size = among(few)
    if size == few:
        return run(feeds)
    index = np.minimum(np.arange(size), few - 1)
    return {name: array[:few] for name, array in run({n: array[index] for n, array in feeds.items()}).items()}
