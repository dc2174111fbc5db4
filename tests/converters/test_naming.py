"""Names of weights and layers: found by values, renamed without a clash, kept on the way to another opset."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxfi.converters import conversion, naming
from onnxfi.errors import InputError
from onnxfi.graph.model.loading import load

HEAD = '<ir_version: 8, opset_import: ["": 18, "": 18], producer_name: "x">'
GRAPH = "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float[2] b = {5,6}> { t = MatMul(x, w) y = Add(t, b) }"


def raw() -> onnx.ModelProto:
    proto = parser.parse_model(HEAD + GRAPH)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    return proto


def test_weights_are_found_by_their_values_whatever_their_order() -> None:
    proto = raw()
    kernel = np.array([[1, 3], [2, 4]], np.float32)
    variables = {"dense/kernel": kernel, "dense/bias": np.array([5, 6], np.float32)}
    assert naming.match_variables(proto, variables) == {"w": "dense/kernel", "b": "dense/bias"}
    assert naming.match_variables(proto, variables | {"twin/bias": variables["dense/bias"]}) == {"w": "dense/kernel"}
    assert naming.match_variables(proto, {"zeros": np.zeros(2, np.float32)}) == {}


def test_renaming_takes_no_name_that_is_taken() -> None:
    proto = raw()
    naming.rename(proto, {"w": "x", "b": "t2", "t": "t2", "none": "z"})
    assert [t.name for t in proto.graph.initializer] == ["w", "t2"]
    assert [list(n.input) for n in proto.graph.node] == [["x", "w"], ["t", "t2"]]
    onnx.checker.check_model(proto)


def test_metadata_keeps_layers_alone() -> None:
    proto = raw()
    node = proto.graph.node[0]
    for key in ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace", "onnxfi.layer"):
        node.metadata_props.add(key=key, value="v")
    proto.metadata_props.add(key="path", value="/home/me")
    naming.clean(proto)
    assert {entry.key for entry in node.metadata_props} == {"pkg.torch.onnx.name_scopes", "onnxfi.layer"}
    assert not proto.metadata_props


def test_layers_survive_the_way_to_another_opset() -> None:
    proto = raw()
    naming.clean(proto)
    for k, node in enumerate(proto.graph.node):
        node.name = f"n{k}"
    naming.record_layers(proto, lambda node: f"layer_{node.op_type}")
    raised = conversion.at_opset(proto, 21, range(18, 19))
    assert [(t.id, t.layer) for t in load(raised).targets] == [("w", "layer_MatMul"), ("b", "layer_Add")]
    with pytest.raises(InputError, match="there is no opset 99; the exporter writes 18 to 18"):
        conversion.at_opset(proto, 99, range(18, 19))
