"""Fault patterns: one event that affects many elements of a tensor, described by a file.

The effect of a defective part of an accelerator (a row of a systolic array, every 16th channel, a tile) is measured,
not derived. So a pattern is data: a JSON file, version 1, described in docs/how-to/patterns.md, used as
`pattern:file=PATTERN.json`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onnxfi.faults.fault_model import FaultModel, parse_model, with_installed
from onnxfi.faults.hardware.fault_description import DescribedFault, Description
from onnxfi.faults.models import BUILT_IN
from onnxfi.faults.neuron_models import NEURON_MODELS
from onnxfi.file_fields import Fields

FILE = Description(
    "pattern", "docs/how-to/patterns.md",
    ("version", "name", "fault", "shape", "axis", "size", "axes", "rest"), "PATTERN.json",
)  # fmt: skip
_SHAPES = ("row", "column", "channel", "block")
_MOST_AXES, _LONGEST = 64, 1 << 40


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
    fault = str(row.values.get("fault", "flip"))
    if fault.strip().partition(":")[0] == Pattern.name:
        raise row.fail("its fault must be one of a single word, such as flip, not another pattern")
    element_model = parse_model(fault, with_installed((*BUILT_IN, *NEURON_MODELS)))
    axes, rest = _axes(row)
    return _Description(element_model, axes, rest)


def _axes(row: Fields) -> tuple[tuple[tuple[int, AxisRule], ...], AxisRule]:
    """Return the rules by axis, and the rule of all other axes; a named shape is expanded to rules."""
    if ("shape" in row) == ("axes" in row):
        raise row.fail(f"give either shape ({', '.join(_SHAPES)}) or axes")
    same, everything = AxisRule("same"), AxisRule("all")
    if "axes" in row:
        axes = row.inner("axes")
        rules = []
        for axis in axes.values:
            if re.fullmatch(r"-?\d{1,9}", axis, re.ASCII) is None:
                raise row.fail(f"axis {axis[:80]!r} is not a whole number")
            rules.append((int(axis), _rule(axes, axis)))
        return tuple(rules), _rule(row, "rest") if "rest" in row else same
    shape = row.one_of("shape", _SHAPES)
    if shape == "row":
        return ((-1, everything),), same
    if shape == "column":
        return ((-2, everything),), same
    if shape == "channel":
        return ((row.whole("axis", -_MOST_AXES, _MOST_AXES, default=0), same),), everything
    sides = row.wholes("size", 1, _LONGEST, range(1, _MOST_AXES + 1))
    return tuple((axis, AxisRule("block", (side,))) for axis, side in enumerate(sides, -len(sides))), same


def _rule(given: Fields, name: str) -> AxisRule:
    rule = given.values[name]
    if rule in ("same", "all"):
        return AxisRule(rule)
    if isinstance(rule, dict) and len(rule) == 1:
        one = given.inner(name, ("every", "block", "offsets"))
        if "offsets" in one:
            return AxisRule(
                "offsets", tuple(sorted(set(one.wholes("offsets", -_LONGEST, _LONGEST, range(1, _LONGEST)))))
            )
        [kind] = one.values
        return AxisRule(kind, (one.whole(kind, 1, _LONGEST),))
    raise given.refuse(name, "'same', 'all', {'every': 16}, {'block': 4} or {'offsets': [0, 1]}")
