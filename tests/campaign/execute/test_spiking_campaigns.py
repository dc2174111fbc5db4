"""Campaigns on spiking networks: the same faults in neurons of the unrolled and the Scan form, and by every route."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from spiking_graphs import Lif, scanned, unrolled
from tiny_campaigns import ran, tables

from onnxfi.campaign.execute.canary import changes_answer
from onnxfi.campaign.execute.export_trial import export_trial
from onnxfi.campaign.execute.trial_answers import write_outputs
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan, write_plan
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError, SelectorError
from onnxfi.faults.faultlist import Header
from onnxfi.graph.model.loading import load
from onnxfi.runtime.engine.onnx_runtime import OrtEngine, OrtSession
from onnxfi.runtime.inject.activations import inject_activations
from onnxfi.runtime.inject.neurons import expose_neurons

STEPS, SAMPLES = 4, 6


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with one small network in both forms, and images."""
    monkeypatch.chdir(tmp_path)
    raw = np.random.Philox(key=5).random_raw(4096).astype(np.float64) / 2**64 - 0.4
    layers = [
        Lif("conv", "lif1", raw[:18].reshape(2, 1, 3, 3).astype("f") * 2, raw[40:42].astype("f"), (2, 4, 4), 2, 1),
        Lif("fc1", "lif2", raw[99:259].reshape(5, 32).astype("f") * 2, raw[:5].astype("f") + 0.5, (5,), 1, 0, 0.8, 0.7),
        Lif("fc2", "lif3", raw[:15].reshape(3, 5).astype("f") * 2, raw[:3].astype("f") + 0.5, (3,), 1, 0, 0.8, 0.7),
    ]
    for name, build in (("flat", unrolled), ("scan", scanned)):
        onnx.save(build(layers, STEPS, (1, 8, 8)), tmp_path / f"{name}.onnx")
    image = (np.arange(SAMPLES * 64, dtype=np.float32) % 7 / 4).reshape(SAMPLES, 1, 8, 8)
    np.savez(tmp_path / "d.npz", image=image, labels=np.arange(SAMPLES) % 3)
    return tmp_path


def campaign(model: str = "flat", **fields: Any) -> Campaign:
    way = {} if {"ber", "faults", "exhaustive"} & set(fields) else {"single": True, "trials": 24}
    given = {"model": f"{model}.onnx", "data": "d.npz", "provider": "cpu", "optimization": "off", "batch": 4}
    return Campaign(**(given | {"expose": True} | way | fields))


def in_flight(model: str = "flat", **fields: Any) -> Campaign:
    # No exponent: in a Scan the operator takes every NaN for the same one, and the next flip finds another word.
    return campaign(model, **({"target": "activations", "include": "*/membrane", "bits": "sign,22"} | fields))


def results(store: Path) -> list[tuple[Any, ...]]:
    return [row[:-2] for row in tables(store)["results"]]  # without the route, and the words with their names


# One name for a variable of a layer, in whichever form


@pytest.mark.parametrize(
    ("include", "persistence"),
    [
        ("*/membrane", "from"), ("*/spiking", "transient"),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in (
            ("*/membrane", "transient"), ("*/membrane", "permanent"), ("*/spiking", "from"), ("*/spiking", "permanent"),
        )),
    ],
)  # fmt: skip
def test_both_forms_have_the_same_faults(here: Path, persistence: str, include: str) -> None:
    asked = {"persistence": persistence, "include": include}
    lengths = []
    for name in ("flat", "scan"):
        lengths.append(len(plan(in_flight(name, exhaustive=True, **asked))[0]))
        ran(in_flight(name, **asked), here / f"{name}.db")
    neurons = 2 * 4 * 4 + 5 + 3
    assert lengths == [2 * neurons * {"transient": SAMPLES * STEPS, "from": STEPS, "permanent": 1}[persistence]] * 2
    with Store.open(here / "flat.db") as one, Store.open(here / "scan.db") as two:
        for trial in range(1, 25):
            flat, body = (json.loads(store.trial(trial)["lines"]) for store in (one, two))
            assert body.pop("target").removeprefix("steps.body::") == flat.pop("target")
            assert flat == body
    assert results(here / "flat.db") == results(here / "scan.db")
    assert {row[1] for row in results(here / "flat.db")} == {"masked", "sdc"}


