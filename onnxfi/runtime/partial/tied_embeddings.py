"""Tied embeddings: rows of a tensor are looked up, and the whole of it is the weight of a later matrix product.

A fault changes the rows that hold it. Where the data looks up none of them, only channels of the later product differ.
Where it does, the model runs from the rows on, and the later segment gets the faulty channels of what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxfi.graph.partition.output_channels import OutputChannels
from onnxfi.graph.partition.segments import EntrySubgraph
from onnxfi.runtime.engine.ports import Array
from onnxfi.runtime.partial.entry_subgraph import EntrySession, FaultyEntry
from onnxfi.runtime.partial.segmented_model import SampleRows, SegmentedModel

#: Takes the inputs of the product and its output, and returns the output with its faulty channels.
ReplaceChannels = Callable[[Mapping[str, Array], Array], Array]


class RowLookups:
    """The rows of a faulty tensor that are looked up, and what they reach.

    `opened` opens an entry subgraph; those of the rows are opened when a trial needs them.
    """

    def __init__(
        self, segmented: SegmentedModel, channels: OutputChannels, opened: Callable[[EntrySubgraph], EntrySession]
    ) -> None:
        self.segmented, self.channels, self._opened = segmented, channels, opened
        self.values, self.indices = segmented.segmentation.looked_up(channels)
        self.segment = segmented.segmentation.within[channels.output]

    @cached_property
    def entries(self) -> list[EntrySession]:
        """Return the entry subgraphs of the rows."""
        return [self._opened(entry) for entry in self.segmented.segmentation.activation_entries(self.values) or ()]

    def golden_indices(self, k: int) -> Mapping[str, Array]:
        """Return the golden indices of batch k.

        A session may run for them, and other threads have their turn meanwhile: so no tensor may be faulty then.
        """
        return self.segmented.golden.values(k, tuple(dict.fromkeys(self.indices)))

    def changed(self, golden: Mapping[str, Array], tensor: Array, faulty: NDArray[np.int64]) -> dict[str, Array]:
        """Return the activations that hold faulty rows of a tensor, by the golden indices and its faulty elements."""
        rows, found = np.unique(faulty // (tensor.size // len(tensor))), {}
        for name, index in zip(self.values, self.indices, strict=True):
            if np.isin(golden[index] % len(tensor), rows).any():
                found[name] = np.take(tensor, golden[index], 0)
        return found

    def run(
        self, k: int, changed: Mapping[str, Array], replace: ReplaceChannels
    ) -> tuple[SampleRows, dict[str, Array]]:
        """Run batch k from these activations on; see `SegmentedModel.run_from`."""
        makers, changes = self.segmented.segmentation.makers, {n: _become(array) for n, array in changed.items()}
        faulty = {e.entry.segment: FaultyEntry(e, changes=changes) for e in self.entries}
        start = min([*faulty, *(max(0, makers[name]) for name in changed if name in makers)])
        last = _WithChannels(self, replace)
        rows = SampleRows(self.segmented.golden, k)
        return self.segmented.run_from(rows, {}, start, {**faulty, self.segment: last}, changes)


def _become(array: Array) -> Callable[[Array], Array]:
    return lambda _: array


@dataclass(frozen=True)
class _WithChannels:
    """The segment of the product, which gets its faulty channels."""

    lookups: RowLookups
    replace: ReplaceChannels
    changed_inside: frozenset[str] = frozenset()

    def run(self, rows: SampleRows, differing: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of the segment, where `differing` differs from the golden activations."""
        segmented, number, output = self.lookups.segmented, self.lookups.segment, self.lookups.channels.output
        segment = segmented.segmentation.segments[number]
        feeds = rows.values(segment.inputs) | {n: differing[n] for n in segment.inputs if n in differing}
        inner = [name for name in segmented.segmentation.inner[number] if name not in feeds]
        within = segmented.segment_sessions.inner(number).run(feeds, inner) if inner else {}
        found = segmented.run_segment(number, rows, differing)
        return {**found, output: self.replace({**feeds, **within}, found[output])}
