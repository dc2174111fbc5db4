"""Text forms `NAME[:key=value,…]` of faults, protections and memory codes, parsed into frozen dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from onnxfi.errors import InputError, closest
from onnxfi.numbers import number

Named = TypeVar("Named")

#: Maximum number of characters in a whole number; a word has 64 bits.
_MAX_NUMBER_LENGTH = 80


def parse_text_form(
    text: str, known: Mapping[str, type[Named]], kind: str, error: type[InputError] = InputError
) -> Named:
    """Return the value that `NAME[:key=value,…]` describes among the known ones; names may hold a colon.

    `kind` names it in messages; `error` is raised for an unknown name or key, and for a value of another type.
    """
    given = text.strip()
    head, *more = given.split(":")
    name = next((one for one in (":".join([head, *more[:1]]), head) if one in known), None)
    if name is None:
        shown = given if any(":" in one for one in known) else head
        raise error(f"unknown {kind} {shown!r}{closest(shown, known)}")
    fields = {f.name: f for f in dataclasses.fields(known[name]) if f.init}  # type: ignore[arg-type]
    texts = key_values(given[len(name) + 1 :] if len(given) > len(name) else None, fields, f"{kind} {name!r}", error)
    return known[name](**{
        key: _value(value, fields[key].type, f"{kind} {name!r}: {key}", error) for key, value in texts.items()
    })  # fmt: skip


def key_values(text: str | None, known: Collection[str], what: str, error: type[InputError]) -> dict[str, str]:
    """Return the parameters `key=value,…` of a text form as texts; `error` for one that is unknown or given twice.

    >>> key_values("k=3, low=1", ("k", "low"), "fault 'burst'", InputError)
    {'k': '3', 'low': '1'}
    """
    given: dict[str, str] = {}
    for pair in () if text is None else text.split(","):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or key not in known:
            takes = f"takes {', '.join(known)} as key=value" if known else "takes no parameters"
            raise error(f"{what} {takes}; given {pair!r}")
        if key in given:
            raise error(f"{what}: {key} is given twice")
        given[key] = value
    return given


def _value(text: str, kind: Any, what: str, error: type[InputError]) -> Any:
    """Return a parameter's value, of the type that its field declares."""
    whole = kind in ("int", int)
    if whole and len(text) >= _MAX_NUMBER_LENGTH:
        raise error(f"{f'{what}={text!r}'[:80]}… is too long for the number of a word; give fewer digits")
    if kind in ("bool", bool) and text not in ("yes", "no"):
        raise error(f"{what}={text!r} is neither yes nor no")
    try:
        if whole:
            return int(text, 0)
        if kind in ("float", float):
            # Whole numbers stay exact integers, so that 64-bit words can be set to any value; 0 does not: -0 is one.
            return (text.lstrip("+-").isdecimal() and len(text) < 25 and int(text)) or number(text)
    except ValueError:
        raise error(f"{what}={text!r} is not a {'whole ' if whole else ''}number") from None
    except InputError as too_small:
        raise error(f"{what}: {too_small}") from None
    return text == "yes" if kind in ("bool", bool) else text


def text_of(name: str, value: Any) -> str:
    """Return the text form of a dataclass, with the parameters that differ from their defaults."""
    given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if getattr(value, f.name) != f.default}
    return name + (":" + ",".join(f"{key}={_text(one)}" for key, one in given.items()) if given else "")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
