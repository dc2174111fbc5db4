"""Weights and biases that nodes share stay what they are for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from single_layers import saved

from onnxfi.graph.model.loading import load
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.quantize.quantize import quantize
from onnxfi.runtime.quantize.recipe import QuantisationRecipe
from onnxfi.runtime.quantize.shared_weights import drop_twins, fold_alpha, separate_biases, transpose_once


def shared(*nodes: onnx.NodeProto, feed: str = "x", dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Nodes that share a square weight W and a bias b, from `feed` to y."""
    rng = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array((rng.standard_normal(s) / 4).astype(np.float32), n)
        for s, n in (((32, 32), "W"), ((32,), "b"))
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value(feed, dtype, ["N", 32][: 2 if dtype == TensorProto.FLOAT else 1])],
        [value("y", TensorProto.FLOAT, ["N", 32])], stored,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def gemm(x: str, y: str, **more: float) -> onnx.NodeProto:
    return helper.make_node("Gemm", [x, "W", "b"], [y], f"gemm_{y}", **more)


SHARED = {
    "two transposed": shared(gemm("x", "h", transB=1), gemm("h", "y", transB=1)),
    "three transposed": shared(gemm("x", "h", transB=1), gemm("h", "k", transB=1), gemm("k", "y", transB=1)),
    "one of two transposed": shared(gemm("x", "h", transB=1), gemm("h", "y")),
    "a product and a Gemm": shared(helper.make_node("MatMul", ["x", "W"], ["h"], "mm"), gemm("h", "y", transB=1)),
    "with alpha": shared(gemm("x", "h", transB=1, alpha=2.0), gemm("h", "y", transB=1)),
    "tied embeddings": shared(
        helper.make_node("Gather", ["W", "x"], ["h"], "e"), gemm("h", "y", transB=1), dtype=TensorProto.INT64
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_weights_and_biases_that_nodes_share_stay_what_they_are_for_each(name: str, tmp_path: Path) -> None:
    path, rng = saved(tmp_path / "m.onnx", SHARED[name]), np.random.default_rng(1)
    fed = rng.integers(0, 32, 16) if name == "tied embeddings" else rng.standard_normal((16, 32)).astype(np.float32)
    data = open_data({"x": fed}, OrtEngine(provider="cpu").prepare(path).inputs)
    wanted = OrtEngine(provider="cpu").prepare(path).run({"x": fed}, None)
    for recipe in (
        QuantisationRecipe("dynamic"), QuantisationRecipe("weight-only", weights="int8"), QuantisationRecipe("weight-only", format="qdq"),
        QuantisationRecipe("static", calibration_samples=16), QuantisationRecipe("static", format="qoperator", calibration_samples=16),
    ):  # fmt: skip
        done = quantize(load(path), recipe, tmp_path / "q.onnx", data=data)
        found = OrtEngine(provider="cpu").prepare(tmp_path / "q.onnx").run({"x": fed}, None)
        away = np.linalg.norm(found["y"] - wanted["y"]) / np.linalg.norm(wanted["y"])
        assert away < (0.25 if "qdq" in recipe.format and recipe.mode == "weight-only" else 0.1), recipe
        assert done.relative_error == pytest.approx(away, rel=1e-3)


PASSES = {"transposed": transpose_once, "biases": separate_biases, "alpha": fold_alpha}


@pytest.mark.parametrize("change", PASSES)
@pytest.mark.parametrize("name", SHARED)
def test_each_form_computes_what_the_model_did_and_is_reached_once(change: str, name: str) -> None:
    model = onnx.ModelProto.FromString(SHARED[name].SerializeToString())
    [value] = model.graph.input
    whole = value.type.tensor_type.elem_type != TensorProto.FLOAT
    x = np.arange(4) if whole else np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)
    before = ReferenceEvaluator(model).run(None, {value.name: x})[0]
    PASSES[change](model)
    onnx.checker.check_model(model)
    np.testing.assert_allclose(ReferenceEvaluator(model).run(None, {value.name: x})[0], before, rtol=1e-5, atol=1e-5)
    once = model.SerializeToString(deterministic=True)
    assert not PASSES[change](model) and model.SerializeToString(deterministic=True) == once


def test_twins_are_dropped_and_the_first_stays() -> None:
    graph = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N] x) => (float[N] y) { a = Neg(x) b = Abs(a) y = Relu(b) }'
    ).graph
    graph.node.insert(1, graph.node[0])
    for k in range(3):
        graph.initializer.append(numpy_helper.from_array(np.array([k]), "w" if k != 1 else "v"))
    drop_twins(graph)
    assert [node.op_type for node in graph.node] == ["Neg", "Abs", "Relu"]
    assert {t.name: int(numpy_helper.to_array(t)[0]) for t in graph.initializer} == {"w": 0, "v": 1}
