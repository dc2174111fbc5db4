"""Outcome tables: what is written is read, and damage is named."""

from __future__ import annotations

import numpy as np
import pytest

from onnxfi.campaign.exhaustive.outcome_table import (
    COLUMNS,
    VERSION,
    OutcomeTable,
    TensorTable,
    load_part,
    read_outcome_table,
    save_part,
    write_outcome_table,
)  # fmt: skip
from onnxfi.errors import DataError, OutputError


def a_table() -> OutcomeTable:
    rng = np.random.default_rng(3)
    counts = [rng.integers(0, 400, (7, 3), np.uint32) for _ in COLUMNS]
    weight = TensorTable("w", "conv", "float32", (0, 30, 31), *counts)
    bias = TensorTable("b", "conv", "int8", (7,), *(rng.integers(0, 9, (2, 1), np.uint32) for _ in COLUMNS))
    header = {"version": VERSION, "samples": 500, "golden": {"top1": 0.5}, "identity": {}, "cost": {"cpu_s": 1.0}}
    return OutcomeTable(header, (weight, bias))


def test_a_table_is_read_as_it_was_written(tmp_path) -> None:
    table = a_table()
    back = read_outcome_table(write_outcome_table(tmp_path / "t.npz", table))
    assert back.header == table.header and back.faults == 23
    for one, other in zip(table.tensors, back.tensors, strict=True):
        assert (one.id, one.layer, one.dtype, one.bits) == (other.id, other.layer, other.dtype, other.bits)
        assert all((getattr(one, c) == getattr(other, c)).all() for c in COLUMNS)
    rows = back.rows("layer")
    assert len(rows) == 1 and rows[0]["sdc1"] == pytest.approx(table.column("changed").mean() / 500)
    assert [row["bit"] for row in back.rows("bit")] == [0, 30, 31, 7]
    assert back.summary()["ran"] == back.ran == table.column("ran").sum()


def test_part_of_a_table_is_kept(tmp_path) -> None:
    [one, _] = a_table().tensors
    save_part(tmp_path / "p", one, 9)
    back, done = load_part(tmp_path / "p")
    assert done == 9 and (back.changed == one.changed).all() and back.bits == one.bits


def test_what_is_no_table_is_refused(tmp_path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="no outcome table"):
        read_outcome_table(tmp_path / "other.npz")
    table = a_table()
    newer = OutcomeTable({**table.header, "version": VERSION + 1}, table.tensors)
    with pytest.raises(DataError, match="has version 2"):
        read_outcome_table(write_outcome_table(tmp_path / "n.npz", newer))
    with pytest.raises(OutputError):
        write_outcome_table(tmp_path / "missing" / "t.npz", table)
