"""Neuron table in a model's metadata: steps of a layer by one name."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxfi.errors import SelectorError
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.activations import inject_activations
from onnxfi.runtime.inject.neurons import expose_neurons
from onnxfi.runtime.inject.weights import sample

ROOT = Path(__file__).parents[3]


def test_activations_lie_in_layers_of_their_own() -> None:
    for name in ("fashion_snn", "fashion_snn_scan"):
        exposed = load(expose_neurons(load(ROOT / "models" / f"{name}.onnx")).data)
        layers = {a.target.id.rpartition("::")[2]: a.target.layer for a in activations(exposed)}
        tail = "" if name.endswith("scan") else "/3"
        assert layers[f"lif2/membrane{tail}"] == "lif2/membrane"
        assert layers["lif2/spiking" if not tail else "lif2/spike/3"] == "lif2/spike"


def test_a_neuron_beyond_the_layer_and_a_step_beyond_the_last() -> None:
    exposed = load(expose_neurons(load(ROOT / "models" / "fashion_snn.onnx")).data)
    with pytest.raises(SelectorError, match="beyond 'lif3/spike' of shape 10"):
        sample(exposed, sites=["lif3/spike[10]"], fault="dead")
    with pytest.raises(SelectorError, match=r"no target 'lif3/membrane/8'.*lif3/membrane/7"):
        inject_activations(exposed, sites=["lif3/membrane/8[0]:30"])
