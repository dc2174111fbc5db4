"""Networks of snntorch, exported as they are now by both exporters, against plain snntorch with faults put in by hand.

pip install torch onnxscript
pip install --no-deps snntorch==1.0.0
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("snntorch", reason="needs torch and snntorch 1.0.0")
from snntorch_models import CASES, NEURONS, STEPS, Case, Kind, OneLayer, build, export, one_layer, patched

from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.spiking.detect_neurons import find_spiking_layers
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.inject.activations import inject_activations
from onnxfi.runtime.inject.neurons import expose_neurons
from onnxfi.runtime.inject.weights import inject, sample

pytestmark = [pytest.mark.frameworks("torch", "onnxscript", "snntorch"), pytest.mark.filterwarnings("ignore")]
FLAGS = itertools.product(("subtract", "zero"), *[(False, True)] * 4)
KINDS = [Kind(reset, *flags) for reset, *flags in FLAGS]


def injected(plain: Model, exposed: Model, case: Case) -> bytes:
    """The faulty network, by onnxfi."""
    layer = find_spiking_layers(plain).layers[case.layer].name
    tail = f"[{case.neuron}]" + (f":{case.bit}" if case.bit >= 0 else "")
    if case.variable == "membrane" or (case.variable == "spike" and case.fault == "flip"):
        sites = [f"{layer}/{case.variable}/{t}{tail}" for t in range(case.first, case.last + 1)]
        return inject_activations(exposed, sites=sites, fault=case.fault).data
    weights = [t.id for t in plain.targets if t.id.endswith("weight")]
    site = weights[case.layer] if case.variable == "synapse" else f"{layer}/{case.variable}"
    return inject(exposed, sample(exposed, sites=[site + tail], fault=case.fault)).data or b""


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_fault_gives_the_spikes_of_plain_snntorch(kind: Kind) -> None:
    net, x = build(kind, seed=3)
    plain = load(export(net, x, kind))
    found = find_spiking_layers(plain)
    assert [(layer.trips, layer.reset) for layer in found.layers] == [(STEPS, kind.reset)] * 2
    exposed = load(expose_neurons(plain).data)
    for case in CASES:
        session = OrtEngine(provider="cpu").prepare(injected(plain, exposed, case))
        out = session.run({session.inputs[0].name: x.numpy()}, ["counts", "spikes1", "spikes2"])
        for name, wanted in zip(("counts", "spikes1", "spikes2"), patched(net, x, case), strict=True):
            assert np.array_equal(out[name], wanted), (case, name)


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("last", [False, True], ids=["all", "last"])
@pytest.mark.parametrize("name", NEURONS)
def test_neurons_of_every_kind_are_dead_in_all_their_steps(name: str, last: bool, dynamo: bool) -> None:
    if dynamo and name.endswith("at_once"):
        pytest.skip("torch cannot export it: the reset depends on data")
    model, said = one_layer(name, last=last, dynamo=dynamo)
    plain = load(model)
    (layer,) = find_spiking_layers(plain).layers
    assert layer.trips == OneLayer.steps
    exposed = load(expose_neurons(plain).data)
    for k in range(4):
        faulty = inject(exposed, sample(exposed, sites=[f"{layer.name}/spike[{k}]"], fault="dead")).data or b""
        session = OrtEngine(provider="cpu").prepare(faulty)
        (answer,) = session.run({"x": said["x"]}, None).values()
        np.testing.assert_allclose(answer, said[f"dead/{k}"], atol=1e-5)
