"""Spiking layers: found in exported and built graphs, exposed bit for bit, and struck as plain snntorch is by hand.

The networks and answers in tests/graph/spiking/ were made by scripts/snntorch_models.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxfi.errors import InputError, ModelError, SelectorError
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.spiking.detect_neurons import find_spiking_layers
from onnxfi.graph.spiking.neuron_mapping import spiking_layers
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.inject.activations import inject_activations
from onnxfi.runtime.inject.neurons import describe_neurons, expose_neurons, read_mapping
from onnxfi.runtime.inject.weights import inject, inspect, sample

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "scripts"))
from spiking_graphs import Lif, scanned, unrolled  # noqa: E402

FOLDER = Path(__file__).parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.onnx"))
STEPS = 4
every_network = pytest.mark.parametrize("name", NAMES)


def run(model: bytes, x: np.ndarray, level: str = "off") -> dict[str, np.ndarray]:
    session = OrtEngine(provider="cpu", optimization=level).prepare(model)
    return session.run({session.inputs[0].name: x}, [port.name for port in session.outputs])


def wild(layers: int = 2, reset: str = "subtract") -> list[Lif]:
    """A network of the builder's with weights of no meaning."""
    raw = np.random.Philox(key=5).random_raw(4096).astype(np.float64) / 2**64 - 0.4
    conv = Lif("conv", "lif1", raw[:36].reshape(4, 1, 3, 3).astype("f") * 2, raw[40:44].astype("f"), (4, 4, 4), 2, 1)
    rest = [
        Lif(f"fc{k}", f"lif{k}", raw[k * 99 : k * 99 + n * 3].reshape(3, n).astype("f") * 2, raw[:3].astype("f") + 0.5, (3,),
            leak=0.8, threshold=0.7, reset=reset)
        for k, n in ((2, 64), (3, 3))
    ]  # fmt: skip
    return [conv, *rest][:layers]


IMAGE = (np.arange(5 * 64, dtype=np.float32) % 7 / 4).reshape(5, 1, 8, 8)


# ------------------------------------------------------------------------------------------------ found


@every_network
def test_layers_of_exported_networks(name: str) -> None:
    found = find_spiking_layers(load(FOLDER / f"{name}.onnx"))
    modules = ["retina.1", "cortex.cells"] if "named" in name else ["lif1", "lif2"]
    assert [layer.name for layer in found.layers] == modules
    assert [layer.shape for layer in found.layers] == [(2, 4, 4) if "conv" in name else (5,), (4,)]
    assert {(layer.trips, len(layer.steps), layer.reset) for layer in found.layers} == {
        (STEPS, STEPS, name.split("_", maxsplit=1)[0])
    }
    values = [{v.name: float(v.value) for v in layer.variables} for layer in found.layers]
    assert values == [pytest.approx({"threshold": 0.7, "leak": 0.9}), pytest.approx({"threshold": 0.6, "leak": 0.8})]
    assert [(axis.tensor, axis.axis, axis.role) for axis in found.axes] == [
        ("spikes1", 0, "output"),
        ("spikes2", 0, "output"),
    ]
    assert [layer.kind for layer in found.layers] == ["Leaky" if "dynamo" in name else "integrate-and-fire"] * 2


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("build", [unrolled, scanned])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_of_built_networks(build: object, layers: int, reset: str) -> None:
    model = load(build(wild(layers, reset), 6, (1, 8, 8)))  # type: ignore[operator]
    found = find_spiking_layers(model).layers
    assert [(x.name, x.shape, x.trips) for x in found] == [
        ("lif1", (4, 4, 4), 6),
        ("lif2", (3,), 6),
        ("lif3", (3,), 6),
    ][:layers]
    assert [x.reset for x in found] == ["subtract", reset, reset][:layers]
    assert {x.loop for x in found} == {"Scan" if build is scanned else ""}


@pytest.mark.parametrize("file", sorted((ROOT / "models").glob("fashion_[acg]*.onnx")), ids=lambda file: file.stem)
def test_networks_that_do_not_spike_have_no_neurons(file: Path) -> None:
    assert find_spiking_layers(load(file)).layers == ()
    with pytest.raises(ModelError, match="no spiking layer: no graph has"):
        spiking_layers(load(file))


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
    golden = run(model.source.data or b"", x)["y"]
    assert golden.any()
    assert np.array_equal(run(exposed, x)["y"], golden)
    dead = inject(load(exposed), sample(load(exposed), sites=[f"{layer.name}/spike[2]"], fault="dead")).data
    assert not run(dead or b"", x)["y"][..., 2].any()


# ------------------------------------------------------------------------------------------------ exposed


