"""Bounds of the numbers of a faulty tensor, for several faults and samples at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ValueBounds:
    """Numbers between which a runtime's values of a faulty tensor lie.

    Attributes
    ----------
    low, high : float64 array [faults, samples, channels, …]
        The lowest and the highest value; a NaN where nothing is certain.
    live : bool array [faults, samples]
        False where the tensor is certainly the golden one.
    channels : int array, optional
        The channels that are here; all others are golden. None: all are here.
    """

    low: Floats
    high: Floats
    live: NDArray[np.bool_]
    channels: NDArray[np.int64] | None = None

    def mapped(self, monotone: Callable[[Floats], Floats]) -> ValueBounds:
        """Return the bounds behind a function of single elements that never decreases."""
        return ValueBounds(monotone(self.low), monotone(self.high), self.live, self.channels)

    def of(self, golden: Floats) -> Floats:
        """Return the channels that are here of a golden tensor [samples, channels, …]."""
        return golden if self.channels is None else golden[:, self.channels]
