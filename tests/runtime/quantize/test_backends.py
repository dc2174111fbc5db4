"""The quantisers: silent, and right where they alone are not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from single_layers import linear, saved

from onnxfi.graph.model.loading import load
from onnxfi.runtime.data.open_data import Data, open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.quantize.quantize import quantize
from onnxfi.runtime.quantize.recipe import QuantisationRecipe

ROOT = Path(__file__).parents[3]
CNN, TEST = ROOT / "models/fashion_cnn.onnx", ROOT / "models/fashion_test.npz"


@pytest.fixture(scope="module")
def images() -> Data:
    return open_data(TEST, OrtEngine(provider="cpu").prepare(CNN).inputs, limit=300)


def test_bfloat16_is_held_at_its_largest(tmp_path: Path) -> None:
    weight = np.full((4, 4), 1.0)
    weight[0, 0] = 3.4e38
    path = saved(tmp_path / "m.onnx", linear(weight))
    done = quantize(load(path), QuantisationRecipe("bf16"), tmp_path / "b.onnx")
    session = ort.InferenceSession(tmp_path / "b.onnx", providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {"x": np.eye(4, dtype=np.float32)})[0]).all()
    assert (done.words, done.flushed) == (16, 0)


def test_nothing_is_printed_or_logged_and_logging_is_left_as_it_was(
    images: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    for recipe in (
        QuantisationRecipe("static", calibration="percentile", calibration_samples=20),
        QuantisationRecipe("weight-only"),
    ):
        quantize(load(CNN), recipe, tmp_path / "q.onnx", data=images)
    assert (root.handlers, root.level) == before
    assert capsys.readouterr() == ("", "")


def test_a_cast_to_float_inside_a_model_goes_along_to_float16(tmp_path: Path) -> None:
    proto = linear(np.eye(4))
    proto.graph.node[0].output[0] = "m"
    proto.graph.node.extend(
        [
            helper.make_node("Greater", ["m", "w0"], ["above"]),
            helper.make_node("Cast", ["above"], ["as_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["m", "as_float"], ["y"]),
        ]
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "w0"))
    quantize(load(saved(tmp_path / "m.onnx", proto)), QuantisationRecipe("fp16"), tmp_path / "h.onnx")
    session = ort.InferenceSession(tmp_path / "h.onnx", providers=["CPUExecutionProvider"])
    x = np.array([[0.25, 1, -1, 0.75]], np.float32)
    assert session.run(None, {"x": x})[0].tolist() == [[0, 1, 0, 0.75]]


BRANCHES = """<ir_version: 8, opset_import: ["": 18]> g (float[N,4] x, bool up) => (float[N,4] y) <float[4,4] w> {
    m = MatMul(x, w)
    y = If (up) <
        then_branch = up_ () => (float[N,4] a) { k = Constant <value = float[1] {0.5}> () a = Mul(m, k) },
        else_branch = down_ () => (float[N,4] b) { b = Relu(m) } >
}"""
#: A tensor without elements stands for an input of Resize that is absent.
RESIZED = """<ir_version: 8, opset_import: ["": 18]> g (float[N,1,2,2] x) => (float[N,1,4,4] y)
    <float[1,1,1,1] w, float[0] none = {}, int64[4] to = {1, 1, 4, 4}> {
    m = Conv(x, w) absent = Constant <value = float[0] {}> () y = Resize <mode = "nearest"> (m, none, absent, to)
}"""


#: The same before opset 13, where the region must be there, and two outputs that the converter casts under one name.
RESIZED_11 = """<ir_version: 8, opset_import: ["": 11]> g (float[N,1,2,2] x) => (float[N,1,4,4] y, float[N,1,2,2] m)
    <float[1,1,1,1] w, float[0] none = {}, float[4] by = {1, 1, 2, 2}> {
    m = Conv(x, w) y = Resize <mode = "nearest"> (m, none, by)
}"""
#: Two readers of one tensor that take no float16, so that the converter casts it twice.
TWICE = """<ir_version: 8, opset_import: ["": 18]> g (float[N,1,2,2] x) => (float[N,1,4,4] y)
    <float[1,1,1,1] w, float[4] by = {1, 1, 2, 2}> {
    m = Conv(x, w) a = Resize <mode = "nearest"> (m, , by) b = Resize <mode = "linear"> (m, , by) c = Mul(a, by) y = Add(c, b)
}"""


@pytest.mark.parametrize(
    ("graph", "shape"), [(BRANCHES, (4, 4)), *((text, (1, 1, 1, 1)) for text in (RESIZED, RESIZED_11, TWICE))]
)
def test_float16_reaches_into_branches_and_leaves_absent_inputs_absent(
    tmp_path: Path, graph: str, shape: tuple[int, ...]
) -> None:
    proto = onnx.parser.parse_model(graph)
    proto.graph.initializer.append(
        numpy_helper.from_array(np.linspace(0.5, 2, 4 ** (shape[0] // 2)).reshape(shape).astype(np.float32), "w")
    )
    quantize(load(saved(tmp_path / "m.onnx", proto)), QuantisationRecipe("fp16"), tmp_path / "h.onnx")
    made = onnx.load(tmp_path / "h.onnx")
    onnx.checker.check_model(made)
    assert next(t for t in made.graph.initializer if t.name == "w").data_type == TensorProto.FLOAT16
    fed = {"x": np.arange(4, dtype=np.float32).reshape(1, *((1, 2, 2) if len(shape) == 4 else (4,)))}
    for up in (True, False):
        feeds = fed | ({"up": np.array(up)} if len(shape) == 2 else {})
        golden, half = (
            ort.InferenceSession(tmp_path / f, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
            for f in ("m.onnx", "h.onnx")
        )
        np.testing.assert_allclose(half, golden, rtol=2e-3)
