"""Weights that each time step reads for itself: the same answers, and a fault of one step stays in that step."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from spiking_graphs import Lif, scanned, unrolled
from spiking_networks import run_network

from onnxfi.errors import ModelError
from onnxfi.graph.model.loading import Model, load, parse
from onnxfi.graph.model.neuron_table import step_reads, step_tensors
from onnxfi.graph.passes.expose_reads import ExposeReads
from onnxfi.runtime.inject.activations import inject_activations
from onnxfi.runtime.inject.neurons import expose_neurons

STEPS = 4
X = (np.arange(5 * 64, dtype=np.float32) % 7 / 4).reshape(5, 1, 8, 8)


@pytest.fixture(scope="module")
def forms() -> dict[str, Model]:
    chance = np.random.default_rng(3)
    layers = [
        Lif("conv", "lif1", chance.normal(0, 1, (2, 1, 3, 3)).astype("f"), np.zeros(2, "f"), (2, 4, 4), 2, 1),
        Lif("fc1", "lif2", chance.normal(0, 1, (5, 32)).astype("f"), np.full(5, 0.3, "f"), (5,), 1, 0, 0.8, 0.7),
        Lif("fc2", "lif3", chance.normal(0, 1, (3, 5)).astype("f"), np.full(3, 0.3, "f"), (3,), 1, 0, 0.8, 0.7),
    ]
    plain = {name: load(make(layers, STEPS, (1, 8, 8))) for name, make in (("flat", unrolled), ("scan", scanned))}
    made = {name: load(expose_neurons(model, reads=True).data) for name, model in plain.items()}
    for name, model in plain.items():
        golden, found = (run_network(parse(one).SerializeToString(), X) for one in (model, made[name]))
        assert all(golden[k].tobytes() == found[k].tobytes() for k in golden)
    return made


def counts(model: Model | bytes) -> np.ndarray:
    [found] = run_network(model if isinstance(model, bytes) else parse(model).SerializeToString(), X).values()
    return found


def in_one_step(model: Model, name: str, element: int, bit: int, step: int) -> np.ndarray:
    """Counts of the unrolled network in which one step reads another tensor, put in by hand."""
    proto = parse(model)
    [held] = [t for t in proto.graph.initializer if t.name == name]
    words = numpy_helper.to_array(held).copy()
    words.reshape(-1).view(np.uint32)[element] ^= np.uint32(1 << bit)
    proto.graph.initializer.append(numpy_helper.from_array(words, "other"))
    [read] = [node for node in proto.graph.node if f"{name}/read/{step}" in node.output]
    read.input[0] = "other"
    return counts(proto.SerializeToString())


def test_a_fault_of_one_step_is_another_tensor_in_that_step(forms: dict[str, Model]) -> None:
    changed = 0
    for name, element, bit in (
        ("fc2.weight", 7, 30),
        ("fc2.bias", 1, 30),
        ("lif3/threshold", 1, 31),
        ("lif1/leak", 9, 30),
    ):
        for step in (1, STEPS - 1):
            wanted = in_one_step(forms["flat"], name, element, bit, step)
            for form, path in (("flat", ""), ("scan", "steps.body::")):
                site = f"{path}{name}/read[{element}]@step={step}:{bit}"
                found = counts(inject_activations(forms[form], sites=[site]).data or b"")
                assert found.tobytes() == wanted.tobytes(), (form, site)
            changed += int((wanted != counts(forms["flat"])).any())
    assert changed >= 3


def test_what_is_read_once_for_all_steps_has_no_step(forms: dict[str, Model]) -> None:
    reads = step_reads(forms["flat"].proto)
    assert "conv.weight" not in reads and not any(name.endswith("/spike") for name in reads)
    assert reads["fc2.weight"] == tuple(f"fc2.weight/read/{k}" for k in range(STEPS))
    assert step_tensors(forms["flat"].proto)["lif1/leak/read"] == reads["lif1/leak"]
    layers = {t.id: t.layer for t in load(forms["flat"].source.data or b"").targets}
    assert layers["lif1/leak"] == "lif1"


def test_reads_are_exposed_behind_neurons_and_once(forms: dict[str, Model]) -> None:
    with pytest.raises(ModelError, match="what steps read is exposed already; inject into this model as it is"):
        ExposeReads().run(parse(forms["flat"]))
    with pytest.raises(ModelError, match="the neurons are not exposed; expose them first"):
        ExposeReads().run(onnx.ModelProto(graph=parse(forms["flat"]).graph))
