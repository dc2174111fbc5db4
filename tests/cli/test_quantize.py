"""`onnxfi quantize` and `onnxfi compare` as a user meets them: tables, documents, and one line for what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from campaign_commands import SCHEMAS, Run
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
CNN, TEST = str(ROOT / "models/fashion_cnn.onnx"), str(ROOT / "models/fashion_test.npz")
ON = ("--data", TEST, "--samples", "60", "--provider", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("static", *ON, "--per-channel", "--exclude", "fc2"), ("dynamic",), ("weight-only", "--weights", "uint4", *ON),
        ("fp16", *ON), ("bf16",),
    ],
)  # fmt: skip
def test_the_document_fits_its_schema(run: Run, here: Path, words: tuple[str, ...]) -> None:
    found = run("quantize", CNN, "--mode", *words, "-o", "q.onnx", "--json").json
    Draft202012Validator(SCHEMAS["quantize"]).validate(found)
    assert found["output"] == "q.onnx" and [p.name for p in here.iterdir()] == ["q.onnx"]
    assert ("before" in found) is ("--data" in words)
    if words[0] == "static":
        assert found["excluded"] == ["node_linear_1"] and found["quantised"][0] == {"op": "Conv", "tensors": 2}
    if words[0] == "weight-only":
        assert [row["op"] for row in found["left_in_float"]] == ["Conv", "Conv"]
    inspected = run("inspect", "q.onnx", "--json").json
    Draft202012Validator(SCHEMAS["inspect"]).validate(inspected)
    if words[0] not in ("fp16", "bf16"):
        assert any(row["quantised"] for row in inspected["targets"])
        faulty = run("inject", "q.onnx", "--count", "5", "--role", "weight", "--json").json
        Draft202012Validator(SCHEMAS["inject"]).validate(faulty)


def test_size_and_accuracy_before_and_after_are_printed(run: Run, here: Path) -> None:
    ran = run("quantize", CNN, "--mode", "static", *ON, "-o", "q.onnx")
    assert ran.code == 0
    assert "static, qdq, int8 weights" in ran.out and "quantised weights: Conv 2, Gemm 2" in ran.out
    assert "minmax on 60 samples" in ran.out, "there are no 200"
    assert re.search(r"size, bytes +427,790 +\d{3},\d{3}", ran.out) and re.search(r"top1 +\d+\.\d\d % +\d", ran.out)
    assert "of 105,866 stored numbers 0 were clipped" in ran.out
    shown = run("inspect", "q.onnx").out
    assert re.search(r"Layer +Target +Op +Role +Type +Scheme +Scale +Axis +Shape", shown)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "static"), "static mode calibrates activations on data; give --data"),
        (("--mode", "static", "--weights", "int4", *ON), "int4 in QDQ form needs opset 21, the model has 18"),
        (("--mode", "dynamic", "--calibration", "entropy"), "--calibration has no effect in mode dynamic"),
        (("--mode", "dynamic", "--calibration-samples", "7"), "--calibration-samples has no effect in mode dynamic"),
        (("--mode", "fast"), "no mode 'fast'"),
        (("--mode", "fp16", "--samples", "3"), "--samples has no effect without --data"),
        (("--mode", "dynamic", "--exclude", "conv9"), "--exclude 'conv9' matches no node, layer or weight"),
        (("--mode", "static", "--data", "small.npz"), "'image' has shape [4,1,14,14]"),
        (("--mode", "fp16", "-o", "no/q.onnx"), "no folder 'no'"),
    ],
)
def test_bad_requests_are_refused_in_one_line(run: Run, here: Path, words: tuple[str, ...], message: str) -> None:
    np.savez("small.npz", image=np.zeros((4, 1, 14, 14), np.float32))
    ran = run("quantize", CNN, *words, *([] if "-o" in words else ["-o", "q.onnx"]))
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert message in ran.err
    assert [p.name for p in here.iterdir()] == ["small.npz"]


def test_quantising_twice_prints_a_note(run: Run) -> None:
    ran = run("quantize", ROOT / "models/fashion_cnn_int8_qdq.onnx", "--mode", "dynamic", "-o", "q.onnx")
    assert (ran.code, ran.err.count("\n")) == (2, 1) and "is quantised already" in ran.err


def test_a_role_that_is_not_there_is_one_line(run: Run) -> None:
    for verb in (("inspect", CNN), ("inject", CNN, "--count", "1")):
        ran = run(*verb, "--role", "zero-point")
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert "--role 'zero-point' matches nothing in this model; known: 'weight', 'bias'" in ran.err
