"""Base class of fault models, their text form, and those that installed packages offer.

A fault model says how one fault event changes one stored word or activation. Models are frozen and written as
`NAME[:key=value,…]`, the same string on the command line, in files and in Python. onnxfi's own are in `models.py`,
`neuron_models.py`, `patterns.py` and `hardware/`; `registry.py` lists them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError
from onnxfi.extensions import load_extension_class
from onnxfi.faults.sampling import Numbers
from onnxfi.faults.text_form import parse_text_form
from onnxfi.faults.words import Mask, Word, Words

if TYPE_CHECKING:
    from onnxfi.faults.sites import Sites, Target

Bits = NDArray[np.int16]
#: The faults of composite events: their sites, and one model for all or one for each.
Spread: TypeAlias = "tuple[Sites, tuple[FaultModel, ...]]"
#: The numbers of the sites that fail under a `condition`, ascending, and the model of each.
Failing: TypeAlias = "tuple[Numbers, tuple[FaultModel, ...]]"
#: Entry point group by which packages offer fault models.
ENTRY_POINTS = "onnxfi.fault_models"


@dataclass(frozen=True)
class FaultModel:
    """Effect of one fault event on one word; the base class of all fault models.

    A subclass is a frozen dataclass with a `name`, `examples`, and either `mask` (the effect bit by bit) or `rule` (the
    effect on the number). Its fields are the parameters of the text form. A package offers one by an entry point of the
    group `onnxfi.fault_models`.

    Attributes
    ----------
    name : str
        Name in the text form.
    unit : {"word", "bit"}
        What a site of the model is: a whole word, or a bit of it (for a burst the lowest bit).
    is_random : bool
        True if each fault draws random parameters; `draw_parameters` then gives the model of one fault.
    self_inverse : bool
        True if the same fault a second time restores the word, whatever it was.
    examples : tuple of str
        Text forms that the tests run.
    multi_element : bool
        True if one event affects several elements: `elements` lists them, `element_model` acts on each.
    composite : bool
        True if one event gives faults with models of their own, maybe in several targets: `spread` draws them.
    spans_targets : bool
        True if the faults of one event lie in several targets.
    operators : tuple of str
        Operators whose outputs are selected if a selection names none.
    depends_on_tensor : bool
        True if the effect depends on the numbers of the whole tensor; `for_tensor` then gives the model for it.
    condition : {"", "voltage", "temperature"}
        What the sites of the model depend on in place of a rate.
    overwrites : bool
        True if the faulty word does not depend on the original one.

    Examples
    --------
    Bits that a low-power memory no longer retains read 0:

    >>> from dataclasses import dataclass
    >>> from onnxfi import FaultModel, Mask
    >>> @dataclass(frozen=True)
    ... class LostBits(FaultModel):
    ...     k: int = 4
    ...     name = "lost-bits"
    ...     examples = ("lost-bits:k=8",)
    ...     def mask(self, word, bit):
    ...         return Mask(keep=word.full & ~((1 << self.k) - 1), flip=0)
    >>> str(LostBits(8))
    'lost-bits:k=8'
    """

    name: ClassVar[str] = ""
    unit: ClassVar[Literal["bit", "word"]] = "word"
    is_random: ClassVar[bool] = False
    self_inverse: ClassVar[bool] = False
    examples: ClassVar[tuple[str, ...]] = ()
    multi_element: ClassVar[bool] = False
    composite: ClassVar[bool] = False
    spans_targets: ClassVar[bool] = False
    operators: ClassVar[tuple[str, ...]] = ()
    depends_on_tensor: ClassVar[bool] = False
    overwrites: ClassVar[bool] = False
    condition: ClassVar[str] = ""

    @property
    def element_model(self) -> FaultModel:
        """Effect on one affected element: the model itself, unless an event affects several."""
        return self

    def applies_to(self, shape: tuple[int, ...]) -> bool:
        """Return True if a tensor of this shape (in words) has sites for the event."""
        return True

    def fits(self, target: Target) -> bool:
        """Return True if a target has sites for the event; SelectorError for one that it contradicts."""
        return self.applies_to(target.axes)

    def spread(self, targets: tuple[Target, ...], sites: Sites, raw: Numbers) -> Spread:
        """Return the faults of composite events: their sites, and the model of each.

        Parameters
        ----------
        targets : tuple of Target
            The selected targets, to which the sites refer by number.
        sites : Sites
            Site of each event.
        raw : ndarray of uint64, shape (n,)
            One raw random word for each event; `sampling.derive` gives further ones.
        """
        raise NotImplementedError(f"{type(self).__name__} is composite and does not say which faults it gives")

    def expected(self, population: int, at: float) -> float:
        """Return the expected number of faulty sites under a `condition`, a voltage or temperature."""
        raise NotImplementedError(f"{type(self).__name__} has no cells that fail at {at:g}")

    def failing_sites(self, population: int, at: float, seed: int, stream: int) -> Failing:
        """Return the numbers of the sites that fail under a `condition`, ascending, and the model of each."""
        raise NotImplementedError(f"{type(self).__name__} has no cells that fail at {at:g}")

    def elements(self, shape: tuple[int, ...], index: int) -> NDArray[np.int64]:
        """Return the flat indices that an event at element `index` of a tensor of this shape affects."""
        return np.array([index], np.int64)

    def width(self) -> int:
        """Return the number of bits that one event covers; its lowest bit is at most the word's width minus this."""
        return 1

    def mask(self, word: Word, bit: int) -> Mask | None:
        """Return the event as a mask on words of this format; None if only `rule` can express it.

        Parameters
        ----------
        word : Word
            Format of the word.
        bit : int
            Position of the lowest faulty bit; -1 for a model whose unit is the word.
        """
        return None if self.element_model is self else self.element_model.mask(word, bit)

    def rule(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the faulty numbers of `values`: float64, or exact integers for integer words of 64 bits."""
        raise NotImplementedError(f"{type(self).__name__} gives neither a mask nor a value rule")

    def draw_parameters(self, raw: int, word: Word) -> FaultModel:
        """Return the model of one fault, its random parameters drawn from one raw 64-bit random word."""
        return self

    def for_tensor(self, values: NDArray[Any]) -> FaultModel:
        """Return the model for a tensor of these numbers ([n]); itself unless `depends_on_tensor`."""
        return self

    def apply(self, word: Word, before: Words, bits: Bits) -> Words:
        """Return the words after the event.

        Parameters
        ----------
        word : Word
            Format of the words.
        before : ndarray of uint64, shape (n,)
            Words before the event.
        bits : ndarray of int16, shape (n,)
            Lowest faulty bit of each word; -1 for a model whose unit is the word.

        Returns
        -------
        ndarray of uint64, shape (n,)
            Words after the event.
        """
        after = before.copy()
        for bit in np.unique(bits).tolist():
            rows = bits == bit
            mask = self.mask(word, bit)
            if mask is None:
                with np.errstate(all="ignore"):  # inf × 0 and signalling NaN are what faults make of numbers
                    numbers = self.rule(_numbers(word, before[rows]))
                    if word.is_float:  # the sign and payload of a computed NaN depend on the machine: use one for all
                        numbers = np.where(np.isnan(numbers), np.nan, numbers)
                    after[rows] = word.words(numbers)
            else:
                after[rows] = (before[rows] & np.uint64(mask.keep)) ^ np.uint64(mask.flip)
        return after

    def require(self, valid: bool, keys: str, allowed: str) -> None:
        """Raise FaultError for parameters (`low,high`) that are out of range, unless they are `valid`."""
        if not valid:
            fields = {f.name: f for f in dataclasses.fields(self)}
            given = ",".join(f"{key}={_format(fields[key], getattr(self, key))}" for key in keys.split(","))
            raise FaultError(f"fault {self.name!r}: {given} is out of range; give {allowed}")

    def require_known(self, key: str, known: Iterable[str], allowed: str = "") -> None:
        """Raise FaultError for a parameter that is none of the known texts."""
        if getattr(self, key) not in known:
            given = f"{key}={str(getattr(self, key))[:40]!r}"
            raise FaultError(f"fault {self.name!r}: {given} is unknown; give {allowed or ', '.join(known)}")

    def __str__(self) -> str:
        """Return the text form, defaults included: a file keeps its meaning if a default changes later."""
        pairs = [f"{f.name}={_format(f, getattr(self, f.name))}" for f in dataclasses.fields(self) if f.init]
        return self.name + (":" + ",".join(pairs) if pairs else "")


def parse_model(text: str, known: Mapping[str, type[FaultModel]]) -> FaultModel:
    """Return the fault model that `NAME[:key=value,…]` describes, among the known ones."""
    return parse_text_form(text, known, "fault", FaultError)


def with_installed(models: Iterable[type[FaultModel]]) -> Mapping[str, type[FaultModel]]:
    """Return these fault models and those that installed packages offer, by name."""
    found = {model.name: model for model in models}
    for point in entry_points(group=ENTRY_POINTS):
        model = load_extension_class(point, FaultModel, FaultError)
        if not model.name:
            raise FaultError(f"entry point {point.value!r} has no name; give the class a `name`")
        if model.name in found:
            raise FaultError(f"entry point {point.value!r} has the name {model.name!r}, which is already taken")
        found[model.name] = model
    return MappingProxyType(found)


def _format(field: dataclasses.Field[Any], value: Any) -> str:
    plain = value.item() if isinstance(value, np.generic) else value
    if plain == 0 and field.type in ("float", float):  # as it is parsed: 0 and 0.0 are one, -0.0 is another word
        plain = float(plain)
    return hex(plain) if field.name == "word" else plain if isinstance(plain, str) else repr(plain)


def _numbers(word: Word, words: Words) -> NDArray[Any]:
    values = word.values(words)
    return values if values.dtype.kind in "iu" and word.bits > 32 else values.astype(np.float64)
