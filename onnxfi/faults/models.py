"""Fault models: what an event does to a word.

A model whose event can be said bit by bit gives a `Mask`; one that depends on the number itself gives a value rule.
Models are frozen and written as `NAME[:key=value,…]`, the same string in the command line, in files and in Python:

>>> parse_fault("burst:k=3")
Burst(k=3)
>>> str(parse_fault("set-word:word=0x7f800000"))
'set-word:word=0x7f800000'

The next fault model is one frozen class here with its `examples`, or one in another package behind the entry point
group `onnxfi.fault_models`; the tests run over every registered model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError, closest
from onnxfi.faults.sampling import normal
from onnxfi.faults.words import Mask, Word, Words

Bits = NDArray[np.int16]


@dataclass(frozen=True)
class FaultModel:
    """What one event does to one word. Subclass, name it, and give a `mask` or a `rule`.

    `unit` says what a site is: a bit (flip, stuck-at, burst: its lowest bit) or a whole word. `draws` is true where
    each fault spends chance of its own; then `spend` turns one raw 64-bit random word into a model without chance.
    """

    name: ClassVar[str] = ""
    unit: ClassVar[Literal["bit", "word"]] = "word"
    draws: ClassVar[bool] = False
    #: The same event again restores the word, whatever it was: such faults undo themselves.
    self_inverse: ClassVar[bool] = False
    examples: ClassVar[tuple[str, ...]] = ()
    #: One event strikes several elements: `elements` says which, `each` what happens to every one of them.
    spreads: ClassVar[bool] = False
    #: What happens depends on the numbers of the whole tensor: `bind` looks at them once, before anything is struck.
    binds: ClassVar[bool] = False
    #: The word after does not depend on the word before: such faults also go where a word stands for "as computed".
    replaces: ClassVar[bool] = False

    @property
    def each(self) -> FaultModel:
        """What happens to one struck word: the model itself, unless an event strikes several."""
        return self

    def fits(self, axes: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape (in words) has sites for the event."""
        return True

    def elements(self, axes: tuple[int, ...], index: int) -> NDArray[np.int64]:
        """The elements (flat) that an event at this element of a tensor of this shape strikes."""
        return np.array([index], np.int64)

    def width(self) -> int:
        """Bits that one event covers; positions run from 0 to the word's width minus this."""
        return 1

    def mask(self, word: Word, bit: int) -> Mask | None:
        """The event as a mask on a word of this layout; None where only a value rule can say it."""
        return None

    def rule(self, values: NDArray[Any]) -> NDArray[Any]:
        """The event as a rule on numbers (float64, or exact integers for integer words)."""
        raise NotImplementedError(f"{type(self).__name__} gives neither a mask nor a value rule")

    def spend(self, raw: int, word: Word) -> FaultModel:
        """The model with its chance spent: a pure function of one raw 64-bit word."""
        return self

    def bind(self, values: NDArray[Any]) -> FaultModel:
        """The model for a tensor of these numbers ([n]): itself, unless `binds`."""
        return self

    def strike(self, word: Word, before: Words, bits: Bits) -> Words:
        """The words after the event.

        `before` holds the words (`uint64`, [n]) and `bits` the struck position of each ([n], −1 for a model whose
        unit is the word).
        """
        after = before.copy()
        for bit in np.unique(bits).tolist():
            here = bits == bit
            mask = self.mask(word, bit)
            if mask is None:
                with np.errstate(all="ignore"):  # inf × 0 and signalling NaN are what faults make of numbers
                    numbers = self.rule(_numbers(word, before[here]))
                    if word.is_float:  # the sign and payload of a computed NaN are the machine's: take one for all
                        numbers = np.where(np.isnan(numbers), np.nan, numbers)
                    after[here] = word.words(numbers)
            else:
                after[here] = (before[here] & np.uint64(mask.keep)) ^ np.uint64(mask.flip)
        return after

    def __str__(self) -> str:
        # Also what is at its default: a file shall mean the same where that is another one some day.
        pairs = [f"{f.name}={_write(f, getattr(self, f.name))}" for f in dataclasses.fields(self) if f.init]
        return self.name + (":" + ",".join(pairs) if pairs else "")


@dataclass(frozen=True)
class Flip(FaultModel):
    """One bit takes the other value: a single-event upset."""

    name = "flip"
    unit = "bit"
    self_inverse = True
    examples = ("flip",)

    def mask(self, word: Word, bit: int) -> Mask:
        return Mask(word.full, 1 << bit)


@dataclass(frozen=True)
class Burst(FaultModel):
    """`k` neighbouring bits take the other value: a multi-bit upset. The site names the lowest of them."""

    k: int = 2
    name = "burst"
    unit = "bit"
    self_inverse = True
    examples = ("burst:k=3", "burst")

    def __post_init__(self) -> None:
        _check(self.k >= 1, "burst", "k", self.k, "a whole number from 1")

    def width(self) -> int:
        return self.k

    def mask(self, word: Word, bit: int) -> Mask:
        return Mask(word.full, ((1 << self.k) - 1) << bit)


