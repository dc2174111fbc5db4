"""The gate: verdicts, joint confidence, one look, changes against a baseline, and models made worse on purpose."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from tiny_campaigns import mlp, samples, save

from onnxfi.campaign.execute import weight_routes
from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.gate import check as gate
from onnxfi.campaign.gate.budget import Budget, Limit, load_budget
from onnxfi.campaign.gate.check import EXIT_CODES, Checked, Finding, check, decide, joint
from onnxfi.campaign.gate.ci_report import junit, markdown
from onnxfi.campaign.gate.measurement import Measured, difference, times_below
from onnxfi.campaign.gate.write_budget import ARMS, base_budget, write_budget
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run import golden_run_cache
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import BerSweep, SingleFaults
from onnxfi.errors import BaselineError, InputError, OutputError, SpecError, StoreError
from onnxfi.runtime.data.sample_outputs import as_run, stacked
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.statistics.intervals import Interval, clopper_pearson, mean_interval
from onnxfi.tasks.kinds.classification import CLASSIFICATION

MODELS = Path(__file__).parents[3] / "models"
CNN, DATA = MODELS / "fashion_cnn.onnx", MODELS / "fashion_test.npz"
TRIALS = 16
SWEEP = Campaign("", data="d.npz", ber=0.01, repeat=TRIALS)
SINGLE = Campaign("", data="d.npz", single=True, trials=60)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Golden runs are kept in a folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ONNXFI_CACHE", str(folder))
    return folder


def interval(low: float, high: float) -> Interval:
    return Interval(low, high, (low + high) / 2, "", 0.99)


def only(campaign: Campaign, *limits: Limit, **more: Any) -> Budget:
    return Budget(campaign, limits, **more)


def found(checked: Checked) -> list[tuple[str, str]]:
    return [(finding.limit.what, finding.verdict) for finding in checked.findings]


# ---------------------------------------------------------------------- one limit, one verdict


shares = st.integers(0, 64).map(lambda k: k / 64)


@given(st.tuples(shares, shares).map(sorted), shares)
def test_a_limit_passes_fails_or_is_not_decided_as_the_interval_lies(ends: list[float], bound: float) -> None:
    low, high = ends
    most = decide(Limit("sdc1", max=bound), interval(low, high))
    least = decide(Limit("sdc1", min=bound), interval(low, high))
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
    assert decide(Limit("top1", **{bound: 0.1}), interval(low, high)) == verdict  # type: ignore[arg-type]


def test_an_accuracy_may_drop_by_just_what_is_allowed() -> None:
    drop = 0.86 - 0.91  # −0.05000000000000004
    assert decide(Limit("top1", golden=True, max_drop=0.05), interval(drop, drop)) == "pass"


@pytest.mark.parametrize(
    ("verdicts", "whole", "code"),
    [
        (["pass", "pass"], "pass", 0), (["pass", "fail"], "fail", 1), (["not decided", "fail"], "fail", 1),
        (["pass", "not decided"], "not decided", 3),
    ],
)  # fmt: skip
def test_one_failure_fails_the_model_else_one_doubt_leaves_it_open(verdicts: list[str], whole: str, code: int) -> None:
    findings = tuple(Finding(Limit("sdc1", max=0.1), interval(0, 1), verdict) for verdict in verdicts)
    checked = Checked("m.onnx", findings, None, 0.99)  # type: ignore[arg-type]
    assert (checked.verdict, checked.exit_code) == (whole, code) == (whole, EXIT_CODES[whole])


def test_alpha_is_divided_by_the_limits_that_rest_on_an_interval(here: Path) -> None:
    limits = (
        Limit("top1", golden=True, min=0.1),
        Limit("sdc1", max=0.9),
        Limit("due", max=0.9),
        Limit("top1", max_drop=1),
    )
    assert joint(limits, 0.99) == pytest.approx(1 - 0.01 / 3)
    assert joint(limits[:1], 0.99) == 0.99
    one, three = check("m.onnx", only(SWEEP, limits[1])), check("m.onnx", only(SWEEP, *limits))
    assert one.measured.confidence == 0.99
    assert three.measured.confidence == pytest.approx(1 - 0.01 / 3)
    alone, together = one.findings[0].interval, three.findings[1].interval
    assert together.low < alone.low < alone.estimate == together.estimate < alone.high < together.high
    assert "each interval holds with 0.996667, all together with 0.99" in three.conditions()


def test_a_limit_inside_the_interval_is_not_decided(here: Path) -> None:
    middle = check("m.onnx", only(SWEEP, Limit("sdc1", max=0.9))).findings[0].interval
    assert 0 < middle.low < middle.high < 1
    for bound in ("min", "max"):
        limit = Limit("sdc1", **{bound: middle.estimate})  # type: ignore[arg-type]
        checked = check("m.onnx", only(SWEEP, limit))
        assert (checked.verdict, checked.exit_code) == ("not decided", 3)
        assert checked.findings[0].reason == "the interval lies across the limit"
    assert check("m.onnx", only(SWEEP, Limit("sdc1", max=middle.high))).verdict == "pass"
    assert check("m.onnx", only(SWEEP, Limit("sdc1", max=middle.low * 0.99))).verdict == "fail"


def test_an_exhaustive_campaign_leaves_nothing_open(here: Path) -> None:
    every = Campaign("", data="d.npz", exhaustive=True, include="b1", bits="20-31")
    truth = check("m.onnx", only(every, Limit("sdc1", max=1))).findings[0].interval
    assert truth.low == truth.estimate == truth.high
    assert check("m.onnx", only(every, Limit("sdc1", max=truth.estimate))).verdict == "pass"
    assert check("m.onnx", only(every, Limit("sdc1", min=truth.estimate))).verdict == "pass"
    assert check("m.onnx", only(every, Limit("sdc1", max=truth.estimate - 1e-6))).verdict == "fail"


# ---------------------------------------------------------------------- layers


def test_a_pattern_holds_for_each_layer_and_counts_so_often(here: Path) -> None:
    checked = check("m.onnx", only(SINGLE, Limit("sdc1", layer="fc", max=0.9), Limit("due", max=0.9)))
    assert [what for what, _ in found(checked)] == ["sdc1 in fc1", "sdc1 in fc2", "due"]
    assert checked.measured.confidence == pytest.approx(1 - 0.01 / 3)
    exact = check("m.onnx", only(SINGLE, Limit("sdc1", layer="=fc2", max=0.9)))
    assert [what for what, _ in found(exact)] == ["sdc1 in fc2"]


def test_a_pattern_that_no_layer_matches_is_named_with_those_there_are(here: Path) -> None:
    with pytest.raises(
        InputError, match=r"sdc1 in conv: at most 10 %: no layer of the model matches; known: 'fc1', 'fc2'"
    ):
        check("m.onnx", only(SINGLE, Limit("sdc1", layer="conv", max=0.1)))


def test_patterns_that_meet_in_a_layer_may_exclude_each_other(here: Path) -> None:
    with pytest.raises(SpecError, match="no model can keep both: sdc1 in fc1"):
        check("m.onnx", only(SINGLE, Limit("sdc1", layer="fc*", max=0.1), Limit("sdc1", layer="fc1", min=0.2)))


# ---------------------------------------------------------------------- rates that cannot be given


def test_accuracy_needs_labels(here: Path) -> None:
    samples(here, labels=False, name="bare.npz")
    for rate in ("top1", "top5", "critical"):
        with pytest.raises(
            InputError, match=rf"{rate} at 0\.01: at least 10 %: the data has no labels; name labelled data"
        ):
            check("m.onnx", only(replace(SWEEP, data="bare.npz"), Limit(rate, min=0.1)))
    with pytest.raises(InputError, match="golden top1"):
        check("m.onnx", only(replace(SWEEP, data=None), Limit("top1", golden=True, min=0.1)))
    assert check("m.onnx", only(replace(SWEEP, data="bare.npz"), Limit("any_sdc1", max=1))).verdict == "pass"


def test_classes_need_a_classifier(here: Path) -> None:
    save(here, "g (float[N,2,2] x) => (float[N,2,2] y) <float w = {2}> { y = Mul(x, w) }", "boxes.onnx")
    for rate in ("sdc1", "any_sdc1", "class_sdc_1", "top1"):
        with pytest.raises(InputError, match="the scored output is no classifier's"):
            check("boxes.onnx", only(replace(SWEEP, data=None), Limit(rate, max=0.1)))
    limits = Limit("sdc_samples", max=1), Limit("sdc", max=1)
    assert check("boxes.onnx", only(replace(SWEEP, data=None), *limits)).verdict == "pass"


def test_a_budget_without_limits_is_not_passed(here: Path) -> None:
    with pytest.raises(SpecError, match="the budget holds no limit; add limits"):
        check("m.onnx", only(SWEEP))


# ---------------------------------------------------------------------- one look, and time


PASSING, FAILING = Limit("sdc1", max=1), Limit("sdc1", max=0)


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
def test_a_time_box_only_ever_leaves_open(here: Path, clock: Callable[[int], None], limit: Limit, trials: int) -> None:
    decided = check("m.onnx", only(SWEEP, limit)).verdict
    assert decided == ("pass" if limit is PASSING else "fail")
    clock(2 + trials - 1 if trials else 1)
    boxed = check("m.onnx", only(SWEEP, limit, Limit("top1", golden=True, min=0), time_s=1))
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
    checked = check("m.onnx", only(SWEEP, PASSING, Limit("top1", golden=True, min=1), time_s=1))
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
    here: Path, monkeypatch: pytest.MonkeyPatch, limit: Limit
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
    limits = (Limit("sdc1", max=0.5), Limit("due", max=0.5), Limit("top1", golden=True, min=0.1))
    assert (
        check("m.onnx", only(SWEEP, *limits)).document() == check("m.onnx", only(SWEEP, *limits), workers=2).document()
    )


# ---------------------------------------------------------------------- against a baseline


def as_json(checked: Checked, name: str = "base.json") -> str:
    Path(name).write_text(json.dumps(checked.document()), encoding="utf-8")
    return name


CHANGES = (Limit("top1", max_drop=0.9), Limit("sdc1", max_rise=0.001), Limit("top1", golden=True, max_drop=0.1))


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
    old = check("m.onnx", Budget(replace(SWEEP, **other), (Limit("sdc1", max=0.9),)), store="old.db")
    for baseline in ("old.db", as_json(old)):
        with pytest.raises(BaselineError) as error:
            check("m.onnx", only(SWEEP, Limit("sdc1", max_rise=0.5)), baseline=baseline)
        assert f"the baseline '{baseline}' cannot be compared: " in str(error.value)
        assert said in str(error.value)


def test_a_baseline_of_another_network_is_refused(here: Path) -> None:
    mlp(here, name="wide.onnx", hidden=9)
    old = check("wide.onnx", only(SWEEP, Limit("sdc1", max=1)))
    with pytest.raises(BaselineError) as error:
        check("m.onnx", only(SWEEP, Limit("sdc1", max_rise=0.5)), baseline=as_json(old))
    assert str(error.value) == (
        "the baseline 'base.json' is of another model: 'wide.onnx' has 2,400 bits of faults, 'm.onnx' 1,376 bits; "
        "give one of an earlier version of this model"
    )


def test_a_baseline_that_is_none(here: Path) -> None:
    wanted = only(SWEEP, Limit("sdc1", max_rise=0.5))
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
    old = check("m.onnx", only(SWEEP, Limit("sdc1", max=1), confidence=0.95))
    with pytest.raises(
        BaselineError, match=r"hold with 0\.95, this budget needs 0\.99; measure it again with this budget, or"
    ):
        check("m.onnx", only(SWEEP, Limit("sdc1", max_rise=0.5)), baseline=as_json(old))


def test_the_interval_of_a_change_holds_the_truth_as_often_as_it_says() -> None:
    """Proportions and shares, several true rates, 2,000 pairs each: 95 % and more, by simulation with a fixed seed."""
    random = np.random.Generator(np.random.Philox(3))
    for p, q, n in ((0.02, 0.05, 100), (0.3, 0.3, 60), (0.0, 0.2, 60), (0.5, 0.9, 200)):
        ends = [clopper_pearson(k, n, 0.95) for k in range(n + 1)]
        pairs = zip(random.binomial(n, p, 2000), random.binomial(n, q, 2000), strict=True)
        held = [(i := difference(ends[b], ends[a])).low <= q - p <= i.high for a, b in pairs]
        assert np.mean(held) >= 0.95
    held = []
    for _ in range(500):
        x, y = random.beta(0.3, 2, 80), random.beta(0.5, 1, 80)
        i = difference(mean_interval(y, 0.95), mean_interval(x, 0.95))
        held.append(i.low <= 0.5 / 1.5 - 0.3 / 2.3 <= i.high)
    assert np.mean(held) >= 0.95


# ---------------------------------------------------------------------- the cache of golden runs


def cached(folder: Path) -> Path:
    (file,) = folder.glob("golden-*.npz")
    return file


def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count runs of the whole model over all samples: the golden runs, as no trial here takes the full route."""
    asked: list[int] = []
    run = OpenCampaign.run

    def counted(self: OpenCampaign, session: Any, *, batches: int | None = None) -> Any:
        asked.extend([1] if batches is None else [])
        return run(self, session, batches=batches)

    monkeypatch.setattr(OpenCampaign, "run", counted)
    return asked


