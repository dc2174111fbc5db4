"""Multiplications of layers: by hand, for every operator that is counted."""

from __future__ import annotations

from onnx import parser

from onnxfi.graph.dataflow.macs import layer_macs
from onnxfi.graph.model.loading import load

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4,6,6] x) => (float[N,5] y)
<float[8,2,3,3] w = {WEIGHTS}, float[8,3,2,2] t = {TRANSPOSED}, float[5,7] m = {GEMM}, float[108,7] k = {MATMUL}>
{
  a = Conv <group = 2, pads = [1,1,1,1], strides = [2,2]> (x, w)
  b = ConvTranspose <strides = [2,2]> (a, t)
  f = Flatten (b)
  h = MatMul (f, k)
  y = Gemm <transB = 1> (h, m)
}
"""


def test_macs_by_hand() -> None:
    text = TEXT
    for name, size in (("WEIGHTS", 144), ("TRANSPOSED", 96), ("GEMM", 35), ("MATMUL", 756)):
        text = text.replace("{" + name + "}", "{" + ", ".join(["0.5"] * size) + "}")
    found = layer_macs(load(parser.parse_model(text)))
    conv, transposed = 8 * 3 * 3 * (2 * 3 * 3), 8 * 3 * 3 * (3 * 2 * 2)
    assert found == {"a": conv, "b": transposed, "h": 7 * 108, "y": 5 * 7}
