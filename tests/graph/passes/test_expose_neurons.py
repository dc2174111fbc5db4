"""Exposed networks: the same answers, a word for each neuron, and faults as in plain snntorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from spiking_graphs import scanned, unrolled
from spiking_networks import random_network, run_network

from onnxfi.errors import ModelError
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.spiking.detect_neurons import find_spiking_layers
from onnxfi.runtime.inject.activations import inject_activations
from onnxfi.runtime.inject.neurons import expose_neurons
from onnxfi.runtime.inject.weights import inject, inspect, sample

ROOT = Path(__file__).parents[3]


FOLDER = Path(__file__).parents[1] / "spiking"


NAMES = sorted(file.stem for file in FOLDER.glob("*.onnx"))


STEPS = 4


every_network = pytest.mark.parametrize("name", NAMES)


IMAGE = (np.arange(5 * 64, dtype=np.float32) % 7 / 4).reshape(5, 1, 8, 8)


def test_a_loop_carries_its_neurons() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["leak", "before"], ["leaked"]), helper.make_node("Add", ["leaked", "x"], ["mem"]),
            helper.make_node("Greater", ["mem", "limit"], ["above"]), helper.make_node("Cast", ["above"], ["spike"], to=1),
            helper.make_node("Mul", ["spike", "limit"], ["amount"]), helper.make_node("Sub", ["mem", "amount"], ["after"]),
            helper.make_node("Identity", ["go"], ["went"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("i", 7, []), ("go", 9, []), ("before", 1, ["N", 3]))],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("went", 9, []), ("after", 1, ["N", 3]), ("spike", 1, ["N", 3]))],
    )  # fmt: skip
    stored = [numpy_helper.from_array(np.array(v), n) for n, v in (("trips", 5), ("yes", True))]
    stored += [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("leak", 0.5), ("limit", 1))]
    graph = helper.make_graph(
        [helper.make_node("Sub", ["x", "x"], ["start"]), helper.make_node("Loop", ["trips", "yes", "start"], ["end", "y"], "steps", body=body)],
        "g", [helper.make_tensor_value_info("x", 1, ["N", 3])], [helper.make_tensor_value_info("y", 1, None)], stored,
    )  # fmt: skip
    model = load(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]))
    (layer,) = find_spiking_layers(model).layers
    assert (layer.shape, layer.trips, layer.reset, layer.loop, layer.path) == (
        (3,),
        5,
        "subtract",
        "Loop",
        "steps.body::",
    )
    exposed = expose_neurons(model).data
    x = np.array([[0.6, 0.9, 1.4], [2.0, -1.0, 0.5]], np.float32)
    golden = run_network(model.source.data or b"", x)["y"]
    assert golden.any()
    assert np.array_equal(run_network(exposed, x)["y"], golden)
    dead = inject(load(exposed), sample(load(exposed), sites=[f"{layer.name}/spike[2]"], fault="dead")).data
    assert not run_network(dead or b"", x)["y"][..., 2].any()


@pytest.mark.slow
@every_network
@pytest.mark.parametrize("level", ["off", "all"])
def test_exposed_networks_answer_as_before(name: str, level: str) -> None:
    model, held = load(FOLDER / f"{name}.onnx"), np.load(FOLDER / f"{name}.npz")
    exposed = expose_neurons(model)
    onnx.checker.check_model(exposed.proto, full_check=True)
    before = run_network((FOLDER / f"{name}.onnx").read_bytes(), held["x"], level)
    after = run_network(exposed.data, held["x"], level)
    for output in ("counts", "spikes1", "spikes2"):
        assert after[output].tobytes() == before[output].tobytes()
        assert np.array_equal(before[output], held[output])


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("build", [unrolled, scanned])
def test_exposed_built_networks_answer_as_before(build: object, reset: str) -> None:
    made = build(random_network(3, reset), 6, (1, 8, 8))  # type: ignore[operator]
    golden = run_network(made.SerializeToString(), IMAGE)["counts"]
    assert golden.any()
    assert np.array_equal(run_network(expose_neurons(load(made)).data, IMAGE)["counts"], golden)


def test_words_are_a_neuron_each_with_roles_and_layers() -> None:
    exposed = load(expose_neurons(load(ROOT / "models" / "fashion_snn.onnx")).data)
    rows = {t.id: t for t in exposed.targets if "/" in t.id}
    assert [(t.id, t.shape, t.role, t.layer) for t in rows.values()][-4:] == [
        (f"lif3/{name}", (10,), name, "lif3") for name in ("threshold", "leak", "reset", "spike")
    ]
    found = inspect(exposed)["spiking"]["layers"]
    assert [(row["layer"], row["neurons"], row["exposed"]) for row in found] == [
        ("lif1", 1568, True),
        ("lif2", 784, True),
        ("lif3", 10, True),
    ]
    assert found[2]["membrane"][7] == "lif3/membrane/7"
    with pytest.raises(ModelError, match="exposed already"):
        expose_neurons(exposed)


def test_both_forms_of_the_shipped_network_answer_alike_also_with_faults() -> None:
    with np.load(ROOT / "models" / "fashion_test.npz") as data:
        x = data["image"][:40]
    forms = [
        expose_neurons(load(ROOT / "models" / f"{name}.onnx")).data for name in ("fashion_snn", "fashion_snn_scan")
    ]
    golden = [run_network(form, x)["counts"] for form in forms]
    assert np.array_equal(*golden)
    differing = 0
    for fault, site in (
        ("dead", "lif3/spike[9]"),
        ("scale:factor=0.5", "lif2/threshold[100]"),
        ("set:value=0", "lif3/reset[1]"),
    ):
        injected = [inject(load(f), sample(load(f), sites=[site], fault=fault)).data for f in forms]
        counts = [run_network(s or b"", x)["counts"] for s in injected]
        assert np.array_equal(*counts)
        differing += not np.array_equal(counts[0], golden[0])
    assert differing >= 2
    steps = [
        inject_activations(load(forms[0]), sites=["lif3/membrane/5[2]:30"]),
        inject_activations(load(forms[1]), sites=["steps.body::lif3/membrane[2]@step=5:30"]),
    ]
    counts = [run_network(s.data, x)["counts"] for s in steps]
    assert np.array_equal(*counts)
    assert not np.array_equal(counts[0], golden[0])


@dataclass(frozen=True)
class Case:
    variable: str
    layer: int
    neuron: int
    fault: str
    bit: int
    first: int
    last: int

    @classmethod
    def parse(cls, name: str) -> Case:
        variable, neuron, fault, bit, first, last = name.rsplit("/", 1)[0].split("_")
        return cls(variable[:-1], int(variable[-1]), int(neuron), fault, int(bit), int(first), int(last))

    def injected(self, plain: Model, exposed: Model, layers: list[str]) -> bytes:
        """The faulty network, by onnxfi."""
        tail = f"[{self.neuron}]" + (f":{self.bit}" if self.bit >= 0 else "")
        if self.variable == "synapse":
            weights = [t.id for t in plain.targets if t.id.endswith("weight")]
            done = inject(exposed, sample(exposed, sites=[weights[self.layer] + tail], fault=self.fault))
            return done.data or b""
        if self.variable == "membrane" or (self.variable == "spike" and self.fault == "flip"):
            steps = range(self.first, self.last + 1)
            sites = [f"{layers[self.layer]}/{self.variable}/{t}{tail}" for t in steps]
            return inject_activations(exposed, sites=sites, fault=self.fault).data
        site = f"{layers[self.layer]}/{self.variable}{tail}"
        return inject(exposed, sample(exposed, sites=[site], fault=self.fault)).data or b""


def cases(name: str) -> list[str]:
    with np.load(FOLDER / f"{name}.npz") as held:
        return sorted(key for key in held.files if key.endswith("/1"))


@pytest.mark.slow
@every_network
def test_every_fault_gives_the_spikes_of_plain_snntorch(name: str) -> None:
    model = load(FOLDER / f"{name}.onnx")
    exposed = load(expose_neurons(model).data)
    layers = [layer.name for layer in find_spiking_layers(model).layers]
    held = dict(np.load(FOLDER / f"{name}.npz"))
    differing = 0
    for key in cases(name):
        case = Case.parse(key)
        out = run_network(case.injected(model, exposed, layers), held["x"])
        for k, output in ((1, "spikes1"), (2, "spikes2")):
            assert np.array_equal(out[output], held[key[:-1] + str(k)]), (key, output)
        differing += not all(np.array_equal(out[o], held[o]) for o in ("spikes1", "spikes2"))
        own = out[f"spikes{case.layer + 1}"].reshape(STEPS, len(held["x"]), -1)
        golden = held[f"spikes{case.layer + 1}"].reshape(own.shape)
        assert np.array_equal(own[: case.first], golden[: case.first]), "nothing changes before the fault"
        if case.fault in ("dead", "saturated") and case.variable == "spike":
            assert (own[..., case.neuron] == (case.fault == "saturated")).all()
    assert differing > len(cases(name)) // 2, "most of the faults change some spike"


@pytest.mark.parametrize("file", sorted((FOLDER / "neurons").glob("*.onnx")), ids=lambda file: file.stem)
def test_neurons_of_other_kinds_are_dead_in_all_their_steps(file: Path) -> None:
    plain, said = load(file), np.load(file.with_suffix(".npz"))
    found = find_spiking_layers(plain)
    assert [layer.trips for layer in found.layers] == [5]
    assert not found.notes
    exposed = load(expose_neurons(plain).data)
    whole = run_network(exposed.source.data or b"", said["x"])
    np.testing.assert_allclose(next(iter(whole.values())), said["y"], atol=1e-5)
    for k in range(4):
        site = f"{found.layers[0].name}/spike[{k}]"
        faulty = inject(exposed, sample(exposed, sites=[site], fault="dead")).data or b""
        np.testing.assert_allclose(next(iter(run_network(faulty, said["x"]).values())), said[f"dead/{k}"], atol=1e-5)


def test_a_fault_behind_the_comparison_changes_the_next_step_alone() -> None:
    for build in (unrolled, scanned):
        exposed = load(expose_neurons(load(build(random_network(), 6, (1, 8, 8)))).data)
        path = "" if build is unrolled else "steps.body::"
        before, behind = (f"{path}lif2/{name}[1]@sample=2@step=3:31" for name in ("membrane", "carried"))
        spikes = {}
        for site in ("", before, behind):
            data = exposed.source.data or b""
            if site:
                data = inject_activations(exposed, sites=[site]).data
            proto = onnx.load_from_string(data)
            if build is unrolled:
                names = [f"lif2/spike/{t}" for t in range(6)]
                proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
                out = run_network(proto.SerializeToString(), IMAGE)
                spikes[site] = np.stack([out[name] for name in names])
            else:
                spikes[site] = next(iter(run_network(data, IMAGE).values()))
        if build is unrolled:
            changed = {site: (spikes[site] != spikes[""]).any(axis=(1, 2)) for site in (before, behind)}
            assert not changed[before][:3].any() and not changed[behind][:4].any()
            assert changed[before][3] and changed[behind][4:].any()
        assert not np.array_equal(spikes[before], spikes[behind])
