"""The report: numbers recomputed from the store by hand, with scipy's intervals; the tables as files."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from reported_campaigns import campaign, rows_of
from scipy import stats
from tiny_campaigns import altered, ran

from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.report.rates import Fold
from onnxfi.campaign.report.report import Report, report
from onnxfi.campaign.report.tables import classes, write_csv
from onnxfi.campaign.run.runner import run
from onnxfi.errors import OutputError, StoreError
from onnxfi.graph.model.loading import load
from onnxfi.statistics.intervals import Stratum, clopper_pearson, stratified_interval
from onnxfi.tasks.kinds.classification import CLASSES, CLASSIFICATION
from onnxfi.tasks.outcomes import unpacked

LAYERS = {"fc1": 25 * 32, "fc2": 18 * 32}


def hit(name: str, row: dict[str, Any]) -> bool:
    return row["sdc1"] > 0 if name == "any_sdc1" else bool(row["outcome"] == name)


def check(fold: Fold, rows: list[dict[str, Any]], weights: dict[int, int] | None) -> None:
    """A fold's numbers against its rows; `weights` are the sites of each stratum, None where there is no population."""
    assert fold.trials == len(rows)
    assert fold.outcomes == {**dict.fromkeys(("masked", "sdc", "due"), 0), **Counter(row["outcome"] for row in rows)}
    strata = sorted(weights) if weights else [0]
    assert fold.population == (sum(weights.values()) if weights else None)
    for rate in fold.rates:
        yes_no = CLASSIFICATION.metric(rate.name).fold == "count"
        assert rate.of == ("samples" if CLASSIFICATION.metric(rate.name).per == "sample" else "trials")
        x = [
            [
                float(hit(rate.name, r)) if yes_no else float(r[rate.name])
                for r in rows
                if not weights or r["stratum"] == s
            ]
            for s in strata
        ]
        sizes = [weights[s] if weights else None for s in strata]
        total = sum(weights.values()) if weights else 1
        drawn = sum(n or 1 for values, n in zip(x, sizes, strict=True) if values)
        estimate = sum((n or 1) / drawn * float(np.mean(values)) for values, n in zip(x, sizes, strict=True) if values)
        assert rate.interval.estimate == pytest.approx(estimate)
        if yes_no and len(strata) == 1:
            found = clopper_pearson(int(sum(x[0])), len(x[0]), population=sizes[0])
        else:
            found = stratified_interval([Stratum.of(values, n) for values, n in zip(x, sizes, strict=True)])
        assert (rate.interval.low, rate.interval.high) == pytest.approx((found.low, found.high))
        assert 0 <= rate.interval.low <= rate.interval.estimate <= rate.interval.high <= 1 and total


# By hand


def test_a_sweep_by_rate_with_scipys_intervals(here: Path) -> None:
    ran(campaign(ber=(1e-4, 1e-3, 1e-2), repeat=25), here / "s.db")
    found, rows = report(here / "s.db"), rows_of(here / "s.db")
    assert [fold.key for fold in found.by_rate] == ["0.0001", "0.001", "0.01"]
    assert found.by_layer == found.by_bit == () and found.samples is None
    check(found.everything, rows, None)
    for s, fold in enumerate(found.by_rate):
        here_ = [row for row in rows if row["stratum"] == s]
        check(fold, here_, None)
        for name in ("masked", "sdc", "due", "any_sdc1"):
            k = sum(hit(name, row) for row in here_)
            exact = stats.binomtest(k, 25).proportion_ci(0.99, "exact")
            interval = fold.rate(name)
            assert interval is not None
            assert (interval.low, interval.estimate, interval.high) == pytest.approx((exact.low, k / 25, exact.high))
        accuracy = fold.rate("top1")
        assert accuracy is not None and accuracy.estimate == pytest.approx(np.mean([row["top1"] for row in here_]))
    falling = [fold.rate("top1") for fold in found.by_rate]
    assert falling[0] is not None and falling[2] is not None and falling[0].estimate > falling[2].estimate