def test_golden_is_run_once_where_it_is_known(here: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = only(replace(SWEEP, provider="cpu"), PASSING)
    asked = runs(monkeypatch)
    first = check("m.onnx", campaign).document()
    cold = len(asked)
    kept = cached(own_cache)
    stamp = kept.read_bytes()
    assert check("m.onnx", campaign).document() == first
    assert len(asked) - cold == cold - 1, "one run less"
    assert cached(own_cache).read_bytes() == stamp
    with np.load(kept, allow_pickle=False) as held:
        assert json.loads(str(held["layout"])) == [[[0, 12], [["y", "float32", [12, 3]]]]]


def test_a_damaged_file_is_made_anew(here: Path, own_cache: Path) -> None:
    first = check("m.onnx", only(SWEEP, PASSING)).document()
    file = cached(own_cache)
    whole = file.read_bytes()
    other = bytearray(whole)
    other[whole.index(b"data.npy") + 200] ^= 1
    for damaged in (b"", whole[:100], b"no archive", bytes(other)):
        file.write_bytes(damaged)
        assert check("m.onnx", only(SWEEP, PASSING)).document() == first
        assert cached(own_cache).read_bytes() == whole


def test_scores_of_another_machine_are_not_believed(here: Path, own_cache: Path) -> None:
    first = check("m.onnx", only(SWEEP, PASSING)).document()
    file = cached(own_cache)
    whole = file.read_bytes()
    golden_run_cache.write_outputs(file, as_run(np.full((12, 3), 0.5, np.float32)))
    assert file.read_bytes() != whole
    assert check("m.onnx", only(SWEEP, PASSING)).document() == first
    assert file.read_bytes() == whole


def test_all_that_fixes_the_scores_is_in_the_name(here: Path, own_cache: Path) -> None:
    samples(here, n=13, name="e.npz")
    mlp(here, name="n.onnx", seed=9)
    for number, other in enumerate(({}, {"data": "e.npz"}, {"samples": 5}, {"batch": 4}, {"optimization": "off"}), 1):
        check("m.onnx", only(replace(SWEEP, **other), PASSING))  # type: ignore[arg-type]
        assert len(list(own_cache.iterdir())) == number
    check("n.onnx", only(SWEEP, PASSING))
    assert len(list(own_cache.iterdir())) == 6
    check("m.onnx", only(replace(SWEEP, seed=4, repeat=3, fault="zero"), PASSING))
    assert len(list(own_cache.iterdir())) == 6, "faults do not change the golden run"


def test_the_cache_is_bounded_and_the_oldest_goes(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_run_cache, "LARGEST_FILE_BYTES", 4000)
    for number in range(5):
        file = own_cache / f"golden-{number}.npz"
        golden_run_cache.write_outputs(file, as_run(np.zeros(500, np.float32)))
        os.utime(file, (number, number))
        monkeypatch.setattr(golden_run_cache, "LARGEST_CACHE_BYTES", 3 * file.stat().st_size + 1)
    assert sorted(file.stem for file in own_cache.iterdir()) == ["golden-2", "golden-3", "golden-4"]
    golden_run_cache.write_outputs(own_cache / "golden-large.npz", as_run(np.zeros(1001, np.float32)))
    assert not (own_cache / "golden-large.npz").exists()


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int8"])
def test_scores_of_any_type_come_back(own_cache: Path, kind: str) -> None:
    scores = np.arange(12).astype(kind).reshape(4, 3)
    golden_run_cache.write_outputs(own_cache / "golden-x.npz", as_run(scores))
    found = golden_run_cache.read_outputs(own_cache / "golden-x.npz")
    assert found is not None
    back = stacked(found)
    assert (back.dtype, back.shape, back.tobytes()) == (scores.dtype, scores.shape, scores.tobytes())


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: Path) -> None:
    for name in ("ONNXFI_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for platform, place in (("linux", ".cache/onnxfi"), ("darwin", "Library/Caches/onnxfi")):
        monkeypatch.setattr("sys.platform", platform)
        assert golden_run_cache.cache_folder() == tmp_path / place
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert golden_run_cache.cache_folder() == tmp_path / "xdg" / "onnxfi"
    monkeypatch.setenv("ONNXFI_CACHE", "off")
    assert golden_run_cache.cache_folder() is None
    assert check("m.onnx", only(SWEEP, PASSING)).verdict == "pass"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONNXFI_CACHE", str(tmp_path / "file" / "inside"))
    assert check("m.onnx", only(SWEEP, PASSING)).verdict == "pass", "a cache that cannot be written costs time only"


# ---------------------------------------------------------------------- writing a budget


def written(model: str | Path, path: str = "b.yaml", *, force: bool = False, **said: Any) -> Checked:
    base = base_budget(model, path, said, force=force)
    return write_budget(model, base, path).checked


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
    base = Budget(SWEEP, (Limit("sdc1", max=0.5), Limit("due", max=0.5), Limit("masked", max=0.3)))
    done = write_budget("m.onnx", base, "b.yaml")
    assert "due" in {limit.rate for limit in done.left_out}
    assert {limit.rate for limit in done.left_out} | {limit.rate for limit in load_budget("b.yaml").limits} == {
        "sdc1", "due", "masked",
    }  # fmt: skip
    with pytest.raises(
        InputError, match="no limit would say anything: with 2 trials every interval reaches from end to end"
    ):
        write_budget("m.onnx", Budget(replace(SWEEP, repeat=2), (Limit("sdc1", max=0.5),)), "c.yaml")
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
    assert second == Limit("critical", max_rise=0.5)


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
    changes = Budget(budget.campaign, (Limit("top1", max_drop=0.1), Limit("sdc1", max_rise=0.1)))
    changed = check(CNN, changes, baseline=tmp_path / "old.db", store=tmp_path / "new.db")
    assert [finding.verdict for finding in changed.findings] == ["fail", "fail"]
    assert check(
        tmp_path / "clip.onnx", changes, baseline=tmp_path / "old.db", store=tmp_path / "old.db"
    ).exit_code in (0, 3)


def test_noise_on_the_weights_fails_the_old_budget(tmp_path: Path) -> None:
    noisy(tmp_path / "noisy.onnx", 0.6)
    base = Budget(Campaign("", data=str(DATA), samples=100, ber=1e-6, repeat=100))
    assert write_budget(CNN, base, tmp_path / "b.yaml").checked.verdict == "pass"
    budget = load_budget(tmp_path / "b.yaml")
    worse = check(tmp_path / "noisy.onnx", budget)
    assert worse.exit_code == 1
    assert {what for what, verdict in found(worse) if verdict == "fail"} == {"golden top1", "top1 at 1e-06"}


Twenty = tuple[Budget, list[Checked], list[dict[str, Any]]]


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


def checked_with(*findings: tuple[str, str], model: str = "models/m.onnx", reason: str = "") -> Checked:
    measured = Measured(
        "s.db", model, "0" * 64, {}, 100, "bit", {}, 5, "5 samples of 'a|b'", 10, 10, 0, 0.995, (), CLASSIFICATION
    )  # fmt: skip
    rows = tuple(
        Finding(Limit("sdc1", layer=layer, max=0.1), interval(0.02, 0.2), verdict, reason)
        for layer, verdict in findings
    )
    return Checked(model, rows, measured, 0.99)


def test_junit_says_what_failed_and_what_is_open() -> None:
    root = ElementTree.fromstring(
        junit(checked_with(("a", "pass"), ("b", "fail"), ("c", "not decided"), reason="too few"))
    )
    assert root.tag == "testsuites"
    (suite,) = root
    for element in (root, suite):
        counts = {name: element.get(name) for name in ("tests", "failures", "errors", "skipped")}
        assert counts == {"tests": "3", "failures": "1", "errors": "0", "skipped": "1"}
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [f"sdc1 in {layer}: at most 10 %" for layer in "abc"]
    assert {case.get("classname") for case in cases} == {"onnxfi.m"}
    assert [[child.tag for child in case] for case in cases] == [
        ["system-out"], ["failure", "system-out"], ["skipped", "system-out"],
    ]  # fmt: skip
    failure = cases[1].find("failure")
    assert failure is not None
    text = "sdc1 in b: measured 11.00 % [2.00, 20.00] %, allowed at most 10 %: fail (too few)"
    assert failure.get("message") == text
    assert failure.text is not None and failure.text.startswith(text + "\n10 trials on 5 samples")
    skipped = cases[2].find("skipped")
    assert skipped is not None and str(skipped.get("message")).endswith("not decided (too few)")


NASTY = "<b>&\"'\x00\x1b[31m|`*_\n\ud800é\uffff"


def test_names_from_strangers_break_no_file() -> None:
    checked = checked_with((NASTY, "fail"), model=f"models/{NASTY[:5]}.onnx")
    root = ElementTree.fromstring(junit(checked))
    assert "\\x00\\x1b[31m" in str(root[0].findall("testcase")[0].get("name"))
    rows = [line for line in markdown(checked).splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert rows[2].replace("\\|", "").count("|") == 6, "no cell more than there are columns"
    assert "<b>" not in markdown(checked).replace("\\<", "")
    markdown(checked).encode("utf-8")


def test_names_that_steer_what_shows_them_are_written_out() -> None:
    checked = checked_with(("a\x1b[2J\x9b31m\u202eb\u2028c", "fail"))
    for text in (junit(checked).decode(), markdown(checked)):
        assert all(c.isprintable() or c == "\n" for c in text)
        assert "x1b[2J" in text.replace("\\[", "[")


def test_markdown_is_a_table_under_the_verdict() -> None:
    lines = markdown(checked_with(("conv", "fail"), ("fc", "not decided"), reason="too few")).splitlines()
    assert lines[0] == "### ❌ Resilience of m.onnx: FAIL, 1 of 2 limits"
    assert lines[2:5] == [
        "| Limit | Measured | Interval | Allowed | Verdict |",
        "|---|---:|---:|---|---|",
        "| sdc1 in conv | 11.00 % | \\[2.00, 20.00\\] % | at most 10 % | ❌ fail: too few |",
    ]
    assert lines[-1].startswith("10 trials on 5 samples of 'a\\|b'; each interval holds with 0.995")


def test_a_factor_below_the_baseline_is_decided_by_the_end_of_its_ratio() -> None:
    def rate(low: float, value: float, high: float) -> Interval:
        return Interval(low, high, value, "", 0.99)

    bare, limit = rate(0.3, 0.4, 0.5), Limit("sdc1", times_below=10)
    for now, verdict in (
        (rate(0.005, 0.01, 0.029), "pass"), (rate(0.005, 0.01, 0.05), "not decided"), (rate(0.06, 0.1, 0.2), "fail"),
        (rate(0.0, 0.0, 0.02), "pass"),
    ):  # fmt: skip
        assert decide(limit, times_below(now, bare)) == verdict