@every_network
@pytest.mark.parametrize("level", ["off", "all"])
def test_exposed_networks_answer_as_before(name: str, level: str) -> None:
    model, held = load(FOLDER / f"{name}.onnx"), np.load(FOLDER / f"{name}.npz")
    exposed = expose_neurons(model)
    onnx.checker.check_model(exposed.proto, full_check=True)
    before = run((FOLDER / f"{name}.onnx").read_bytes(), held["x"], level)
    after = run(exposed.data, held["x"], level)
    for output in ("counts", "spikes1", "spikes2"):
        assert after[output].tobytes() == before[output].tobytes()
        assert np.array_equal(before[output], held[output])


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("build", [unrolled, scanned])
def test_exposed_built_networks_answer_as_before(build: object, reset: str) -> None:
    made = build(wild(3, reset), 6, (1, 8, 8))  # type: ignore[operator]
    golden = run(made.SerializeToString(), IMAGE)["counts"]
    assert golden.any()
    assert np.array_equal(run(expose_neurons(load(made)).data, IMAGE)["counts"], golden)


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


def test_values_in_flight_lie_in_layers_of_their_own() -> None:
    for name in ("fashion_snn", "fashion_snn_scan"):
        exposed = load(expose_neurons(load(ROOT / "models" / f"{name}.onnx")).data)
        layers = {a.target.id.rpartition("::")[2]: a.target.layer for a in activations(exposed)}
        tail = "" if name.endswith("scan") else "/3"
        assert layers[f"lif2/membrane{tail}"] == "lif2/membrane"
        assert layers["lif2/spiking" if not tail else "lif2/spike/3"] == "lif2/spike"


def test_both_forms_of_the_shipped_network_answer_alike_also_when_struck() -> None:
    with np.load(ROOT / "models" / "fashion_test.npz") as data:
        x = data["image"][:40]
    forms = [
        expose_neurons(load(ROOT / "models" / f"{name}.onnx")).data for name in ("fashion_snn", "fashion_snn_scan")
    ]
    golden = [run(form, x)["counts"] for form in forms]
    assert np.array_equal(*golden)
    told = 0
    for fault, site in (
        ("dead", "lif3/spike[9]"),
        ("scale:factor=0.5", "lif2/threshold[100]"),
        ("set:value=0", "lif3/reset[1]"),
    ):
        struck = [inject(load(f), sample(load(f), sites=[site], fault=fault)).data for f in forms]
        counts = [run(s or b"", x)["counts"] for s in struck]
        assert np.array_equal(*counts)
        told += not np.array_equal(counts[0], golden[0])
    assert told >= 2
    steps = [
        inject_activations(load(forms[0]), sites=["lif3/membrane/5[2]:30"]),
        inject_activations(load(forms[1]), sites=["steps.body::lif3/membrane[2]@step=5:30"]),
    ]
    counts = [run(s.data, x)["counts"] for s in steps]
    assert np.array_equal(*counts)
    assert not np.array_equal(counts[0], golden[0])


# ------------------------------------------------------------------------------------------------ struck


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

    def struck(self, plain: Model, exposed: Model, layers: list[str]) -> bytes:
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


@every_network
def test_every_fault_gives_the_spikes_of_plain_snntorch(name: str) -> None:
    model = load(FOLDER / f"{name}.onnx")
    exposed = load(expose_neurons(model).data)
    layers = [layer.name for layer in find_spiking_layers(model).layers]
    held = dict(np.load(FOLDER / f"{name}.npz"))
    told = 0
    for key in cases(name):
        case = Case.parse(key)
        out = run(case.struck(model, exposed, layers), held["x"])
        for k, output in ((1, "spikes1"), (2, "spikes2")):
            assert np.array_equal(out[output], held[key[:-1] + str(k)]), (key, output)
        told += not all(np.array_equal(out[o], held[o]) for o in ("spikes1", "spikes2"))
        own = out[f"spikes{case.layer + 1}"].reshape(STEPS, len(held["x"]), -1)
        golden = held[f"spikes{case.layer + 1}"].reshape(own.shape)
        assert np.array_equal(own[: case.first], golden[: case.first]), "nothing changes before the fault"
        if case.fault in ("dead", "saturated") and case.variable == "spike":
            assert (own[..., case.neuron] == (case.fault == "saturated")).all()
    assert told > len(cases(name)) // 2, "most of the faults change some spike"


