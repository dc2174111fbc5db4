"""Decays of synaptic currents and refractory states: found without a mapping, and faulty as numpy computes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser
from spiking_networks import run_network

from onnxfi.graph.model.loading import load
from onnxfi.graph.spiking.detect_neurons import find_spiking_layers
from onnxfi.runtime.inject.neurons import expose_neurons
from onnxfi.runtime.inject.weights import inject, sample

FOLDER = Path(__file__).parent
STEPS, NEURONS = 9, 3
CONSTANTS = {"alpha": 0.8, "beta": 0.6, "gamma": 0.7, "limit": 0.9, "strength": 1.2, "gain": 0.8}
WEIGHT = np.linspace(-0.2, 0.9, 4 * NEURONS, dtype=np.float32).reshape(4, NEURONS)
INPUT = (np.arange(20, dtype=np.float32) % 7 / 5).reshape(5, 4)


def expected(changed: str = "", neuron: int = 0, value: float = 0.0) -> np.ndarray:
    """The spike counts of the network, with one parameter of one neuron changed."""
    p = {name: np.full(NEURONS, number, np.float32) for name, number in CONSTANTS.items()}
    if changed:
        p[changed][neuron] = value
    current = np.float32(CONSTANTS["gain"]) * (INPUT @ WEIGHT)
    synapse = refractory = membrane = count = np.zeros_like(current)
    for _ in range(STEPS):
        synapse = p["alpha"] * synapse + current
        membrane = p["beta"] * membrane + synapse - refractory
        spike = (membrane > p["limit"]).astype(np.float32)
        refractory = p["gamma"] * refractory + np.float32(CONSTANTS["strength"]) * spike
        count = count + spike
    return count


def step(t: str, before: str) -> str:
    """The nodes of a step in ONNX's text form; `before` is the suffix of the states that it starts from."""
    return f"""
    sa{t} = Mul(alpha, syn{before}) syn{t} = Add(sa{t}, current) mb{t} = Mul(beta, mem{before})
    ms{t} = Add(mb{t}, syn{t}) mem{t} = Sub(ms{t}, ref{before}) above{t} = Greater(mem{t}, limit)
    spk{t} = Cast<to = 1>(above{t}) amount{t} = Mul(strength, spk{t}) ra{t} = Mul(gamma, ref{before})
    ref{t} = Add(ra{t}, amount{t})"""


def stored(proto: onnx.ModelProto) -> bytes:
    values = {name: np.array(number, np.float32) for name, number in CONSTANTS.items()} | {"weight": WEIGHT}
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return proto.SerializeToString()


HEAD = "product = MatMul(x, weight) current = Mul(gain, product) start = Sub(current, current)"


