"""Patterns: one event that strikes many elements of a tensor, described by a small file.

What an accelerator does when one of its parts fails (a row of a systolic array, every 16th channel, a tile) is
measured, not derived. So a pattern is data: a JSON file, version 1, described in docs/how-to/patterns.md, used as
`pattern:file=PATTERN.json`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError, closest
from onnxfi.faults.models import FaultModel, parse_fault
from onnxfi.faults.words import Mask, Word

VERSION = 1
_LARGEST_FILE = 1 << 20
_KEYS = ("version", "name", "fault", "shape", "axis", "size", "axes", "rest")
_SHAPES = ("row", "column", "channel", "block")


@dataclass(frozen=True)
class Rule:
    """Which coordinates of one axis are struck, relative to the site's.

    `kind` is same, all, every, block or offsets; `values` its number or numbers.
    """

    kind: str
    values: tuple[int, ...] = ()

    def coordinates(self, at: int, length: int) -> NDArray[np.int64]:
        """The struck coordinates of an axis, for a site at `at`; offsets beyond its ends strike nothing."""
        if self.kind == "same":
            return np.array([at], np.int64)
        if self.kind == "all":
            return np.arange(length, dtype=np.int64)
        if self.kind == "every":
            return np.arange(at % self.values[0], length, self.values[0], dtype=np.int64)
        if self.kind == "block":
            start = at // self.values[0] * self.values[0]
            return np.arange(start, min(start + self.values[0], length), dtype=np.int64)
        reached = at + np.array(self.values, np.int64)
        return reached[(reached >= 0) & (reached < length)]


@dataclass(frozen=True)
class _Description:
    fault: FaultModel
    axes: tuple[tuple[int, Rule], ...]
    rest: Rule
    digest: str


@dataclass(frozen=True)
class Pattern(FaultModel):
    """The events of a pattern file: the site and the elements that the file's rules reach from it.

    `sha256` binds the content; it is filled in where it is not given, and a file of other content is refused.
    """

    file: str = ""
    sha256: str = ""
    name = "pattern"
    spreads = True
    described: _Description = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.file:
            raise FaultError("pattern takes file=PATTERN.json; docs/how-to/patterns.md says what stands in it")
        found = _read(self.file)
        if self.sha256 not in ("", found.digest):
            raise FaultError(f"pattern {self.file!r} has the content {found.digest}, not {self.sha256}; it was changed")
        object.__setattr__(self, "sha256", found.digest)
        object.__setattr__(self, "described", found)
        object.__setattr__(self, "unit", found.fault.unit)

    @property
    def each(self) -> FaultModel:
        """What happens to each struck word."""
        return self.described.fault

    def width(self) -> int:
        return self.each.width()

    def mask(self, word: Word, bit: int) -> Mask | None:
        return self.each.mask(word, bit)

    def fits(self, axes: tuple[int, ...]) -> bool:
        return all(-len(axes) <= axis < len(axes) for axis, _ in self.described.axes)

    def elements(self, axes: tuple[int, ...], index: int) -> NDArray[np.int64]:
        if not axes:
            return np.array([index], np.int64)
        site = [int(i) for i in np.unravel_index(index, axes)]
        rules = [self.described.rest] * len(axes)
        for axis, rule in self.described.axes:
            rules[axis] = rule
        reached = [rule.coordinates(at, n) for rule, at, n in zip(rules, site, axes, strict=True)]
        return np.asarray(np.ravel_multi_index(np.ix_(*reached), axes), np.int64).ravel()


@lru_cache(maxsize=64)
def _parse(text: bytes, file: str) -> _Description:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise FaultError(f"pattern {file!r} is no JSON; docs/how-to/patterns.md says what stands in it") from None
    if not isinstance(row, dict):
        raise FaultError(f"pattern {file!r} holds no object; docs/how-to/patterns.md says what stands in it")
    for key in row:
        if key not in _KEYS:
            raise FaultError(f"pattern {file!r}: unknown key {key!r}{closest(key, _KEYS)}")
    if row.get("version") != VERSION:
        raise FaultError(f"pattern {file!r} has version {row.get('version')}, this onnxfi reads version {VERSION}")
    each = parse_fault(str(row.get("fault", "flip")))
    if each.name == "pattern":
        raise FaultError(f"pattern {file!r}: a pattern's fault strikes one word, as flip; not another pattern")
    axes, rest = _axes(row, file)
    return _Description(each, axes, rest, hashlib.sha256(text).hexdigest())


def _read(file: str) -> _Description:
    try:
        with Path(file).open("rb") as stream:
            text = stream.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise FaultError(f"cannot read the pattern {file!r}: {error.strerror}") from None
    if len(text) > _LARGEST_FILE:
        raise FaultError(f"pattern {file!r} is larger than {_LARGEST_FILE:,} bytes")
    return _parse(text, file)


def _axes(row: dict[str, Any], file: str) -> tuple[tuple[tuple[int, Rule], ...], Rule]:
    """The rules by axis, and the rule of all others; the four named shapes are written out."""
    if ("shape" in row) == ("axes" in row):
        raise FaultError(f"pattern {file!r} takes either shape ({', '.join(_SHAPES)}) or axes")
    same, everything = Rule("same"), Rule("all")
    if "axes" in row:
        given = row["axes"]
        if not isinstance(given, dict) or not given:
            raise FaultError(f"pattern {file!r}: axes maps axis numbers to rules, as {{'-1': 'all'}}")
        rules = tuple((_whole(axis, f"pattern {file!r}: axis"), _rule(rule, file)) for axis, rule in given.items())
        return rules, _rule(row.get("rest", "same"), file)
    shape = row["shape"]
    if shape == "row":
        return ((-1, everything),), same
    if shape == "column":
        return ((-2, everything),), same
    if shape == "channel":
        return ((_whole(row.get("axis", 0), f"pattern {file!r}: axis"), same),), everything
    if shape == "block":
        size = row.get("size")
        if not isinstance(size, list) or not size:
            raise FaultError(f"pattern {file!r}: a block takes size, the lengths along the last axes, as [4, 4]")
        sides = [_rule({"block": side}, file) for side in size]
        return tuple((axis, rule) for axis, rule in enumerate(sides, -len(sides))), same
    raise FaultError(f"pattern {file!r}: unknown shape {shape!r}{closest(str(shape), _SHAPES)}")


def _rule(given: Any, file: str) -> Rule:
    if given in ("same", "all"):
        return Rule(given)
    if isinstance(given, dict) and len(given) == 1:
        ((kind, value),) = given.items()
        where = f"pattern {file!r}: {kind}"
        if kind in ("every", "block"):
            length = _whole(value, where)
            if length < 1:
                raise FaultError(f"{where} {value} is out of range; give 1 or more")
            return Rule(kind, (length,))
        if kind == "offsets" and isinstance(value, list) and value:
            return Rule(kind, tuple(sorted({_whole(v, where) for v in value})))
    raise FaultError(
        f"pattern {file!r}: {json.dumps(given)[:60]} is no rule; write 'same', 'all', "
        "{'every': 16}, {'block': 4} or {'offsets': [0, 1]}"
    )


def _whole(value: Any, where: str) -> int:
    try:
        if not isinstance(value, (bool, float)):
            return int(value)
    except (TypeError, ValueError):
        pass
    raise FaultError(f"{where} {value!r} is no whole number")
