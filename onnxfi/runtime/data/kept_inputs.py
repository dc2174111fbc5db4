"""Inputs that a task reads beside the outputs, as a mask of the words that are no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, closest
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.engine.ports import Array

#: Bytes of inputs that are kept for a task.
MOST_BYTES = 1 << 29


@dataclass(frozen=True, eq=False)
class KeptInputs:
    """Some inputs of all samples, batch by batch, samples first; `starts` are the first samples of the batches."""

    starts: NDArray[np.int64]
    batches: tuple[dict[str, Array], ...]

    @classmethod
    def read(cls, data: Data, size: int, names: Sequence[str]) -> KeptInputs:
        """Read these inputs of all data.

        Raises
        ------
        DataError
            If one is not an input with a row per sample, or they take too much memory.

        Examples
        --------
        >>> from onnxfi.graph.dataflow.sample_axis import BatchLayout
        >>> data = Data.of_arrays({"x": np.arange(6).reshape(3, 2)}, None, BatchLayout(0, (("x", 0),), None), "")
        >>> KeptInputs.read(data, 2, ["x"]).of(np.array([1]))["x"]
        array([[2, 3]])
        """
        for name in names:
            if name not in data.layout.batched:
                raise DataError(f"the task reads input {name!r}{closest(name, data.layout.batched)} of each sample")
        starts, batches, total = [], list[dict[str, Array]](), 0
        for batch in data.batches(size):
            first = {n: np.moveaxis(batch.feeds[n], data.layout.batched[n], 0)[: batch.valid] for n in names}
            total += sum(array.nbytes for array in first.values())
            if total > MOST_BYTES:
                raise DataError(f"inputs {', '.join(names)} take too much memory; take fewer samples with --samples")
            starts.append(batch.start)
            batches.append(first)
        return cls(np.array(starts), tuple(batches))

    def of(self, samples: NDArray[np.int64]) -> dict[str, Array]:
        """Return the inputs of some samples of one batch."""
        k = int(np.searchsorted(self.starts, samples[0], side="right")) - 1 if len(samples) else 0
        return {name: array[samples - self.starts[k]] for name, array in self.batches[k].items()}