@pytest.mark.slow
def test_a_fault_from_a_step_on_is_one_in_each_of_its_steps(here: Path) -> None:
    ran(in_flight(persistence="from"), here / "s.db")
    with Store.open(here / "s.db") as store:
        rows = [json.loads(store.trial(n)["lines"]) for n in store.trials()]
    first, row = next((n, row) for n, row in enumerate(rows, 1) if row["from"] == 2)
    export_trial(here / "s.db", first, here / "f.onnx")
    exposed = load(expose_neurons(load("flat.onnx")).data)
    steps = [f"{row['target']}/{t}[{row['index']}]:{row['bits'][0]}" for t in (2, 3)]
    alone = inject_activations(exposed, sites=steps)
    assert (
        alone.data
        == inject_activations(exposed, sites=[f"{row['target']}[{row['index']}]@from=2:{row['bits'][0]}"]).data
    )
    counts = [
        OrtEngine(provider="cpu").prepare(data).run({"image": np.load("d.npz")["image"]})["counts"]
        for data in ((here / "f.onnx").read_bytes(), alone.data)
    ]
    assert np.array_equal(*counts)
    write_plan(plan(in_flight(persistence="from"))[0], here / "p.jsonl")
    ran(campaign(faults="p.jsonl"), here / "r.db")
    assert tables(here / "r.db")["results"] == tables(here / "s.db")["results"]


def test_both_forms_have_the_same_faults_in_what_one_step_reads(here: Path) -> None:
    for form in ("flat", "scan"):
        onnx.save(expose_neurons(load(f"{form}.onnx"), reads=True).proto, f"{form}-reads.onnx")
    given = {"expose": False, "target": "activations", "bits": "sign,29", "trials": 12}
    given |= {"include": ("*/leak/read", "*fc1.weight/read")}
    found = []
    for form in ("flat", "scan"):
        ran(campaign(f"{form}-reads", **given), here / f"{form}.db")
        with Store.open(here / f"{form}.db") as store:
            rows = [(row.outcome, row.metrics["top1"]) for row in store.rows()]
            words = [store.words(trial) for trial in store.trials()]
        # In the unrolled form the step is a part of the name, in a loop it stands beside it.
        found.append((rows, [[(w["index"], w["before"], w["after"]) for w in one] for one in words]))
        assert all("sample" not in one[0] and len(one) == 1 for one in words)
        batches = [path.parent.name for path in write_outputs(here / f"{form}.db", here / form, [1, 2])]
        assert batches == ["golden", "golden", "trial-1", "trial-1", "trial-2", "trial-2"]
    assert found[0] == found[1]


def test_a_canary_in_what_reaches_no_output_stays_masked(here: Path) -> None:
    model = expose_neurons(load("flat.onnx"), reads=True).proto
    model.graph.node.append(onnx.helper.make_node("Identity", ["fc2.weight"], ["fc2.weight/unread"]))
    onnx.save(model, "unread.onnx")
    asked = campaign("unread", expose=False, target="activations", include="=fc2.weight/unread", all=True)
    executor = TrialExecutor.open(asked)
    [target] = [t for t in executor.opened.fault_targets.targets if t.id == "fc2.weight/unread"]
    assert not changes_answer(executor, target)


def test_a_step_of_an_unrolled_network_can_be_named(here: Path) -> None:
    made = plan(in_flight(include="lif2/membrane/3", persistence="permanent", exhaustive=True, bits="sign"))[0]
    assert [t.id for t in made.targets] == ["lif2/membrane/3"] and len(made) == 5
    ran(in_flight(ber=0.02, repeat=4, persistence="from"), here / "b.db")
    assert {row[1] for row in results(here / "b.db")} >= {"sdc"}