def test_a_network_wise_sample_by_layer_and_bit(here: Path) -> None:
    ran(campaign(single=True, margin=0.12), here / "s.db")
    found, rows = report(here / "s.db"), rows_of(here / "s.db")
    check(found.everything, rows, {0: 1376})
    assert [fold.key for fold in found.by_layer] == ["fc1", "fc2"]
    for fold in found.by_layer:
        check(fold, [row for row in rows if row["layer"] == fold.key], {0: LAYERS[fold.key]})
    assert [fold.key for fold in found.by_bit] == [str(bit) for bit in range(32)]
    for fold in found.by_bit:
        check(fold, [row for row in rows if str(row["bit"]) == fold.key], {0: 43})
    due = found.everything.rate("due")
    assert due is not None
    k, n = found.everything.outcomes["due"], len(rows)
    low, high = (due.low * 1376, due.high * 1376)
    assert low == pytest.approx(round(low)) and high == pytest.approx(round(high)), "whole numbers of the 1,376 faults"
    assert stats.hypergeom.sf(k - 1, 1376, round(low), n) > 0.005 >= stats.hypergeom.sf(k - 1, 1376, round(low) - 1, n)
    assert stats.hypergeom.cdf(k, 1376, round(high), n) > 0.005 >= stats.hypergeom.cdf(k, 1376, round(high) + 1, n)


