"""The gate: verdicts, joint confidence, one look, changes against a baseline, and models made worse on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from tiny_campaigns import samples, save

from onnxfi.campaign.execute import weight_routes
from onnxfi.campaign.gate import check as gate
from onnxfi.campaign.gate.budget import Budget, BudgetLimit, load_budget
from onnxfi.campaign.gate.check import EXIT_CODES, CheckResult, Finding, check, decide, joint
from onnxfi.campaign.gate.measurement import times_below
from onnxfi.campaign.gate.write_budget import ARMS, write_budget
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError, SpecError, StoreError
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.statistics.intervals import Interval, clopper_pearson, mean_interval
from onnxfi.statistics.paired import difference_interval

MODELS = Path(__file__).parents[3] / "models"
CNN, DATA = MODELS / "fashion_cnn.onnx", MODELS / "fashion_test.npz"
TRIALS = 16
SWEEP = Campaign("", data="d.npz", ber=0.01, repeat=TRIALS)
SINGLE = Campaign("", data="d.npz", single=True, trials=60)


def interval(low: float, high: float) -> Interval:
    return Interval(low, high, (low + high) / 2, "", 0.99)


def only(campaign: Campaign, *limits: BudgetLimit, **more: Any) -> Budget:
    return Budget(campaign, limits, **more)


def found(checked: CheckResult) -> list[tuple[str, str]]:
    return [(finding.limit.what, finding.verdict) for finding in checked.findings]


# ---------------------------------------------------------------------- one limit, one verdict


shares = st.integers(0, 64).map(lambda k: k / 64)


@given(st.tuples(shares, shares).map(sorted), shares)
def test_a_limit_passes_fails_or_is_not_decided_as_the_interval_lies(ends: list[float], bound: float) -> None:
    low, high = ends
    most = decide(BudgetLimit("sdc1", max=bound), interval(low, high))
    least = decide(BudgetLimit("sdc1", min=bound), interval(low, high))
    assert (most == "pass", most == "fail") == (high <= bound, low > bound)
    assert (least == "pass", least == "fail") == (low >= bound, high < bound)


@pytest.mark.parametrize(
    ("bound", "low", "high", "verdict"),
    [
        ("max_drop", -0.05, 0.2, "pass"), ("max_drop", -0.1, -0.1, "pass"), ("max_drop", -0.3, -0.11, "fail"),
        ("max_drop", -0.3, 0.2, "not decided"), ("max_rise", -0.5, 0.1, "pass"), ("max_rise", 0.11, 0.2, "fail"),
        ("max_rise", 0.05, 0.2, "not decided"),
    ],
)  # fmt: skip
def test_changes(bound: str, low: float, high: float, verdict: str) -> None:
    assert decide(BudgetLimit("top1", **{bound: 0.1}), interval(low, high)) == verdict  # type: ignore[arg-type]


def test_an_accuracy_may_drop_by_just_what_is_allowed() -> None:
    drop = 0.86 - 0.91  # −0.05000000000000004
    assert decide(BudgetLimit("top1", golden=True, max_drop=0.05), interval(drop, drop)) == "pass"


@pytest.mark.parametrize(
    ("verdicts", "whole", "code"),
    [
        (["pass", "pass"], "pass", 0), (["pass", "fail"], "fail", 1), (["not decided", "fail"], "fail", 1),
        (["pass", "not decided"], "not decided", 3),
    ],
)  # fmt: skip
def test_one_failure_fails_the_model_else_one_doubt_leaves_it_open(verdicts: list[str], whole: str, code: int) -> None:
    findings = tuple(Finding(BudgetLimit("sdc1", max=0.1), interval(0, 1), verdict) for verdict in verdicts)
    checked = CheckResult("m.onnx", findings, None, 0.99)  # type: ignore[arg-type]
    assert (checked.verdict, checked.exit_code) == (whole, code) == (whole, EXIT_CODES[whole])


def test_alpha_is_divided_by_the_limits_that_rest_on_an_interval(here: Path) -> None:
    limits = (
        BudgetLimit("top1", golden=True, min=0.1),
        BudgetLimit("sdc1", max=0.9),
        BudgetLimit("due", max=0.9),
        BudgetLimit("top1", max_drop=1),
    )
    assert joint(limits, 0.99) == pytest.approx(1 - 0.01 / 3)
    assert joint(limits[:1], 0.99) == 0.99
    one, three = check("m.onnx", only(SWEEP, limits[1])), check("m.onnx", only(SWEEP, *limits))
    assert one.measured.confidence == 0.99
    assert three.measured.confidence == pytest.approx(1 - 0.01 / 3)
    alone, together = one.findings[0].interval, three.findings[1].interval
    assert together.low < alone.low < alone.estimate == together.estimate < alone.high < together.high
    assert "each interval holds with 0.996667, all together with 0.99" in three.conditions()


@pytest.mark.slow
def test_a_limit_inside_the_interval_is_not_decided(here: Path) -> None:
    middle = check("m.onnx", only(SWEEP, BudgetLimit("sdc1", max=0.9))).findings[0].interval
    assert 0 < middle.low < middle.high < 1
    for bound in ("min", "max"):
        limit = BudgetLimit("sdc1", **{bound: middle.estimate})  # type: ignore[arg-type]
        checked = check("m.onnx", only(SWEEP, limit))
        assert (checked.verdict, checked.exit_code) == ("not decided", 3)
        assert checked.findings[0].reason == "the interval lies across the limit"
    assert check("m.onnx", only(SWEEP, BudgetLimit("sdc1", max=middle.high))).verdict == "pass"
    assert check("m.onnx", only(SWEEP, BudgetLimit("sdc1", max=middle.low * 0.99))).verdict == "fail"


@pytest.mark.slow
def test_an_exhaustive_campaign_leaves_nothing_open(here: Path) -> None:
    every = Campaign("", data="d.npz", exhaustive=True, include="b1", bits="20-31")
    truth = check("m.onnx", only(every, BudgetLimit("sdc1", max=1))).findings[0].interval
    assert truth.low == truth.estimate == truth.high
    assert check("m.onnx", only(every, BudgetLimit("sdc1", max=truth.estimate))).verdict == "pass"
    assert check("m.onnx", only(every, BudgetLimit("sdc1", min=truth.estimate))).verdict == "pass"
    assert check("m.onnx", only(every, BudgetLimit("sdc1", max=truth.estimate - 1e-6))).verdict == "fail"


# ---------------------------------------------------------------------- layers


def test_a_pattern_holds_for_each_layer_and_counts_so_often(here: Path) -> None:
    checked = check("m.onnx", only(SINGLE, BudgetLimit("sdc1", layer="fc", max=0.9), BudgetLimit("due", max=0.9)))
    assert [what for what, _ in found(checked)] == ["sdc1 in fc1", "sdc1 in fc2", "due"]
    assert checked.measured.confidence == pytest.approx(1 - 0.01 / 3)
    exact = check("m.onnx", only(SINGLE, BudgetLimit("sdc1", layer="=fc2", max=0.9)))
    assert [what for what, _ in found(exact)] == ["sdc1 in fc2"]


def test_a_pattern_that_no_layer_matches_is_named_with_those_there_are(here: Path) -> None:
    with pytest.raises(
        InputError, match=r"sdc1 in conv: at most 10 %: no layer of the model matches; known: 'fc1', 'fc2'"
    ):
        check("m.onnx", only(SINGLE, BudgetLimit("sdc1", layer="conv", max=0.1)))


def test_patterns_that_meet_in_a_layer_may_exclude_each_other(here: Path) -> None:
    with pytest.raises(SpecError, match="no model can keep both: sdc1 in fc1"):
        check(
            "m.onnx", only(SINGLE, BudgetLimit("sdc1", layer="fc*", max=0.1), BudgetLimit("sdc1", layer="fc1", min=0.2))
        )


# ---------------------------------------------------------------------- rates that cannot be given


def test_accuracy_needs_labels(here: Path) -> None:
    samples(here, labels=False, name="bare.npz")
    for rate in ("top1", "top5", "critical"):
        with pytest.raises(
            InputError, match=rf"{rate} at 0\.01: at least 10 %: the data has no labels; name labelled data"
        ):
            check("m.onnx", only(replace(SWEEP, data="bare.npz"), BudgetLimit(rate, min=0.1)))
    with pytest.raises(InputError, match="golden top1"):
        check("m.onnx", only(replace(SWEEP, data=None), BudgetLimit("top1", golden=True, min=0.1)))
    assert check("m.onnx", only(replace(SWEEP, data="bare.npz"), BudgetLimit("any_sdc1", max=1))).verdict == "pass"


def test_classes_need_a_classifier(here: Path) -> None:
    save(here, "g (float[N,2,2] x) => (float[N,2,2] y) <float w = {2}> { y = Mul(x, w) }", "boxes.onnx")
    for rate in ("sdc1", "any_sdc1", "class_sdc_1", "top1"):
        with pytest.raises(InputError, match="the scored output is no classifier's"):
            check("boxes.onnx", only(replace(SWEEP, data=None), BudgetLimit(rate, max=0.1)))
    limits = BudgetLimit("sdc_samples", max=1), BudgetLimit("sdc", max=1)
    assert check("boxes.onnx", only(replace(SWEEP, data=None), *limits)).verdict == "pass"


def test_a_budget_without_limits_is_not_passed(here: Path) -> None:
    with pytest.raises(SpecError, match="the budget holds no limit; add limits"):
        check("m.onnx", only(SWEEP))


# ---------------------------------------------------------------------- one look, and time


PASSING, FAILING = BudgetLimit("sdc1", max=1), BudgetLimit("sdc1", max=0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let time run out after so many looks at the clock, of which the first starts it."""

    def set_to(looks: int) -> None:
        ticks: Iterator[float] = iter([0.0] * looks + [100.0] * 1000)
        monkeypatch.setattr(gate, "time", SimpleNamespace(monotonic=lambda: next(ticks)))

    return set_to


