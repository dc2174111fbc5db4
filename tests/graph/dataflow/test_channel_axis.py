"""Matrix products of real layers: the axis of their channels, and their groups."""

from __future__ import annotations

import onnx.parser

from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import load

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,4,6,6] x, float[8,2,3,3] w, float[8,8] v) => (float[N,8] y)
{
  c = Conv<group: int = 2>(x, w)
  r = Relu(c)
  p = GlobalAveragePool(r)
  f = Flatten(p)
  y = MatMul(f, v)
}
"""


def test_channels_and_groups_follow_from_the_layer() -> None:
    rows = {a.target.id: a.target.gemm for a in activations(load(onnx.parser.parse_model(TEXT)))}
    assert rows["c"] == (-3, 2)
    assert rows["y"] == (-1, 1)
    assert rows["r"] == rows["p"] == rows["x"] == ()


def test_the_integer_of_a_quantised_layer_is_its_output() -> None:
    rows = {a.target.id: a for a in activations(load("models/fashion_cnn_int8_qdq.onnx"))}
    found = {a.target.gemm for a in rows.values() if a.target.op == "QuantizeLinear"}
    assert (-3, 1) in found and (-1, 1) in found
