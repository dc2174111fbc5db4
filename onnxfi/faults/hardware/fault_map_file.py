"""Content of a fault map: cells of a measured memory, or their statistics (docs/reference/fault-map.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError
from onnxfi.faults.hardware.fault_description import Description, check_keys, objects, probability, real, whole

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


def parse_map(row: dict[str, Any], file: str) -> CellMap:
    """Return the map that a file holds; FaultError if it is damaged."""
    where = f"fault map {file!r}"
    axis = row.get("axis")
    if axis not in AXES:
        why = f"axis {str(axis)[:40]!r} is neither voltage nor temperature"
        raise FaultError(f"{where}: {'there is no axis; give voltage or temperature' if axis is None else why}")
    if ("statistics" in row) == ("instances" in row):
        raise FaultError(f"{where} takes either statistics or instances")
    size = whole(row.get("size_bits", 0), f"{where}: size_bits", 0, _MOST_BITS)
    if "statistics" in row:
        if "range" in row:
            raise FaultError(f"{where}: range goes with instances; leave it out")
        points = _points(row["statistics"], axis, where)
        return CellMap(axis, size, min(p.at for p in points), max(p.at for p in points), points)
    if not size:
        raise FaultError(f"{where}: instances need size_bits, the number of cells of the memory")
    ends = row.get("range")
    if not isinstance(ends, list) or len(ends) != 2:
        raise FaultError(f"{where}: instances need range, the lowest and highest {axis} measured, as [0.7, 0.9]")
    low, high = (real(end, f"{where}: range", -1e6, 1e6) for end in ends)
    if low > high:
        raise FaultError(f"{where}: range runs backwards; write [{high:g}, {low:g}]")
    given = objects(row["instances"], f"{where}: instances", _MOST_INSTANCES)
    instances = tuple(_instance(one, size, low, high, f"{where}: instance {k}") for k, one in enumerate(given, 1))
    return CellMap(axis, size, low, high, instances=instances)


def _points(value: Any, axis: str, where: str) -> tuple[Point, ...]:
    rows = objects(value, f"{where}: statistics", _MOST_POINTS)
    points = []
    for k, row in enumerate(rows, 1):
        at = f"{where}: statistics {k}"
        check_keys(row, ("at", "p01", "p10"), at)
        points.append(
            Point(
                real(row.get("at"), f"{at}: at", -1e6, 1e6),
                probability(row.get("p01"), f"{at}: p01"),
                probability(row.get("p10"), f"{at}: p10"),
            )
        )
    points.sort(key=lambda point: point.at, reverse=axis == "voltage")  # from no stress to the most
    for one, two in pairwise(points):
        if one.at == two.at or two.p01 < one.p01 or two.p10 < one.p10:
            raise FaultError(
                f"{where}: cells that fail at {one.at:g} fail at {two.at:g}, too, so p01 and p10 do not fall there; "
                f"give each {axis} once, with a probability that is not lower"
            )
    return tuple(points)


def _instance(row: dict[str, Any], size: int, low: float, high: float, where: str) -> Instance:
    check_keys(row, ("name", "cells"), where)
    cells = row.get("cells")
    if not isinstance(cells, dict):
        raise FaultError(f"{where} has no cells, an object of the columns {', '.join(_COLUMNS)}")
    check_keys(cells, _COLUMNS, f"{where}: cells")
    columns = [_column(cells.get(name), f"{where}: {name}", 1 if name in ("p01", "p10") else None) for name in _COLUMNS]
    n = len(columns[0])
    columns = [
        np.ones(n) if len(c) == 0 and name.startswith("p") else c for c, name in zip(columns, _COLUMNS, strict=True)
    ]
    if any(len(column) != n for column in columns):
        raise FaultError(f"{where}: the columns of its cells are not equally long")
    address, at, p01, p10 = columns
    if n and (address.min() < 0 or address.max() >= size or (address != np.floor(address)).any()):
        raise FaultError(
            f"{where}: an address is no whole number below size_bits {size:,}: a map of another memory size"
        )
    places = address.astype(np.int64)
    if len(np.unique(places)) < n:
        raise FaultError(f"{where}: a cell is there twice; give each address once, with its first failure")
    if n and (at.min() < low or at.max() > high):
        raise FaultError(f"{where}: a cell fails at {at.min():g} or {at.max():g}, beyond the range {low:g} to {high:g}")
    return Instance(str(row.get("name", ""))[:200], places, at, p01, p10)


def _column(value: Any, where: str, most: int | None) -> NDArray[np.float64]:
    if value is None and most is not None:
        return np.zeros(0)
    if not isinstance(value, list) or len(value) > _MOST_CELLS:
        raise FaultError(f"{where} is no list of up to {_MOST_CELLS:,} numbers")
    if not set(map(type, value)) <= {int, float} or any(type(v) is int and abs(v) > _MOST_BITS for v in value):
        raise FaultError(f"{where} holds something that is no number")
    column = np.array(value, np.float64)
    if not np.isfinite(column).all() or (
        most is not None and len(column) and not 0 <= column.min() <= column.max() <= most
    ):
        raise FaultError(
            f"{where} holds a number that is no probability" if most else f"{where} holds no finite number"
        )
    return column


def map_row(
    axis: str, size_bits: int, ends: tuple[float, float], instances: dict[str, dict[str, list[Any]]], source: str
) -> dict[str, Any]:
    """Return the content of a map of measured instances, as it is written."""
    if not all(math.isfinite(end) for end in ends):
        raise FaultError("a map of no cell needs range, the lowest and highest value measured")
    return {
        "version": FILE.version, "source": source, "axis": axis, "size_bits": size_bits, "range": list(ends),
        "instances": [{"name": name, "cells": cells} for name, cells in instances.items()],
    }  # fmt: skip
