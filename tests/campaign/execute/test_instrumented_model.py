"""Campaigns with faults in activations: draws, records, judgement, and the reach of the faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from activation_campaigns import activation_campaign as campaign
from activation_campaigns import fault_lines as rows
from onnx import numpy_helper, parser
from tiny_campaigns import HEAD, chance, ran, samples, save, tables

from onnxfi.campaign.execute.export_trial import export_trial
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.plan import Plan, make_plan, write_plan
from onnxfi.campaign.report.report import report
from onnxfi.campaign.report.tables import classes
from onnxfi.campaign.results.merge import merge
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import plan, run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.spec_file import load_spec, print_spec
from onnxfi.errors import EngineError, FaultListError, InputError, SelectorError, SpecError
from onnxfi.faults.faultlist import LineReader
from onnxfi.graph.model.loading import load
from onnxfi.runtime.data.sample_outputs import stacked
from onnxfi.runtime.engine.onnx_runtime import OrtEngine


def meta(store: Path, key: str) -> Any:
    with Store.open(store) as opened:
        return opened.get(key)


def planned(**fields: Any) -> Plan:
    return plan(campaign(**fields))[0]


# What is drawn


def test_a_transient_fault_names_its_sample_and_the_population_counts_them(here: Path) -> None:
    made = planned(exhaustive=True, bits="sign")
    found = [json.loads(p.lines) for p in made.trials()]
    # What the two products put out, and the hidden layer after its activation, for 12 samples.
    assert len(made) == 12 * (5 + 5 + 3)
    assert {(r["target"], r["index"], r["sample"]) for r in found} == {
        (name, i, k) for name, n in (("a", 5), ("c", 5), ("d", 3)) for i in range(n) for k in range(12)
    }
    assert all(r["before"] is None and r["changed"] is None and "step" not in r for r in found)
    assert sum(n for *_, n in made.cells()) == len(made)


def test_a_permanent_fault_is_there_in_every_sample(here: Path) -> None:
    made = planned(exhaustive=True, bits="sign", persistence="permanent")
    assert len(made) == 5 + 5 + 3
    assert not any("sample" in json.loads(p.lines) for p in made.trials())


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, {"a", "c", "d"}),
        ({"all": True}, {"a", "b", "c", "d", "y"}),
        ({"include": "=a"}, {"a"}),
        ({"op": "Add"}, {"b", "y"}),
        ({"target": "inputs"}, {"x"}),
        ({"target": ["weights", "activations"]}, {"w1", "b1", "w2", "b2", "a", "c", "d"}),
        ({"target": ["activations", "inputs"], "exclude": "=d"}, {"x", "a", "c"}),
        ({"target": ["weights", "activations"], "include": "w1"}, {"w1"}),
    ],
)
def test_targets_are_selected_as_everywhere(here: Path, fields: dict[str, Any], names: set[str]) -> None:
    assert {t.id for t in planned(**fields).targets} == names


@pytest.mark.parametrize(("batch", "says"), [("N", "let its inputs say so: python -m onnxruntime.tools"), ("1", "")])
def test_a_model_that_takes_one_sample_though_it_declares_n(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: str, says: str
) -> None:
    """Its inner shapes are those of one sample; nothing shows which of N the only row is."""
    monkeypatch.chdir(tmp_path)
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[{batch},2] x) => (float[1,2] y)
    <float[2,2] w = {{1, 2, 3, 4}}, int64[2] one = {{1, 2}}> {{ a = MatMul(x, w) b = Reshape(a, one) y = MatMul(b, w) }}"""
    onnx.save(parser.parse_model(text), "m.onnx")
    np.savez("d.npz", x=np.ones((3, 2), np.float32))
    if not says:
        assert {r.outcome for r in run(campaign(trials=4, batch=1), "s.db")} <= {"masked", "sdc", "due"}
        return
    with pytest.raises(SelectorError, match=says):
        run(campaign(batch=1), "s.db")
    with pytest.raises(EngineError, match="a model that takes one sample at a time runs with --batch 1"):
        run(campaign(target="weights"), "s.db")


