"""Flat fields: a value and the values in it as one mapping of names, each of its declared type and within its bounds.

The dataclasses of a campaign hold each other; flags, YAML keys, stored keys and keyword arguments are the names of all
their fields, which differ. `build` makes a value of such a mapping, `flat` the mapping of a value. A field says its
bounds where it is declared (`within`, `share`), so one more field is one more line.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from types import FunctionType, MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from onnxfi.errors import InputError, SpecError, closest
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.registry import fault_models
from onnxfi.numbers import number, whole_number
from onnxfi.tasks.registry import find_task, task_names
from onnxfi.tasks.task import Metric, Task

#: Bits of a whole number that is written out in a message, and letters of any other value.
_WRITTEN_BITS, _LONGEST = 200, 60
#: Lists of numbers that are no rates, as fields have them and as text.
_CONDITIONS = ("voltage", "temperature")
_TYPES = MappingProxyType({int: "a whole number", float: "a number", bool: "true or false", str: "a text"})


@dataclass(frozen=True)
class FlatField:
    """A field of a value or of a value in it: its type, its default, and what else its declaration says."""

    kind: Any
    default: Any
    metadata: Mapping[Any, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class CheckedFields:
    """A value whose fields are held to the types and bounds that they are declared with."""

    def __post_init__(self) -> None:
        """Check the fields; lists become tuples, and a single value the tuple of it."""
        for f in dataclasses.fields(self):
            value = typed(getattr(self, f.name), types_of(type(self))[f.name], f.name)
            object.__setattr__(self, f.name, value)
            if value is not None and "fits" in f.metadata:
                check(f.metadata["fits"](value), f.name, value, f.metadata["allowed"])


def bounded(default: Any, fits: Callable[[Any], bool], allowed: str, **metadata: Any) -> Any:
    """Return a dataclass field whose values fit, as `allowed` says in words."""
    return dataclasses.field(default=default, metadata={"fits": fits, "allowed": allowed, **metadata})


def within(default: Any, least: int, most: int, **metadata: Any) -> Any:
    """Return a dataclass field of whole numbers between two, both included."""
    return bounded(default, lambda n: least <= n <= most, f"{least:,} to {most:,}", **metadata)


def share_field(default: Any, example: str, **metadata: Any) -> Any:
    """Return a dataclass field of shares, neither 0 nor 1."""
    return bounded(default, lambda s: 0 < s < 1, f"a share between 0 and 1, as {example}", **metadata)


def types_of(kind: Any) -> Mapping[str, Any]:
    """Return the types of a dataclass's fields."""
    return _types_of(kind)


@cache
def _types_of(kind: Any) -> Mapping[str, Any]:
    types = get_type_hints(kind)
    return MappingProxyType({f.name: types[f.name] for f in dataclasses.fields(kind)})


def _values_in(kind: Any) -> tuple[Any, ...]:
    """Return the dataclasses of a field's type: one, or those of which it holds one; none of a plain type."""
    found = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return found if all(is_dataclass(one) for one in found) else ()


def flat_fields(kind: Any) -> dict[str, FlatField]:
    """Return all fields of a dataclass, or of several of which one is chosen, and of the values in them, by name."""
    found: dict[str, FlatField] = {}
    for one in _values_in(kind):
        for f in dataclasses.fields(one):
            inner = types_of(one)[f.name]
            held = flat_fields(inner) if _values_in(inner) else {f.name: FlatField(inner, f.default, f.metadata)}
            found |= {name: one for name, one in held.items() if name not in found}
        if key := getattr(one, "key", ""):
            found.setdefault(key, FlatField(bool, False))
    return found


def field_values(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a dataclass that flat fields give, and all values in it that are no choice among several."""
    found: dict[str, Any] = {}
    for name, inner in types_of(kind).items():
        if is_dataclass(inner):
            found[name] = build(inner, given)
        elif name in given:
            found[name] = typed(given[name], inner, name)
    return found


def build(kind: Any, given: Mapping[str, Any]) -> Any:
    """Return the value of this type that flat fields give; those of other values are passed over."""
    values = field_values(kind, given)
    try:
        return kind(**values)
    except SpecError:
        raise
    except InputError:  # of a value that is declared on another floor, and names no field
        for name, value in values.items():
            named(name, lambda one: kind(**{name: one}), value)  # noqa: B023 (called at once)
        raise


def plain_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat fields as a file has them: numbers and arrays of numpy as those of Python, code by its name.

    A fault model becomes its text, and a class, function, metric or task ``module:name``. SpecError for one that no
    other process can import by that name.

    >>> from fractions import Fraction
    >>> import numpy as np
    >>> from onnxfi.faults.models import Flip
    >>> plain_fields({"ber": np.array([0.25, 0.5]), "seed": np.int64(3), "fault": Flip, "metric": [Fraction]})
    {'ber': [0.25, 0.5], 'seed': 3, 'fault': 'flip', 'metric': ['fractions:Fraction']}
    """
    return {name: _plain(value, name) for name, value in given.items()}


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one, name) for one in value]
    if isinstance(value, FaultModel) or (isinstance(value, type) and issubclass(value, FaultModel)):
        return _fault_text(value, name)
    if isinstance(value, type | FunctionType):
        return _importable(value.__module__, value.__qualname__, name)
    if isinstance(value, Metric | Task):
        return _declared(value, name)
    return value.tolist() if hasattr(value, "tolist") else value


