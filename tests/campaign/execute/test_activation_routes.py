""""""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from activation_campaigns import activation_campaign as campaign
from campaign_networks import Net, nets
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from routed_trials import bench_of
from tiny_campaigns import HEAD, chance, ran, save

from onnxfi.campaign.execute.export_trial import export_trial
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import Plan, make_plan
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SelectorError
from onnxfi.faults.faultlist import LineReader
from onnxfi.runtime.data.sample_outputs import stacked
from onnxfi.runtime.engine.onnx_runtime import OrtEngine, OrtSession


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(model=nets(), batch=st.sampled_from([2, 5]), persistence=st.sampled_from(["transient", "permanent"]))
def test_faults_in_activations_have_the_same_outcome_by_every_route(
    model: onnx.ModelProto, batch: int, persistence: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("net")
    given = {"target": "activations", "persistence": persistence, "trials": 12, "batch": batch}
    bench = bench_of(model, folder, **given)
    plan = make_plan(bench.opened.campaign, bench.opened.fault_targets)
    golden, _ = bench.golden_runs.run()
    lines = [planned.lines.splitlines() for planned in plan.trials()]
    found = {k: bench.trial(plan.header, golden, one) for k, one in enumerate(lines)}
    found |= bench.together(plan.header, golden, lines)
    whole = TrialExecutor.open(replace(bench.opened.campaign, route="full"))
    for k, one in enumerate(lines):
        plain = whole.trial(plan.header, golden, one)
        assert (found[k].outcome, found[k].metrics) == (plain.outcome, plain.metrics), (one, found[k].route)


@pytest.mark.slow
@pytest.mark.parametrize("optimization", ["off", "all"])
def test_a_fault_in_an_activation_of_all_samples_runs_what_it_reaches(here: Path, optimization: str) -> None:
    net = Net()
    for kind in ("conv", "relu", "conv", "skip", "norm"):
        net.step(kind, len(net.values) - 1, 1)
    onnx.save(net.model([]), "net.onnx")
    np.savez("x.npz", x=chance(7, 16, 4, 4, seed=7))
    given: dict[str, Any] = {"target": "activations", "persistence": "permanent", "single": True, "trials": 60}
    one, other = (
        {
            r.trial: r
            for r in ran(
                Campaign("net.onnx", "x.npz", route=route, optimization=optimization, batch=4, **given), here / route
            )
        }
        for route in ("auto", "full")
    )
    assert {r.route for r in one.values()} >= {"partial"} and {r.route for r in other.values()} == {"split"}
    assert [one[k].outcome for k in sorted(one)] == [other[k].outcome for k in sorted(one)]
    if optimization == "off":
        assert [one[k].metrics for k in sorted(one)] == [other[k].metrics for k in sorted(one)]


def activation(model: onnx.ModelProto, name: str, x: np.ndarray) -> np.ndarray:
    """Return what a node puts out, as ONNX Runtime shows it."""
    proto = onnx.ModelProto.FromString(model.SerializeToString())
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([name], {"x": x})[0]
    return found


def test_a_store_keeps_the_words_that_a_trial_found_in_an_activation(here: Path) -> None:
    net = Net()
    for kind in ("conv", "relu", "conv", "norm"):
        net.step(kind, len(net.values) - 1, 1)
    onnx.save(net.model([]), "net.onnx")
    np.savez("x.npz", x=chance(7, 16, 4, 4, seed=7))
    given: dict[str, Any] = {"target": "activations", "single": True, "trials": 12, "optimization": "off", "batch": 4}
    for route in ("auto", "full"):
        ran(Campaign("net.onnx", "x.npz", route=route, **given), here / f"{route}.db")
    shown = onnx.load("net.onnx")
    with Store.open("auto.db") as one, Store.open("full.db") as other:
        for trial in one.trials():
            [word], fault = one.words(trial), json.loads(one.lines(trial))
            assert other.words(trial) == [word]
            value = activation(shown, fault["target"], chance(7, 16, 4, 4, seed=7))[fault["sample"]].reshape(-1)
            assert word["sample"] == fault["sample"] and word["index"] == fault["index"]
            before = int(value.view(np.uint32)[fault["index"]])
            assert (int(word["before"], 16), int(word["after"], 16)) == (before, before ^ 1 << fault["bits"][0])


@pytest.mark.parametrize("optimization", ["off", "all"])
def test_a_sweep_over_activations_runs_from_the_first_faulty_one(here: Path, optimization: str) -> None:
    net = Net()
    for kind in ("conv", "relu", "conv", "skip", "norm", "conv"):
        net.step(kind, len(net.values) - 1, 1)
    onnx.save(net.model([]), "net.onnx")
    np.savez("x.npz", x=chance(7, 16, 4, 4, seed=7))
    given: dict[str, Any] = {
        "target": "activations",
        "ber": (1e-5, 1e-4, 1e-3),
        "repeat": 4,
        "optimization": optimization,
    }
    one, other = (
        {r.trial: r for r in ran(Campaign("net.onnx", "x.npz", route=route, batch=4, **given), here / route)}
        for route in ("auto", "full")
    )
    # Cut at all values, what is fused rounds another way than the whole: then the route behind them is not taken.
    taken = "partial" if optimization == "off" else "split"
    assert {r.route for r in one.values()} >= {taken} and {r.route for r in other.values()} == {"split"}
    assert [one[k].outcome for k in sorted(one)] == [other[k].outcome for k in sorted(one)]
    if optimization == "off":
        assert [one[k].metrics for k in sorted(one)] == [other[k].metrics for k in sorted(one)]


def planned(**fields: Any) -> Plan:
    return plan(campaign(**fields))[0]


def test_a_sample_that_a_fault_leaves_alone_has_the_answer_of_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at its activations a model may round another way, and near a tie answer otherwise."""
    graph = "g (float[N,3] x) => (float[N,3] y) <float[3] w = {1,1,1}> { h = Mul(x, w) y = Mul(h, w) }"
    rows = np.array([[1, 2, 3], [3, 1, 2], [5, 5, 1]], np.float32)
    np.savez(tmp_path / "t.npz", x=rows, labels=np.array([2, 0, 0]))
    run = OrtSession.run

    def rounded(self: OrtSession, *given: Any) -> dict[str, Any]:
        """Let the tie of the last sample go the other way, where the model is split."""
        found = run(self, *given)
        if [port.name for port in self.inputs] == ["h"]:
            found["y"] = found["y"] + np.float32([[0, 0, 0], [0, 0, 0], [0, 1e-6, 0]])
        return found

    monkeypatch.setattr(OrtSession, "run", rounded)
    fields: dict[str, Any] = {"persistence": "permanent", "route": "full", "batch": 3, "fault": "scale:factor=1"}
    fields["include"] = ("=h",)
    asked = Campaign(
        save(tmp_path, graph), str(tmp_path / "t.npz"), target="activations", single=True, trials=4, **fields
    )
    for result in ran(asked, tmp_path / "s.db"):
        assert (result.outcome, result.route, result.metrics["top1"]) == ("masked", "split", 1.0)


HALVES = """g (float[N,4] x) => (float[N,3] y) {
    h = Cast<to=10>(x) a = MatMul(h, w1) s = Softmax(a) p = MatMul(s, w1t) r = Add(p, h) c = MatMul(r, w2)
    y = Cast<to=1>(c) }"""


def halved(folder: Path, dtype: Any = np.float16) -> None:
    """A block with a residual connection, computed in 16 bits; with bfloat16, of which runtimes compute nothing, moved
    in it."""
    shapes = {"w1": (4, 16), "w1t": (16, 4), "w2": (4, 3)}
    model = parser.parse_model(HEAD + (HALVES if dtype is np.float16 else BFLOAT))
    for k, (name, shape) in enumerate(shapes.items()):
        held = chance(*shape, seed=k).astype(dtype if dtype is np.float16 else np.float32)
        model.graph.initializer.append(numpy_helper.from_array(held, name))
    onnx.save(model, folder / "m.onnx")


BFLOAT = """g (float[N,4] x) => (float[N,3] y) {
    a = MatMul(x, w1) h = Cast<to=16>(a) t = Transpose<perm=[1,0]>(h) u = Transpose<perm=[1,0]>(t) b = Cast<to=1>(u)
    s = Softmax(b) p = MatMul(s, w1t) r = Add(p, x) y = MatMul(r, w2) }"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
@pytest.mark.parametrize(
    "fields", [{"ber": 0.003, "repeat": 8, "persistence": "permanent"}, {"persistence": "permanent"}, {"per_sample":
    0.5, "repeat": 4}, {"fault": "scale:factor=-3"}], ids=str,
)  # fmt: skip
def test_16_bit_floats_are_rounded_where_the_exported_model_rounds_them(
    here: Path, fields: dict[str, Any], dtype: Any
) -> None:
    """A model that is cut rounds what crosses, wherever that is; the exported one where a fault is alone."""
    halved(here, dtype)
    ways = {} if {"ber", "per_sample"} & set(fields) else {"single": True, "trials": 12}
    asked = Campaign("m.onnx", "d.npz", target="activations", all=True, batch=32, route="full", **ways, **fields)
    results = {r.trial: r for r in ran(asked, here / "s.db")}
    bench = TrialExecutor.open(asked)
    golden = bench.golden_runs.run()[0].scores
    x = np.load(here / "d.npz")["x"]
    header = make_plan(asked, bench.opened.fault_targets).header
    with Store.open(here / "s.db") as opened:
        every = {trial: opened.trial(trial)["lines"].splitlines() for trial in results}
    for trial, lines in every.items():
        [(_, faults)] = LineReader(header, bench.opened.fault_targets.targets, "the store").trials(enumerate(lines, 1))
        export_trial(here / "s.db", trial, here / "f.onnx")
        file = OrtEngine("cpu").prepare(here / "f.onnx").run({"x": x})["y"]
        if len(faults):
            _, faulty = bench.longest(bench.prepare(header, faults))
            assert np.array_equal(stacked(faulty), file, equal_nan=True)
        if not header.of_single_faults or asked.scopes[0].persistence == "permanent":
            other = (file.argmax(1) != golden.argmax(1)) & np.isfinite(file).all(1)
            assert results[trial].metrics["sdc1"] == other.mean()


def test_16_bit_floats_of_old_opsets_are_no_targets(here: Path) -> None:
    halved(here)
    proto = onnx.load(here / "m.onnx")
    proto.opset_import[0].version = 10
    onnx.save(proto, here / "m.onnx")
    with pytest.raises(
        SelectorError, match=r"'a' .* cannot be injected into: faults in activations of float16 need opset 11"
    ):
        planned(include="=a")
