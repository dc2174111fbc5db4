"""Weights: where the large stored tensors of a model lie, from where they are read each time that they are needed."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.graph.model.byte_source import ByteSource


@dataclass(frozen=True)
class StoredArray:
    """Where a tensor lies: its bytes from `start` on, little-endian and packed.

    >>> from onnxfi.graph.model.byte_source import ByteSource
    >>> StoredArray(ByteSource.memory(bytes(range(8))), 4, np.dtype(np.uint8), (2, 2)).read().tolist()
    [[4, 5], [6, 7]]
    """

    source: ByteSource
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> NDArray[Any]:
        """The tensor, in memory of its own; ModelError where the file is another one by now."""
        array = np.empty(self.shape, self.dtype)
        self.into(array)
        return array

    def into(self, array: NDArray[Any]) -> None:
        """Read the tensor into an array of its type and shape; ModelError where the file is another one by now."""
        with self.source.filling() as fill:
            fill(self.start, memoryview(array.reshape(-1).view(np.uint8).data))
        if sys.byteorder == "big":
            array.byteswap(inplace=True)
