"""`onnxfi protect` as a user meets it: a table, a document, and one line for what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
CNN, TEST = str(ROOT / "models/fashion_cnn.onnx"), str(ROOT / "models/fashion_test.npz")
Run = Callable[..., Any]
ON = ("--data", TEST, "--samples", "60", "--provider", "cpu")


def schema(verb: str) -> Any:
    texts = re.findall(r"```json\n(.*?)\n```", (ROOT / "docs/reference/json.md").read_text(), re.S)
    return next(found for found in map(json.loads, texts) if found["title"] == f"onnxfi {verb}")


def test_the_document_fits_its_schema(run: Run, here: Path) -> None:
    found = run("protect", CNN, *ON, "--with", "range:clip", "--with", "nan-filter", "-o", "p.onnx", "--json").json
    Draft202012Validator(schema("protect")).validate(found)
    assert [row["protection"] for row in found["protections"]] == ["range:clip", "nan-filter"]
    assert found["fault_free"] == {"samples": 60, "changed": 0, "largest": 0.0, "rounding": False}
    assert [p.name for p in here.iterdir()] == ["p.onnx"]


def test_what_is_covered_and_what_it_costs_is_printed(run: Run, here: Path) -> None:
    ran = run("protect", CNN, *ON, "--with", "range:zero", "--exclude", "relu_2", "-o", "p.onnx")
    assert ran.code == 0, ran.err
    assert re.search(r"range:zero +5 tensors +relu, relu_1, max_pool2d", ran.out)
    assert re.search(r"nodes +10 +\d\d", ran.out) and re.search(r"size, bytes +427,790 +\d{3},\d{3}", ran.out)
    assert "byte for byte on 60 samples" in ran.out and "calibrated on 60 labelled samples" in ran.out


def test_what_is_refused_is_one_line(run: Run, here: Path) -> None:
    for words, message in (
        (("--with", "range:clip"), "give --data"),
        (("--with", "range:clip", *ON, "--include", "=rleu"), "matches no activation of the main graph"),
        (("--with", "range:clip", *ON, "--task", "deviation"), "--task has no effect as nothing is scored here"),
        (("--with", "range:clip", "--samples", "3"), "--samples has no effect without --data"),
    ):
        ran = run("protect", CNN, *words, "-o", "p.onnx")
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1) and message in ran.err, ran.err
    assert not list(here.iterdir())
