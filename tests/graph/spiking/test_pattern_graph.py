"""Graphs as the detection of neurons reads them: comparisons, constants, circles."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnxfi.errors import ModelError
from onnxfi.graph.model.loading import load
from onnxfi.graph.spiking.detect_neurons import find_spiking_layers
from onnxfi.runtime.inject.weights import inspect

ROOT = Path(__file__).parents[3]


def test_comparisons_alone_are_no_neurons() -> None:
    # A leaky rectifier spelt out, twice, with a skip: potentials that go elsewhere too.
    made = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]> g (float[N,3] x) => (float[N,3] y)
      <float z = {0.0}, float a = {0.1}> {
        p = Greater(x, z)  pf = Cast<to = 1>(p)  h = Mul(x, pf)
        q = Greater(h, a)  qf = Cast<to = 1>(q)  m = Mul(h, qf)  y = Add(m, x) }""")
    assert find_spiking_layers(load(made)).layers == ()


def test_a_damaged_graph_is_said_to_be_one() -> None:
    made = onnx.load(ROOT / "models" / "fashion_snn_scan.onnx")
    (scan,) = (node for node in made.graph.node if node.op_type == "Scan")
    del scan.attribute[[a.name for a in scan.attribute].index("num_scan_inputs")]
    with pytest.raises(ModelError, match="neurons cannot be detected"):
        find_spiking_layers(load(made))
    found = inspect(load(made))
    assert (found["spiking"]["layers"], len(found["targets"])) == ([], 13)
    assert "graph is damaged" in found["notes"][-1]