def test_a_step_beyond_the_last_is_refused(here: Path) -> None:
    write_plan(plan(in_flight(persistence="from", trials=3))[0], here / "p.jsonl")
    text = (here / "p.jsonl").read_text()
    (here / "q.jsonl").write_text(text.replace('"from": ', '"from": 4'))
    with pytest.raises(SelectorError, match=r"membrane@step=4\d: there are 4 steps, 0 to 3"):
        ran(campaign(faults="q.jsonl"), here / "q.db")


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("lif2/membrane[1]@step=4:30", "there are 4 steps, 0 to 3"),
        ("lif2/membrane/4[1]:30", "no target 'lif2/membrane/4' in this model"),
        ("lif2/membrane[5]@step=3:30", "index [5] is beyond 'lif2/membrane/3' of shape 5"),
    ],
)
def test_a_site_that_does_not_exist_is_refused(here: Path, site: str, says: str) -> None:
    behind_time(here)
    for name in ("flat", "frames"):
        exposed = load(expose_neurons(load(f"{name}.onnx")).data)
        with pytest.raises(SelectorError, match=re.escape(says)):
            inject_activations(exposed, sites=[site])


def test_neurons_that_are_dead_are_seen_by_the_canary(here: Path) -> None:
    ran(campaign(role="spike", fault="dead"), here / "s.db")  # what a spike holds is NaN: its exponent is set already
    assert {row[1] for row in results(here / "s.db")} == {"masked", "sdc"}


def behind_time(here: Path) -> None:
    """The same network with inputs that are stacked over time, as frames.onnx."""
    made = onnx.load("flat.onnx")
    made.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("frames", 1, [STEPS, "N", 1, 8, 8]))
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "first"))
    made.graph.node.insert(0, onnx.helper.make_node("Gather", ["frames", "first"], ["image"], axis=0))
    onnx.save(made, here / "frames.onnx")


def test_samples_behind_time_are_samples(here: Path) -> None:
    behind_time(here)
    np.savez("f.npz", frames=np.repeat(np.load("d.npz")["image"][None], STEPS, 0), labels=np.arange(SAMPLES) % 3)
    for name, fields in (("flat", {}), ("frames", {"data": "f.npz", "batch_axis": 1})):
        ran(in_flight(name, persistence="from", trials=20, **fields), here / f"{name}.db")
    assert tables(here / "flat.db")["results"] == tables(here / "frames.db")["results"]


# Late start and early stop

INJECTED: dict[str, dict[str, Any]] = {
    "membranes": {"target": "activations", "include": "*/membrane", "persistence": "from", "trials": 24},
    "one step": {"target": "activations", "include": "/membrane/", "persistence": "permanent", "trials": 24},
    "spikes": {"target": "activations", "include": "*/spiking", "persistence": "permanent", "trials": 20},
    "layers": {"target": "activations", "op": "Gemm", "persistence": "permanent", "trials": 20},
    "neurons": {"role": ("threshold", "leak", "reset")},
    "dead": {"role": "spike", "fault": "dead"},
    "synapses": {"role": ("weight", "bias"), "trials": 24},
    "not exposed": {"role": "weight", "expose": False},
    "many": {"role": ("weight", "threshold"), "ber": 0.002, "single": False, "trials": None, "repeat": 4},
}


#: In the core tests: one of neurons, and one of activations from a step on.
CORE = ("neurons", "membranes")


@pytest.mark.parametrize(
    "fields",
    [pytest.param(INJECTED[name], id=name, marks=() if name in CORE else pytest.mark.slow) for name in INJECTED],
)
def test_late_start_and_early_stop_change_no_bit(here: Path, fields: dict[str, Any]) -> None:
    found, routes = {}, {}
    for route in ("full", "auto", "late-start", "early-stop"):
        ran(campaign(route=route, **fields), here / f"{route}.db")
        rows = tables(here / f"{route}.db")["results"]
        found[route], routes[route] = [row[:-1] for row in rows], {row[-1] for row in rows}
    assert found["full"] == found["auto"] == found["late-start"] == found["early-stop"]
    assert routes["full"] <= {"full", "split"}
    assert not routes["auto"] & {"full", "split"}, "the engine chooses the shorter way by itself"


