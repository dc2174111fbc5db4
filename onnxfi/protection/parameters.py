"""Text forms of protections and memory codes: `NAME[:key=value,…]`, parsed into frozen dataclasses and printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from onnxfi.errors import InputError, closest
from onnxfi.faults.fault_model import key_values

Named = TypeVar("Named")


def parse(text: str, known: Mapping[str, type[Named]], kind: str) -> Named:
    """Return the value that `NAME[:key=value,…]` describes among the known ones; names may hold a colon.

    `kind` names it in messages. Raises InputError for an unknown name or key, and a value of another type.
    """
    words = text.strip().split(":")
    name = next((n for n in (":".join(words[:2]), words[0]) if n in known), "")
    if not name:
        raise InputError(f"unknown {kind} {text!r}{closest(text, known)}")
    rest = text.strip()[len(name) + 1 :]
    fields = {f.name: f for f in dataclasses.fields(known[name])}  # type: ignore[arg-type]
    texts = key_values(rest or None, fields, f"{kind} {name!r}", InputError)
    given = {
        key: _value(value, str(fields[key].type), f"{kind} {name!r}: {key}={value!r}") for key, value in texts.items()
    }
    return known[name](**given)


def text_of(name: str, value: Any) -> str:
    """Return the text form of a dataclass, with the parameters that differ from their defaults."""
    pairs = [
        f"{f.name}={_text(getattr(value, f.name))}"
        for f in dataclasses.fields(value)
        if getattr(value, f.name) != f.default
    ]
    return name + (":" + ",".join(pairs) if pairs else "")


def _value(text: str, kind: str, where: str) -> Any:
    """Return a parameter's value, of the type that its field declares."""
    if kind == "bool":
        if text not in ("yes", "no"):
            raise InputError(f"{where} is neither yes nor no")
        return text == "yes"
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:
            raise InputError(f"{where} is not a {'whole ' if kind == 'int' else ''}number") from None
    return text


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
