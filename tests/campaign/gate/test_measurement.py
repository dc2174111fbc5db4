"""Baselines: a store or the JSON of a check, of the same campaign and network, or refused."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_campaigns import mlp, samples

from onnxfi.campaign.gate.budget import Budget, BudgetLimit
from onnxfi.campaign.gate.check import CheckResult, check
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import BaselineError, InputError
from onnxfi.statistics.intervals import Interval

TRIALS = 16
SWEEP = Campaign("", data="d.npz", ber=0.01, repeat=TRIALS)


def only(campaign: Campaign, *limits: BudgetLimit, **more: Any) -> Budget:
    return Budget(campaign, limits, **more)


def as_json(checked: CheckResult, name: str = "base.json") -> str:
    Path(name).write_text(json.dumps(checked.document()), encoding="utf-8")
    return name


CHANGES = (
    BudgetLimit("top1", max_drop=0.9),
    BudgetLimit("sdc1", max_rise=0.001),
    BudgetLimit("top1", golden=True, max_drop=0.1),
)


def test_a_store_and_the_json_of_a_check_are_the_same_baseline(here: Path) -> None:
    mlp(here, name="new.onnx", seed=50)
    old = check("m.onnx", only(SWEEP, *CHANGES), store="old.db")
    by_store = check("new.onnx", only(SWEEP, *CHANGES), baseline="old.db")
    by_json = check("new.onnx", only(SWEEP, *CHANGES), baseline=as_json(old))
    assert by_store.findings == by_json.findings
    now = by_store.measured.interval("top1", 0.01)
    before = old.measured.interval("top1", 0.01)
    assert now is not None and before is not None
    assert by_store.findings[0].interval.estimate == now.estimate - before.estimate
    change = by_store.measured.golden["top1"] - old.measured.golden["top1"]
    assert by_store.findings[2].interval == Interval(change, change, change, "exact", 1.0)
    assert by_store.findings[2].verdict == ("pass" if change >= -0.1 else "fail")
    assert [f.limit.allowed for f in by_store.findings][:2] == [
        "drops by at most 90 points",
        "rises by at most 0.1 points",
    ]


def test_a_baseline_with_another_seed_will_do(here: Path) -> None:
    old = check("m.onnx", only(replace(SWEEP, seed=5), *CHANGES))
    assert check("m.onnx", only(SWEEP, *CHANGES), baseline=as_json(old)).findings[0].verdict == "pass"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"data": "e.npz"}, 'the data (SHA-256): "'), ({"ber": 0.02}, "ber: [0.02] there, [0.01] here"),
        ({"include": "fc1"}, 'include: ["fc1"] there, [] here'),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (
            ({"fault": "zero"}, 'fault: "zero" there, "flip" here'), ({"batch": 4}, "batch: 4 there, 32 here"),
            ({"tolerance": 0.1}, "tolerance: 0.1 there, 0.0 here"), ({"samples": 6}, "samples: 6 there, null here"),
        )),
    ],
)  # fmt: skip
def test_a_baseline_of_another_campaign_is_refused_and_the_difference_named(
    here: Path, other: dict[str, Any], said: str
) -> None:
    samples(here, n=13, name="e.npz")
    old = check("m.onnx", Budget(replace(SWEEP, **other), (BudgetLimit("sdc1", max=0.9),)), store="old.db")
    for baseline in ("old.db", as_json(old)):
        with pytest.raises(BaselineError) as error:
            check("m.onnx", only(SWEEP, BudgetLimit("sdc1", max_rise=0.5)), baseline=baseline)
        assert f"the baseline '{baseline}' cannot be compared: " in str(error.value)
        assert said in str(error.value)


def test_a_baseline_of_another_network_is_refused(here: Path) -> None:
    mlp(here, name="wide.onnx", hidden=9)
    old = check("wide.onnx", only(SWEEP, BudgetLimit("sdc1", max=1)))
    with pytest.raises(BaselineError) as error:
        check("m.onnx", only(SWEEP, BudgetLimit("sdc1", max_rise=0.5)), baseline=as_json(old))
    assert str(error.value) == (
        "the baseline 'base.json' is of another model: 'wide.onnx' has 2,400 bits of faults, 'm.onnx' 1,376 bits; "
        "give one of an earlier version of this model"
    )


@pytest.mark.slow
def test_a_baseline_that_is_none(here: Path) -> None:
    wanted = only(SWEEP, BudgetLimit("sdc1", max_rise=0.5))
    list(run(replace(SWEEP, model="m.onnx"), "whole.db"))
    assert check("m.onnx", wanted, baseline="whole.db").findings[0].interval.estimate == 0
    running = run(replace(SWEEP, model="m.onnx"), "part.db")
    next(iter(running))
    running.close()
    (here / "list.json").write_text("[]")
    (here / "report.json").write_text(json.dumps({"store": "s.db", "trials": 3, "rates": []}))
    (here / "deep.json").write_text("[" * 200_000)
    whole = check("m.onnx", wanted).document()
    (here / "text.json").write_text(json.dumps(whole | {"golden": {"top1": "high"}}))
    (here / "short.json").write_text(json.dumps(whole | {"rates": []}))
    assert check("m.onnx", wanted, baseline="short.json").findings[0].reason == "the baseline has no such rate"
    sqlite3.connect("other.db").execute("CREATE TABLE t (x)").connection.close()
    for name, said in (
        ("none.db", "cannot read the baseline"), (".", "cannot read the baseline"), ("list.json", "is not a baseline; g"),
        ("report.json", "is not a baseline"), ("m.onnx", "is not a baseline"), ("deep.json", "is not a baseline"),
        ("text.json", "is not a baseline"), ("other.db", "no store of onnxfi"), ("part.db", f"is not complete: 1 of {TRIALS} trials"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            check("m.onnx", wanted, baseline=name)


def test_a_baseline_with_wider_promises_is_refused(here: Path) -> None:
    old = check("m.onnx", only(SWEEP, BudgetLimit("sdc1", max=1), confidence=0.95))
    with pytest.raises(
        BaselineError, match=r"hold with 0\.95, this budget needs 0\.99; measure it again with this budget, or"
    ):
        check("m.onnx", only(SWEEP, BudgetLimit("sdc1", max_rise=0.5)), baseline=as_json(old))