def _importable(module: str, own: str, name: str) -> str:
    """Return what another process imports; SpecError for what it cannot."""
    if module == "__main__" or "<" in own:
        raise SpecError(
            f"{name}: {own} is defined in the running program; put it into a module, from which workers and a resumed "
            f"campaign can import it"
        )
    return f"{module}:{own}"


def _declared(value: Metric | Task, name: str) -> str:
    """Return a task that is built in by its name, and another metric or task as the module holds it that defines it."""
    if isinstance(value, Task) and value.name in task_names() and find_task(value.name) is value:
        return value.name
    functions = [value.function] if isinstance(value, Metric) else [value.masked, *(m.function for m in value.metrics)]
    modules = [sys.modules[function.__module__] for function in functions if hasattr(function, "__module__")]
    homes = [(module.__name__, own) for module in modules for own, one in vars(module).items() if one is value]
    return _importable(*(homes or [("__main__", value.name)])[0], name)


def _fault_text(value: FaultModel | type[FaultModel], name: str) -> str:
    """Return a fault model, or a class with its defaults, as text; SpecError for one that nobody offers."""
    kind = value if isinstance(value, type) else type(value)
    if fault_models().get(kind.name) is not kind:
        raise SpecError(
            f"{name}: {kind.__qualname__} has no name that workers and a resumed campaign know it by; offer it by an "
            f"entry point of onnxfi.fault_models, as CONTRIBUTING.md shows"
        )
    try:
        return str(value() if isinstance(value, type) else value)
    except TypeError:
        raise SpecError(f"{name}: {kind.__qualname__} has no default parameters; give an instance") from None


def flat(value: Any) -> dict[str, Any]:
    """Return the flat fields of a value, by name."""
    found: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        inner = getattr(value, f.name)
        found |= flat(inner) if is_dataclass(inner) else {f.name: inner}
    key = getattr(value, "key", "")
    return found if not key or key in found else {key: True, **found}


def given_fields(value: Any) -> dict[str, Any]:
    """Return the flat fields of a value that are not at their default."""
    known = flat_fields(type(value))
    return {name: one for name, one in flat(value).items() if one != known[name].default}


def refuse_unknown(names: Iterable[str], kind: Any) -> None:
    """Raise SpecError for a name that is no flat field."""
    known = flat_fields(kind)
    for name in names:
        if name not in known:
            raise SpecError(f"unknown field {name[:60]!r}{closest(name[:60], known)}", name)


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


def typed(value: Any, kind: Any, name: str) -> Any:
    """Return a value as the type that field `name` is declared with; SpecError for another type or an unknown word."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        if inner[0] is float and isinstance(value, str):
            return parse_numbers(value, name) if name in _CONDITIONS else parse_rates(value, name)
        single = isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable)
        return tuple(typed(one, inner[0], name) for one in ((value,) if single else value))
    if origin in (Union, UnionType):
        if any(isinstance(value, one) for one in _values_in(kind)) or (value is None and NoneType in inner):
            return value
        kind = inner[0]
    if origin is Literal:
        check_word(name, typed(value, str, name), inner)
        return value
    if is_dataclass(kind) and isinstance(value, Mapping):
        refuse_unknown(value, kind)
        return build(kind, value)
    if is_dataclass(kind) and isinstance(value, kind):  # type: ignore[arg-type]
        return value
    if kind is str and isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float):
        try:
            return whole_number(value) if kind is int else named(name, number, value)
        except ValueError:
            pass
    beside = "; arrays of labels are given with the samples, as (samples, labels)" if name == "labels" else ""
    raise SpecError(f"{name} must be {_TYPES.get(kind, 'a part')}; given {brief(value)!r}{beside}", name)


def check_word(name: str, word: str, known: Sequence[str]) -> None:
    """SpecError for a word that is none of those known."""
    if word not in known:
        raise SpecError(f"{name} {word!r} is unknown{closest(word, known)}", name)


def parse_numbers(text: str, name: str) -> tuple[float, ...]:
    """Read a list of numbers by comma.

    >>> parse_numbers("0.8, 0.76", "voltage")
    (0.8, 0.76)
    """
    try:
        return tuple(named(name, number, part) for part in text.split(","))
    except ValueError:
        raise SpecError(f"{name} {text[:60]!r} is no list of numbers; write 0.8,0.76", name) from None


def parse_rates(text: str, name: str = "ber") -> tuple[float, ...]:
    """Read rates: a list by comma, or decades from one end to the other, both included.

    >>> parse_rates("1e-6:1e-4"), parse_rates("2e-5,1e-3"), parse_rates("1e-6:5e-6")
    ((1e-06, 1e-05, 0.0001), (2e-05, 0.001), (1e-06, 5e-06))
    """
    wrong = SpecError(f"{name} {text[:60]!r} is not a rate; write 1e-6, a list 1e-6,1e-5 or decades 1e-7:1e-3", name)
    try:
        low, colon, high = text.partition(":")
        if not colon:
            return tuple(named(name, number, part) for part in text.split(","))
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
