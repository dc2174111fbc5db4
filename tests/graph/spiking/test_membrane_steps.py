"""Sequences of membrane potentials: all steps of a layer, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from spiking_graphs import Lif, unrolled
from spiking_networks import run_network

from onnxfi.graph.model.loading import load
from onnxfi.graph.spiking.detect_neurons import find_spiking_layers
from onnxfi.runtime.inject.neurons import expose_neurons
from onnxfi.runtime.inject.weights import inject, sample

FOLDER = Path(__file__).parent


def test_a_layer_of_which_steps_are_missing_is_said_and_not_exposed() -> None:
    proto = onnx.load(FOLDER / "neurons" / "leaky_reset_at_once.onnx")
    # A second value is compared with the layer's own threshold, and comes from no step of it.
    proto.graph.node.extend([
        helper.make_node("Relu", ["/fc/Gemm_output_0"], ["stray"]),
        helper.make_node("Sub", ["stray", "lif.threshold"], ["stray_shifted"]),
        helper.make_node("Constant", [], ["nothing"], value=numpy_helper.from_array(np.float32(0))),
        helper.make_node("Greater", ["stray_shifted", "nothing"], ["stray_fires"]),
        helper.make_node("Cast", ["stray_fires"], ["stray_spike"], to=1),
        helper.make_node("Identity", ["stray_spike"], ["stray_out"]),
    ])  # fmt: skip
    proto.graph.output.append(helper.make_tensor_value_info("stray_out", 1, None))
    found = find_spiking_layers(load(proto))
    assert not found.layers
    assert found.notes[0] == "'lif': steps of its neurons were found in part only; describe them in a mapping file"


def test_a_reset_that_is_not_taken_lets_the_potential_grow() -> None:
    x = np.full((1, 1), 0.6, np.float32)
    one = Lif("fc", "lif", np.ones((1, 1), np.float32), np.zeros(1, np.float32), (1,))
    exposed = load(expose_neurons(load(unrolled([one], 6, (1,)))).data)
    injected = inject(exposed, sample(exposed, sites=["lif/reset[0]"], fault="set:value=0")).data or b""
    assert run_network(exposed.source.data or b"", x)["counts"].tolist() == [[3.0]]  # 0.6 1.14 0.63 1.16 0.65 1.18
    assert run_network(injected, x)["counts"].tolist() == [[5.0]]
