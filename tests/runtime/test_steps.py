"""Step by step: late start and early stop answer as all parts together, and as a faulty model of its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfi.errors import ModelError, SelectorError
from onnxfi.faults.models import parse_fault
from onnxfi.graph.model import Model, load
from onnxfi.runtime.engines import OrtEngine
from onnxfi.runtime.inflight import inject_flow
from onnxfi.runtime.ports import Array
from onnxfi.runtime.spiking import expose_neurons
from onnxfi.runtime.steps import Steps

MODELS = Path(__file__).parents[2] / "models"
NETWORKS = {
    "fashion_snn": {"lif1": 1568, "lif2": 784, "lif3": 10},
    "subtract_learned_named_dynamo": {"retina.1": 5, "cortex.cells": 4},
}
PLACES = {"fashion_snn": MODELS, "subtract_learned_named_dynamo": MODELS.parent / "tests" / "graph" / "spiking"}
ENGINE = OrtEngine(provider="cpu", optimization="off")


@cache
def opened(name: str) -> tuple[Model, Steps, dict[str, Array]]:
    model = load(expose_neurons(load(PLACES[name] / f"{name}.onnx")).data)
    steps = Steps.open(model, ENGINE)
    if name == "fashion_snn":
        with np.load(MODELS / "fashion_test.npz") as held:
            feeds = {"image": held["image"][:8]}
    else:
        feeds = {"x": np.load(PLACES[name] / f"{name}.npz")["x"]}
    return model, steps, steps.golden(feeds)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_every_mode_answers_as_a_faulty_model_of_its_own(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(NETWORKS)))
    model, steps, golden = opened(name)
    layer = data.draw(st.sampled_from(sorted(NETWORKS[name])))
    many = sum(at[:2] == (layer, "spike") for at in steps.neurons.values())
    neuron = data.draw(st.integers(0, NETWORKS[name][layer] - 1))
    first = data.draw(st.integers(0, many - 1))
    last = data.draw(st.integers(first, many - 1))
    variable = data.draw(st.sampled_from(["membrane", "spike"]))
    fault = data.draw(st.sampled_from(["flip", "dead", "set:value=1", "set-word:word=0x7f800000"]))
    bit = data.draw(st.integers(0, 31)) if fault == "flip" else -1
    # One input alone differs where the batch of the file is open.
    sample = data.draw(st.sampled_from([None, 0, 2]))
    patches = steps.faults(layer, variable, neuron, parse_fault(fault), bit=bit, first=first, last=last, sample=sample)
    answers = [steps.run(golden, patches, late=late, early=early) for late in (False, True) for early in (False, True)]
    assert (
        answers[0].parts
        >= max(answers[1].parts, answers[2].parts)
        >= min(answers[1].parts, answers[2].parts)
        >= answers[3].parts
    )
    at = "" if sample is None else f"@sample={sample}"
    sites = [f"{layer}/{variable}/{t}[{neuron}]{at}" + (f":{bit}" if bit >= 0 else "") for t in range(first, last + 1)]
    session = ENGINE.prepare(inject_flow(model, sites=sites, fault=fault).data)
    alone = session.run({port.name: golden[port.name] for port in session.inputs}, list(steps.outputs))
    for answer in answers:
        for output in steps.outputs:
            assert answer.outputs[output].tobytes() == alone[output].tobytes()


def test_nothing_is_run_before_the_step_and_after_the_spikes_came_back() -> None:
    _, steps, golden = opened("fashion_snn")
    silent = [k for k in range(784) if not golden["lif2/spike/3"].reshape(8, -1)[:, k].any()]
    dead = steps.faults("lif2", "spike", silent[0], parse_fault("dead"), first=3, last=3)
    assert steps.run(golden, dead).parts == 0  # dead at a step in which it is silent
    last = steps.faults("lif3", "membrane", 0, parse_fault("flip"), bit=30, first=7, last=7)
    assert 0 < steps.run(golden, last).parts <= 3
    assert steps.run(golden, last, late=False, early=False).parts > 40
    assert steps.run(golden, {}).outputs["counts"].tobytes() == golden["counts"].tobytes()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("lif2", "spike", 8), "'lif2' has 8 steps, 0 to 7; there is no step 8"),
        (("lif4", "spike", 0), "no spiking layer 'lif4'.*lif"),
        (("lif2", "current", 0), "no 'current' in flight; give membrane or spike"),
    ],
)
def test_places_that_are_not_there(place: tuple[str, str, int], message: str) -> None:
    _, steps, _ = opened("fashion_snn")
    with pytest.raises(SelectorError, match=message):
        steps.name(*place)


def test_a_neuron_beyond_the_layer() -> None:
    _, steps, golden = opened("fashion_snn")
    with pytest.raises(SelectorError, match="no neuron 10; the layer has 0 to 9"):
        steps.run(golden, steps.faults("lif3", "spike", 10, parse_fault("dead")))


def test_models_that_have_no_steps() -> None:
    with pytest.raises(ModelError, match="not exposed"):
        Steps.open(load(MODELS / "fashion_snn.onnx"), ENGINE)
    with pytest.raises(ModelError, match="lies in a loop"):
        Steps.open(load(expose_neurons(load(MODELS / "fashion_snn_scan.onnx")).data), ENGINE)
