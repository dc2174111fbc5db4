"""Fault models of neurons and synapses, as the literature on spiking networks names them.

A dead neuron or synapse, a saturated one, a bit flip in a quantised view of weights that are stored as floats, and a
time constant that drifts.
Other faults of that literature are built-in models: a stuck neuron is `set:value=…`, a perturbed synapse or parameter
`scale:factor=…`, a bit flip `flip`. docs/how-to/spiking.md has the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.models import RandomScale, Set
from onnxfi.faults.words import Mask, Word


@dataclass(frozen=True)
class Dead(FaultModel):
    """Neuron that never spikes, or synapse that transmits nothing: the number becomes 0.

    Stands for a defective neuron or synapse circuit, a permanent fault.
    """

    name = "dead"
    overwrites = True
    examples = ("dead",)

    def mask(self, word: Word, bit: int) -> Mask:
        """Return the mask that clears the word."""
        return Mask(0, 0)


@dataclass(frozen=True)
class Saturated(FaultModel):
    """Neuron that always spikes, or synapse at the end of its tensor's range.

    Stands for a defective neuron circuit or a memory device stuck in its extreme state, a permanent fault. A word
    becomes the number that `percentile` percent of the tensor's numbers do not exceed (with `side=negative`: that so
    many are not below); spikes, stored or computed, become 1. For a given tensor it is written as `set`.
    """

    percentile: float = 100.0
    side: str = "positive"
    name = "saturated"
    overwrites = True
    depends_on_tensor = True
    examples = ("saturated", "saturated:percentile=99", "saturated:percentile=95,side=negative")

    def __post_init__(self) -> None:
        """Check the parameters."""
        self.require(0 <= self.percentile <= 100, "percentile", "0 to 100")
        self.require_known("side", ("positive", "negative"), "positive or negative")

    def for_tensor(self, values: NDArray[Any]) -> Set:
        """Return the replacement by the percentile of these numbers."""
        whole = values.dtype.kind in "biu" or "int" in values.dtype.name  # ml_dtypes' formats have a kind of their own
        share = (self.percentile if self.side == "positive" else 100.0 - self.percentile) / 100
        if not whole:
            with np.errstate(invalid="ignore"):  # signalling NaN
                finite = values[np.isfinite(values)].astype(np.float64)
            return Set(float(np.quantile(finite, share)) if finite.size else 1.0)
        if not values.size:
            return Set(1.0)
        # In whole numbers: float64 would round those of 64 bits that lie beyond 2**53.
        position = share * (values.size - 1)
        below, above = int(position), -int(-position // 1)
        exact = values.ravel().astype(np.uint64 if values.dtype == np.uint64 else np.int64)
        low, high = (int(n) for n in np.partition(exact, (below, above))[[below, above]])
        return Set(low + round((high - low) * (position - below)))

    def mask(self, word: Word, bit: int) -> Mask:
        """Return the mask that sets a spike: without a tensor the fault is in an activation of spikes."""
        return Set(1.0).mask(word, bit)


@dataclass(frozen=True)
class FlipQuantised(FaultModel):
    """Bit flip in the integer that a symmetric quantisation to `bits` would store in place of the float.

    Stands for an SEU in the memory of a quantised accelerator, injected into a model that still holds floats. The
    integer is round(number / scale), with the scale that puts the tensor's largest magnitude at the integer's end; the
    flipped integer times the scale is stored. Each word draws its own `bit` (0 is the lowest) if none is given.
    """

    bits: int = 8
    bit: int = -1
    scale: float = 0.0
    name = "flip-quantised"
    depends_on_tensor = True
    examples = ("flip-quantised", "flip-quantised:bits=4,bit=3", "flip-quantised:bit=7,scale=0.5")

    def __post_init__(self) -> None:
        """Check the parameters."""
        self.require(2 <= self.bits <= 16, "bits", "2 to 16")
        self.require(-1 <= self.bit < self.bits, "bit", f"0 to {self.bits - 1}")
        self.require(0 <= self.scale < np.inf, "scale", "a finite number above 0")
        object.__setattr__(self, "is_random", self.bit < 0)

    def draw_parameters(self, raw: int, word: Word) -> FaultModel:
        """Return the flip of one bit."""
        return self if self.bit >= 0 else replace(self, bit=raw % self.bits)

    def for_tensor(self, values: NDArray[Any]) -> FaultModel:
        """Return the model with the scale of these numbers."""
        return self if self.scale else replace(self, scale=self._scale(values))

    def _scale(self, values: NDArray[Any]) -> float:
        numbers = np.abs(values.astype(np.float64))
        largest = float(np.max(numbers, initial=0.0, where=np.isfinite(numbers)))
        return largest / ((1 << (self.bits - 1)) - 1) or 1.0

    def rule(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers that the flipped integers stand for."""
        scale, half, bit = self.scale or self._scale(values), 1 << (self.bits - 1), max(self.bit, 0)
        numbers = np.nan_to_num(values.astype(np.float64) / scale, nan=0.0)
        stored = np.clip(np.rint(numbers), -half, half - 1).astype(np.int64)
        flipped = (stored & (2 * half - 1)) ^ (1 << bit)
        return np.asarray(np.where(flipped >= half, flipped - 2 * half, flipped) * scale)


@dataclass(frozen=True)
class TimeConstant(FaultModel):
    """Time constant of a decay multiplied by `factor`: a leak e^(-1/tau) becomes e^(-1/(tau * factor)).

    Stands for parameter drift of analogue membranes, synapses and refractory circuits. In steps of any length a decay d
    becomes d^(1 / factor); 0, 1 and what is no decay, as a number below 0 or beyond 1, stay as they are.
    """

    factor: float = 2.0
    name = "time-constant"
    examples = ("time-constant:factor=0.5", "time-constant")

    def __post_init__(self) -> None:
        """Check the parameter."""
        self.require(0 < self.factor < np.inf, "factor", "a number above 0")

    def rule(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the decays with the changed time constant."""
        if values.dtype.kind in "biu" or "int" in values.dtype.name:
            return values
        numbers = values.astype(np.float64)
        decay = (numbers > 0) & (numbers < 1)
        return np.asarray(np.where(decay, np.where(decay, numbers, 1.0) ** (1 / self.factor), numbers))


@dataclass(frozen=True)
class RandomTimeConstant(FaultModel):
    """Time constant of a decay multiplied by a factor drawn for each word, uniformly between `low` and `high`.

    Stands for process variation of analogue membranes, synapses and refractory circuits. A drawn factor is written as
    `time-constant`.
    """

    low: float = 0.5
    high: float = 1.5
    name = "random-time-constant"
    is_random = True
    examples = ("random-time-constant:low=0.9,high=1.1", "random-time-constant")

    def __post_init__(self) -> None:
        """Check the range."""
        self.require(0 < self.low <= self.high < np.inf, "low,high", "numbers above 0, low first")

    def draw_parameters(self, raw: int, word: Word) -> TimeConstant:
        """Return the time constant with one factor of the range."""
        return TimeConstant(RandomScale(self.low, self.high).draw_parameters(raw, word).factor)


NEURON_MODELS: tuple[type[FaultModel], ...] = (Dead, Saturated, FlipQuantised, TimeConstant, RandomTimeConstant)
