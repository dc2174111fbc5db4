"""Tuned bounds: never worse than the measured ones on the faults that they were tuned on, and refused without scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxfi import load, open_data, protect
from onnxfi.errors import InputError
from onnxfi.faults.space import Selector
from onnxfi.protection.protection import Setting
from onnxfi.protection.protections import parse_protection
from onnxfi.runtime.data.open_data import Data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

ROOT = Path(__file__).parents[2]
CNN, TEST = ROOT / "models/fashion_cnn.onnx", ROOT / "models/fashion_test.npz"
ENGINE = OrtEngine(provider="cpu")


def data() -> Data:
    return open_data(TEST, ENGINE.prepare(CNN).inputs, limit=60)


def bounds(text: str) -> dict[str, float]:
    setting = Setting(load(CNN), Selector(), data(), ENGINE)
    found: Any = parse_protection(text).passes(setting)
    return {one.name: one.bounds.high[0] for one in found.tensors}


def test_bounds_move_inward_and_carry_over() -> None:
    plain, tuned = bounds("range:zero"), bounds("range:tuned:low=1e-4,high=1e-4,trials=2")
    assert plain.keys() == tuned.keys() and all(tuned[name] <= plain[name] for name in plain)
    assert any(tuned[name] < plain[name] for name in plain)
    assert tuned["max_pool2d"] == tuned["relu"] and tuned["view"] == tuned["relu_1"]


def test_the_same_faults_give_the_same_bounds() -> None:
    text = "range:tuned:low=1e-4,high=1e-4,trials=1"
    assert bounds(text) == bounds(text)


def test_a_graph_output_is_tuned_and_fault_free_answers_stand_for_labels(tmp_path: Path) -> None:
    unlabelled = {"image": np.load(TEST)["image"][:30]}
    how = "range:tuned:low=1e-4,high=1e-4,trials=1,action=clip"
    done = protect(CNN, [how], tmp_path / "p.onnx", selector=Selector(include=("=logits", "=relu_2")), data=unlabelled)
    assert list(done.tensors.values()) == [("relu_2", "logits")]


def test_what_cannot_be_tuned_is_refused(tmp_path: Path) -> None:
    one_score = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N,3] x) => (float[N,1] y) <float[3,1] w = {1, 2, 3}> '
        "{ a = Relu(x)  y = MatMul(a, w) }"
    )
    rows = np.ones((4, 3), np.float32)
    with pytest.raises(InputError, match=r"the largest score of each sample; 'y' \[4, 1\] has not several for each"):
        protect(one_score, ["range:tuned"], tmp_path / "p.onnx", data={"x": rows})
    for text, given, message in (
        ("range:tuned", None, "give --data"),
        ("range:tuned:low=1e-3,high=1e-4", data(), "low and high are rates"),
        ("range:tuned:action=average", data(), "action zero or clip"),
    ):
        with pytest.raises(InputError, match=message):
            protect(load(CNN), [text], tmp_path / "p.onnx", data=given)
    assert not list(tmp_path.iterdir())
