"""Adaptive campaigns: rounds that rest on complete ones alone, whatever stops them; the estimate from SQL; bad input."""

from __future__ import annotations

import itertools
import json
import math
import signal
import sqlite3
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metric_replacement import replace_metric
from tiny_campaigns import dying, mlp, ran, samples, save, tables

from onnxfi.campaign.gate.budget import Budget, BudgetLimit
from onnxfi.campaign.gate.check import check, decide
from onnxfi.campaign.gate.measurement import Measured
from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.plan import make_plan, write_plan
from onnxfi.campaign.plan.strata import bit_field_label, bit_fields
from onnxfi.campaign.report.report import Report, report
from onnxfi.campaign.report.tables import classes
from onnxfi.campaign.report.validity_notes import notes
from onnxfi.campaign.results.merge import merge
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.adaptive_rounds import Layout, complete_rounds, look_at
from onnxfi.campaign.run.runner import plan, run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SpecError, StoreError
from onnxfi.faults import sampling
from onnxfi.faults.words import WORDS
from onnxfi.graph.model.loading import load
from onnxfi.statistics.adaptive import Moments, allocate_round, round_size, without_exhausted
from onnxfi.tasks.kinds.classification import CLASSIFICATION

DOCUMENT = Path(__file__).parents[3] / "docs" / "reference" / "store.md"


def campaign(**fields: Any) -> Campaign:
    given = {"model": "m.onnx", "data": "d.npz", "provider": "cpu", "single": True, "adaptive": True, "margin": 0.04}
    return Campaign(**{**given, **fields})


def wide(folder: Path) -> None:
    """A model whose whole population takes half a minute, and whose campaigns take a second."""
    mlp(folder, hidden=9)
    samples(folder, 24)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with m.onnx, d.npz, and the store of a campaign that nothing disturbed."""
    folder = tmp_path_factory.mktemp("rounds")
    wide(folder)
    with chdir(folder):
        ran(campaign(), folder / "whole.db")
    return folder


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A folder with a tiny model, and the report of every one of its faults."""
    folder = tmp_path_factory.mktemp("truth")
    model, data = mlp(folder, hidden=2), samples(folder)
    exhaustive = Campaign(model, data, exhaustive=True, provider="cpu")
    ran(exhaustive, folder / "truth.db")
    return folder, report(folder / "truth.db")


# Nothing but complete rounds decides what is drawn


@pytest.mark.slow
def test_workers_change_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    ran(campaign(), place / "two.db", workers=2)
    assert tables(place / "two.db") == tables(place / "whole.db")


@pytest.mark.slow
def test_killed_and_started_again_it_holds_the_same_rows(place: Path) -> None:
    store, total = place / "killed.db", len(tables(place / "whole.db")["results"])
    assert total > 128, "more than two rounds"
    words = ["run", "m.onnx", "--data", "d.npz", "--provider", "cpu", "--workers", "0"]
    words += ["--single", "--adaptive", "--margin", "0.04", "-o", str(store)]
    process = subprocess.run(dying(90, words), cwd=place, stderr=subprocess.DEVNULL, check=False)
    assert process.returncode == -signal.SIGKILL
    assert 90 <= _done(store) < total
    line = [sys.executable, "-m", "onnxfi", *words]
    again = subprocess.run(line, cwd=place, capture_output=True, text=True, check=True)
    assert "trials are in" in again.stderr
    assert tables(store) == tables(place / "whole.db")


def _done(store: Path) -> int:
    try:
        with sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True, timeout=5) as db:
            return int(db.execute("SELECT count(*) FROM results").fetchone()[0])
    except sqlite3.Error:
        return 0


@pytest.mark.slow
def test_stopped_anywhere_it_goes_on_to_the_same_rows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for stop in (1, 64, 64, 30):
        running = run(campaign(), place / "stopped.db")
        list(itertools.islice(running, stop))
        running.close()
    running = run(campaign(), place / "stopped.db")
    list(running)
    assert running.look is not None and running.look.rounds > 1
    assert tables(place / "stopped.db") == tables(place / "whole.db")


def test_each_round_is_drawn_by_those_before_it(place: Path) -> None:
    with Store.open(place / "whole.db") as store:
        layout, values = Layout.of(store.strata()), {row.trial: row.metrics["sdc1"] for row in store.rows()}
        seen, number = Moments.empty(len(layout.sizes)), 0
        for number, (draws, trials) in enumerate(complete_rounds(store), 1):
            played = allocate_round(layout.sizes, layout.parents, seen)
            size = round_size(int(seen.n.sum()))
            drawn = without_exhausted(sampling.choose(played.probability, size, 0, number), played.remaining)
            assert draws.stratum.tolist() == drawn.tolist()
            kept = store.db.execute("SELECT probability FROM allocations WHERE round = ? ORDER BY stratum", (number,))
            assert [q for (q,) in kept] == played.probability.tolist()
            seen = seen.add(drawn, np.array([values[trial] for trial in trials], np.float64))
        assert number >= 3


