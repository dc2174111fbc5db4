"""Runs of a small model as a whole, on just the samples that a fault needs.

To open a small model takes less time than the calls of a partial execution. A runtime may compute few samples
differently from many, so a number of samples is used only where the fault-free model gives the golden scores with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.faults.trials import Faults
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.data.sample_outputs import Outputs, outputs_of
from onnxfi.runtime.engine.ports import Array, same_bytes
from onnxfi.runtime.engine.protocols import Session
from onnxfi.runtime.partial.segmented_model import among
from onnxfi.tasks.outcomes import GoldenRun

#: Bytes of a model that is small: one of 0.4 MB opens in 2 ms.
SMALL_BYTES = 4 << 20
#: Bytes of samples that are kept at once.
_MOST = 1 << 28


@dataclass(frozen=True)
class SampleRuns:
    """Runs of a whole model on some of the samples.

    Attributes
    ----------
    feeds : mapping of str to array
        The inputs for all samples.
    scores : array [samples, classes]
        The golden scores.
    """

    opened: OpenCampaign
    feeds: dict[str, Array] = field(repr=False)
    scores: Array = field(repr=False)
    _keeps: dict[int, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, opened: OpenCampaign, golden: GoldenRun) -> SampleRuns | None:
        """Return runs of the model of a campaign; None if it is large, or takes its samples otherwise."""
        layout, feeds = opened.data.layout, dict[str, list[Array]]()
        if layout.fixed is not None or layout.axis or opened.reduce is not None or opened.front is not None:
            return None
        if (
            sum(source.size for source in opened.model.sources) > SMALL_BYTES
            or set(opened.data.inputs) != set(layout.batched)
            or len(opened.names) != 1
        ):
            return None
        size = 0
        for batch in opened.data.batches(opened.size):
            size += sum(array.nbytes for array in batch.feeds.values())
            if size > _MOST:
                return None
            for name, array in batch.feeds.items():
                feeds.setdefault(name, []).append(array)
        return cls(opened, {name: np.concatenate(parts) for name, parts in feeds.items()}, golden.scores)

    def run(self, faults: Faults, samples: NDArray[np.int64]) -> Outputs | None:
        """Return the outputs of these samples with faults in the weights; None if so few run differently."""
        size = min(among(len(samples)), len(self.scores))
        return self._outputs(self.opened.faulty_session(faults), samples, size) if self.keeps_bits(size) else None

    def keeps_bits(self, size: int) -> bool:
        """Return whether so many samples, from both ends and in another order, have their golden scores."""
        if size not in self._keeps:
            session, count = self.opened.session(), len(self.scores)
            ends = np.arange(size)[::-1], np.arange(count - size, count)
            found = [self._outputs(session, some, size).arrays for some in ends]
            self._keeps[size] = all(
                same_bytes(next(iter(arrays.values())), np.ascontiguousarray(self.scores[some]))
                for arrays, some in zip(found, ends, strict=True)
            )
        return self._keeps[size]

    def _outputs(self, session: Session, samples: NDArray[np.int64], size: int) -> Outputs:
        index = samples[np.minimum(np.arange(size), len(samples) - 1)]
        feeds = {name: array[index] for name, array in self.feeds.items()}
        batch = Batch(0, feeds, None, size, len(samples))
        names = self.opened.names
        found = outputs_of(batch, session.run(feeds, names), self.opened.axes, names)
        return Outputs(samples, found.arrays)
