"""Content of a distribution file: tables of rows, each with its probability (docs/reference/distribution.md)."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError, SelectorError, closest
from onnxfi.faults.hardware.cells import CellArray
from onnxfi.faults.hardware.fault_description import Description
from onnxfi.faults.hardware.patterns import AxisRule, affected_elements
from onnxfi.faults.models import Set
from onnxfi.faults.sites import Target
from onnxfi.faults.words import WORDS, Word, parse_bits, select_bits
from onnxfi.file_fields import Fields

FILE = Description(
    "distribution", "docs/reference/distribution.md", ("version", "name", "source", "tables"), "TABLE.json"
)
SHAPES = ("element", "row", "channel", "block", "tile", "stride")
_ROW_FIELDS = (
    *("p", "bits", "position", "adjacent", "mask", "cells", "line", "interleave", "value"),
    *("shape", "axis", "size", "share", "each"),
)
_TABLE_FIELDS = ("op", "layer", "dtype", "least_elements", "rows")
_EFFECTS = ("bits", "mask", "cells", "value")
_MOST_ROWS, _MOST_TABLES, _MOST_CELLS = 10_000, 1_000, 64
_SUM_TOLERANCE, _LONGEST = 1e-6, 1 << 40
_VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "zero": 0.0}
_SPANS = ("relative", "factor", "absolute")


@dataclass(frozen=True)
class DistributionRow:
    """One row of a table: its probability, its effect on a word, and its spatial shape.

    The effect is a number of `bits` at drawn positions, a `mask`, `cells` around a drawn bit, or a value error.
    """

    p: float
    bits: int = 0
    position: tuple[tuple[str, float], ...] = ()
    adjacent: bool = False
    mask: int | None = None
    cells: tuple[tuple[int, int], ...] = ()
    array: CellArray = field(default_factory=CellArray)
    value_kind: str = ""
    low: float = 0.0
    high: float = 0.0
    shape: str = "element"
    axis: int = 0
    size: tuple[int, ...] = ()
    share: float = 1.0
    each: bool = False

    def elements(self, shape: tuple[int, ...], index: int) -> NDArray[np.int64]:
        """Return the flat indices of the elements that the shape covers, the site's among them."""
        if self.shape == "element" or not shape:
            return np.array([index], np.int64)
        if self.shape == "block":
            start = index // self.size[0] * self.size[0]
            return np.arange(start, min(start + self.size[0], math.prod(shape)), dtype=np.int64)
        if self.shape == "stride":
            return np.arange(index % self.size[0], math.prod(shape), self.size[0], dtype=np.int64)
        same, every = AxisRule("same"), AxisRule("all")
        rules = [every if self.shape == "channel" else same] * len(shape)
        if self.shape == "channel":
            rules[self.axis] = same
        elif self.shape == "row":
            rules[-1] = every
        else:
            rules[-len(self.size) :] = [AxisRule("block", (side,)) for side in self.size]
        return affected_elements(rules, shape, index)

    def misfit(self, target: Target) -> str:
        """Return why the row cannot be drawn in a target, "" if it can."""
        axes, word = target.axes, target.word
        said = f"shape {'×'.join(map(str, axes)) or 'scalar'}"
        if self.shape == "channel" and not -len(axes) <= self.axis < len(axes):
            return f"there is no axis {self.axis} in {said}"
        if self.shape in ("block", "stride") and self.size[0] > target.size:
            return f"a {self.shape} of {self.size[0]:,} is larger than the tensor, {said}"
        if self.shape == "tile" and (
            len(self.size) > len(axes) or any(a > n for a, n in zip(self.size[::-1], axes[::-1], strict=False))
        ):
            return f"a tile of {'×'.join(map(str, self.size))} is larger than the tensor, {said}"
        if self.bits > word.bits or (self.mask or 0) > word.full:
            return f"its bits are beyond the {word.bits} of {word.name}"
        if self.value_kind == "set":
            try:
                Set(self.low).mask(word, -1)
            except FaultError as error:
                return str(error)
        try:
            weights = self.bit_weights(word)
        except SelectorError as error:
            return str(error)
        held = int(np.count_nonzero(weights[: word.bits - self.bits + 1] if self.adjacent else weights))
        if held < (1 if self.adjacent or self.cells else self.bits):
            return f"fewer than {self.bits} bits of {word.name} have a probability"
        return ""

    def bit_weights(self, word: Word) -> NDArray[np.float64]:
        """Return the weight of each bit of a word: the probability of its position, shared evenly by its bits.

        SelectorError for a position that the word does not have.
        """
        weights = np.zeros(word.bits)
        if not self.position:
            return weights + 1 / word.bits
        for text, p in self.position:
            bits = select_bits(parse_bits(text), word)
            if not bits:
                raise SelectorError(f"{word.name} has no {text}")
            weights[list(bits)] += p / len(bits)
        return weights


@dataclass(frozen=True)
class Table:
    """Rows whose probabilities sum to 1, and what targets they hold for: op, layer, format, size."""

    label: str
    rows: tuple[DistributionRow, ...]
    op: tuple[str, ...] = ()
    layer: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()
    least_elements: int = 0
    ends: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sums = np.cumsum([row.p for row in self.rows])
        object.__setattr__(self, "ends", sums / sums[-1])

    def holds(self, target: Target) -> bool:
        """Return True if the table is for this target."""
        return (
            (not self.op or any(op in self.op for op in target.ops))
            and (not self.layer or any(fnmatch.fnmatchcase(target.layer, text) for text in self.layer))
            and (not self.dtype or target.dtype in self.dtype)
            and target.size >= self.least_elements
        )