def test_nothing_runs_before_the_fault_and_nothing_after_the_spikes_came_back(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []
    whole = OrtSession.run

    def counted(self: OrtSession, *given: Any) -> Any:
        parts.append(1)
        return whole(self, *given)

    monkeypatch.setattr(OrtSession, "run", counted)
    runs = {}
    for route in ("auto", "late-start", "early-stop"):
        bench = TrialExecutor.open(in_flight(route=route, include="/membrane/", persistence="permanent", batch=SAMPLES))
        header, golden = make_plan(bench.opened.campaign, bench.opened.fault_targets).header, bench.golden_runs.run()[0]
        bench.trial(header, golden, [line(0)])
        runs[route] = []
        for bit in (0, 31):  # the last bit of a mantissa, which no spike of the layer minds, and the sign
            parts.clear()
            bench.trial(header, golden, [line(bit)])
            runs[route].append(len(parts))
    assert runs["auto"] == [1, 3], (
        "lif2 from its third step on; then, where a spike differs, lif3 and what counts its spikes"
    )
    assert runs["late-start"] == [1, 1], "all that is behind the fault at once"
    assert runs["early-stop"] == [3, 5], "lif1 and what is in front of the fault in lif2 as well"


def line(bit: int) -> str:
    fault = {"trial": 1, "target": "lif2/membrane/2", "index": 0, "bits": [bit], "fault": "flip"}
    return json.dumps(fault | dict.fromkeys(("before", "after", "before_value", "after_value", "changed")))


# Spikes over time, and neurons of one's own

EXPORTED = Path(__file__).parents[2] / "graph" / "spiking" / "subtract_dynamo.onnx"


def test_spikes_over_time_are_counted(here: Path) -> None:
    np.savez("x.npz", x=np.load(EXPORTED.with_suffix(".npz"))["x"])
    found = {}
    for name, fields in (("counts", {"scores": "counts"}), ("spikes2", {"time_axis": 0})):
        asked = campaign(
            model=str(EXPORTED.with_suffix("")), data="x.npz", role="spike", fault="dead", output=name, **fields
        )
        ran(asked, here / f"{name}.db")
        found[name] = results(here / f"{name}.db")
        export_trial(here / f"{name}.db", 1, here / f"{name}.onnx")
    assert found["counts"] == found["spikes2"] and "class_sdc_1" in str(found)
    assert (here / "spikes2.onnx").read_bytes() == (here / "counts.onnx").read_bytes()


def test_a_store_whose_spikes_are_counted_is_bound_to_the_file(here: Path) -> None:
    np.savez("x.npz", x=np.load(EXPORTED.with_suffix(".npz"))["x"])
    fields = {"data": "x.npz", "role": "weight", "output": "spikes2", "time_axis": 0, "expose": False}
    asked = campaign(model=str(EXPORTED.with_suffix("")), single=True, trials=2, **fields)
    ran(asked, here / "s.db")
    with Store.open(here / "s.db") as store:
        header = Header.parse(store.get("header"), "s.db")
    assert header.model == load(EXPORTED).digest


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"output": "spikes2", "time_axis": 3},
            "time axis 3 is beyond output 'spikes2' of 3 dimensions: axes are 0 to 2",
        ),
        ({"output": "spikes3", "time_axis": 0}, "no output 'spikes3'; closest: 'spikes2'"),
        ({"time_axis": 0}, "several outputs could be spikes over time; name one with --output: spikes1, spikes2"),
        ({"time_axis": -1}, "time_axis -1 is out of range; give 0 to 63"),
        ({"expose": False, "neurons": "map.yaml"}, "neurons requires expose"),
        ({"neurons": "map.yaml"}, "spike names 'spike_9', which is not in this model"),
    ],
)
def test_neurons_that_do_not_exist_are_refused(here: Path, fields: dict[str, Any], says: str) -> None:
    (here / "map.yaml").write_text("layers: [{name: cells, spike: spike_9}]")
    with pytest.raises(InputError, match=re.escape(says)):
        plan(campaign(model=str(EXPORTED.with_suffix("")), **fields))


def test_a_mapping_says_the_neurons(here: Path) -> None:
    steps = range(STEPS)
    said = {
        "name": "out",
        "spike": [f"lif3_spike_{t}" for t in steps],
        "membrane": [f"lif3_membrane_{t}" for t in steps],
    }
    (here / "map.yaml").write_text(
        json.dumps({"layers": [said | {"threshold": "lif3.threshold", "reset": "subtract"}]})
    )
    ran(campaign(neurons="map.yaml", role="spike", include="out/", fault="saturated", exhaustive=True), here / "s.db")
    assert [row[1] for row in results(here / "s.db")].count("sdc") >= 1
    ran(in_flight(neurons="map.yaml", include="=out/membrane", persistence="from"), here / "f.db")
    assert {row[3] for row in tables(here / "f.db")["plan"]} == {"out/membrane"}
