"""Import of measured cells, a CSV or `.npz` file, as a fault map."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.errors import DataError, FaultError
from onnxfi.faults.hardware.fault_map_file import FILE, map_row, parse_map
from onnxfi.file_fields import Fields, read_text
from onnxfi.graph.write.output_file import atomic_files, check_output_files
from onnxfi.runtime.data.npz import read_npz

_COLUMNS = ("address", "at", "p01", "p10", "instance")
_MAX_BYTES = 1 << 28


def import_fault_map(
    source: str | Path,
    out: str | Path,
    *,
    size_bits: int,
    axis: str = "voltage",
    ends: tuple[float, float] | None = None,
    origin: str = "",
) -> Path:
    """Write measured cells as a fault map.

    Parameters
    ----------
    source : str or Path
        A CSV file with a header, or an `.npz`: columns (arrays) `address` (of the cell, in bits), `at` (highest
        voltage or lowest temperature at which it fails), and optional `p01`, `p10` (1) and `instance` (its name).
    out : str or Path
        The map to write, `docs/reference/fault-map.md`.
    size_bits : int
        Number of cells of the memory.
    axis : {"voltage", "temperature"}
        What `at` is.
    ends : tuple of float, optional
        Lowest and highest voltage or temperature measured; by default those at which a cell began to fail.
    origin : str
        Where the numbers come from; by default the file's name.

    Returns
    -------
    Path
        The map.

    Raises
    ------
    DataError
        If the file holds no such columns.
    FaultError
        For a cell beyond the memory, or one that is there twice.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "cells.csv").write_text("address,at,p01,p10\\n17,0.75,1,0\\n99,0.72,0,1\\n")
    >>> file = import_fault_map(folder / "cells.csv", folder / "map.json", size_bits=1024)
    >>> json.loads(file.read_text())["range"]
    [0.72, 0.75]
    """
    place, file = Path(source), Path(out)
    columns = _npz(place) if place.suffix.lower() == ".npz" else _csv(place)
    names = columns.pop("instance", [""] * len(columns["address"]))
    if any(len(column) != len(names) for column in columns.values()):
        raise DataError(f"{str(place)!r}: its columns are not equally long")
    instances: dict[str, dict[str, list[Any]]] = {}
    for row, name in enumerate(names):
        cells = instances.setdefault(str(name), {key: [] for key in columns})
        for key, column in columns.items():
            cells[key].append(column[row])
    at = columns["at"]
    bounds = ends or ((min(at), max(at)) if at else (np.inf, -np.inf))
    made = map_row(axis, size_bits, (float(bounds[0]), float(bounds[1])), instances, origin or place.name)
    parse_map(Fields(made, f"fault map {str(place)!r}", FaultError))  # refuses what cannot be read again
    text = json.dumps(made, allow_nan=False).encode()
    if len(text) > FILE.max_bytes:
        raise DataError(f"{str(place)!r} holds more cells than a map of {FILE.max_bytes:,} bytes; leave cells out")
    check_output_files(None, [file], copy=False)
    with atomic_files([file]) as (stream,):
        stream.write(text)
    return file


def _csv(place: Path) -> dict[str, list[Any]]:
    rows = csv.reader(io.StringIO(read_text(place, _MAX_BYTES, DataError), newline=""), strict=True)
    try:
        head = [name.strip() for name in next(rows, [])]
        lines = [row for row in rows if row]
    except csv.Error as error:
        raise DataError(f"{str(place)!r} is no CSV file: {str(error)[:80]}") from None
    _check_names(head, place)
    found: dict[str, list[Any]] = {name: [] for name in head}
    for number, row in enumerate(lines, 2):
        if len(row) != len(head):
            raise DataError(f"{str(place)!r}, line {number} has {len(row)} fields, the header {len(head)}")
        try:
            for name, text in zip(head, row, strict=True):
                found[name].append(text if name == "instance" else int(text) if name == "address" else float(text))
        except ValueError:
            raise DataError(f"{str(place)!r}, line {number}: {text[:40]!r} is no number for {name}") from None
    return found


def _npz(place: Path) -> dict[str, list[Any]]:
    arrays = read_npz(place)
    _check_names([*arrays], place)
    if any(array.ndim != 1 for array in arrays.values()):
        raise DataError(f"{str(place)!r}: its arrays have one axis each, a value for each cell")
    if arrays["address"].dtype.kind not in "iu":
        raise DataError(f"{str(place)!r}: address holds no whole numbers")
    return {name: array.tolist() for name, array in arrays.items()}


def _check_names(names: list[str], place: Path) -> None:
    if len(set(names)) < len(names) or not {"address", "at"} <= set(names) <= set(_COLUMNS):
        raise DataError(
            f"{str(place)!r} has the columns {', '.join(names)[:80]!r}; it takes address, at, p01, p10, instance"
        )
