"""`onnxfi census`: its table, its document, its file, and bad input."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.mark.parametrize("name", ["fashion_cnn", "fashion_cnn_fp16", "fashion_cnn_int8_qdq", "fashion_gru"])
def test_the_table_fits_80_columns_and_says_what_the_document_says(run: Run, models: Path, name: str) -> None:
    found = run("census", models / f"{name}.onnx", "--json").json
    ran = run("census", models / f"{name}.onnx")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert max(map(len, lines[1:])) <= 80
    share = 100 * found["flips"]["catastrophic"] / found["bits"]
    assert any(line.split()[:2] == ["catastrophic", f"{share:.3f}"] for line in lines)


def test_the_file_has_a_line_for_each_bit(run: Run, models: Path, here: Path) -> None:
    ran = run("census", models / "fashion_cnn.onnx", "--csv", "census.csv", "--include", "conv1")
    assert ran.code == 0 and "wrote census.csv" in ran.out
    with open("census.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 32
    top = next(row for row in rows if (row["target"], row["bit"]) == ("conv1.weight", "30"))
    assert top["catastrophic"] == "144"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("missing.onnx",), "cannot read 'missing.onnx'"),
        (("{model}", "--include", "conv9"), "--include 'conv9' matches nothing in this model"),
        (("{model}", "--bits", "40"), "bit 40 is beyond float32"),
        (("{model}", "--csv", "no/where.csv"), "no folder 'no' to write"),
    ],
)
def test_bad_input_is_one_line(run: Run, models: Path, here: Path, arguments: tuple[str, ...], message: str) -> None:
    words = [word.format(model=models / "fashion_cnn.onnx") for word in arguments]
    ran = run("census", *words)
    assert ran.code == 2 and message in ran.err and ran.err.count("\n") == 1 and not ran.out
    assert not list(here.iterdir())