def test_the_faults_are_those_of_the_plan_and_none_comes_twice(place: Path) -> None:
    made = make_plan(campaign(model=str(place / "m.onnx")), FaultTargets.of(load(place / "m.onnx")))
    strata = len(made.strata)
    with Store.open(place / "whole.db") as store:
        for stratum, trials in store.db.execute("SELECT stratum, trials FROM strata").fetchall():
            kept = store.db.execute("SELECT trial, lines FROM plan WHERE stratum = ? ORDER BY trial", (stratum,))
            rows = list(made.nth(stratum, np.arange(trials, dtype=np.uint64)))
            assert kept.fetchall() == [(row.trial, row.lines) for row in rows]
            assert [row.trial for row in rows] == [1 + j * strata + stratum for j in range(trials)]


def test_a_narrower_margin_goes_on_and_a_wider_one_runs_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    ran(campaign(margin=0.06), place / "longer.db")
    short = tables(place / "longer.db")
    assert ran(campaign(), place / "longer.db")
    long, whole = tables(place / "longer.db"), tables(place / "whole.db")
    assert long["results"] == whole["results"] and long["draws"] == whole["draws"]
    assert long["rounds"][: len(short["rounds"])] == short["rounds"], "what a round was run for stays"
    assert not ran(campaign(margin=0.06), place / "longer.db")


def test_an_error_of_the_harness_leaves_its_round_open_until_it_ran_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    calls, broken_by = itertools.count(), list[bytes]()
    changed = CLASSIFICATION.metric("changed").function
    assert changed is not None

    def breaks(pair: Any) -> float:
        faulty = pair.faulty.scores.tobytes()
        if next(calls) >= 100 and pair.changed.size and not broken_by:
            broken_by.append(faulty)
        if faulty in broken_by:  # also when it is tried again, alone
            raise ZeroDivisionError("a metric went wrong")
        return changed(pair)

    replace_metric(monkeypatch, "changed", breaks)
    results = ran(campaign(), place / "broken.db")
    assert sum(r.error is not None for r in results) == 1 and len(results) == 128, "no third round"
    with Store.open(place / "broken.db") as store:
        look = look_at(store)
        assert (look.rounds, look.trials, look.reached) == (1, 64, False)
    assert report(place / "broken.db").everything.trials == 64
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert ran(campaign(), place / "broken.db")
    assert tables(place / "broken.db") == tables(place / "whole.db")


# Anyone can compute the estimate


def test_the_estimate_from_sql_alone(place: Path) -> None:
    (query,) = (part.partition("```")[0] for part in DOCUMENT.read_text(encoding="utf-8").split("```sql\n")[1:])
    found = report(place / "whole.db")
    assert found.look is not None
    with sqlite3.connect(f"{(place / 'whole.db').as_uri()}?mode=ro", uri=True) as db:
        (estimate,) = db.execute(query).fetchone()
    db.close()
    assert found.look.interval.low < found.look.interval.estimate < found.look.interval.high
    assert estimate == pytest.approx(found.look.interval.estimate, rel=1e-12)


def test_the_rate_that_is_measured_is_the_same_in_all_places(place: Path) -> None:
    found = report(place / "whole.db")
    look, rate = found.look, found.everything.rate("sdc1")
    assert look is not None and rate is not None and look.reached and look.interval.half_width <= 0.04
    assert (rate.low, rate.estimate, rate.high) == pytest.approx(
        (look.interval.low, look.interval.estimate, look.interval.high), abs=1e-9
    )
    assert found.summary()["adaptive"]["value"] == look.interval.estimate
    assert found.samples is not None and found.samples.estimate == rate.estimate
    assert classes(found) == []
    wide = report(place / "whole.db", confidence=0.999).look
    assert wide is not None and wide.interval.half_width > look.interval.half_width


# The whole population, and rates that never show


