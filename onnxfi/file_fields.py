"""Fields of files: read from files of bounded size, with one wording for what is wrong in them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from onnxfi.errors import InputError, closest
from onnxfi.numbers import number

_LONGEST_NAME, _LONGEST_VALUE, _LARGEST = 80, 80, sys.float_info.max
#: The default of a field that must be given.
_REQUIRED: Any = object()

Default = TypeVar("Default")


def read_bytes(path: str | Path, most: int, error: type[InputError] = InputError, *, regular: bool = False) -> bytes:
    """Return the bytes of a file; `error` if none can be read, or more.

    What is no regular file, as a pipe, whose writer may never come, is read too, unless it must be `regular`.
    """
    name = repr(str(path)[:200])
    try:
        if regular and Path(path).exists() and not Path(path).is_file():
            raise error(f"cannot read {name}: it is no regular file")
        with Path(path).open("rb") as stream:
            data = stream.read(most + 1)
    except (OSError, ValueError) as why:  # ValueError: a name with a NUL
        raise error(f"cannot read {name}: {getattr(why, 'strerror', None) or why}") from None
    if len(data) > most:
        raise error(f"{name} has more than {most:,} bytes; give a part of it")
    return data


def read_text(path: str | Path, most: int, error: type[InputError] = InputError) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark; see `read_bytes`."""
    try:
        return read_bytes(path, most, error).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error(f"{str(path)[:200]!r} is no text in UTF-8; save it so") from None


