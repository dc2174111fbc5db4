"""Fault models of neurons and synapses, as the literature on spiking networks names them.

A dead neuron or synapse, a saturated one, and a bit flipped in a quantised view of weights that are stored as floats.
Others have names already: a stuck neuron is `set:value=…`, a perturbed synapse or parameter `scale:factor=…`, a bit
flip `flip`. docs/how-to/spiking.md has the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError
from onnxfi.faults.models import FaultModel, Set
from onnxfi.faults.words import Mask, Word


@dataclass(frozen=True)
class Dead(FaultModel):
    """A neuron that never spikes, a synapse that carries nothing: the number becomes 0."""

    name = "dead"
    replaces = True
    examples = ("dead",)

    def mask(self, word: Word, bit: int) -> Mask:
        return Mask(0, 0)


@dataclass(frozen=True)
class Saturated(FaultModel):
    """A neuron that always spikes, or a synapse at the end of its tensor's range.

    A word becomes the number that `percentile` percent of the tensor's numbers do not exceed (with `side=negative`:
    that so many do not fall below); spikes, stored or in flight, become 1. Bound to a tensor it is written as `set`.
    """

    percentile: float = 100.0
    side: str = "positive"
    name = "saturated"
    replaces = True
    binds = True
    examples = ("saturated", "saturated:percentile=99", "saturated:percentile=95,side=negative")

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= 100:
            raise FaultError(f"fault 'saturated': percentile={self.percentile} is out of range; give 0 to 100")
        if self.side not in ("positive", "negative"):
            raise FaultError(f"fault 'saturated': side={self.side!r} is unknown; give positive or negative")

    def bind(self, values: NDArray[Any]) -> Set:
        whole = values.dtype.kind in "biu" or "int" in values.dtype.name  # ml_dtypes' formats have a kind of their own
        share = (self.percentile if self.side == "positive" else 100.0 - self.percentile) / 100
        if not whole:
            with np.errstate(invalid="ignore"):  # signalling NaN
                known = values[np.isfinite(values)].astype(np.float64)
            return Set(float(np.quantile(known, share)) if known.size else 1.0)
        if not values.size:
            return Set(1.0)
        # In whole numbers: float64 would round those of 64 bits that lie beyond 2**53.
        place = share * (values.size - 1)
        below, above = int(place), -int(-place // 1)
        exact = values.ravel().astype(np.uint64 if values.dtype == np.uint64 else np.int64)
        low, high = (int(n) for n in np.partition(exact, (below, above))[[below, above]])
        return Set(low + round((high - low) * (place - below)))

    def mask(self, word: Word, bit: int) -> Mask:
        return Set(1.0).mask(word, bit)  # unbound, as in flight, where it is a spike


@dataclass(frozen=True)
class FlipQuantised(FaultModel):
    """A bit flips in the integer that a symmetric quantisation to `bits` would store in place of the float.

    The integer is round(number / scale), with the scale that puts the tensor's largest magnitude at the integer's end;
    the flipped one times the scale is stored. Each word spends its own `bit` (0 is the lowest) where none is given.
    """

    bits: int = 8
    bit: int = -1
    scale: float = 0.0
    name = "flip-quantised"
    binds = True
    examples = ("flip-quantised", "flip-quantised:bits=4,bit=3", "flip-quantised:bit=7,scale=0.5")

    def __post_init__(self) -> None:
        for key, good, allowed in (
            ("bits", 2 <= self.bits <= 16, "2 to 16"),
            ("bit", -1 <= self.bit < self.bits, f"0 to {self.bits - 1}"),
            ("scale", 0 <= self.scale < np.inf, "a finite number above 0"),
        ):
            if not good:
                raise FaultError(f"fault 'flip-quantised': {key}={getattr(self, key)} is out of range; give {allowed}")
        object.__setattr__(self, "draws", self.bit < 0)

    def spend(self, raw: int, word: Word) -> FaultModel:
        return self if self.bit >= 0 else replace(self, bit=raw % self.bits)

    def bind(self, values: NDArray[Any]) -> FaultModel:
        return self if self.scale else replace(self, scale=self._scale(values))

    def _scale(self, values: NDArray[Any]) -> float:
        numbers = np.abs(values.astype(np.float64))
        largest = float(np.max(numbers, initial=0.0, where=np.isfinite(numbers)))
        return largest / ((1 << (self.bits - 1)) - 1) or 1.0

    def rule(self, values: NDArray[Any]) -> NDArray[Any]:
        scale, half, bit = self.scale or self._scale(values), 1 << (self.bits - 1), max(self.bit, 0)
        numbers = np.nan_to_num(values.astype(np.float64) / scale, nan=0.0)
        stored = np.clip(np.rint(numbers), -half, half - 1).astype(np.int64)
        flipped = (stored & (2 * half - 1)) ^ (1 << bit)
        return np.asarray(np.where(flipped >= half, flipped - 2 * half, flipped) * scale)
