"""Planning protections: the forecast against a campaign on the protected model, options, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_campaigns import mlp, ran, samples

from onnxfi.analysis.exposure import resident_shares
from onnxfi.analysis.planner.options import check_kinds, find_options
from onnxfi.analysis.planner.plan_protection import plan_protection
from onnxfi.analysis.planner.recorded_trials import RecordedTrials
from onnxfi.campaign.report.report import report
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError
from onnxfi.faults.space import Selector
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import load
from onnxfi.protection.protect import protect
from onnxfi.protection.protection import Setting
from onnxfi.protection.protection_plan import load_protection_plan
from onnxfi.runtime.engine.registry import engine_of

Run = Callable[..., Any]
BASE = {"model": "m.onnx", "data": "d.npz", "provider": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny network, and campaigns in its weights and activations."""
    folder = tmp_path_factory.mktemp("plans")
    mlp(folder, hidden=2)
    samples(folder, 12)
    with chdir(folder):
        ran(Campaign(**BASE, exhaustive=True, bits="25-31"), folder / "all.db")
        ran(Campaign(**BASE, rank="tensor", margin=0.3, bits="25-31"), folder / "ranked.db")
        ran(Campaign(**BASE, single=True, trials=120, target="activations"), folder / "activations.db")
        ran(Campaign(**BASE, ber=1e-3, repeat=2), folder / "sweep.db")
        ran(Campaign(**BASE, single=True, trials=6, bits="0-3"), folder / "masked.db")
    return folder


