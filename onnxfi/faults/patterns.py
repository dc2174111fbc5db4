"""Fault patterns: one event that affects many elements of a tensor, described by a file.

The effect of a defective part of an accelerator (a row of a systolic array, every 16th channel, a tile) is measured,
not derived. So a pattern is data: a JSON file, version 1, described in docs/how-to/patterns.md, used as
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
from onnxfi.faults.fault_model import FaultModel, parse_model, with_installed
from onnxfi.faults.models import BUILT_IN
from onnxfi.faults.neuron_models import NEURON_MODELS
from onnxfi.faults.words import Mask, Word

VERSION = 1
_MAX_FILE_BYTES = 1 << 20
_KEYS = ("version", "name", "fault", "shape", "axis", "size", "axes", "rest")
_SHAPES = ("row", "column", "channel", "block")


@dataclass(frozen=True)
class AxisRule:
    """Selection of the affected coordinates along one axis, relative to the site's.

    `kind` is same, all, every, block or offsets; `values` its number or numbers.
    """

    kind: str
    values: tuple[int, ...] = ()

    def coordinates(self, at: int, length: int) -> NDArray[np.int64]:
        """Return the affected coordinates of an axis for a site at `at`; offsets beyond its ends are left out."""
        if self.kind == "same":
            return np.array([at], np.int64)
        if self.kind == "all":
            return np.arange(length, dtype=np.int64)
        if self.kind == "every":
            return np.arange(at % self.values[0], length, self.values[0], dtype=np.int64)
        if self.kind == "block":
            start = at // self.values[0] * self.values[0]
            return np.arange(start, min(start + self.values[0], length), dtype=np.int64)
        shifted = at + np.array(self.values, np.int64)
        return shifted[(shifted >= 0) & (shifted < length)]


@dataclass(frozen=True)
class _Description:
    """Parsed content of a pattern file."""

    fault: FaultModel
    axes: tuple[tuple[int, AxisRule], ...]
    rest: AxisRule
    digest: str


@dataclass(frozen=True)
class Pattern(FaultModel):
    """Fault in the site and in the elements that the rules of a pattern file select around it.

    Stands for a defective lane, row, column or tile of an accelerator, whose error pattern was measured. `sha256` is
    the digest of the file; it is filled in if it is not given, and a file of other content is refused.
    """

    file: str = ""
    sha256: str = ""
    name = "pattern"
    multi_element = True
    description: _Description = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the file and check its digest."""
        if not self.file:
            raise FaultError("pattern takes file=PATTERN.json; docs/how-to/patterns.md describes the file")
        found = _read(self.file)
        if self.sha256 not in ("", found.digest):
            raise FaultError(f"pattern {self.file!r} has the content {found.digest}, not {self.sha256}; it was changed")
        object.__setattr__(self, "sha256", found.digest)
        object.__setattr__(self, "description", found)
        object.__setattr__(self, "unit", found.fault.unit)

    @property
    def element_model(self) -> FaultModel:
        """Effect on each affected element."""
        return self.description.fault

    def width(self) -> int:
        """Return the bits that the element model covers."""
        return self.element_model.width()

    def mask(self, word: Word, bit: int) -> Mask | None:
        """Return the mask of the element model."""
        return self.element_model.mask(word, bit)

    def applies_to(self, shape: tuple[int, ...]) -> bool:
        """Return True if a tensor of this shape has every axis that the file names."""
        return all(-len(shape) <= axis < len(shape) for axis, _ in self.description.axes)

    def elements(self, shape: tuple[int, ...], index: int) -> NDArray[np.int64]:
        """Return the flat indices of the affected elements."""
        if not shape:
            return np.array([index], np.int64)
        site = [int(i) for i in np.unravel_index(index, shape)]
        rules = [self.description.rest] * len(shape)
        for axis, rule in self.description.axes:
            rules[axis] = rule
        affected = [rule.coordinates(at, n) for rule, at, n in zip(rules, site, shape, strict=True)]
        return np.asarray(np.ravel_multi_index(np.ix_(*affected), shape), np.int64).ravel()


@lru_cache(maxsize=64)
def _parse(text: bytes, file: str) -> _Description:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise FaultError(f"pattern {file!r} is not JSON; docs/how-to/patterns.md describes the file") from None
    if not isinstance(row, dict):
        raise FaultError(f"pattern {file!r} holds no JSON object; docs/how-to/patterns.md describes the file")
    for key in row:
        if key not in _KEYS:
            raise FaultError(f"pattern {file!r}: unknown key {key!r}{closest(key, _KEYS)}")
    if row.get("version") != VERSION:
        raise FaultError(f"pattern {file!r} has version {row.get('version')}, this onnxfi reads version {VERSION}")
    fault = str(row.get("fault", "flip"))
    if fault.strip().partition(":")[0] == Pattern.name:
        raise FaultError(f"pattern {file!r}: its fault must be one of a single word, such as flip, not another pattern")
    element_model = parse_model(fault, with_installed((*BUILT_IN, *NEURON_MODELS)))
    axes, rest = _axes(row, file)
    return _Description(element_model, axes, rest, hashlib.sha256(text).hexdigest())


def _read(file: str) -> _Description:
    try:
        with Path(file).open("rb") as stream:
            text = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FaultError(f"cannot read the pattern {file!r}: {error.strerror}") from None
    if len(text) > _MAX_FILE_BYTES:
        raise FaultError(f"pattern {file!r} is larger than {_MAX_FILE_BYTES:,} bytes")
    return _parse(text, file)


def _axes(row: dict[str, Any], file: str) -> tuple[tuple[tuple[int, AxisRule], ...], AxisRule]:
    """Return the rules by axis, and the rule of all other axes; a named shape is expanded to rules."""
    if ("shape" in row) == ("axes" in row):
        raise FaultError(f"pattern {file!r} takes either shape ({', '.join(_SHAPES)}) or axes")
    same, everything = AxisRule("same"), AxisRule("all")
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


def _rule(given: Any, file: str) -> AxisRule:
    if given in ("same", "all"):
        return AxisRule(given)
    if isinstance(given, dict) and len(given) == 1:
        ((kind, value),) = given.items()
        where = f"pattern {file!r}: {kind}"
        if kind in ("every", "block"):
            length = _whole(value, where)
            if length < 1:
                raise FaultError(f"{where} {value} is out of range; give 1 or more")
            return AxisRule(kind, (length,))
        if kind == "offsets" and isinstance(value, list) and value:
            return AxisRule(kind, tuple(sorted({_whole(v, where) for v in value})))
    raise FaultError(
        f"pattern {file!r}: {json.dumps(given)[:60]} is not a rule; write 'same', 'all', "
        "{'every': 16}, {'block': 4} or {'offsets': [0, 1]}"
    )


def _whole(value: Any, where: str) -> int:
    try:
        if not isinstance(value, (bool, float)):
            return int(value)
    except (TypeError, ValueError):
        pass
    raise FaultError(f"{where} {value!r} is not a whole number")
