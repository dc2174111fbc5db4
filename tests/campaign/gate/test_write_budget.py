"""Writing a budget: limits that today's model meets with room to spare, and an existing file that is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from task_examples import golden_example
from tiny_campaigns import samples

from onnxfi.campaign.gate.budget import Budget, BudgetLimit, load_budget
from onnxfi.campaign.gate.check import CheckResult, check
from onnxfi.campaign.gate.write_budget import ARMS, base_budget, usual, write_budget
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import BerSweep, SingleFaults
from onnxfi.errors import InputError, OutputError, SpecError
from onnxfi.statistics.intervals import clopper_pearson
from onnxfi.tasks.evaluation import evaluate
from onnxfi.tasks.registry import known_tasks

TRIALS = 16
SWEEP = Campaign("", data="d.npz", ber=0.01, repeat=TRIALS)


def written(model: str | Path, path: str = "b.yaml", *, force: bool = False, **said: Any) -> CheckResult:
    base = base_budget(model, path, said, force=force)
    return write_budget(model, base, path).checked


@pytest.mark.slow
def test_what_is_written_is_passed_and_lies_three_arms_from_what_was_measured(here: Path) -> None:
    checked = written("m.onnx", data="d.npz")
    assert checked.verdict == "pass"
    budget = load_budget("b.yaml")
    assert (budget.campaign.design, budget.campaign.data.samples) == (BerSweep((0.01,), 200), 200)
    again = check("m.onnx", budget)
    assert again.document() == checked.document()
    measured = again.measured
    for limit in budget.limits:
        if not limit.golden:
            i = measured.interval(limit.rate, limit.ber)
            assert i is not None
            arm = (i.high if limit.bound == "max" else i.low) - i.estimate
            assert limit.value == pytest.approx(i.estimate + ARMS * arm, abs=1e-4)
            assert abs(limit.value - i.estimate) >= abs(ARMS * arm), "rounded outwards"
    golden = next(limit for limit in budget.limits if limit.golden)
    assert golden.value == pytest.approx(clopper_pearson(round(12 * measured.golden["top1"]), 12).low, abs=1e-4)


def test_a_limit_that_would_allow_everything_is_left_out(here: Path) -> None:
    base = Budget(SWEEP, (BudgetLimit("sdc1", max=0.5), BudgetLimit("due", max=0.5), BudgetLimit("masked", max=0.3)))
    done = write_budget("m.onnx", base, "b.yaml")
    assert "due" in {limit.rate for limit in done.left_out}
    assert {limit.rate for limit in done.left_out} | {limit.rate for limit in load_budget("b.yaml").limits} == {
        "sdc1", "due", "masked",
    }  # fmt: skip
    with pytest.raises(
        InputError, match="no limit would say anything: with 2 trials every interval reaches from end to end"
    ):
        write_budget("m.onnx", Budget(replace(SWEEP, repeat=2), (BudgetLimit("sdc1", max=0.5),)), "c.yaml")
    assert not Path("c.yaml").exists()


def test_an_existing_budget_is_kept_unless_forced_and_then_keeps_its_choices(here: Path) -> None:
    Path("b.yaml").write_text(
        "version: 1\nconfidence: 0.9\ntime_s: 99\ncampaign: {data: d.npz, single: true, trials: 200, seed: 4}\n"
        "limits:\n- {rate: sdc1, layer: fc, max: 0.0}\n- {rate: critical, max_rise: 0.5}\n",
    )  # fmt: skip
    before = Path("b.yaml").read_text()
    with pytest.raises(OutputError, match="exists; --force measures its limits anew"):
        written("m.onnx")
    assert Path("b.yaml").read_text() == before
    checked = written("m.onnx", force=True)
    budget = load_budget("b.yaml")
    assert (budget.confidence, budget.time_s, budget.campaign.design) == (0.9, 99, SingleFaults(200, seed=4))
    first, second = budget.limits
    assert (first.rate, first.layer, first.bound) == ("sdc1", "fc", "max")
    worst = max(checked.findings[:2], key=lambda finding: finding.interval.high)
    assert first.value > worst.interval.high, "one number for all layers that it matches"
    assert second == BudgetLimit("critical", max_rise=0.5)


@pytest.mark.slow
def test_a_budget_gets_the_limits_that_its_model_can_have(here: Path) -> None:
    samples(here, labels=False, name="bare.npz")
    written("m.onnx", "bare.yaml", data="bare.npz")
    assert {limit.rate for limit in load_budget("bare.yaml").limits} <= {"sdc1", "due"}
    (here / "skeleton.yaml").write_text("version: 1\ncampaign: {data: d.npz, single: true, trials: 200}\n")
    written("m.onnx", "skeleton.yaml", force=True)
    assert [str(limit).split(":")[0] for limit in load_budget("skeleton.yaml").limits] == [
        "golden top1",
        "top1",
        "sdc1",
        "due",
    ]


def test_no_budget_where_it_cannot_be_written(here: Path) -> None:
    for path, message in (
        ("none/b.yaml", "no folder 'none' to write 'b.yaml' into; make it first"),
        (".", "is a directory; give a file name"),
    ):
        with pytest.raises(OutputError, match=message):
            base_budget("m.onnx", path, {})
    Path("bad.yaml").write_text("version: 1")
    with pytest.raises(SpecError, match="a budget names its campaign"):
        base_budget("m.onnx", "bad.yaml", {}, force=True)


def test_the_usual_limits_of_every_task_bound_its_metrics_on_their_bad_side() -> None:
    for task in known_tasks():
        golden = golden_example(task, np.random.default_rng(0))
        metrics = {metric.name: 0.5 for metric in golden.measured}
        limits = usual(SimpleNamespace(task=task, golden=metrics, identity={}))  # type: ignore[arg-type]
        assert {limit.bound == "min" for limit in limits if task.metric(limit.rate).better == "higher"} <= {True}
        assert {limit.bound == "max" for limit in limits if task.metric(limit.rate).better == "lower"} <= {True}
        assert {task.headline, "due"} <= {limit.rate for limit in limits}
        compared = task.metric(task.compared[0])
        if compared.golden and compared.name in metrics:
            assert [limit.rate for limit in limits[:2]] == [compared.name] * 2 and limits[0].golden


def numbers(folder: Path, scale: float) -> dict[str, Any]:
    """A model of three numbers with labels that it misses by a quarter of `scale`, so that errors are no shares."""
    x = np.load("d.npz")["x"]
    golden = evaluate("m.onnx", {"x": x}, task="deviation").run[0].arrays["y"]
    np.savez(folder / "n.npz", x=x, labels=golden + scale / 4)
    return {"data": "n.npz", "task": "regression", "provider": "cpu"}


@pytest.mark.parametrize("scale", [1e-4, 1e7])
def test_errors_in_a_unit_get_a_maximum_with_room_in_that_unit(here: Path, scale: float) -> None:
    fields = numbers(here, scale)
    done = write_budget("m.onnx", Budget(Campaign("", **fields, ber=1e-3, repeat=30)), "n.yaml")
    golden = next(limit for limit in done.budget.limits if limit.golden)
    assert (golden.rate, golden.bound, done.checked.verdict) == ("mae", "max", "pass")
    assert golden.max == pytest.approx(1.1 * done.checked.measured.golden["mae"], rel=1e-3)
    assert golden.max == pytest.approx(1.1 * scale / 4, rel=0.1)
    assert check("m.onnx", load_budget("n.yaml")).verdict == "pass"


@pytest.mark.slow
def test_a_median_with_room_is_kept_by_other_seeds(here: Path) -> None:
    fields = numbers(here, 1.0)
    done = write_budget("m.onnx", Budget(Campaign("", **fields, ber=1e-3, repeat=200)), "n.yaml")
    limit = next(limit for limit in done.budget.limits if limit.rate == "mae" and not limit.golden)
    interval = done.checked.measured.interval("mae", 1e-3)
    assert interval is not None and limit.max is not None and interval.high <= limit.max < math.inf
    budget = replace(done.budget, limits=(limit,))
    verdicts = [check("m.onnx", budget.with_fields({"seed": seed})).verdict for seed in range(1, 9)]
    assert verdicts == ["pass"] * 8


def test_a_limit_that_most_trials_break_infinitely_is_left_out_unless_it_was_asked_for(here: Path) -> None:
    fields = numbers(here, 1.0)
    sweep = Campaign("", **fields, ber=0.2, repeat=20)
    done = write_budget("m.onnx", Budget(sweep), "n.yaml")
    assert "mae" in {limit.rate for limit in done.left_out} and done.checked.verdict == "pass"
    with pytest.raises(InputError, match=r"no finite bound for mae at 0\.2: too many trials deviate infinitely"):
        write_budget("m.onnx", Budget(sweep, (BudgetLimit("mae", max=1.0),)), "o.yaml")


def test_labels_that_leave_one_metric_undefined_leave_the_others(here: Path) -> None:
    x = np.load("d.npz")["x"]
    np.savez("c.npz", x=x, labels=np.ones((len(x), 3)))
    sweep = Campaign("", data="c.npz", task="regression", ber=1e-3, repeat=2)
    assert check("m.onnx", Budget(sweep, (BudgetLimit("mae", golden=True, max=1e9),))).verdict == "pass"
    with pytest.raises(InputError, match=r"r2 at 0\.001: at least 0: these labels and samples do not define it"):
        check("m.onnx", Budget(sweep, (BudgetLimit("r2", min=0.0),)))
