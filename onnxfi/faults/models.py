"""Built-in fault models of single words: bit flips, stuck-at faults, and faults of numbers.

The docstring of each model names the physical effects that it stands for; docs/explanation/fault-models.md has the
table and its sources. A model whose effect can be expressed bit by bit gives a `Mask`; one that depends on the number
gives a value rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError
from onnxfi.faults.fault_model import Bits, FaultModel
from onnxfi.faults.sampling import normal, uniform
from onnxfi.faults.words import Mask, Word, Words


@dataclass(frozen=True)
class Flip(FaultModel):
    """Bit flip: one bit takes its other value.

    Stands for a single-event upset (SEU), the soft error that a particle causes in a memory cell or a register; at a
    bit error rate, for cells that fail at a reduced supply voltage.
    """

    name = "flip"
    unit = "bit"
    self_inverse = True
    examples = ("flip",)

    def mask(self, word: Word, bit: int) -> Mask:
        """Return the mask that flips the bit."""
        return Mask(word.full, 1 << bit)


@dataclass(frozen=True)
class Burst(FaultModel):
    """Flip of `k` neighbouring bits of one word; the site is the lowest of them.

    Stands for a multi-bit upset (MBU): one particle that upsets neighbouring cells of a word.
    """

    k: int = 2
    name = "burst"
    unit = "bit"
    self_inverse = True
    examples = ("burst:k=3", "burst")

    def __post_init__(self) -> None:
        """Check the parameter."""
        self.require(self.k >= 1, "k", "a whole number from 1")

    def width(self) -> int:
        """Return `k`."""
        return self.k

    def mask(self, word: Word, bit: int) -> Mask:
        """Return the mask that flips `k` bits."""
        return Mask(word.full, ((1 << self.k) - 1) << bit)


@dataclass(frozen=True)
class FlipMask(FaultModel):
    """Flip of several bits of one word, anywhere in it: those that are 1 in `word`.

    Stands for a multi-bit upset whose bits are not neighbours; what a distribution draws is written in this form.
    """

    word: int = 1
    name = "flip-mask"
    self_inverse = True
    examples = ("flip-mask:word=0x3",)

    def __post_init__(self) -> None:
        """Check the parameter."""
        self.require(0 <= self.word < 1 << 64, "word", "a word from 0x0 on")

    def mask(self, word: Word, bit: int) -> Mask:
        """Return the mask that flips the bits; FaultError if the format is narrower."""
        if self.word > word.full:
            raise FaultError(f"flip-mask: {self.word:#x} has more than the {word.bits} bits of {word.name}")
        return Mask(word.full, self.word)


@dataclass(frozen=True)
class StuckAt0(FaultModel):
    """Stuck-at-0 fault: one bit reads 0 whatever was stored.

    Stands for a defective cell or line (a permanent, hard fault), and for a charged cell that loses its charge
    (retention failure, undervolting).
    """

    name = "stuck-at-0"
    unit = "bit"
    examples = ("stuck-at-0",)

    def mask(self, word: Word, bit: int) -> Mask:
        """Return the mask that clears the bit."""
        return Mask(word.full & ~(1 << bit), 0)


@dataclass(frozen=True)
class StuckAt1(FaultModel):
    """Stuck-at-1 fault: one bit reads 1 whatever was stored.

    Stands for a defective cell or line (a permanent, hard fault), and for retention failures of cells that store a 0 as
    charge.
    """

    name = "stuck-at-1"
    unit = "bit"
    examples = ("stuck-at-1",)

    def mask(self, word: Word, bit: int) -> Mask:
        """Return the mask that sets the bit."""
        return Mask(word.full & ~(1 << bit), 1 << bit)


#: Effects of a defect on one bit, by the name that descriptions of hardware give them.
BIT_EFFECTS: Mapping[str, FaultModel] = {"flip": Flip(), "stuck-at-0": StuckAt0(), "stuck-at-1": StuckAt1()}


@dataclass(frozen=True)
class SetWord(FaultModel):
    """Replacement of the word by the bits of `word`.

    Stands for a known corrupt word, such as one read from a wrong address.
    """

    word: int = 0
    name = "set-word"
    overwrites = True
    examples = ("set-word:word=0x1", "set-word")

    def __post_init__(self) -> None:
        """Check the parameter."""
        self.require(0 <= self.word < 1 << 64, "word", "a word from 0x0 on")

    def mask(self, word: Word, bit: int) -> Mask:
        """Return the mask that replaces the word; FaultError if the format is narrower."""
        if self.word > word.full:
            raise FaultError(f"set-word: {self.word:#x} has more than the {word.bits} bits of {word.name}")
        return Mask(0, self.word)


@dataclass(frozen=True)
class RandomWord(FaultModel):
    """Replacement of the word by random bits, drawn for each word.

    Stands for a word corrupted as a whole: an uncorrectable ECC error, or a fault in an address or a data path.
    """

    name = "random-word"
    overwrites = True
    is_random = True
    examples = ("random-word",)

    def draw_parameters(self, raw: int, word: Word) -> SetWord:
        """Return the replacement by the lowest bits of `raw`."""
        return SetWord(raw & word.full)


@dataclass(frozen=True)
class Zero(FaultModel):
    """Clearing of all bits: the number +0 (in float8_e8m0fnu, which has no zero, the smallest number).

    Stands for a word that is lost: a power-gated bank, or an erasure by a protection that zeroes detected errors.
    """

    name = "zero"
    overwrites = True
    examples = ("zero",)

    def mask(self, word: Word, bit: int) -> Mask:
        """Return the mask that clears the word."""
        return Mask(0, 0)


@dataclass(frozen=True)
class SignFlip(FaultModel):
    """Change of sign: the sign bit of a float, the two's complement of a signed integer.

    Stands for an SEU in the sign bit of a float, or a fault in the sign logic of an arithmetic unit.
    """

    name = "sign-flip"
    self_inverse = True
    examples = ("sign-flip",)

    def mask(self, word: Word, bit: int) -> Mask | None:
        """Return the mask that flips the sign bit of a float; None for integers."""
        if not word.signed:
            raise FaultError(f"sign-flip: {word.name} has no sign; leave such tensors out with --dtype")
        return Mask(word.full, 1 << (word.bits - 1)) if word.is_float else None

    def apply(self, word: Word, before: Words, bits: Bits) -> Words:
        """Return the words with the other sign."""
        if word.is_float or not word.signed:
            return super().apply(word, before, bits)
        return (~before + np.uint64(1)) & np.uint64(word.full)


@dataclass(frozen=True)
class Set(FaultModel):
    """Replacement of the number by `value`, rounded into the format.

    Stands for a stuck neuron or unit, or a known worst case. FaultError if the format has nothing near: `nan`, `inf`,
    and what would become `nan`, as 0 in float8_e8m0fnu.
    """

    value: float = 0.0
    name = "set"
    overwrites = True
    examples = ("set:value=1", "set:value=-0.5", "set:value=nan")

    def __eq__(self, other: object) -> bool:
        """Compare as texts: nan equals nan, and -0 is another word than 0."""
        return isinstance(other, Set) and str(self) == str(other)

    def __hash__(self) -> int:
        """Return the hash of the text form."""
        return hash(str(self))

    def mask(self, word: Word, bit: int) -> Mask:
        """Return the mask that replaces the word."""
        stored = word.words(np.asarray([math.nan if math.isnan(self.value) else self.value]))
        held = float(word.values(stored)[0])
        if math.isnan(held) != math.isnan(self.value) or (math.isinf(self.value) and not math.isinf(held)):
            raise FaultError(f"set: {word.name} cannot hold {self.value}; give another, or leave such tensors out")
        return Mask(0, int(stored[0]))


@dataclass(frozen=True)
class Scale(FaultModel):
    """Multiplication of the number by `factor`, rounded into its format (integers saturate).

    Stands for parameter drift of analogue weights and neurons, and for gain errors.
    """

    factor: float = 2.0
    name = "scale"
    examples = ("scale:factor=0.5", "scale")

    def __post_init__(self) -> None:
        """Check the parameter."""
        self.require(not math.isnan(self.factor), "factor", "a number; set:value=nan sets NaN")

    def rule(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the products."""
        return np.asarray(_exact_integers(values) * _exact_parameter(self.factor, values))