@pytest.mark.slow
def test_a_width_that_no_sample_has_runs_the_whole_population(truth: tuple[Path, Report], tmp_path: Path) -> None:
    folder, _ = truth
    for method in ("guaranteed", "asymptotic", "simple"):
        fields = {"model": str(folder / "m.onnx"), "data": str(folder / "d.npz"), "margin": 1e-9}
        results = ran(campaign(**fields, method=method, bits="28-31"), tmp_path / f"{method}.db")
        found = report(tmp_path / f"{method}.db")
        look = found.look
        assert look is not None and look.exhausted and look.reached and len(results) == look.population
        assert look.interval.half_width == 0
    exhaustive = Campaign(fields["model"], fields["data"], exhaustive=True, provider="cpu", bits="28-31")
    ran(exhaustive, tmp_path / "truth.db")
    every, found = report(tmp_path / "truth.db"), report(tmp_path / "asymptotic.db")
    for one, other in ((every.everything, found.everything), *zip(every.by_layer, found.by_layer, strict=True)):
        assert one.key == other.key and one.trials == other.trials == other.population
        assert one.outcomes == other.outcomes
        for rate in one.rates:
            exact = other.rate(rate.name)
            assert exact is not None and exact.low == pytest.approx(rate.interval.low, abs=1e-9) == exact.high
    assert [fold.key for fold in found.by_bit] == [fold.key for fold in every.by_bit]


@pytest.mark.slow
def test_a_rate_that_never_shows_has_one_end(truth: tuple[Path, Report], tmp_path: Path) -> None:
    folder, _ = truth
    fields = {"model": str(folder / "m.onnx"), "data": str(folder / "d.npz"), "bits": "0-9"}
    for name, more in (("margin", {"margin": 0.05}), ("relative", {"relative_margin": 0.1, "margin": 0.03})):
        ran(campaign(**{**fields, **more}), tmp_path / f"{name}.db")
        look = report(tmp_path / f"{name}.db").look
        assert look is not None and look.reached and not look.exhausted
        assert (look.interval.low, look.interval.estimate) == (0.0, 0.0) and look.interval.high <= 2 * look.margin