@pytest.mark.slow
def test_the_forecast_is_what_every_fault_does_to_the_protected_model(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    found = plan_protection("all.db", "bytes=1600", ["secded", "tmr:top=1", "cep", "clip-weights"], out="all.yaml")
    assert found.costs[0] <= 1600 and found.forecast.estimate < 0.8 * found.unprotected.estimate
    assert found.unprotected.low == pytest.approx(report("all.db").everything.rate("sdc1").estimate)
    plan = load_protection_plan("all.yaml")
    file = "m.onnx"
    if plan.graph:
        file = "all.onnx"
        protect(load("m.onnx"), (), file, plan=plan)
    how = {**BASE, "model": file, "exhaustive": True, "bits": "25-31", "include": ("=w1", "=b1", "=w2", "=b2")}
    ran(Campaign(**how, memory_code=plan.memory_code), place / "check.db")
    checked = report("check.db").everything.rate("sdc1")
    assert found.forecast.low - 1e-9 <= checked.estimate <= found.forecast.high + 1e-9


@pytest.mark.slow
def test_half_of_a_ranking_forecasts_what_all_faults_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found = plan_protection("ranked.db", "bytes=40", ["secded", "parity"])
    assert found.plan.memory and not found.plan.graph and found.choice.exact
    how = {**BASE, "exhaustive": True, "bits": "25-31", "memory_code": found.plan.memory_code}
    ran(Campaign(**how), place / "ranked_check.db")
    true = report("ranked_check.db").everything.rate("sdc1").estimate
    assert found.forecast.low <= true <= found.forecast.high
    bare = report("all.db").everything.rate("sdc1").estimate
    assert found.unprotected.low <= bare <= found.unprotected.high


@pytest.mark.slow
def test_detectors_against_faults_in_activations(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found = plan_protection("activations.db", "macs=400%", ["triplicate", "duplicate", "checksum"])
    assert len({entry.protection for entry in found.plan.graph}) == 1
    assert found.forecast.estimate < found.unprotected.estimate
    ranges = plan_protection("activations.db", "macs=100%", ["range:clip"], data="d.npz")
    assert ranges.forecast.estimate <= ranges.unprotected.estimate and ranges.plan.graph[0].protection == "range:clip"


@pytest.mark.slow
def test_weights_and_activations_share_a_budget(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    stores = ("ranked.db", "activations.db")
    found = plan_protection(stores, "bytes=4000,macs=400%", ["secded", "triplicate"])
    assert found.plan.memory and {entry.protection for entry in found.plan.graph} <= {"triplicate"}
    assert found.kind == "weights and activations"
    model = load("m.onnx")
    words, shares = sum(7 * t.size for t in model.targets), resident_shares(model)  # bits 25 to 31 of each weight
    each_node = {a.target for a in activations(model) if a.target.id in ("a", "c", "d")}
    live = sum(32 * t.size * shares[t.layer] for t in each_node)
    each = [RecordedTrials.read(store, None) for store in stores]
    rates = [one.interval({t.trial: t.value for t in one.trials}, one.judging).estimate for one in each]
    mixed = (words * rates[0] + live * rates[1]) / (words + live)
    assert found.unprotected.estimate == pytest.approx(mixed)
    assert found.forecast.estimate < found.unprotected.estimate
    assert {part.part.partition(" (")[2] for part in found.parts} == {"weights)", "activations)"}


def test_options_cost_what_the_codes_and_layers_say(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    recorded = RecordedTrials.read("all.db", None)
    setting = Setting(recorded.model, Selector(), None, engine_of())
    rows = {(o.part, o.protection): o for o in find_options(recorded, ("secded", "checksum"), setting)}
    words = {t.layer: t.size for t in recorded.model.targets}
    for (_, protection), option in rows.items():
        if protection == "secded":
            blocks = sum(-(-t.size // 2) for t in recorded.model.targets if t.id in option.names)
            assert option.costs == (blocks, 0.0)
        else:
            assert option.costs[0] > 0 and option.costs[1] > 0
    assert words and {protection for _, protection in rows} == {"secded", "checksum"}


@pytest.mark.parametrize(
    ("store", "budget", "kinds", "message"),
    [
        (("all.db", "ranked.db"), "bytes=1", (), "two stores have faults in weights"),
        ("sweep.db", "bytes=1", (), "comes from trials of one bit fault each"),
        ("all.db", "bytes=1", ("secded",), "the budget fits no protection that helps: the nearest is secded"),
        ("all.db", "joules=1", (), "budget 'joules' is unknown"),
        ("all.db", "bytes=1", ("sectet",), "unknown protection 'sectet'"),
        ("all.db", "bytes=1", ("duplicate",), "reads the same weights again"),
        ("all.db", "bytes=1", ("range:tuned",), "searches its own bounds"),
        ("all.db", "bytes=9k", ("range:clip",), "units of bytes are B"),
        ("activations.db", "bytes=1", ("mset",), "protects stored weights"),
        ("masked.db", "bytes=9", ("secded",), "no recorded fault damaged an answer"),
        ("gone.db", "bytes=9", (), "no store 'gone.db'"),
    ],
)
def test_bad_input(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    store: str | tuple[str, ...],
    budget: str,
    kinds: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(InputError, match=message):
        plan_protection(store, budget, kinds, out="bad.yaml")
    assert not Path("bad.yaml").exists()


def test_an_excluded_layer_stays_as_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found = plan_protection("all.db", "bytes=1600", ["parity"], exclude=["fc1"])
    assert {part.part: part.protection is None for part in found.parts if part.part in ("fc1", "fc2")} == {
        "fc1": True,
        "fc2": False,
    }
    with pytest.raises(InputError, match="exclude 'fc9' matches no layer"):
        plan_protection("all.db", "bytes=1600", ["parity"], exclude=["fc9"])


def test_kinds_are_listed_once() -> None:
    assert check_kinds(["tmr:top=2", "tmr:top=2", "secded"], "weights") == ("tmr:top=2", "secded")


def test_the_command_prints_a_plan_that_protect_and_run_take(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    model, data, plan = "m.onnx", "d.npz", "cli.yaml"
    kinds = ("--with", "secded", "--with", "clip-weights")
    text = run("plan-protection", "all.db", "--budget", "bytes=1200", *kinds, "-o", plan).out
    assert "forecast:" in text and "wrote cli.yaml" in text and "of 1,200" in text
    made = load_protection_plan(plan)
    if made.graph:
        assert run("protect", model, "--plan", plan, "-o", "cli.onnx").code == 0
    if made.memory:
        done = run("run", model, "--data", data, "--memory-code", plan, "--single", "--trials", "5", "-o", "c.db")
        assert done.code == 0
    assert np.isfinite(made.remarks["forecast"]["protected"]["value"])
    assert run("protect", model, "-o", "x.onnx").code == 2