@pytest.mark.parametrize("limit", [PASSING, FAILING])
@pytest.mark.parametrize(
    "trials", [0, TRIALS - 1, TRIALS, *(pytest.param(some, marks=pytest.mark.slow) for some in (1, 8))]
)
def test_a_time_box_only_ever_leaves_open(
    here: Path, clock: Callable[[int], None], limit: BudgetLimit, trials: int
) -> None:
    decided = check("m.onnx", only(SWEEP, limit)).verdict
    assert decided == ("pass" if limit is PASSING else "fail")
    clock(2 + trials - 1 if trials else 1)
    boxed = check("m.onnx", only(SWEEP, limit, BudgetLimit("top1", golden=True, min=0), time_s=1))
    assert boxed.measured.trials == trials
    assert boxed.findings[1].verdict == "pass", "golden does not rest on trials"
    if trials < TRIALS:
        assert (boxed.verdict, boxed.exit_code) == ("not decided", 3)
        assert boxed.findings[0].reason == f"{TRIALS - trials} of {TRIALS} trials have no outcome: time ran out"
        assert (f"{TRIALS} trials" if trials == TRIALS else f"{trials} of {TRIALS} trials") in boxed.conditions()
    else:
        assert boxed.verdict == decided


def test_a_failed_golden_limit_fails_in_spite_of_the_time_box(here: Path, clock: Callable[[int], None]) -> None:
    clock(1)
    checked = check("m.onnx", only(SWEEP, PASSING, BudgetLimit("top1", golden=True, min=1), time_s=1))
    assert checked.exit_code == 1


