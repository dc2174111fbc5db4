"""The values of a campaign's fields: of the type that is declared, within range, or told with the field at fault."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from onnxfi.errors import InputError, SpecError

#: Bits of a whole number that is written out in a message, and letters of any other value.
_WRITTEN_BITS, _LONGEST = 200, 60
_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "Part": "a part"}


def check(good: bool, name: str, given: object, allowed: str) -> None:
    """SpecError for a value out of range."""
    if not good:
        raise SpecError(f"{name} {brief(given)} is out of range; give {allowed}", name)


def brief(value: object) -> str:
    """Return a value for a message, cut where it is long.

    >>> brief(-3), brief(1 << 100_000)
    ('-3', 'of 30,103 digits')
    """
    if isinstance(value, int) and value.bit_length() > _WRITTEN_BITS:  # of some thousands Python writes none
        return f"of {math.floor((value.bit_length() - 1) * math.log10(2)) + 1:,} digits"
    try:
        text = str(value)
    except ValueError:  # such a number in a list
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def named(name: str, call: Callable[[Any], Any], value: Any) -> Any:
    """Call, and tie what it has against the value to the field of that name."""
    try:
        return call(value)
    except InputError as error:
        raise SpecError(f"{name}: {error}", name) from None


def check_types(value: Any) -> None:
    """Give each field the type that it is declared with, or say which one has another."""
    for f in dataclasses.fields(value):
        object.__setattr__(value, f.name, typed(getattr(value, f.name), str(f.type), f.name))


def typed(value: Any, kind: str, name: str) -> Any:
    """Return a value as the type that field `name` is declared with (`kind`); SpecError for another type."""
    if kind.startswith("tuple["):
        inner = kind[len("tuple[") :].partition(",")[0]
        single = isinstance(value, str) or dataclasses.is_dataclass(value) or not isinstance(value, Sequence)
        return tuple(typed(one, inner, name) for one in ((value,) if single else value))
    kind, _, optional = kind.partition(" | ")
    if value is None and optional:
        return None
    if kind == "str" and isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "Part" and dataclasses.is_dataclass(value):
        return value
    if kind in ("int", "float") and not isinstance(value, (bool, str)):
        try:
            return value.__index__() if kind == "int" else float(value)
        except (AttributeError, TypeError, OverflowError):
            pass
    raise SpecError(f"{name} must be {_TYPES[kind]}; given {brief(value)!r}", name)


def parse_rates(text: str, name: str = "ber") -> tuple[float, ...]:
    """Read rates: a list by comma, or decades from one end to the other, both included.

    >>> parse_rates("1e-6:1e-4"), parse_rates("2e-5,1e-3"), parse_rates("1e-6:5e-6")
    ((1e-06, 1e-05, 0.0001), (2e-05, 0.001), (1e-06, 5e-06))
    """
    wrong = SpecError(f"{name} {text[:60]!r} is no rate; write 1e-6, a list 1e-6,1e-5 or decades 1e-7:1e-3", name)
    try:
        low, colon, high = text.partition(":")
        if not colon:
            return tuple(float(piece) for piece in text.split(","))
        first, last = Decimal(low.strip()), Decimal(high.strip())
    except (ValueError, InvalidOperation):
        raise wrong from None
    if not (first.is_finite() and last.is_finite()):
        raise wrong
    if not Decimal("1e-300") <= first <= last <= 1:
        raise SpecError(f"{name} {text!r}: decades run from a smaller rate above 0 to a larger one, as 1e-7:1e-3", name)
    rates = []
    while first < last:
        rates.append(float(first))
        first *= 10
    return (*rates, float(last))


def differs(value: Any, f: dataclasses.Field[Any]) -> bool:
    """Return True if a field is not at its default."""
    return bool(getattr(value, f.name) != f.default)