def unrolled() -> bytes:
    first = "".join(f"{name}_ = Identity(start) " for name in ("syn", "mem", "ref"))
    body = "".join(step(str(t), str(t - 1) if t else "_") for t in range(STEPS))
    total = f"y = Sum({', '.join(f'spk{t}' for t in range(STEPS))})"
    text = f"g (float[N,4] x) => (float[N,{NEURONS}] y) {{ {HEAD} {first} {body} {total} }}"
    return stored(parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>{text}'))


def looped() -> bytes:
    states = ("syn", "mem", "ref", "count")
    inside = parser.parse_graph(
        f"body (int64 t, bool go, {', '.join(f'float[N,{NEURONS}] {s}_' for s in states)})"
        f" => (bool went, {', '.join(f'float[N,{NEURONS}] {s}1' for s in states)})"
        f" {{ went = Identity(go) {step('1', '_')} count1 = Add(count_, spk1) }}"
    )
    text = f"g (float[N,4] x) => (float[N,{NEURONS}] y) {{ {HEAD} y = Identity(start) }}"
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>{text}')
    del proto.graph.node[-1]
    ends = [*(f"{s}_end" for s in states[:3]), "y"]
    proto.graph.node.append(helper.make_node("Loop", ["trips", "yes", *["start"] * 4], ends, "steps", body=inside))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(STEPS), "trips"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    return stored(proto)


both = pytest.mark.parametrize("build", [unrolled, looped])


@both
def test_decays_are_found_and_a_gain_is_none(build: object) -> None:
    (layer,) = find_spiking_layers(load(build())).layers  # type: ignore[operator]
    found = {v.name: float(v.value) for v in layer.variables}
    assert found == pytest.approx({"threshold": 0.9, "leak": 0.6, "synaptic": 0.8, "refractory": 0.7})
    assert [v.origins for v in layer.variables] == [("limit",), ("beta",), ("alpha",), ("gamma",)]


@both
@pytest.mark.parametrize(
    ("word", "name"), [("synaptic", "alpha"), ("refractory", "gamma"), ("leak", "beta"), ("threshold", "limit")]
)
def test_a_fault_in_one_neuron_is_that_of_its_parameter(build: object, word: str, name: str) -> None:
    plain = load(build())  # type: ignore[operator]
    exposed = load(expose_neurons(plain).data)
    target = next(t for t in exposed.targets if t.id.endswith(f"/{word}"))
    assert (target.role, target.shape) == (word, (NEURONS,))
    for data in (plain, exposed):
        out = next(iter(run_network(data.source.data or b"", INPUT).values()))
        np.testing.assert_array_equal(out, expected())
    differing = 0
    for neuron in range(NEURONS):
        faulty = inject(exposed, sample(exposed, sites=[f"{target.id}[{neuron}]"], fault="set:value=0.1")).data or b""
        out = next(iter(run_network(faulty, INPUT).values()))
        np.testing.assert_array_equal(out, expected(name, neuron, 0.1))
        differing += not np.array_equal(out, expected())
    assert differing


def test_exported_neurons_have_their_synaptic_decays() -> None:
    def found(name: str) -> dict[str, float]:
        (layer,) = find_spiking_layers(load(FOLDER / "neurons" / f"{name}.onnx")).layers
        return {v.name: round(float(v.value), 3) for v in layer.variables}

    assert found("alpha") == {"threshold": 1.0, "synaptic": 0.8, "synaptic-2": 0.7}
    assert found("rsynaptic_one_to_one") == {"threshold": 1.0, "leak": 0.9, "synaptic": 0.8}
    assert found("leaky_reset_at_once") == found("rleaky_one_to_one") == {"threshold": 1.0, "leak": 0.9}


@pytest.mark.parametrize("kind", ["snntorch._neurons.leaky.Leaky", ""])
def test_a_leak_of_one_that_an_exporter_leaves_out_is_there(kind: str) -> None:
    """A beta that was trained to 1 or more: the product with 1 is not in the file, the class of the neurons is."""
    steps = [
        f"m{t} = Add({f'r{t}' if t else 'zero'}, current) above{t} = Greater(m{t}, limit) spk{t} = Cast<to = 1>(above{t})"
        for t in range(STEPS)
    ]
    resets = [f"taken{t} = Mul(spk{t - 1}, limit) r{t} = Sub(m{t - 1}, taken{t})" for t in range(1, STEPS)]
    steps = [steps[0], *(f"{reset} {step}" for reset, step in zip(resets, steps[1:], strict=True))]
    total = f"y = Sum({', '.join(f'spk{t}' for t in range(STEPS))})"
    text = f"g (float[N,4] x) => (float[N,{NEURONS}] y) <float zero = {{0}}> {{ {HEAD} {' '.join(steps)} {total} }}"
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>{text}')
    if kind:
        for node in proto.graph.node:
            entry = node.metadata_props.add()
            entry.key, entry.value = "pkg.torch.onnx.class_hierarchy", f"['net.Net', '{kind}', 'aten.op']"
    model = load(stored(proto))
    (layer,) = find_spiking_layers(model).layers
    assert ("leak" in {v.name for v in layer.variables}) == bool(kind)
    exposed = load(expose_neurons(model).data)
    plain = next(iter(run_network(exposed.source.data or b"", INPUT).values()))
    if not kind:
        return
    leak = np.ones(NEURONS, np.float32)
    for neuron in (None, *range(NEURONS)):
        changed = leak.copy()
        if neuron is not None:
            changed[neuron] = 0.5
        current = np.float32(CONSTANTS["gain"]) * (INPUT @ WEIGHT)
        membrane = spike = count = np.zeros_like(current)
        for _ in range(STEPS):  # as snntorch's Leaky: the reset of a spike comes a step later, and does not leak
            membrane = changed * membrane - spike * np.float32(CONSTANTS["limit"]) + current
            spike = (membrane > np.float32(CONSTANTS["limit"])).astype(np.float32)
            count = count + spike
        target = next(t.id for t in exposed.targets if t.role == "leak")
        faults = sample(exposed, sites=[f"{target}[{neuron or 0}]"], fault=f"set:value={1 if neuron is None else 0.5}")
        out = next(iter(run_network(inject(exposed, faults).data or b"", INPUT).values()))
        np.testing.assert_array_equal(out, count)
        assert np.array_equal(out, plain) == (neuron is None)