def test_a_kept_store_goes_on_and_ends_as_if_undisturbed(here: Path, clock: Callable[[int], None]) -> None:
    whole = check("m.onnx", only(SWEEP, PASSING))
    clock(10)
    part = check("m.onnx", only(SWEEP, PASSING, time_s=1), store="kept.db")
    assert 0 < part.measured.trials < TRIALS
    again = check("m.onnx", only(SWEEP, PASSING), store="kept.db")
    assert again.document() == whole.document()


def test_a_store_with_more_trials_is_refused(here: Path) -> None:
    list(run(replace(SWEEP, model="m.onnx", repeat=TRIALS + 1), "long.db"))
    with pytest.raises(StoreError, match=rf"long\.db plans {TRIALS + 1} trials, the budget {TRIALS}"):
        check("m.onnx", only(SWEEP, PASSING), store="long.db")


@pytest.mark.parametrize("limit", [PASSING, FAILING])
def test_a_trial_on_which_the_harness_fails_leaves_open(
    here: Path, monkeypatch: pytest.MonkeyPatch, limit: BudgetLimit
) -> None:
    judge, calls = weight_routes.judge, iter(range(1000))

    def fragile(*given: Any) -> Any:
        if next(calls) == 10:
            raise RuntimeError("out of luck")
        return judge(*given)

    monkeypatch.setattr(weight_routes, "judge", fragile)
    checked = check("m.onnx", only(SWEEP, limit))
    assert (checked.measured.trials, checked.measured.errors) == (TRIALS - 1, 1)
    assert checked.findings[0].reason == f"1 of {TRIALS} trials have no outcome: the harness failed on them"
    assert checked.exit_code == 3


