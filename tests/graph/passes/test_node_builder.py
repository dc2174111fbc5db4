"""Tests of nodes that passes add."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxfi.graph.passes.node_builder import NodeBuilder, opset_of


@pytest.mark.parametrize("opset", [12, 13, 18])
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax"])
def test_an_axis_is_reduced_in_the_form_of_the_opset(opset: int, op: str) -> None:
    g = NodeBuilder(opset)
    assert g.constant([1.0], "float32") == g.constant([1.0], "float32") and len(g.nodes) == 1
    g.reduce(op, "x", 1, keepdims=1, name="y")
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", None])] for name in "xy"]
    model = helper.make_model(helper.make_graph(g.nodes, "g", *ends), opset_imports=[helper.make_opsetid("", opset)])
    onnx.checker.check_model(model)
    x = np.array([[1, 2], [3, 5]], np.float32)
    found = ReferenceEvaluator(model).run(None, {"x": x})[0]
    assert found.tolist() == [[[3], [8]], [[2], [5]]][op == "ReduceMax"] and opset_of(model) == opset
