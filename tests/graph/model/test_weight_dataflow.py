"""Data flow behind roles: stored tensors behind casts, products and shared operands."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import protobuf_reader
import pytest
import quantized_models
from injected_files import inject_flip, run
from onnx import TensorProto, parser
from quantized_models import X, node, tensor

from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import load


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT16])
def test_narrow_floats_behind_a_cast_are_weights(kind: int, tmp_path: Path) -> None:
    stored = [tensor("w", np.linspace(-1, 1, 32).reshape(8, 4), kind)]
    golden = tmp_path / "golden.onnx"
    onnx.save(
        quantized_models.build([node("Cast", ["w"], ["f"], to=1), node("MatMul", ["x", "f"], ["y"])], stored, X), golden
    )
    target = load(golden).targets[0]
    assert (target.role, target.scheme, target.op) == ("weight", None, "MatMul")
    out, line = inject_flip(golden, tmp_path, "w[9]:14")
    words = protobuf_reader.read(out)
    assert "before_real" not in line
    np.testing.assert_allclose(run(out, X), X @ quantized_models.numbers(words, "w").astype(np.float32), rtol=1e-5)


def test_a_tensor_of_several_roles_is_found_by_each() -> None:
    made = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]> g (float[1,2] x) => (float[1,2] y)
        <float[2] w = {1.0, 2.0}, float[2] s = {0.5, 0.5}>
        { n = LayerNormalization(x, s, w)  y = PRelu(n, w) }"""
    )
    shared = load(made).targets[0]
    assert (shared.role, shared.roles) == ("bias", ("bias", "weight"))
    for role in ("bias", "weight"):
        assert Selector(role=(role,)).selects(shared)
    assert not Selector(role=("scale",)).selects(shared)


def test_a_float_weight_behind_quantize_linear_is_said() -> None:
    made = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]> g (float[1,2] x) => (float[1,1] y)
        <float[2,1] w = {1.0, -0.3}, float s = {0.5}, int8 z = {0}>
        { q = QuantizeLinear(w, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(x, d) }"""
    )
    model = load(made)
    assert [t.role for t in model.targets] == ["weight", "scale", "zero-point"]
    assert any("'w' is stored as float32 and quantised at run time" in note for note in model.notes)


def test_a_hostile_graph_takes_no_time() -> None:
    """Exponentially many ways lead from a product to its factor, and from a join to its parts."""
    nodes = [node("Mul", ["w", "w"], ["m0"]), node("Concat", ["w"] * 50, ["c0"], axis=0)]
    nodes += [node("Mul", [f"m{k}"] * 2, [f"m{k + 1}"]) for k in range(60)]
    nodes += [node("Concat", [f"c{k}"] * 50, [f"c{k + 1}"], axis=0) for k in range(60)]
    nodes += [node("MatMul", [f"{name}{k}", "m60"], [f"{name}y{k}"]) for name in "mc" for k in range(60)]
    begun = time.process_time()
    load(quantized_models.build(nodes, [tensor("w", [1.0], TensorProto.FLOAT)], X))
    assert time.process_time() - begun < 2