def test_with_a_probability_one_site_in_each_sample(here: Path) -> None:
    made = planned(per_sample=(0.25, 1), repeat=8, bits="30")
    drawn: dict[int, list[dict[str, Any]]] = {
        p.trial: [json.loads(line) for line in p.lines.splitlines()] for p in made.trials()
    }
    half, every = ([drawn[t] for t in sorted(drawn) if t % 2 == odd] for odd in (1, 0))
    for faults in every:
        assert sorted(f["sample"] for f in faults) == list(range(12)) and {f["bits"][0] for f in faults} == {30}
    hit = [f["sample"] for faults in half for f in faults if "sample" in f]
    assert 8 < len(hit) < 48 and len(set(hit)) > 5
    assert all(len({f["sample"] for f in faults if "n" not in f}) == len(faults) or "n" in faults[0] for faults in half)
    assert {f["target"] for faults in every for f in faults} == {"a", "c", "d"}


# What becomes of it


def test_a_single_transient_is_judged_on_its_sample(here: Path) -> None:
    results = ran(campaign(bits="exponent"), here / "s.db")
    assert {r.metrics["masked_samples"] for r in results} <= {0.0, 1.0}
    assert {r.metrics["sdc1"] for r in results} == {0.0, 1.0}
    found = report(here / "s.db")
    assert found.samples is None, "each trial has its own sample, so no other choice of them is to be distinguished"
    assert sum(row["injections"] for row in classes(found)) == 24
    assert sum(float(row["fully_masked"]) for row in classes(found)) < 2


def test_a_sweep_is_judged_on_all_samples(here: Path) -> None:
    results = ran(campaign(ber=1e-3, repeat=5), here / "s.db")
    assert any(0 < r.metrics["masked_samples"] < 1 for r in results)
    assert "sdc1" in {rate.name for rate in report(here / "s.db").everything.rates}


def test_batches_change_nothing(here: Path) -> None:
    for size in (1, 5, 12):
        ran(campaign(batch=size, optimization="off"), here / f"{size}.db")
    one, five, all_ = (tables(here / f"{size}.db")["results"] for size in (1, 5, 12))
    assert one == five == all_


