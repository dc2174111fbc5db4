"""Import of measured cells: the same map from CSV and npz, and files that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxfi.errors import DataError, FaultError
from onnxfi.faults.hardware.fault_map import FaultMap
from onnxfi.runtime.inject.fault_map_import import import_fault_map


def test_csv_and_npz_give_the_same_map(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("address,at,p01,p10,instance\n5,0.7,1,0,a\n9,0.75,0.5,1,b\n3,0.72,1,1,a\n")
    np.savez(
        tmp_path / "c.npz", address=[5, 9, 3], at=[0.7, 0.75, 0.72], p01=[1.0, 0.5, 1.0], p10=[0.0, 1.0, 1.0],
        instance=["a", "b", "a"],
    )  # fmt: skip
    maps = []
    for name in ("c.csv", "c.npz"):
        file = import_fault_map(tmp_path / name, tmp_path / f"{name}.json", size_bits=16, ends=(0.6, 0.9), origin="x")
        maps.append(json.loads(file.read_text()))
        assert len(FaultMap(str(file)).cells.instances) == 2
    assert maps[0] == maps[1]
    assert maps[0]["instances"][0]["cells"]["address"] == [5, 3]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("address\n1\n", "it takes address, at"),
        ("address,at,volt\n1,2,3\n", "it takes address, at"),
        ("address,at\n1\n", "has 1 fields"),
        ("address,at\nx,0.7\n", "no number for address"),
        ("address,at\n1.5,0.7\n", "no number for address"),
        ("", "it takes address"),
        ("\0", "no CSV|it takes address"),
    ],
)
def test_tables_without_cells_are_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(DataError, match=why):
        import_fault_map(tmp_path / "c.csv", tmp_path / "m.json", size_bits=16)
    assert not (tmp_path / "m.json").exists()


def test_cells_beyond_the_memory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("address,at\n16,0.7\n")
    with pytest.raises(FaultError, match="another memory size"):
        import_fault_map(tmp_path / "c.csv", tmp_path / "m.json", size_bits=16)
    np.savez(tmp_path / "c.npz", address=[[1.0]], at=[[0.7]])
    with pytest.raises(DataError, match="one axis"):
        import_fault_map(tmp_path / "c.npz", tmp_path / "m.json", size_bits=16)
    with pytest.raises(DataError, match="cannot read"):
        import_fault_map(tmp_path / "none.csv", tmp_path / "m.json", size_bits=16)