@pytest.mark.slow
@pytest.mark.parametrize("per", ["layer", "layer-bit", "data-aware"])
def test_strata_are_weighted_by_their_sites(here: Path, per: str) -> None:
    ran(campaign(single=True, margin=0.2, per=per, bits="28-31"), here / "s.db")
    found, rows = report(here / "s.db"), rows_of(here / "s.db")
    sites = {f["stratum"]: int(f["population"]) for f in found.strata}
    assert sum(sites.values()) == 43 * 4
    check(found.everything, rows, sites)
    homes = {f["stratum"]: (f["layer"], f["bit"]) for f in found.strata}
    for fold in found.by_layer:
        inside = {s: n for s, n in sites.items() if homes[s][0] == fold.key}
        check(fold, [row for row in rows if row["layer"] == fold.key], inside)
    for fold in found.by_bit:
        bit = int(fold.key)
        inside = {s: (n if per != "layer" else n // 4) for s, n in sites.items() if homes[s][1] in (None, bit)}
        check(fold, [row for row in rows if row["bit"] == bit], inside)
    plain = np.mean([row["sdc1"] for row in rows])
    weighted = found.everything.rate("sdc1")
    assert weighted is not None
    if per == "data-aware":
        assert abs(weighted.estimate - plain) > 1e-6, "a plain mean would be another number"


def test_a_stratum_that_has_not_run_yet_widens_the_interval(here: Path) -> None:
    running = run(campaign(single=True, margin=0.2, per="layer"), here / "s.db")
    for result in running:
        if result.trial >= 40:
            break
    running.close()
    found = report(here / "s.db")
    assert (found.everything.trials, found.planned) == (40, len(running.plan))
    with altered(here / "s.db") as db:
        db.execute("DELETE FROM results WHERE trial % 2 = 0")
    half = report(here / "s.db")
    check(half.everything, rows_of(here / "s.db"), {0: LAYERS["fc1"], 1: LAYERS["fc2"]})
    wide, narrow = half.everything.rate("sdc"), found.everything.rate("sdc")
    assert wide is not None and narrow is not None
    assert wide.half_width > narrow.half_width + 0.15
    assert half.by_layer[1].trials == 0 and half.by_layer[1].rates == ()


def test_an_unfinished_exhaustive_campaign_is_a_fair_sample(here: Path) -> None:
    running = run(campaign(exhaustive=True), here / "s.db")
    for result in running:
        if result.trial >= 200:
            break
    running.close()
    found = report(here / "s.db")
    assert (found.everything.trials, found.everything.population) == (200, 1376)
    assert {fold.key for fold in found.by_layer if fold.trials > 60} == {"fc1", "fc2"}
    assert sum(fold.trials > 0 for fold in found.by_bit) > 28


def test_a_mix_has_all_trials_together(here: Path) -> None:
    ran(campaign(mix=(dict(count=2), dict(fault="zero", count=1)), repeat=15), here / "s.db")
    found = report(here / "s.db")
    check(found.everything, rows_of(here / "s.db"), None)
    assert found.by_rate == found.by_layer == found.by_bit == ()


def test_classes_sum_to_one_everywhere(here: Path) -> None:
    ran(campaign(single=True, margin=0.1), here / "s.db")
    found = report(here / "s.db")
    for fold in (found.everything, *found.by_layer, *found.by_bit):
        shares = [fold.rate(name) for name in CLASSES]
        assert sum(i.estimate for i in shares if i) == pytest.approx(1 if fold.trials else 0)


def test_the_choice_of_samples_is_weighted_like_the_trials(here: Path) -> None:
    ran(campaign(single=True, margin=0.15, per="layer-bit", bits="24-31"), here / "s.db")
    found, rows = report(here / "s.db"), rows_of(here / "s.db")
    sites = {f["stratum"]: int(f["population"]) for f in found.strata}
    ran_ = Counter(row["stratum"] for row in rows)
    each = sum(
        sites[r["stratum"]] / sum(sites.values()) / ran_[r["stratum"]] * unpacked(r["flags"], 12).astype(float)
        for r in rows
    )
    rate = found.everything.rate("sdc1")
    assert found.samples is not None and rate is not None
    assert found.samples.estimate == pytest.approx(float(np.mean(each))) == pytest.approx(rate.estimate)
    t = stats.t.interval(0.99, 11, np.mean(each), np.std(each, ddof=1) / math.sqrt(12))
    assert (found.samples.low, found.samples.high) == pytest.approx((max(t[0], 0), t[1]))


def test_the_confidence_can_be_another(here: Path) -> None:
    ran(campaign(single=True, trials=50, confidence=0.9), here / "s.db")
    widths = []
    for confidence in (None, 0.9, 0.99):
        found = report(here / "s.db", confidence=confidence)
        rate = found.everything.rate("sdc1")
        assert rate is not None and rate.confidence == found.confidence
        widths.append(rate.half_width)
    assert widths[0] == widths[1] < widths[2]


# Files


# JSON and pandas


def test_the_document_is_strict_and_says_what_the_report_says(here: Path) -> None:
    ran(campaign(single=True, margin=0.2), here / "s.db")
    found = report(here / "s.db")
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert document["outcomes"] == found.everything.outcomes
    assert (document["trials"], document["planned"], document["errors"]) == (found.everything.trials, found.planned, 0)
    rates = {rate["name"]: rate for rate in document["rates"]}
    assert set(rates) == set(CLASSIFICATION.reported)
    interval = found.everything.rate("critical")
    assert interval is not None
    assert (rates["critical"]["low"], rates["critical"]["value"], rates["critical"]["high"]) == (
        interval.low, interval.estimate, interval.high,
    )  # fmt: skip
    assert [fold["key"] for fold in document["by_layer"]] == ["fc1", "fc2"]
    assert document["golden"] == found.golden["metrics"]


def test_pandas_where_it_is_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(campaign(ber=(1e-3, 1e-2), repeat=3), here / "s.db")
    found = report(here / "s.db")
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    rows = found.to_pandas()
    assert [(row["trial"], row["ber"]) for row in rows] == [(k, (1e-3, 1e-2)[(k - 1) % 2]) for k in range(1, 7)]
    assert rows == list(found.details())
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(OutputError, match=r"pandas is not installed; pip install pandas, or use \.csv"):
        found.to_pandas()


def test_a_real_data_frame(here: Path) -> None:
    import pandas

    ran(campaign(ber=(1e-3, 1e-2), repeat=4), here / "s.db")
    found = report(here / "s.db")
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and frame["top1"].between(0, 1).all()
    assert frame.groupby("ber").size().to_dict() == {1e-3: 4, 1e-2: 4}
    for fold, mean in zip(found.by_rate, frame.groupby("ber")["top1"].mean(), strict=True):
        interval = fold.rate("top1")
        assert interval is not None and interval.estimate == pytest.approx(mean)


# Stores without an answer


def test_stores_without_results(here: Path) -> None:
    run(campaign(single=True, trials=3), here / "s.db").close()
    with pytest.raises(StoreError, match=r"s\.db' holds no result yet; onnxfi run goes on with it"):
        report(here / "s.db")
    with altered(here / "s.db") as db:
        db.execute("INSERT INTO errors VALUES (1, 'x', 0)")
    with pytest.raises(StoreError, match="holds no result yet; its trials ended in errors of the harness"):
        report(here / "s.db")
    with altered(here / "s.db") as db:
        db.execute("DELETE FROM meta")
    with pytest.raises(StoreError, match="holds no result yet"):
        report(here / "s.db")


def test_errors_of_the_harness_count_in_no_rate(here: Path) -> None:
    ran(campaign(single=True, trials=30), here / "s.db")
    with altered(here / "s.db") as db:
        db.execute("DELETE FROM results WHERE trial <= 5")
        db.execute("INSERT INTO errors SELECT trial, 'x', 0 FROM plan WHERE trial <= 5")
    found: Report = report(here / "s.db")
    assert (found.errors, found.everything.trials, found.planned) == (5, 25, 30)
    check(found.everything, rows_of(here / "s.db"), {0: 1376})


# One name, one definition


def test_sdc1_is_one_number_in_every_table_and_file(here: Path) -> None:
    ran(campaign(single=True, trials=120, bits="exponent"), here / "s.db")
    rows, found = rows_of(here / "s.db"), report(here / "s.db")
    for row in rows:
        assert row["critical"] <= row["sdc1"] == row["class_sdc_1"] <= min(row["sdc_samples"], row["top1_changed"])
        assert row["class_due"] == row["due_samples"]
        assert found.golden["metrics"]["top1"] - row["top1"] <= row["critical"] + row["due_samples"] + 1e-12
    assert any(row["top1_changed"] > row["sdc1"] for row in rows), "a NaN makes another top-1, and is detected"
    for fold, shares in zip(found.by_layer, classes(found), strict=True):
        rate, same = fold.rate("sdc1"), fold.rate("class_sdc_1")
        assert rate is not None and rate == same and rate.estimate == shares["sdc_1"]
    write_csv(found, here / "csv")
    files = {
        name: list(csv.DictReader((here / "csv" / f"{name}.csv").read_text().splitlines()))
        for name in ("layers", "classes")
    }
    assert [row["sdc1"] for row in files["layers"]] == [row["sdc_1"] for row in files["classes"]]


@pytest.mark.parametrize("rank", ["tensor", "layer"])
def test_a_replayed_list_of_a_ranking_has_rates_of_its_trials(here: Path, tmp_path: Path, rank: str) -> None:
    """Its strata are tensors, or fields of bits of a layer: no trial stands for the sites of a layer and bit."""
    made = campaign(rank=rank, seed=1)
    plan = make_plan(made, FaultTargets.of(load(made.model)))
    first = np.arange(2, dtype=np.uint64)
    rows = sorted((row for s in range(len(plan.strata)) for row in plan.nth(s, first)), key=lambda row: row.trial)
    listed = tmp_path / "ranked.jsonl"
    listed.write_text("\n".join([plan.header.line(), *(row.lines for row in rows)]) + "\n")
    ran(campaign(faults=listed), tmp_path / "replayed.db")
    found, values = report(tmp_path / "replayed.db"), [row["sdc1"] for row in rows_of(tmp_path / "replayed.db")]
    rate = found.everything.rate("sdc1")
    assert rate is not None and rate.estimate == pytest.approx(np.mean(values)) and len(values) == len(rows)
