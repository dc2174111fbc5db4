"""Golden activations for proofs: those that come with the golden scores, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from onnxfi.errors import UnprovableError
from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.subgraph import partition_graph
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.proofs.golden_values import golden_activations, needed_activations

TEXT = """<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y)
<float[2,2] w = {1, 2, 3, 4}, float[2,2] v = {1, 0, 0, 1}, float[2] b = {1, 1}>
{ h = MatMul(x, w) a = Relu(h) m = MatMul(a, v) y = Add(m, b) }"""


def test_needed_activations_are_read_as_the_runtime_gives_them(tmp_path) -> None:
    model = parser.parse_model(TEXT).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(model)
    net, engine = partition_graph(load(tmp_path / "m.onnx")), OrtEngine(provider="cpu")
    assert needed_activations(net, "w", "y") == ("x", "a", "y") and needed_activations(net, "v", "y") == ("a", "y")
    x = np.array([[1, -1], [2, 0], [9, 9]], np.float32)
    session = engine.prepare(model)
    scores = session.run({"x": x})["y"][:2]
    batches = [Batch(0, {"x": x}, None, 3, 2)]
    found = golden_activations(engine, net, session.inputs, batches, scores, ("x", "a", "y"))
    assert found["a"].tolist() == [[0, 0], [2, 4]] and found["x"].shape == (2, 2)
    with pytest.raises(UnprovableError, match="other scores"):
        golden_activations(engine, net, session.inputs, batches, scores + 1, ("x", "a", "y"))