@dataclass(frozen=True)
class RandomScale(FaultModel):
    """Multiplication of the number by a factor drawn for each word, uniformly between `low` and `high`.

    Stands for parametric variation: process variation or ageing of analogue weights and neurons. A drawn factor is
    written as `scale`.
    """

    low: float = 0.5
    high: float = 1.5
    name = "random-scale"
    is_random = True
    examples = ("random-scale:low=0.9,high=1.1", "random-scale")

    def __post_init__(self) -> None:
        """Check the range."""
        for key, number in (("low", self.low), ("high", self.high)):
            self.require(math.isfinite(number), key, "a finite number")
        self.require(self.low <= self.high, "low", f"a number up to high={self.high}")
        self.require(math.isfinite(float(self.high) - float(self.low)), "low", "a narrower range")

    def draw_parameters(self, raw: int, word: Word) -> Scale:
        """Return the multiplication by one factor of the range."""
        low, high = float(self.low), float(self.high)
        return Scale(min(low + (high - low) * float(uniform(np.array([raw], np.uint64))[0]), high))


@dataclass(frozen=True)
class Add(FaultModel):
    """Addition of `value` to the number, rounded into its format; a drawn `noise` is written in this form.

    Stands for an offset error, as of an analogue-to-digital converter.
    """

    value: float = 0.0
    name = "add"
    examples = ("add:value=0.25", "add:value=1")

    def __post_init__(self) -> None:
        """Check the parameter."""
        self.require(not math.isnan(self.value), "value", "a number; set:value=nan sets NaN")

    def rule(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the sums."""
        return np.asarray(_exact_integers(values) + _exact_parameter(self.value, values))


@dataclass(frozen=True)
class Noise(FaultModel):
    """Gaussian noise of standard deviation `sigma` (in the unit of the number), drawn for each word.

    Stands for analogue noise and device variation, as of memristive or photonic weights.
    """

    sigma: float = 0.1
    name = "noise"
    is_random = True
    examples = ("noise:sigma=0.1",)

    def __post_init__(self) -> None:
        """Check the parameter."""
        self.require(0 <= self.sigma < math.inf, "sigma", "a finite number from 0 on")

    def draw_parameters(self, raw: int, word: Word) -> Add:
        """Return the addition of one normal number."""
        return Add(float(normal(np.array([raw], np.uint64))[0]) * self.sigma)


BUILT_IN: tuple[type[FaultModel], ...] = (
    *(Flip, Burst, FlipMask, StuckAt0, StuckAt1),
    *(SetWord, RandomWord, Zero, SignFlip, Set, Scale, RandomScale, Add, Noise),
)


def _exact_integers(values: NDArray[Any]) -> NDArray[Any]:
    """Return 64-bit integers as Python's, which neither round nor overflow; all else as it is."""
    return values.astype(object) if values.dtype.kind in "iu" else values


def _exact_parameter(number: float, values: NDArray[Any]) -> float | Fraction:
    """Return a parameter for exact arithmetic with 64-bit integers: as a fraction, where it is finite."""
    return Fraction(number) if values.dtype.kind in "iu" and math.isfinite(number) else number
