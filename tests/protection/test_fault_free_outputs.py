"""Outputs before and after: equal in every bit, held, or rounded otherwise by the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from onnxfi import load, open_data, protect
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import parse
from onnxfi.graph.protection.range_restriction import Bounds, Restricted, RestrictRanges
from onnxfi.protection.fault_free_outputs import FaultFreeOutputs, compare_fault_free
from onnxfi.protection.protection import Setting
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

ROOT = Path(__file__).parents[2]
ENGINE = OrtEngine(provider="cpu")


def test_where_the_runtime_rounds_otherwise_it_is_said(tmp_path: Path) -> None:
    """The runtime computes fp16 in float32 between casts, which inserted operators move."""
    model = load(ROOT / "models/fashion_cnn_fp16.onnx")
    data = open_data(ROOT / "models/fashion_test.npz", ENGINE.prepare(model.path or b"").inputs, limit=80)
    done = protect(model, ["range:clip"], tmp_path / "p.onnx", data=data)
    assert not done.fault_free.changed or (done.fault_free.rounding and done.fault_free.largest < 0.02)
    text = str(done.fault_free)
    assert ("the runtime rounds otherwise around inserted operators" in text) is (done.fault_free.changed > 0)


@pytest.mark.parametrize(
    ("high", "wanted"),
    [(4.0, FaultFreeOutputs(5, 0, 0.0)), (2.5, FaultFreeOutputs(5, 2, 1.5)), (0.0, FaultFreeOutputs(5, 4, 4.0))],
)
def test_samples_that_are_held_are_counted(high: float, wanted: FaultFreeOutputs) -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N,2] x) => (float[N,2] y) { t = Relu(x)  y = Neg(t) }'
    )
    model = load(proto)
    x = np.array([[0, 1], [2, 3], [4, 0], [1, 1], [-1, -2]], np.float32)
    setting = Setting(
        model, Selector(), open_data({"x": x}, ENGINE.prepare(proto.SerializeToString()).inputs), ENGINE, 2
    )
    edit = RestrictRanges((Restricted("t", "float32", 2, Bounds((0.0,), (high,))),))
    assert compare_fault_free(setting, edit.run(parse(model))[0], [edit]) == wanted