@dataclass(frozen=True)
class StuckAt0(FaultModel):
    """One bit reads 0 whatever was stored."""

    name = "stuck-at-0"
    unit = "bit"
    examples = ("stuck-at-0",)

    def mask(self, word: Word, bit: int) -> Mask:
        return Mask(word.full & ~(1 << bit), 0)


@dataclass(frozen=True)
class StuckAt1(FaultModel):
    """One bit reads 1 whatever was stored."""

    name = "stuck-at-1"
    unit = "bit"
    examples = ("stuck-at-1",)

    def mask(self, word: Word, bit: int) -> Mask:
        return Mask(word.full & ~(1 << bit), 1 << bit)


@dataclass(frozen=True)
class SetWord(FaultModel):
    """The word becomes these bits."""

    word: int = 0
    name = "set-word"
    replaces = True
    examples = ("set-word:word=0x1", "set-word")

    def __post_init__(self) -> None:
        _check(0 <= self.word < 1 << 64, "set-word", "word", hex(self.word), "a word from 0x0 on")

    def mask(self, word: Word, bit: int) -> Mask:
        if self.word > word.full:
            raise FaultError(f"set-word: {self.word:#x} has more than the {word.bits} bits of {word.name}")
        return Mask(0, self.word)


@dataclass(frozen=True)
class RandomWord(FaultModel):
    """The word becomes random bits, each word its own."""

    name = "random-word"
    replaces = True
    draws = True
    examples = ("random-word",)

    def spend(self, raw: int, word: Word) -> SetWord:
        return SetWord(raw & word.full)


@dataclass(frozen=True)
class Zero(FaultModel):
    """All bits become 0: the number +0 (in float8_e8m0fnu, which has no zero, the smallest number)."""

    name = "zero"
    replaces = True
    examples = ("zero",)

    def mask(self, word: Word, bit: int) -> Mask:
        return Mask(0, 0)


@dataclass(frozen=True)
class SignFlip(FaultModel):
    """The number changes its sign: the sign bit of a float, the two's complement of a signed integer."""

    name = "sign-flip"
    self_inverse = True
    examples = ("sign-flip",)

    def mask(self, word: Word, bit: int) -> Mask | None:
        if not word.signed:
            raise FaultError(f"sign-flip: {word.name} has no sign; leave such tensors out with --dtype")
        return Mask(word.full, 1 << (word.bits - 1)) if word.is_float else None

    def strike(self, word: Word, before: Words, bits: Bits) -> Words:
        if word.is_float or not word.signed:
            return super().strike(word, before, bits)
        return (~before + np.uint64(1)) & np.uint64(word.full)


@dataclass(frozen=True)
class Set(FaultModel):
    """The number becomes `value`, as near as the format holds it.

    Raises FaultError where it holds nothing near: `nan`, `inf` and what would become `nan`, as 0 in float8_e8m0fnu.
    """

    value: float = 0.0
    name = "set"
    replaces = True
    examples = ("set:value=1", "set:value=-0.5", "set:value=nan")

    def __eq__(self, other: object) -> bool:
        # As texts: nan is nan, and -0 is another word than 0.
        return isinstance(other, Set) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def mask(self, word: Word, bit: int) -> Mask:
        stored = word.words(np.asarray([math.nan if math.isnan(self.value) else self.value]))
        held = float(word.values(stored)[0])
        if math.isnan(held) != math.isnan(self.value) or (math.isinf(self.value) and not math.isinf(held)):
            raise FaultError(f"set: {word.name} holds no {self.value}; give another, or leave such tensors out")
        return Mask(0, int(stored[0]))