def parse_tables(row: Fields) -> tuple[Table, ...]:
    """Return the tables of a file; FaultError for one that is damaged, or does not sum to 1."""
    tables = row.each("tables", _TABLE_FIELDS, _MOST_TABLES, "table")
    return tuple(_table(given, f"table {k}") for k, given in enumerate(tables, 1))


def _table(given: Fields, label: str) -> Table:
    rows = tuple(map(_row, given.each("rows", _ROW_FIELDS, _MOST_ROWS, "row")))
    total = math.fsum(row.p for row in rows)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise given.fail(f"its probabilities sum to {total:.9g}, not to 1; what is missing needs a row, too")
    conditions = {key: given.texts(key, "a text or list of texts", (), alone=True) for key in ("op", "layer", "dtype")}
    for dtype in conditions["dtype"]:
        if dtype not in WORDS:
            raise given.fail(f"unknown number format {dtype[:40]!r}{closest(dtype[:40], WORDS)}")
    return Table(label, rows, **conditions, least_elements=given.whole("least_elements", 0, 1 << 56, default=0))


def _row(row: Fields) -> DistributionRow:
    p = row.number("p", 0, 1)
    if sum(key in row for key in _EFFECTS) != 1:
        raise row.fail(f"give exactly one of {', '.join(_EFFECTS)}")
    if "cells" in row and any(key in row for key in ("shape", "share", "each")):
        raise row.fail("cells are a shape of their own; leave shape, share and each out")
    for key, needs in (
        ("position", ("bits", "cells")),
        ("adjacent", ("bits",)),
        ("line", ("cells",)),
        ("interleave", ("cells",)),
    ):
        if key in row and not any(one in row for one in needs):
            raise row.fail(f"{key} goes with {' or '.join(needs)}; leave it out")
    effect = {"bits": _bits, "mask": _mask, "cells": _cells, "value": _value}
    made = next(read for key, read in effect.items() if key in row)(row)
    return DistributionRow(p=p, **made, **_shape(row))


def _bits(row: Fields) -> dict[str, Any]:
    return {"bits": row.whole("bits", 1, 64), "position": _position(row), "adjacent": row.flag("adjacent")}


def _mask(row: Fields) -> dict[str, Any]:
    allowed = "a hexadecimal word, as '0x80400000'"
    try:
        mask = int(row.text("mask", allowed)[:20], 16)
    except ValueError:
        mask = 0
    if not 0 < mask < 1 << 64:
        raise row.refuse("mask", allowed)
    return {"mask": mask}


def _cells(row: Fields) -> dict[str, Any]:
    allowed = f"a list of 1 to {_MOST_CELLS} pairs [line, column]"
    given = row.take("cells", lambda value: isinstance(value, list) and 0 < len(value) <= _MOST_CELLS, allowed)
    cells = []
    for k in range(len(given)):
        line, column = Fields({"cells": given[k]}, row.where, row.error).wholes("cells", -1024, 1024, range(2, 3))
        cells.append((line, column))
    if (0, 0) not in cells or len(set(cells)) < len(cells):
        raise row.fail("cells names each cell once, among them [0, 0], the drawn one")
    line = row.whole("line", 1, 1 << 40, default=1)
    array = CellArray(line, row.whole("interleave", 1, line, default=1))
    return {"cells": tuple(cells), "array": array, "position": _position(row)}


def _value(row: Fields) -> dict[str, Any]:
    given = row.values["value"]
    if isinstance(given, str) and given in _VALUES:
        return {"value_kind": "set", "low": _VALUES[given]}
    if isinstance(given, dict) and len(given) == 1:
        one = row.inner("value", ("set", *_SPANS))
        if "set" in one:
            return {"value_kind": "set", "low": one.number("set", -1.7e308, 1.7e308)}
        [kind] = one.values
        low, high = one.ends(kind, 0.0 if kind == "absolute" else 1e-300, 1e300)
        return {"value_kind": kind, "low": low, "high": high}
    spans = ", ".join(f"{{'{kind}': [low, high]}}" for kind in _SPANS)
    raise row.refuse("value", f"one of {', '.join(_VALUES)}, {{'set': x}}, {spans}")


def _position(row: Fields) -> tuple[tuple[str, float], ...]:
    if "position" not in row:
        return ()
    given = row.inner("position")
    if len(given.values) > _MOST_CELLS:
        raise row.fail(f"position names {len(given.values):,} positions; give at most {_MOST_CELLS}")
    for text in given.values:
        try:
            parse_bits(text)
        except SelectorError as error:
            raise given.fail(str(error)) from None
    found = tuple((text, given.number(text, 0, 1)) for text in given.values)
    total = math.fsum(p for _, p in found)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise row.fail(f"the probabilities of its positions sum to {total:.9g}, not to 1")
    return found


def _shape(row: Fields) -> dict[str, Any]:
    shape = row.one_of("shape", SHAPES, "element")
    if "axis" in row and shape != "channel":
        raise row.fail("axis goes with the shape channel; leave it out")
    if ("size" in row) != (shape in ("block", "stride", "tile")):
        raise row.fail("size goes with the shapes block and stride (a number) and tile (a list), as they need it")
    size: tuple[int, ...] = ()
    if shape == "tile":
        size = row.wholes("size", 1, _LONGEST, range(1, 9))
    elif "size" in row:
        size = (row.whole("size", 1, _LONGEST),)
    return {
        "shape": shape, "axis": row.whole("axis", -64, 63, default=0), "size": size,
        "share": row.number("share", 0, 1, default=1.0), "each": row.flag("each"),
    }  # fmt: skip