def test_workers_change_nothing(here: Path) -> None:
    limits = (BudgetLimit("sdc1", max=0.5), BudgetLimit("due", max=0.5), BudgetLimit("top1", golden=True, min=0.1))
    assert (
        check("m.onnx", only(SWEEP, *limits)).document() == check("m.onnx", only(SWEEP, *limits), workers=2).document()
    )


# ---------------------------------------------------------------------- against a baseline


def as_json(checked: CheckResult, name: str = "base.json") -> str:
    Path(name).write_text(json.dumps(checked.document()), encoding="utf-8")
    return name


CHANGES = (
    BudgetLimit("top1", max_drop=0.9),
    BudgetLimit("sdc1", max_rise=0.001),
    BudgetLimit("top1", golden=True, max_drop=0.1),
)


def test_the_same_model_has_not_changed(here: Path) -> None:
    old = check("m.onnx", only(SWEEP, *CHANGES))
    again = check("m.onnx", only(SWEEP, *CHANGES), baseline=as_json(old))
    assert [f.interval.estimate for f in again.findings] == [0, 0, 0]
    assert [f.verdict for f in again.findings] == ["pass", "not decided", "pass"]
    assert again.baseline == "base.json"


def test_without_a_baseline_changes_are_not_decided(here: Path) -> None:
    checked = check("m.onnx", only(SWEEP, *CHANGES))
    assert {(f.verdict, f.reason) for f in checked.findings} == {("not decided", "no baseline was given")}
    assert [f.measured for f in checked.findings] == ["-"] * 3


def test_the_interval_of_a_change_holds_the_truth_as_often_as_it_says() -> None:
    """Proportions and shares, several true rates, 2,000 pairs each: 95 % and more, by simulation with a fixed seed."""
    random = np.random.Generator(np.random.Philox(3))
    for p, q, n in ((0.02, 0.05, 100), (0.3, 0.3, 60), (0.0, 0.2, 60), (0.5, 0.9, 200)):
        ends = [clopper_pearson(k, n, 0.95) for k in range(n + 1)]
        pairs = zip(random.binomial(n, p, 2000), random.binomial(n, q, 2000), strict=True)
        held = [(i := difference_interval(ends[a], ends[b])).low <= q - p <= i.high for a, b in pairs]
        assert np.mean(held) >= 0.95
    held = []
    for _ in range(500):
        x, y = random.beta(0.3, 2, 80), random.beta(0.5, 1, 80)
        i = difference_interval(mean_interval(x, 0.95), mean_interval(y, 0.95))
        held.append(i.low <= 0.5 / 1.5 - 0.3 / 2.3 <= i.high)
    assert np.mean(held) >= 0.95


# ---------------------------------------------------------------------- the cache of golden runs


# ---------------------------------------------------------------------- writing a budget


# ---------------------------------------------------------------------- the proof


