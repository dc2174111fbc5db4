"""Weights: the large stored tensors of a model, each read when it is first asked for, and in memory once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.graph.model.byte_source import Source


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its bytes from `start` on, little-endian and packed."""

    source: Source
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> NDArray[Any]:
        """The tensor; ModelError where the file is another one by now."""
        array = np.empty(self.shape, self.dtype.newbyteorder("<"))
        with self.source.filling() as fill:
            fill(self.start, memoryview(array.reshape(-1).view(np.uint8).data))
        return array.astype(self.dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True)
class Weights(Mapping[str, NDArray[Any]]):
    """Tensors by name.

    >>> from onnxfi.graph.model.byte_source import Source
    >>> found = Weights({"w": Stored(Source.memory(bytes(range(8))), 4, np.dtype(np.uint8), (2, 2))})
    >>> found["w"].tolist(), found["w"] is found["w"]
    ([[4, 5], [6, 7]], True)
    """

    places: Mapping[str, Stored]
    _read: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._read:
            self._read[name] = self.places[name].read()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)