@pytest.mark.parametrize("file", sorted((FOLDER / "neurons").glob("*.onnx")), ids=lambda file: file.stem)
def test_neurons_of_other_kinds_are_dead_in_all_their_steps(file: Path) -> None:
    plain, said = load(file), np.load(file.with_suffix(".npz"))
    found = find_spiking_layers(plain)
    assert [layer.trips for layer in found.layers] == [5]
    assert not found.notes
    exposed = load(expose_neurons(plain).data)
    whole = run(exposed.source.data or b"", said["x"])
    np.testing.assert_allclose(next(iter(whole.values())), said["y"], atol=1e-5)
    for k in range(4):
        site = f"{found.layers[0].name}/spike[{k}]"
        faulty = inject(exposed, sample(exposed, sites=[site], fault="dead")).data or b""
        np.testing.assert_allclose(next(iter(run(faulty, said["x"]).values())), said[f"dead/{k}"], atol=1e-5)


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
    struck = inject(exposed, sample(exposed, sites=["lif/reset[0]"], fault="set:value=0")).data or b""
    assert run(exposed.source.data or b"", x)["counts"].tolist() == [[3.0]]  # 0.6 1.14 0.63 1.16 0.65 1.18
    assert run(struck, x)["counts"].tolist() == [[5.0]]


# ------------------------------------------------------------------------------------------------ told by a mapping


def adaptive() -> onnx.ModelProto:
    """Neurons whose threshold is computed: no pattern finds them."""
    steps = "".join(
        f"""l{t} = Mul(leak, m{t - 1})  i{t} = Add(l{t}, x)  h{t} = Mul(hold, s{t - 1})  m{t} = Sub(i{t}, h{t})
        b{t} = Add(limit, r{t - 1})  p{t} = Greater(m{t}, b{t})  s{t} = Cast<to = 1>(p{t})  r{t} = Add(r{t - 1}, s{t})\n"""
        for t in (1, 2, 3)
    )
    return onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 20]> g (float[N,3] x) => (float[N,3] r3)
      <float leak = {{0.5}}, float limit = {{0.3}}, float hold = {{0.25}}> {{
        m0 = Sub(x, x)  s0 = Sub(x, x)  r0 = Sub(x, x) {steps} }}""")


MAPPING = """version: 1
layers:
  - name: cells
    membrane: [m1, m2, m3]
    spike: [s1, s2, s3]
    threshold: limit
    leak: leak
    refractory: hold
    reset: subtract
"""


def test_a_mapping_tells_of_other_neurons(tmp_path: Path) -> None:
    model = load(adaptive())
    assert find_spiking_layers(model).layers == ()
    (file := tmp_path / "cells.yaml").write_text(MAPPING)
    (row,) = describe_neurons(model, file)["layers"]
    assert (row["layer"], row["kind"], row["neurons"], row["steps"], row["refractory"]) == (
        "cells",
        "mapped",
        3,
        3,
        [0.25, 0.25],
    )
    data = expose_neurons(model, neurons=file).data
    exposed = load(data)
    words = ["cells/threshold", "cells/leak", "cells/refractory", "cells/spike"]
    assert [t.id for t in exposed.targets if "/" in t.id] == words
    x = np.array([[0.7, 0.8, 0.5], [0.2, 1.4, 0.1]], np.float32)
    golden = run(model.source.data or b"", x)["r3"]
    assert np.array_equal(run(data, x)["r3"], golden)
    struck = inject(exposed, sample(exposed, sites=["cells/refractory[1]"], fault="scale:factor=-8")).data or b""
    assert np.array_equal(run(struck, x)["r3"][:, [0, 2]], golden[:, [0, 2]])
    assert not np.array_equal(run(struck, x)["r3"], golden)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers: [{name: a, spike: [s1, s9]}]", "spike 's9', which is not in this model"),
        ("layers: [{name: a, spike: s1, threshold: limits}]", "threshold 'limits', which is no stored tensor.*limit"),
        ("layers: [{name: a, spike: s1, treshold: limit}]", "key 'treshold'.*threshold"),
        ("layers: [{spike: s1}]", "needs name and spike"),
        ("layers: [{name: a, spike: [s1, s2], membrane: m1}]", "1 membranes and 2 spikes"),
        ("layers: [{name: a, spike: s1, reset: never}]", "reset 'never'"),
        ("layers: []", "needs a list"),
        ("{", "is no readable YAML file"),
        ("version: 2\nlayers: [{name: a}]", "version 2"),
    ],
)
def test_mappings_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    (file := tmp_path / "cells.yaml").write_text(text)
    with pytest.raises((InputError, ModelError), match=message):
        expose_neurons(load(adaptive()), neurons=file)


def test_a_mapping_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read '.*none.yaml'"):
        read_mapping(tmp_path / "none.yaml")


def test_a_neuron_beyond_the_layer_and_a_step_beyond_the_last() -> None:
    exposed = load(expose_neurons(load(ROOT / "models" / "fashion_snn.onnx")).data)
    with pytest.raises(SelectorError, match="beyond 'lif3/spike' of shape 10"):
        sample(exposed, sites=["lif3/spike[10]"], fault="dead")
    with pytest.raises(SelectorError, match=r"no target 'lif3/membrane/8'.*lif3/membrane/7"):
        inject_activations(exposed, sites=["lif3/membrane/8[0]:30"])