def clipped(path: Path) -> None:
    """The shipped CNN with a Clip after each Relu, at the largest value that 200 images give there."""
    model = onnx.load(CNN)
    relus = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    probe = onnx.load(CNN)
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in relus)
    with np.load(DATA) as data:
        seen = OrtEngine(provider="cpu").prepare(probe.SerializeToString()).run({"image": data["image"][:200]})
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "Relu":
            name = node.output[0]
            node.output[0] = f"{name}_free"
            for end, value in (("low", 0.0), ("high", seen[name].max())):
                model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{name}_{end}"))
            nodes.append(
                helper.make_node("Clip", [f"{name}_free", f"{name}_low", f"{name}_high"], [name], f"{name}_clip")
            )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def noisy(path: Path, sigma: float) -> None:
    """The shipped CNN with normal noise on its weights, of so many of their standard deviations."""
    model = onnx.load(CNN)
    random = np.random.Generator(np.random.Philox(1))
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim > 1 and weights.dtype == np.float32:
            moved = weights + random.normal(0, sigma * weights.std(), weights.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    onnx.save(model, path)


@pytest.mark.slow
def test_a_removed_clip_fails_the_old_budget(tmp_path: Path) -> None:
    clipped(tmp_path / "clip.onnx")
    base = Budget(Campaign("", data=str(DATA), samples=100, ber=3e-5, repeat=100))
    before = write_budget(tmp_path / "clip.onnx", base, tmp_path / "b.yaml", store=tmp_path / "old.db").checked
    assert before.verdict == "pass"
    budget = load_budget(tmp_path / "b.yaml")
    after = check(CNN, budget, store=tmp_path / "new.db")
    assert after.exit_code == 1
    assert dict(found(after))["top1 at 3e-05"] == "fail"
    assert dict(found(after))["golden top1"] == "pass", "only faults distinguish the two"
    # The same, seen as a change: the rest of the network is as it was, so the two may be compared.
    changes = Budget(budget.campaign, (BudgetLimit("top1", max_drop=0.1), BudgetLimit("sdc1", max_rise=0.1)))
    changed = check(CNN, changes, baseline=tmp_path / "old.db", store=tmp_path / "new.db")
    assert [finding.verdict for finding in changed.findings] == ["fail", "fail"]
    assert check(
        tmp_path / "clip.onnx", changes, baseline=tmp_path / "old.db", store=tmp_path / "old.db"
    ).exit_code in (0, 3)


@pytest.mark.slow
def test_noise_on_the_weights_fails_the_old_budget(tmp_path: Path) -> None:
    noisy(tmp_path / "noisy.onnx", 0.6)
    base = Budget(Campaign("", data=str(DATA), samples=100, ber=1e-6, repeat=100))
    assert write_budget(CNN, base, tmp_path / "b.yaml").checked.verdict == "pass"
    budget = load_budget(tmp_path / "b.yaml")
    worse = check(tmp_path / "noisy.onnx", budget)
    assert worse.exit_code == 1
    assert {what for what, verdict in found(worse) if verdict == "fail"} == {"golden top1", "top1 at 1e-06"}


Twenty = tuple[Budget, list[CheckResult], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Twenty:
    """A budget of the shipped CNN, the same model against it with 20 other seeds, and the metrics of all trials."""
    folder = tmp_path_factory.mktemp("twenty")
    base = Budget(Campaign("", data=str(DATA), samples=50, ber=3e-6, repeat=60))
    budget = write_budget(CNN, base, folder / "b.yaml").budget
    seeds = range(1, 21)
    checked = [check(CNN, budget.with_fields({"seed": seed}), store=folder / f"{seed}.db") for seed in seeds]
    metrics = []
    for seed in seeds:
        with Store.open(folder / f"{seed}.db") as store:
            metrics += [row.metrics for row in store.rows()]
    return budget, checked, metrics


@pytest.mark.slow
def test_the_unchanged_model_passes_with_20_of_20_seeds(twenty: Twenty) -> None:
    budget, checked, _ = twenty
    assert budget.confidence == 0.99
    assert {limit.rate for limit in budget.limits if not limit.golden} == {"top1", "sdc1", "due"}
    assert [one.verdict for one in checked] == ["pass"] * 20, [one for one in checked if one.exit_code]
    assert len({one.findings[1].interval.estimate for one in checked}) > 15, "other seeds have other faults"


@pytest.mark.slow
def test_three_arms_are_enough_for_any_20_seeds(twenty: Twenty) -> None:
    """400 budgets by resampling 1,200 real trials, each held against 20 more samples: 99 % are passed by all of them."""
    random = np.random.Generator(np.random.Philox(5))
    for name, side in (("top1", -1), ("sdc1", 1), ("nonfinite", 1)):
        values = np.array([row[name] for row in twenty[2]])
        good = 0
        for draws in random.choice(values, (400, 21, 60)):
            ends = [mean_interval(draw, 1 - 0.01 / 3) for draw in draws]
            far = [i.high if side > 0 else i.low for i in ends]
            limit = ends[0].estimate + ARMS * (far[0] - ends[0].estimate)
            good += all(side * (end - limit) <= 0 for end in far[1:])
        assert good >= 396, name


# ---------------------------------------------------------------------- for servers and people


def test_a_factor_below_the_baseline_is_decided_by_the_end_of_its_ratio() -> None:
    def rate(low: float, value: float, high: float) -> Interval:
        return Interval(low, high, value, "", 0.99)

    bare, limit = rate(0.3, 0.4, 0.5), BudgetLimit("sdc1", times_below=10)
    for now, verdict in (
        (rate(0.005, 0.01, 0.029), "pass"), (rate(0.005, 0.01, 0.05), "not decided"), (rate(0.06, 0.1, 0.2), "fail"),
        (rate(0.0, 0.0, 0.02), "pass"),
    ):  # fmt: skip
        assert decide(limit, times_below(now, bare)) == verdict
