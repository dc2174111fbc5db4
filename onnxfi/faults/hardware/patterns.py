"""Fault patterns: one event that affects many elements of a tensor, described by a file.

The effect of a defective part of an accelerator (a row of a systolic array, every 16th channel, a tile) is measured,
not derived. So a pattern is data: a JSON file, version 1, described in docs/how-to/patterns.md, used as
`pattern:file=PATTERN.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError, closest
from onnxfi.faults.fault_model import FaultModel, parse_model, with_installed
from onnxfi.faults.hardware.fault_description import DescribedFault, Description
from onnxfi.faults.models import BUILT_IN
from onnxfi.faults.neuron_models import NEURON_MODELS

FILE = Description(
    "pattern", "docs/how-to/patterns.md",
    ("version", "name", "fault", "shape", "axis", "size", "axes", "rest"), "PATTERN.json",
)  # fmt: skip
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


def affected_elements(rules: Sequence[AxisRule], shape: tuple[int, ...], index: int) -> NDArray[np.int64]:
    """Return the flat indices that a rule for each axis selects around an element."""
    if not shape:
        return np.array([index], np.int64)
    site = [int(i) for i in np.unravel_index(index, shape)]
    chosen = [rule.coordinates(at, n) for rule, at, n in zip(rules, site, shape, strict=True)]
    return np.asarray(np.ravel_multi_index(np.ix_(*chosen), shape), np.int64).ravel()


@dataclass(frozen=True)
class _Description:
    """Parsed content of a pattern file."""

    fault: FaultModel
    axes: tuple[tuple[int, AxisRule], ...]
    rest: AxisRule


@dataclass(frozen=True)
class Pattern(DescribedFault):
    """Fault in the site and in the elements that the rules of a pattern file select around it.

    Stands for a defective lane, row, column or tile of an accelerator, whose error pattern was measured. `sha256` is
    the digest of the file; it is filled in if it is not given, and a file of other content is refused.
    """

    name = "pattern"
    described = FILE
    multi_element = True
    description: _Description = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the file and check its digest."""
        found = _parse(self.content(), self.file)
        object.__setattr__(self, "description", found)
        object.__setattr__(self, "unit", found.fault.unit)

    @property
    def element_model(self) -> FaultModel:
        """Effect on each affected element."""
        return self.description.fault

    def width(self) -> int:
        """Return the bits that the element model covers."""
        return self.element_model.width()

    def applies_to(self, shape: tuple[int, ...]) -> bool:
        """Return True if a tensor of this shape has every axis that the file names."""
        return all(-len(shape) <= axis < len(shape) for axis, _ in self.description.axes)

    def elements(self, shape: tuple[int, ...], index: int) -> NDArray[np.int64]:
        """Return the flat indices of the affected elements."""
        rules = [self.description.rest] * len(shape)
        for axis, rule in self.description.axes if shape else ():
            rules[axis] = rule
        return affected_elements(rules, shape, index)


@lru_cache(maxsize=64)
def _parse(text: bytes, file: str) -> _Description:
    row = FILE.parse(text, file)
    fault = str(row.get("fault", "flip"))
    if fault.strip().partition(":")[0] == Pattern.name:
        raise FaultError(f"pattern {file!r}: its fault must be one of a single word, such as flip, not another pattern")
    element_model = parse_model(fault, with_installed((*BUILT_IN, *NEURON_MODELS)))
    axes, rest = _axes(row, file)
    return _Description(element_model, axes, rest)


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