# Stop, go on, extend, share out, replay


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"trials": 20}, {"ber": 0.02, "repeat": 6}], ids=["single", "sweep"])
def test_resumed_shared_out_and_replayed_it_is_the_same(here: Path, fields: dict[str, Any]) -> None:
    asked = campaign(**({"single": True} if "trials" in fields else {}), **fields)
    ran(asked, here / "whole.db")
    short = {k: max(1, v // 2) if k in ("trials", "repeat") else v for k, v in fields.items()}
    ran(campaign(**({"single": True} if "trials" in fields else {}), **short), here / "s.db")
    ran(asked, here / "s.db")
    assert tables(here / "s.db")["results"] == tables(here / "whole.db")["results"]
    for k in (1, 2):
        ran(asked, here / f"{k}.db", shard=(k, 2))
    merge(here / "all.db", [here / "2.db", here / "1.db"])
    assert tables(here / "all.db") == tables(here / "whole.db")
    write_plan(plan(asked)[0], here / "p.jsonl")
    ran(campaign(faults="p.jsonl"), here / "r.db")
    assert tables(here / "r.db")["results"] == tables(here / "whole.db")["results"]


@pytest.mark.slow
def test_workers_change_nothing(here: Path) -> None:
    ran(campaign(trials=6, single=True), here / "one.db")
    ran(campaign(trials=6, single=True), here / "two.db", workers=1)
    assert tables(here / "one.db") == tables(here / "two.db")


def test_trials_of_many_faults_are_recipes_that_replay(here: Path) -> None:
    asked = campaign(ber=0.7, repeat=2)
    ran(asked, here / "s.db")
    recipes = rows(here / "s.db")
    assert [r["sampler"] for r in recipes] == ["ber", "ber"] and all(r["n"] > 1000 for r in recipes)
    write_plan(plan(asked)[0], here / "p.jsonl")
    ran(campaign(faults="p.jsonl"), here / "r.db")
    assert tables(here / "r.db")["results"] == tables(here / "s.db")["results"]
    samples(here, 4, name="few.npz")
    with pytest.raises(FaultListError, match="drawn for 12 samples, the data has 4; give the data"):
        run(campaign(faults="p.jsonl", data="few.npz"), here / "t.db")


def test_several_draws_in_one_trial(here: Path) -> None:
    parts = (
        dict(fault="stuck-at-1", count=1, include=("w1",)),
        dict(count=2, target=("activations",), include=("=c",), bits="exponent"),
        dict(fault="zero", ber=0.5, target=("inputs",), persistence="permanent"),
    )
    asked = campaign(mix=parts, repeat=4)
    assert load_spec(_spec(here, asked)) == asked
    ran(asked, here / "s.db")
    found = rows(here / "s.db")
    assert {r["target"] for r in found} == {"w1", "c", "x"}
    assert all(("sample" in r) == (r["target"] == "c") for r in found)
    ran(campaign(faults=_plan(here, asked)), here / "r.db")
    assert tables(here / "r.db")["results"] == tables(here / "s.db")["results"]


def _spec(folder: Path, asked: Campaign) -> Path:
    (folder / "c.yaml").write_text(print_spec(asked))
    return folder / "c.yaml"


def _plan(folder: Path, asked: Campaign) -> str:
    write_plan(plan(asked)[0], folder / "p.jsonl")
    return str(folder / "p.jsonl")


def test_the_canary_flies(here: Path) -> None:
    ran(campaign(), here / "s.db")
    assert meta(here / "s.db", "canary") == {"seen": "a", "unseen": [], "routes": {"split": "a"}}


# Loops

LOOP = """net (float[N,3] x, int64 turns) => (float[N,3] y, float[N,3] z) <float one = {1}, bool on = {1}> {
    y = Loop (turns, on, x) <body = inside (int64 i, bool go, float[N,3] h) => (bool on_, float[N,3] h_) {
        t = Mul(h, one) h_ = Add(t, one) on_ = Identity(go) }>
    z = Relu(y) }"""


def loop(folder: Path, turns: int = 4, n: int = 6) -> None:
    save(folder, LOOP)
    np.savez(folder / "l.npz", x=chance(n, 3, seed=7), turns=np.array(turns))


def looping(**fields: Any) -> Campaign:
    return campaign(**({"model": "g.onnx", "data": "l.npz", "output": "y", "include": "::t"} | fields))


def test_a_value_in_a_loop_is_faulty_in_one_step(here: Path) -> None:
    loop(here)
    made = plan(looping(exhaustive=True, bits="sign"))[0]
    assert len(made) == 6 * 4 * 3, "samples, steps, elements"
    found = [json.loads(p.lines) for p in made.trials()]
    assert {(r["sample"], r["step"], r["index"]) for r in found} == {
        (k, t, i) for k in range(6) for t in range(4) for i in range(3)
    }
    asked = looping(single=True, trials=20, bits="sign", optimization="off")
    bench = TrialExecutor.open(asked)
    header = make_plan(asked, bench.opened.fault_targets).header
    x = np.load(here / "l.npz")["x"]
    for row in make_plan(asked, bench.opened.fault_targets).trials():
        [(_, faults)] = LineReader(header, bench.opened.fault_targets.targets, "the plan").trials([(1, row.lines)])
        want, fault = x.copy(), faults[0]
        for t in range(4):
            if t == fault.step:
                want[fault.sample, fault.index] *= -1
            want += np.float32(1)
        assert stacked(bench.longest(bench.prepare(header, faults))[1]).tobytes() == want.tobytes()


def test_from_a_step_on_and_in_every_step(here: Path) -> None:
    loop(here)
    made = plan(looping(exhaustive=True, bits="sign", persistence="from"))[0]
    assert len(made) == 4 * 3 and {"from"} <= set(json.loads(next(made.trials()).lines))
    assert len(plan(looping(exhaustive=True, bits="sign", persistence="permanent"))[0]) == 3
    ran(looping(persistence="from"), here / "s.db")
    export_trial(here / "s.db", 1, here / "f.onnx")


def test_a_step_that_the_loop_never_reaches_is_refused_with_its_site(here: Path) -> None:
    loop(here, turns=4)
    write_plan(plan(looping(exhaustive=True, bits="sign"))[0], here / "p.jsonl")
    loop(here, turns=2)
    results = ran(Campaign("g.onnx", data="l.npz", output="y", faults="p.jsonl"), here / "s.db")
    errors = [r.error for r in results if r.error]
    assert errors and all("::t@step=3: the loop has 2 iterations" in e or "@step=2:" in e for e in errors)
    assert len(errors) == 6 * 2 * 3, "steps 2 and 3; the others have outcomes"


NESTED = LOOP.replace("t = Mul(h, one)", """t = Loop (two, on, h) <body = deep (int64 j, bool g, float[N,3] k) =>
    (bool g_, float[N,3] k_) { q = Relu(k) k_ = Add(q, one) g_ = Identity(g) }>""").replace(
    "bool on = {1}>", "bool on = {1}, int64 two = {2}>"
)  # fmt: skip


def test_a_step_of_a_loop_in_a_loop_is_one_of_the_inner(here: Path) -> None:
    save(here, NESTED)
    x = np.abs(chance(6, 3, seed=7))
    np.savez(here / "l.npz", x=x, turns=np.array(3))
    asked = looping(include="::q", exhaustive=True, bits="sign", optimization="off")
    bench = TrialExecutor.open(asked)
    made = make_plan(asked, bench.opened.fault_targets)
    assert len(made) == 6 * 2 * 3, "samples, steps of the inner loop, elements"
    for row in list(made.trials())[::5]:
        [(_, faults)] = LineReader(made.header, bench.opened.fault_targets.targets, "the plan").trials([(1, row.lines)])
        want, fault = x.copy(), faults[0]
        for _ in range(3):
            for t in range(2):
                want = np.maximum(want, 0)
                if t == fault.step:
                    want[fault.sample, fault.index] *= -1
                want += np.float32(1)
            want += np.float32(1)
        assert stacked(bench.longest(bench.prepare(made.header, faults))[1]).tobytes() == want.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["scale:factor=-3", "noise:sigma=2"])
def test_a_number_in_a_body_is_changed_as_numpy_does(here: Path, fault: str) -> None:
    loop(here)
    asked = looping(single=True, trials=12, fault=fault, optimization="off")
    assert [r.error for r in ran(asked, here / "s.db") if r.error] == []
    bench = TrialExecutor.open(asked)
    made = make_plan(asked, bench.opened.fault_targets)
    x = np.load(here / "l.npz")["x"]
    for row in made.trials():
        [(_, faults)] = LineReader(made.header, bench.opened.fault_targets.targets, "the plan").trials([(1, row.lines)])
        want, one, model = x.copy(), faults[0], faults.model(0)
        for t in range(4):
            if t == one.step:
                want[one.sample, one.index] = model.rule(want[one.sample, one.index].astype(np.float64))
            want += np.float32(1)
        golden, faulty = bench.longest(bench.prepare(made.header, faults))
        assert stacked(faulty).tobytes() == want.tobytes()
        assert stacked(golden).tobytes() == bench.golden_runs.run()[0].scores.tobytes()
    with pytest.raises(SelectorError, match=r"lies in a body, where sign-flip on int32 cannot be fed"):
        save(here, LOOP.replace("t = Mul(h, one)", "c = Cast<to=6>(h) t = Cast<to=1>(c)"))
        plan(looping(include="=Loop#0.body::c", fault="sign-flip"))


# Bad input


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"target": "wights"}, "target: target 'wights' is unknown; closest: 'weights'"),
        ({"target": "weights", "persistence": "permanent"}, "persistence has no effect on weights"),
        ({"target": "weights", "all": True}, "all has no effect on weights"),
        ({"persistence": "always"}, "persistence 'always' is unknown"),
        ({"role": "weight"}, "role is a matter of weights"),
        ({"per_sample": 0.5, "target": "weights"}, "per_sample draws faults in activations"),
        ({"per_sample": 2.0}, "per_sample: rate must be in [0, 1], got 2.0"),
        ({"single": True, "margin": 0.1, "per": "data-aware"}, "looks at stored numbers; use layer-bit"),
    ],
)
def test_an_impossible_campaign_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as raised:
        campaign(**fields)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"include": "=cc"}, "matches no activation"),
        ({"include": "=w1"}, "matches no activation"),
        ({"persistence": "from"}, "nothing that is selected lies in a loop"),
        ({"target": ["weights", "activations"], "include": "nowhere"}, "'nowhere' matches nothing in this model"),
    ],
)
def test_a_selection_that_finds_nothing_is_refused(here: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as raised:
        planned(**fields)
    assert says in str(raised.value)


TOKENS = """g (float[N,5,4] x) => (float[N,3] y) <int64[2] flat = {-1,4}, int64[3] back = {-1,5,4}> {
    t = Transpose<perm=[1,0,2]>(x) h = Relu(t) u = Transpose<perm=[1,0,2]>(h) f = Reshape(u, flat) r = Abs(f)
    v = Reshape(r, back) s = Flatten<axis=1>(v) y = MatMul(s, w) }"""


def tokens(folder: Path, graph: str = TOKENS, samples: int = 7) -> None:
    """Sequences of five tokens, in a network that takes time first and then flattens them into the batch."""
    model = parser.parse_model(HEAD + graph)
    model.graph.initializer.append(numpy_helper.from_array(chance(20, 3, seed=5), "w"))
    onnx.save(model, folder / "g.onnx")
    np.savez(folder / "d.npz", x=chance(samples, 5, 4, seed=9))


@pytest.mark.slow
@pytest.mark.parametrize("value", ["h", "r"])
def test_one_sample_is_faulty_whatever_the_axis_of_the_samples(here: Path, value: str) -> None:
    tokens(here)
    found = {}
    for route in ("auto", "late-start", "early-stop", "full"):
        asked = campaign(model="g.onnx", include=f"={value}", bits="sign", exhaustive=True, route=route, batch=3)
        done = ran(asked, here / f"{route}.db")
        assert len(done) == 7 * 5 * 4, "elements of seven samples"
        found[route] = [(r.trial, r.outcome, r.metrics) for r in sorted(done, key=lambda r: r.trial)]
    export_trial(here / "auto.db", 1, here / "one.onnx")
    x = np.load("d.npz")["x"]
    golden, faulty = (OrtEngine("cpu").prepare(m).run({"x": x})["y"] for m in ("g.onnx", "one.onnx"))
    [line] = rows(here / "auto.db")[:1]
    assert set(np.flatnonzero((golden != faulty).any(1))) <= {line["sample"]}
    assert all(each == found["full"] for each in found.values())


def test_one_sample_is_refused_where_the_axis_is_not_known(here: Path) -> None:
    tokens(here, TOKENS.replace("r = Abs(f)", "q = Gather<axis=0>(f, pick) r = Abs(q)").replace(
        "int64[3] back", "int64[35] pick = {" + ",".join(map(str, range(35))) + "}, int64[3] back"
    ))  # fmt: skip
    with pytest.raises(SelectorError, match="the graph selects rows there"):
        planned(model="g.onnx", include="=r")


ALONE = """g (float[1,5,4] x) => (float[3] y) <int64[2] rows = {5,4}, int64[1] flat = {20}> {
    a = Reshape(x, rows) r = Abs(a) f = Reshape(r, flat) y = MatMul(f, w) }"""


def test_all_of_a_value_is_the_samples_where_a_model_takes_one_at_a_time(here: Path) -> None:
    tokens(here, ALONE, samples=3)
    found = {}
    for route in ("auto", "full"):
        asked = campaign(model="g.onnx", include="=r", bits="30", exhaustive=True, route=route)
        found[route] = sorted((r.trial, r.outcome) for r in ran(asked, here / f"{route}.db"))
    assert found["auto"] == found["full"] and len(found["auto"]) == 3 * 20
    export_trial(here / "auto.db", 60, here / "one.onnx")
    assert rows(here / "auto.db")[59]["sample"] is not None
    x = np.load("d.npz")["x"][:1]
    golden, faulty = (OrtEngine("cpu").prepare(m).run({"x": x})["y"] for m in ("g.onnx", "one.onnx"))
    assert golden.shape == faulty.shape == (3,) and (golden != faulty).any()
    assert TrialExecutor.open(campaign(model="g.onnx")).golden_runs.first_batches()[0].arrays["y"].shape == (1, 3), (
        "a row for each sample"
    )


def test_a_scan_over_samples_has_no_step_that_could_be_drawn(here: Path) -> None:
    graph = """g (float[N,4] x) => (float[N,4] y) { y = Scan<num_scan_inputs=1,
        body = each (float[4] h) => (float[4] o) { o = Relu(h) }>(x) }"""
    save(here, graph)
    with pytest.raises(SelectorError, match="depends on the number of samples"):
        planned(model="g.onnx", include="o")
    assert len(planned(model="g.onnx", include="o", persistence="permanent", exhaustive=True, bits="sign")) == 4


def test_without_activations_nothing_is_probed(here: Path) -> None:
    assert FaultTargets.of(load("m.onnx")).targets == load("m.onnx").targets


# 16-bit floats