def test_before_the_first_round_is_complete_nothing_is_known(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    running = run(campaign(margin=0.9), place / "few.db")
    list(itertools.islice(running, 10))
    running.close()
    found = report(place / "few.db")
    assert found.look is not None and not found.look.reached and found.everything.rates == ()
    assert found.summary()["adaptive"]["value"] == "NaN" and (found.everything.trials, found.planned) == (0, 64)
    assert len(ran(campaign(margin=0.9), place / "few.db")) == 54, "one round at least, however wide the margin"


# Strata


def test_the_strata_are_layers_by_bits(place: Path) -> None:
    groups = make_plan(campaign(model=str(place / "m.onnx")), FaultTargets.of(load(place / "m.onnx"))).strata
    assert [g.label for g in groups[:4]] == ["fc1 0-15", "fc1 16-19", "fc1 20", "fc1 21"]
    assert [(g.layer, g.bit) for g in groups[:3]] == [("fc1", None), ("fc1", None), ("fc1", 20)]
    assert sum(g.population for g in groups) == 75 * 32 and len(groups) == 28
    words = make_plan(
        campaign(model=str(place / "m.onnx"), fault="zero"), FaultTargets.of(load(place / "m.onnx"))
    ).strata
    assert [(g.label, g.population) for g in words] == [("fc1 words", 45), ("fc2 words", 30)]
    assert (
        len(
            make_plan(
                campaign(model=str(place / "m.onnx"), method="simple"), FaultTargets.of(load(place / "m.onnx"))
            ).strata
        )
        == 1
    )


@pytest.mark.parametrize("name", WORDS)
def test_fields_hold_each_bit_once(name: str) -> None:
    word = WORDS[name]
    assert [bit for bits in bit_fields(word) for bit in bits] == list(range(word.bits))


def test_strata_of_several_formats_are_distinguished(here: Path) -> None:
    graph = "g (float[N,4] x) => (float[N,4] y) <float16[4] h = {1,2,3,4}, float[4] f = {1,2,3,4}>"
    save(here, graph + " { c = Cast<to = 1>(h) z = Mul(x, c) y = Mul(z, f) }")
    groups = make_plan(campaign(model="g.onnx"), FaultTargets.of(load("g.onnx"))).strata
    fields = {bit_field_label(g.label, g.layer) for g in groups}
    assert {"float16 0", "float16 15", "float32 0-15", "float32 31"} <= fields
    assert sum(g.population for g in groups) == 4 * 16 + 4 * 32


# Rates over a layer or a field: simulated campaigns on a known population


# The gate


@pytest.mark.slow
def test_a_gate_decides_by_the_complete_rounds_when_time_runs_out(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONNXFI_CACHE", str(tmp_path))
    monkeypatch.chdir(place)
    limits = (BudgetLimit("sdc1", max=0.9), BudgetLimit("due", max=0.9), BudgetLimit("sdc1", layer="fc1", max=0.95))
    whole = check("m.onnx", Budget(campaign(model=""), limits))
    assert (whole.verdict, whole.measured.trials) == ("pass", whole.measured.planned)
    clock = itertools.count()
    monkeypatch.setattr("onnxfi.campaign.gate.check.time.monotonic", lambda: next(clock))
    budget = Budget(campaign(model=""), limits, time_s=300)
    boxed = check("m.onnx", budget, store=tmp_path / "boxed.db")
    assert 64 <= boxed.measured.trials < whole.measured.trials
    assert boxed.verdict == "pass" and [f.reason for f in boxed.findings] == ["", "", ""]
    sequence = Measured.of_store(tmp_path / "boxed.db", boxed.measured.confidence).interval("sdc1")
    assert sequence is not None and decide(limits[0], sequence) == "pass"


# Bad input


def test_no_shards_no_merge_and_no_list(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(SpecError, match="it has no shards; use workers"):
        run(campaign(), tmp_path / "s.db", shard=(1, 2))
    with pytest.raises(StoreError, match="one store and no shards; take that with the most trials"):
        merge(tmp_path / "all.db", [place / "whole.db", place / "whole.db"])
    with pytest.raises(SpecError, match="there is no list to write"):
        write_plan(plan(campaign(data=None))[0], tmp_path / "p.jsonl")
    assert not list(tmp_path.iterdir())


BOXES = "g (float[N,4] x) => (float[N,4,1] y) <float[4] w = {1,2,3,4}> { z = Mul(x, w) y = Unsqueeze(z, at) at = Constant<value_ints = [2]>() }"
LACKING: list[tuple[dict[str, Any], str]] = [
    ({"data": "plain.npz", "rate": "critical"}, "the data has no labels; name labelled data with --data"),
    ({"data": "plain.npz", "rate": "top1"}, "the data has no labels"),
    ({"model": "g.onnx"}, "the scored output is no classifier's; name one with --output, or take the rate sdc"),
    ({"model": "g.onnx", "rate": "any"}, "the scored output is no classifier's"),
    ({"model": "b.onnx", "data": "b.npz"}, "rate 'sdc1' cannot be measured"),
]
DECISION = "g (float[N,4] x) => (float[N,1] y) <float[4,1] w = {1,2,3,4}> { y = MatMul(x, w) }"


@pytest.mark.parametrize(("fields", "message"), LACKING)
def test_a_rate_that_cannot_be_measured_is_refused_at_once(here: Path, fields: dict[str, Any], message: str) -> None:
    samples(here, labels=False, name="plain.npz")
    save(here, BOXES)
    save(here, DECISION, "b.onnx")
    np.savez(here / "b.npz", x=np.ones((3, 4), np.float32), labels=[0, 1, 1])
    before = sorted(here.iterdir())
    with pytest.raises(SpecError, match=message):
        run(campaign(**{"data": None, **fields} if "model" in fields else fields), here / "s.db")
    assert sorted(here.iterdir()) == before


def test_a_rate_of_any_output_needs_no_classifier(here: Path) -> None:
    save(here, BOXES)
    ran(campaign(model="g.onnx", data=None, rate="sdc", margin=0.2), here / "s.db")
    found = report(here / "s.db")
    assert found.samples is None and found.look is not None and found.look.interval.estimate > 0.8
    assert found.everything.rate("sdc1") is None


def test_another_rate_or_method_is_another_campaign(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for fields, said in (({"rate": "due"}, 'rate: "sdc1" in the store, now "due"'), ({"method": "simple"}, "method: ")):
        with pytest.raises(StoreError, match=said):
            run(campaign(**fields), place / "whole.db")


def test_a_part_with_few_trials_has_an_interval_and_no_estimate(place: Path) -> None:
    found = report(place / "whole.db")
    assert {fold.trials < 30 for fold in (*found.by_layer, *found.by_bit)} == {True, False}
    with sqlite3.connect(place / "whole.db") as db:
        rows = db.execute("SELECT layer, metrics FROM results JOIN plan USING (trial)").fetchall()
    db.close()
    seen = {fold.key: [json.loads(m)["top1"] for layer, m in rows if layer == fold.key] for fold in found.by_layer}
    for fold in (*found.by_layer, *found.by_bit):
        for rate in fold.rates:
            if fold.trials < 30:
                assert math.isnan(rate.interval.estimate) and rate.row()["value"] is None
            assert 0 <= rate.interval.low <= rate.interval.high <= 1
    for fold in found.by_layer:
        i = fold.estimated("top1")
        assert i is None or min(seen[fold.key]) <= i.estimate <= max(seen[fold.key])
    assert "fewer than 30 trials" in list(notes(found))[-1]