def parse_json(text: bytes, where: str, error: type[InputError] = InputError) -> Any:
    """Return what strict JSON holds; `error` for other text, and for a number that would be taken as 0."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=lambda text: float(text) or number(text))
    except InputError as why:
        raise error(f"{where}: {why}") from None
    except (ValueError, RecursionError):
        raise error(f"{where} is not JSON") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")


@dataclass(frozen=True)
class Fields:
    """Fields of a description, checked as they are read; an error says where it is, which field, and what that takes.

    Examples
    --------
    >>> given = Fields.of({"rate": 2, "kind": "row"}, ("rate", "kind"), "table 't.json'")
    >>> given.one_of("kind", ("row", "column")), given.whole("size", 1, 9, default=4)
    ('row', 4)
    >>> given.number("rate", 0, 1)
    Traceback (most recent call last):
    onnxfi.errors.InputError: table 't.json': rate is 2; it takes a number from 0 to 1
    """

    values: Mapping[str, Any]
    where: str
    error: type[InputError] = InputError

    @classmethod
    def of(
        cls, given: Any, known: Collection[str], where: str, error: type[InputError] = InputError, *, version: int = 0
    ) -> Fields:
        """Return the fields of a mapping; `error` for no mapping, an unknown field, or another `version` (0: none)."""
        if not isinstance(given, Mapping):
            raise error(f"{where} holds no fields; it takes {', '.join(known)}")
        for name in given:
            if name not in known:
                short = str(name)[:_LONGEST_NAME]
                raise error(f"{where}: unknown field {short!r}{closest(short, known)}")
        found = cls(given, where, error)
        if version and "version" not in given:
            raise found.fail(f"version is missing; add version: {version}")
        if version and (type(given["version"]) is not int or given["version"] != version):
            raise found.fail(f"version {_brief(given['version'])}; this onnxfi reads version {version}")
        return found

    def __contains__(self, name: str) -> bool:
        """Return True for a field that is given."""
        return name in self.values

    def fail(self, text: str) -> InputError:
        """Return an error that says where it is."""
        return self.error(f"{self.where}: {text}")

    def required(self, name: str) -> Any:
        """Return the value of a field that must be given."""
        if name not in self.values:
            raise self.fail(f"{name} is missing")
        return self.values[name]

    def refuse(self, name: str, allowed: str) -> InputError:
        """Return the error for a value that a field does not take."""
        return self.fail(f"{_shown(name)} is {_brief(self.values[name])}; it takes {allowed}")

    def take(self, name: str, fits: Callable[[Any], bool], allowed: str, default: Any = _REQUIRED) -> Any:
        """Return the value of a field if it `fits`, its default if it is not given."""
        if name not in self.values and default is not _REQUIRED:
            return default
        if not fits(self.required(name)):
            raise self.refuse(name, allowed)
        return self.values[name]

    def whole(self, name: str, low: int, high: int, default: Default = _REQUIRED) -> int | Default:
        """Return a whole number within these ends."""
        found: int | Default = self.take(
            name, lambda value: _is_whole(value, low, high), f"a whole number from {low:,} to {high:,}", default
        )
        return found

    def wholes(self, name: str, low: int, high: int, count: range) -> tuple[int, ...]:
        """Return a list of whole numbers within these ends, as many as `count` allows."""
        many = f"{count[0]:,}" if len(count) == 1 else f"{count[0]:,} to {count[-1]:,}"
        return tuple(
            self.take(
                name,
                lambda value: (
                    isinstance(value, list) and len(value) in count and all(_is_whole(one, low, high) for one in value)
                ),
                f"a list of {many} whole numbers from {low:,} to {high:,}",
            )
        )

    def number(self, name: str, low: float, high: float, default: Default = _REQUIRED) -> float | Default:
        """Return a number within these ends."""
        found = self.take(
            name, lambda value: is_number(value, low, high), f"a number from {low:g} to {high:g}", default
        )
        return found if found is default else float(found)

    def ends(self, name: str, low: float, high: float) -> tuple[float, float]:
        """Return the lower and the upper end of a range, a list of two numbers within these ends."""
        first, last = self.take(
            name,
            lambda value: (
                isinstance(value, list)
                and len(value) == 2
                and all(is_number(one, low, high) for one in value)
                and value[0] <= value[1]
            ),
            f"[low, high], two numbers from {low:g} to {high:g}",
        )
        return float(first), float(last)

    def flag(self, name: str) -> bool:
        """Return a truth value, false if it is not given."""
        return bool(self.take(name, lambda value: isinstance(value, bool), "true or false", default=False))

    def text(self, name: str, allowed: str, default: Default = _REQUIRED) -> str | Default:
        """Return a text that is not empty."""
        found: str | Default = self.take(name, _is_text, allowed, default)
        return found

    def texts(
        self, name: str, allowed: str, default: Default = _REQUIRED, *, alone: bool = False
    ) -> tuple[str, ...] | Default:
        """Return a list of texts; with `alone` also one text as a list."""

        def fits(value: Any) -> bool:
            listed = [value] if alone and isinstance(value, str) else value
            return isinstance(listed, list) and len(listed) > 0 and all(map(_is_text, listed))

        found = self.take(name, fits, allowed, default)
        return found if found is default else (found,) if isinstance(found, str) else tuple(found)

    def one_of(self, name: str, known: Collection[str], default: Default = _REQUIRED) -> str | Default:
        """Return one of the known texts."""
        found: str | Default = self.take(name, lambda value: True, "", default)
        if found is not default and not (isinstance(found, str) and found in known):
            short = str(found)[:_LONGEST_NAME]
            raise self.fail(f"unknown {name} {short!r}{closest(short, known)}")
        return found

    def inner(self, name: str, known: Collection[str] | None = None) -> Fields:
        """Return the fields that a field holds; those of any name without known ones."""
        given, where = self.required(name), f"{self.where}: {name}"
        if known is None and not (isinstance(given, Mapping) and given):
            raise self.refuse(name, "names with a value each")
        return Fields.of(given, given if known is None else known, where, self.error)

    def each(self, name: str, known: Collection[str], most: int, item: str = "") -> tuple[Fields, ...]:
        """Return the fields of each part of a list; an `item` is counted from 1 in messages."""
        listed = self.take(
            name,
            lambda value: isinstance(value, list) and 0 < len(value) <= most,
            f"a list of 1 to {most:,}, each with {', '.join(known)}",
        )
        return tuple(
            Fields.of(one, known, f"{self.where}: {f'{item} {k + 1}' if item else f'{name}[{k}]'}", self.error)
            for k, one in enumerate(listed)
        )


def _shown(name: str) -> str:
    """Return the name of a field, which may be a file's own, for a message."""
    plain = name.replace("_", "").isalnum() and len(name) <= _LONGEST_NAME
    return name if plain else repr(name[:_LONGEST_NAME])


def _brief(value: Any) -> str:
    return repr(value)[:_LONGEST_VALUE]


def _is_whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def is_number(value: Any, low: float = -_LARGEST, high: float = _LARGEST) -> bool:
    """Return True for a number within these ends, which is no truth value."""
    return type(value) in (int, float) and low <= value <= high


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
