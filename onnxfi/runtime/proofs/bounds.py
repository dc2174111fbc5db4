"""Bounds of the numbers of a faulty tensor, for several faults and samples at once, and of the rounding of a sum.

A sum of n products x·w is computed within γ·Σ|x||w| of the exact one, γ = m u / (1 − m u) with u = 2⁻²⁴ and m the most
roundings that any term meets: n for every order of summation, blocked or not, with fused multiply-add or without
(Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). Subnormal results may be rounded
absolutely, or flushed to zero, which a small constant for each term covers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: Half the distance from 1 to the next float32.
_UNIT = 2.0**-24
#: Roundings of one term beside those of the sum: of the product, a bias, a factor (alpha, the scale of a normalisation
#: that was merged into the weights, in three steps), an input that is known to one unit in the last place.
_BESIDE = 8
#: More than a subnormal result can be off, be it flushed to zero.
_SUBNORMAL = 2.0**-125
#: A sum of magnitudes that is lower meets no overflow on the way, in whatever order: 0.4 % below the largest float32.
LARGEST = 3.39e38


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


def gamma(terms: int) -> float:
    """Return the relative bound γ of a sum of so many products.

    >>> gamma(1000) < 1.01e3 * 2.0**-24
    True
    """
    steps = (terms + _BESIDE) * _UNIT
    if steps >= 1:
        raise ValueError(f"a sum of {terms:,} terms has no bound in float32")
    return steps / (1 - steps)


def absolute(terms: int) -> float:
    """Return what is lost to subnormal numbers in a sum of so many products."""
    return (terms + _BESIDE) * _SUBNORMAL
