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
from onnxfi.faults.hardware.fault_description import Description, check_keys, objects, probability, real, whole
from onnxfi.faults.hardware.patterns import AxisRule, affected_elements
from onnxfi.faults.models import Set
from onnxfi.faults.sites import Target
from onnxfi.faults.words import WORDS, Word, parse_bits, select_bits

FILE = Description(
    "distribution", "docs/reference/distribution.md", ("version", "name", "source", "tables"), "TABLE.json"
)
SHAPES = ("element", "row", "channel", "block", "tile", "stride")
_ROW_KEYS = (
    *("p", "bits", "position", "adjacent", "mask", "cells", "line", "interleave", "value"),
    *("shape", "axis", "size", "share", "each"),
)
_TABLE_KEYS = ("op", "layer", "dtype", "least_elements", "rows")
_EFFECTS = ("bits", "mask", "cells", "value")
_MOST_ROWS, _MOST_TABLES, _MOST_CELLS = 10_000, 1_000, 64
_SUM_TOLERANCE = 1e-6
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


def parse_tables(row: dict[str, Any], file: str) -> tuple[Table, ...]:
    """Return the tables of a file; FaultError for one that is damaged, or does not sum to 1."""
    where = f"distribution {file!r}"
    tables = objects(row.get("tables"), f"{where}: tables", _MOST_TABLES)
    return tuple(_table(given, f"table {k}", where) for k, given in enumerate(tables, 1))


def _table(given: dict[str, Any], label: str, file: str) -> Table:
    where = f"{file}: {label}"
    check_keys(given, _TABLE_KEYS, where)
    rows = objects(given.get("rows"), f"{where}: rows", _MOST_ROWS)
    parsed = tuple(_row(row, f"{where}, row {k}") for k, row in enumerate(rows, 1))
    total = math.fsum(row.p for row in parsed)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise FaultError(f"{where}: its probabilities sum to {total:.9g}, not to 1; what is missing needs a row, too")
    conditions = {key: _texts(given[key], f"{where}: {key}") for key in ("op", "layer", "dtype") if key in given}
    for dtype in conditions.get("dtype", ()):
        if dtype not in WORDS:
            raise FaultError(f"{where}: unknown number format {dtype[:40]!r}{closest(dtype[:40], WORDS)}")
    least = whole(given.get("least_elements", 0), f"{where}: least_elements", 0, 1 << 56)
    return Table(label, parsed, **conditions, least_elements=least)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) and one for one in texts):
        raise FaultError(f"{where} is no text or list of texts")
    return tuple(texts)


def _row(row: dict[str, Any], where: str) -> DistributionRow:
    check_keys(row, _ROW_KEYS, where)
    if "p" not in row:
        raise FaultError(f"{where} has no p, its probability")
    if sum(key in row for key in _EFFECTS) != 1:
        raise FaultError(f"{where} takes exactly one of {', '.join(_EFFECTS)}")
    effect = {"bits": _bits, "mask": _mask, "cells": _cells, "value": _value}
    made = next(read for key, read in effect.items() if key in row)(row, where)
    if "cells" in row and any(key in row for key in ("shape", "share", "each")):
        raise FaultError(f"{where}: cells are a shape of their own; leave shape, share and each out")
    for key, needs in (
        ("position", ("bits", "cells")),
        ("adjacent", ("bits",)),
        ("line", ("cells",)),
        ("interleave", ("cells",)),
    ):
        if key in row and not any(one in row for one in needs):
            raise FaultError(f"{where}: {key} goes with {' or '.join(needs)}; leave it out")
    return DistributionRow(p=probability(row["p"], f"{where}: p"), **made, **_shape(row, where))


def _bits(row: dict[str, Any], where: str) -> dict[str, Any]:
    return {
        "bits": whole(row["bits"], f"{where}: bits", 1, 64),
        "position": _position(row, where),
        "adjacent": _flag(row, "adjacent", where),
    }