@dataclass(frozen=True)
class Scale(FaultModel):
    """The number is multiplied by `factor` and rounded into its format (integers are held at their ends)."""

    factor: float = 2.0
    name = "scale"
    examples = ("scale:factor=0.5", "scale")

    def __post_init__(self) -> None:
        _check(not math.isnan(self.factor), "scale", "factor", self.factor, "a number; set:value=nan sets NaN")

    def rule(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(_wide(values) * _exact(self.factor, values))


@dataclass(frozen=True)
class Add(FaultModel):
    """`value` is added to the number, which is rounded into its format. A spent `noise` is written so."""

    value: float = 0.0
    name = "add"
    examples = ("add:value=0.25", "add:value=1")

    def __post_init__(self) -> None:
        _check(not math.isnan(self.value), "add", "value", self.value, "a number; set:value=nan sets NaN")

    def rule(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(_wide(values) + _exact(self.value, values))


@dataclass(frozen=True)
class Noise(FaultModel):
    """Gaussian noise of standard deviation `sigma` (in units of the number) is added, each word its own."""

    sigma: float = 0.1
    name = "noise"
    draws = True
    examples = ("noise:sigma=0.1",)

    def __post_init__(self) -> None:
        _check(0 <= self.sigma < math.inf, "noise", "sigma", self.sigma, "a finite number from 0 on")

    def spend(self, raw: int, word: Word) -> Add:
        return Add(float(normal(np.array([raw], np.uint64))[0]) * self.sigma)


#: Letters of a whole number; a word has 64 bits.
_LONGEST_NUMBER = 80
_OWN: tuple[type[FaultModel], ...] = (
    *(Flip, Burst, StuckAt0, StuckAt1),
    *(SetWord, RandomWord, Zero, SignFlip, Set, Scale, Add, Noise),
)
ENTRY_POINTS = "onnxfi.fault_models"


@cache
def fault_models() -> Mapping[str, type[FaultModel]]:
    """Every fault model by its name: onnxfi's own and those that installed packages offer.

    >>> sorted(fault_models())[:3]
    ['add', 'burst', 'dead']
    """
    from onnxfi.faults.neuron_models import Dead, FlipQuantised, Saturated
    from onnxfi.faults.patterns import Pattern

    own: tuple[type[FaultModel], ...] = (*_OWN, Dead, Saturated, FlipQuantised, Pattern)
    found = {model.name: model for model in own}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            model: Any = point.load()
        except Exception as error:  # whatever the package raises when it is imported
            raise FaultError(
                f"entry point {point.value!r} does not load: {error}; mend or remove its package"
            ) from error
        if not (isinstance(model, type) and dataclasses.is_dataclass(model) and issubclass(model, FaultModel)):
            raise FaultError(f"entry point {point.value!r} is no frozen dataclass derived from onnxfi.FaultModel")
        if not model.name:
            raise FaultError(f"entry point {point.value!r} has no name; give the class a `name`")
        if model.name in found:
            raise FaultError(f"entry point {point.value!r} calls itself {model.name!r}, a name already taken")
        found[model.name] = model
    return MappingProxyType(found)


def parse_fault(text: str) -> FaultModel:
    """Read `NAME[:key=value,…]`.

    Raises FaultError for a name or key that does not exist (with the closest) and for a value out of range.
    >>> parse_fault("set:value=nan")
    Set(value=nan)
    """
    name, colon, rest = text.strip().partition(":")
    known = fault_models()
    if name not in known:
        raise FaultError(f"unknown fault {name!r}{closest(name, known)}")
    fields = {f.name: f for f in dataclasses.fields(known[name]) if f.init}
    given: dict[str, Any] = {}
    for pair in rest.split(",") if colon else ():
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or key not in fields:
            what = f"takes {', '.join(fields)} as key=value" if fields else "takes no parameters"
            raise FaultError(f"fault {name!r} {what}; given {pair!r}")
        if key in given:
            raise FaultError(f"fault {name!r}: {key} is given twice")
        given[key] = _read(value, fields[key].type, f"fault {name!r}: {key}={value!r}")
    return known[name](**given)


def _read(text: str, kind: Any, where: str) -> Any:
    whole = kind in ("int", int)
    if whole and len(text) >= _LONGEST_NUMBER:
        raise FaultError(f"{where[:80]}… is no number of a word; give fewer digits")
    try:
        if whole:
            return int(text, 0)
        if kind in ("float", float):
            # Whole numbers stay exact integers, so that 64-bit words can be set to any value; 0 does not: -0 is one.
            return (text.lstrip("+-").isdecimal() and len(text) < 25 and int(text)) or float(text)
    except ValueError:
        raise FaultError(f"{where} is no {'whole ' if whole else ''}number") from None
    return text


def _write(field: dataclasses.Field[Any], value: Any) -> str:
    plain = value.item() if isinstance(value, np.generic) else value
    if plain == 0 and field.type in ("float", float):  # as it is read: 0 and 0.0 are one, -0.0 is another word
        plain = float(plain)
    return hex(plain) if field.name == "word" else plain if isinstance(plain, str) else repr(plain)


def _numbers(word: Word, words: Words) -> NDArray[Any]:
    values = word.values(words)
    return values if values.dtype.kind in "iu" and word.bits > 32 else values.astype(np.float64)


def _wide(values: NDArray[Any]) -> NDArray[Any]:
    """64-bit integers as Python's, which neither round nor overflow; all else as it is."""
    return values.astype(object) if values.dtype.kind in "iu" else values


def _exact(number: float, values: NDArray[Any]) -> float | Fraction:
    """Return a parameter for exact arithmetic with 64-bit integers: as a fraction, where it is finite."""
    return Fraction(number) if values.dtype.kind in "iu" and math.isfinite(number) else number


def _check(good: bool, fault: str, key: str, given: object, allowed: str) -> None:
    if not good:
        raise FaultError(f"fault {fault!r}: {key}={given} is out of range; give {allowed}")
