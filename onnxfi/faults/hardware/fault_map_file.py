"""Content of a fault map: cells of a measured memory, or their statistics (docs/reference/fault-map.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError
from onnxfi.faults.hardware.fault_description import VERSION, Description
from onnxfi.file_fields import Fields

_KEYS = ("version", "name", "source", "axis", "size_bits", "range", "statistics", "instances")
#: A measured instance has a line for each cell that fails, so the file may be large.
FILE = Description("fault map", "docs/reference/fault-map.md", _KEYS, "MAP.json", max_bytes=1 << 28)
AXES = ("voltage", "temperature")
_UNITS = {"voltage": "V", "temperature": "°C"}
_COLUMNS = ("address", "at", "p01", "p10")
_MOST_CELLS, _MOST_POINTS, _MOST_INSTANCES = 5_000_000, 1000, 1000
_MOST_BITS = 1 << 60


@dataclass(frozen=True)
class Point:
    """Statistics at one voltage or temperature: the probability that a cell fails, by the value that it holds."""

    at: float
    p01: float
    p10: float


@dataclass(frozen=True, eq=False)
class Instance:
    """One measured memory: address, threshold and probabilities of each cell that fails."""

    name: str
    address: NDArray[np.int64]
    at: NDArray[np.float64]
    p01: NDArray[np.float64]
    p10: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CellMap:
    """Map of a memory: statistics in the order in which cells fail, or instances; cells of lower stress fail on.

    `size_bits` is 0 for statistics that hold for a memory of any size.
    """

    axis: str
    size_bits: int
    low: float
    high: float
    points: tuple[Point, ...] = ()
    instances: tuple[Instance, ...] = ()

    def check(self, at: float, file: str) -> None:
        """Raise FaultError for a voltage or temperature at which nothing was measured."""
        unit = _UNITS[self.axis]
        if self.points and at not in {point.at for point in self.points}:
            known = ", ".join(f"{point.at:g}" for point in self.points)
            raise FaultError(f"fault map {file!r} has no statistics at {at:g} {unit}; it has {known[:200]}")
        if not self.low <= at <= self.high:
            raise FaultError(
                f"fault map {file!r} was measured from {self.low:g} to {self.high:g} {unit}, {at:g} {unit} is beyond; "
                f"nothing is known there"
            )


def parse_map(row: Fields) -> CellMap:
    """Return the map that a file holds; FaultError if it is damaged."""
    axis = row.one_of("axis", AXES)
    if ("statistics" in row) == ("instances" in row):
        raise row.fail("give either statistics or instances")
    size = row.whole("size_bits", 0, _MOST_BITS, default=0)
    if "statistics" in row:
        if "range" in row:
            raise row.fail("range goes with instances; leave it out")
        points = _points(row, axis)
        return CellMap(axis, size, min(p.at for p in points), max(p.at for p in points), points)
    if not size:
        raise row.fail("instances need size_bits, the number of cells of the memory")
    low, high = row.ends("range", -1e6, 1e6)
    given = row.each("instances", ("name", "cells"), _MOST_INSTANCES, "instance")
    return CellMap(axis, size, low, high, instances=tuple(_instance(one, size, low, high) for one in given))


def _points(row: Fields, axis: str) -> tuple[Point, ...]:
    points = [
        Point(one.number("at", -1e6, 1e6), one.number("p01", 0, 1), one.number("p10", 0, 1))
        for one in row.each("statistics", ("at", "p01", "p10"), _MOST_POINTS, "statistics")
    ]
    points.sort(key=lambda point: point.at, reverse=axis == "voltage")  # from no stress to the most
    for one, two in pairwise(points):
        if one.at == two.at or two.p01 < one.p01 or two.p10 < one.p10:
            raise row.fail(
                f"cells that fail at {one.at:g} fail at {two.at:g}, too, so p01 and p10 do not fall there; "
                f"give each {axis} once, with a probability that is not lower"
            )
    return tuple(points)


def _instance(row: Fields, size: int, low: float, high: float) -> Instance:
    cells = row.inner("cells", _COLUMNS)
    columns = [_column(cells, name, 1 if name in ("p01", "p10") else None) for name in _COLUMNS]
    n = len(columns[0])
    columns = [
        np.ones(n) if len(c) == 0 and name.startswith("p") else c for c, name in zip(columns, _COLUMNS, strict=True)
    ]
    if any(len(column) != n for column in columns):
        raise row.fail("the columns of its cells are not equally long")
    address, at, p01, p10 = columns
    if n and (address.min() < 0 or address.max() >= size or (address != np.floor(address)).any()):
        raise row.fail(f"an address is no whole number below size_bits {size:,}: a map of another memory size")
    places = address.astype(np.int64)
    if len(np.unique(places)) < n:
        raise row.fail("a cell is there twice; give each address once, with its first failure")
    if n and (at.min() < low or at.max() > high):
        raise row.fail(f"a cell fails at {at.min():g} or {at.max():g}, beyond the range {low:g} to {high:g}")
    return Instance(str(row.values.get("name", ""))[:200], places, at, p01, p10)


def _column(cells: Fields, name: str, most: int | None) -> NDArray[np.float64]:
    if most is not None and name not in cells:
        return np.zeros(0)
    value = cells.take(
        name,
        lambda value: isinstance(value, list) and len(value) <= _MOST_CELLS and set(map(type, value)) <= {int, float},
        f"a list of up to {_MOST_CELLS:,} numbers",
    )
    if any(type(v) is int and abs(v) > _MOST_BITS for v in value):
        raise cells.fail(f"{name} holds a number that is too large")
    column = np.array(value, np.float64)
    if not np.isfinite(column).all() or (
        most is not None and len(column) and not 0 <= column.min() <= column.max() <= most
    ):
        raise cells.fail(f"{name} holds a number that is {'no probability' if most else 'not finite'}")
    return column


def map_row(
    axis: str, size_bits: int, ends: tuple[float, float], instances: dict[str, dict[str, list[Any]]], source: str
) -> dict[str, Any]:
    """Return the content of a map of measured instances, as it is written."""
    if not all(math.isfinite(end) for end in ends):
        raise FaultError("a map of no cell needs range, the lowest and highest value measured")
    return {
        "version": VERSION, "source": source, "axis": axis, "size_bits": size_bits, "range": list(ends),
        "instances": [{"name": name, "cells": cells} for name, cells in instances.items()],
    }  # fmt: skip