def _mask(row: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        mask = int(str(row["mask"])[:20], 16)
    except ValueError:
        mask = 0
    if not isinstance(row["mask"], str) or not 0 < mask < 1 << 64:
        raise FaultError(f"{where}: mask {str(row['mask'])[:40]!r} is no hexadecimal word, as '0x80400000'")
    return {"mask": mask}


def _cells(row: dict[str, Any], where: str) -> dict[str, Any]:
    given = row["cells"]
    if not isinstance(given, list) or not 0 < len(given) <= _MOST_CELLS:
        raise FaultError(f"{where}: cells is no list of 1 to {_MOST_CELLS} pairs [line, column]")
    cells = []
    for pair in given:
        if not isinstance(pair, list) or len(pair) != 2:
            raise FaultError(f"{where}: {str(pair)[:40]} is no pair [line, column]")
        cells.append((whole(pair[0], where, -1024, 1024), whole(pair[1], where, -1024, 1024)))
    if (0, 0) not in cells or len(set(cells)) < len(cells):
        raise FaultError(f"{where}: cells names each cell once, among them [0, 0], the drawn one")
    line = whole(row.get("line", 1), f"{where}: line", 1, 1 << 40)
    array = CellArray(line, whole(row.get("interleave", 1), f"{where}: interleave", 1, line))
    return {"cells": tuple(cells), "array": array, "position": _position(row, where)}


def _value(row: dict[str, Any], where: str) -> dict[str, Any]:
    given = row["value"]
    if isinstance(given, str) and given in _VALUES:
        return {"value_kind": "set", "low": _VALUES[given]}
    if isinstance(given, dict) and len(given) == 1:
        ((kind, ends),) = given.items()
        if kind == "set":
            return {"value_kind": "set", "low": real(ends, f"{where}: set", -1.7e308, 1.7e308)}
        if kind in _SPANS and isinstance(ends, list) and len(ends) == 2:
            least = 0.0 if kind == "absolute" else 1e-300
            low, high = (real(end, f"{where}: {kind}", least, 1e300) for end in ends)
            if low <= high:
                return {"value_kind": kind, "low": low, "high": high}
    raise FaultError(
        f"{where}: value {str(given)[:60]!r} is none of {', '.join(_VALUES)}, {{'set': x}}, "
        f"{{'relative': [low, high]}}, {{'factor': [low, high]}} and {{'absolute': [low, high]}}"
    )


def _position(row: dict[str, Any], where: str) -> tuple[tuple[str, float], ...]:
    given = row.get("position")
    if given is None:
        return ()
    if not isinstance(given, dict) or not 0 < len(given) <= 64:
        raise FaultError(f"{where}: position maps positions to probabilities, as {{'sign': 0.1, 'mantissa': 0.9}}")
    found = []
    for text, p in given.items():
        try:
            parse_bits(text)
        except SelectorError as error:
            raise FaultError(f"{where}: {error}") from None
        found.append((text, probability(p, f"{where}: position {text[:40]!r}")))
    total = math.fsum(p for _, p in found)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise FaultError(f"{where}: the probabilities of its positions sum to {total:.9g}, not to 1")
    return tuple(found)


def _shape(row: dict[str, Any], where: str) -> dict[str, Any]:
    shape = row.get("shape", "element")
    if shape not in SHAPES:
        raise FaultError(f"{where}: unknown shape {str(shape)[:40]!r}{closest(str(shape)[:40], SHAPES)}")
    made: dict[str, Any] = {"shape": shape}
    if "axis" in row:
        if shape != "channel":
            raise FaultError(f"{where}: axis goes with the shape channel; leave it out")
        made["axis"] = whole(row["axis"], f"{where}: axis", -64, 63)
    if ("size" in row) != (shape in ("block", "stride", "tile")):
        raise FaultError(
            f"{where}: size goes with the shapes block and stride (a number) and tile (a list), as they need it"
        )
    if shape in ("block", "stride"):
        made["size"] = (whole(row["size"], f"{where}: size", 1, 1 << 40),)
    if shape == "tile":
        sides = row["size"]
        if not isinstance(sides, list) or not 0 < len(sides) <= 8:
            raise FaultError(f"{where}: a tile takes size, the lengths along the last axes, as [4, 4]")
        made["size"] = tuple(whole(side, f"{where}: size", 1, 1 << 40) for side in sides)
    if "share" in row:
        made["share"] = probability(row["share"], f"{where}: share")
    return made | {"each": _flag(row, "each", where)}


def _flag(row: dict[str, Any], key: str, where: str) -> bool:
    value = row.get(key, False)
    if not isinstance(value, bool):
        raise FaultError(f"{where}: {key} is true or false")
    return value
