"""Findings in words: against sums by SQL alone, and where silent errors turn into detected ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from reported_campaigns import rows_of, singles, sweep

from onnxfi.campaign.report.findings import (
    Curve,
    any_bit,
    cost_sentences,
    design,
    findings,
    harm_shares,
    lost_answers,
    measured,
    shares,
    turned_into_due,
)
from onnxfi.campaign.report.rates import CampaignRates, Fold, MetricEstimate
from onnxfi.campaign.results.store import Store
from onnxfi.statistics.intervals import Interval


def exact(value: float) -> Interval:
    return Interval(value, value, value, "exact", 0.99)


def with_shares(found: CampaignRates, pairs: list[tuple[float, float]]) -> CampaignRates:
    """A sweep in which these shares of the answers are silently wrong, and detected, at each rate."""
    folds = [
        Fold(f"{10.0 ** (k - 6):g}", 20, None, {"masked": 0, "sdc": 10, "due": 10},
             (MetricEstimate("sdc1", "samples", exact(sdc)), MetricEstimate("due_samples", "samples", exact(due))))
        for k, (sdc, due) in enumerate(pairs)
    ]  # fmt: skip
    return dataclasses.replace(found, by_rate=tuple(folds))


def test_a_curve_has_the_rates_that_it_is_asked_for(here: Path) -> None:
    found = sweep(here)
    whole = Curve.of(found)
    assert [*whole.losses] == [*whole.trials] == [0, 1, 2]
    part = Curve.of(found, (1e-2, 1e-4, 1e-6))
    assert part.losses == {0: whole.losses[2], 1: whole.losses[0]} and part.trials == {
        0: whole.trials[2],
        1: whole.trials[0],
    }


def test_a_metric_that_is_at_its_worst_without_faults_says_nothing(here: Path) -> None:
    found = sweep(here)
    assert measured(found)[0].name == "top1"
    wrong = {**found.golden, "metrics": {**found.golden["metrics"], "top1": 0.0}}
    assert measured(dataclasses.replace(found, golden=wrong))[0].name == "top1_changed"


def test_a_fall_into_due_is_no_improvement(here: Path) -> None:
    found = sweep(here)
    [said] = turned_into_due(with_shares(found, [(0.1, 0.0), (0.8, 0.1), (0.1, 0.85)]))
    assert said.startswith(
        "At 0.0001 the silent rate falls (SDC-1 from 80.0 % to 10.0 %) because answers turn into DUE"
    )
    assert "no improvement" in said and "from 90.0 % to 95.0 %" in said
    [half] = turned_into_due(with_shares(found, [(0.8, 0.0), (0.1, 0.4)]))
    assert "of the fall of 70 points DUE takes up 40" in half
    for pairs in ([(0.1, 0.0), (0.8, 0.1)], [(0.8, 0.1), (0.1, 0.1)]):
        assert not list(turned_into_due(with_shares(found, pairs)))


def test_shares_are_those_of_the_trials_and_sum_to_one(here: Path) -> None:
    found = sweep(here)
    rates = {s["stratum"]: f"{s['ber']:g}" for s in found.strata}
    lost = lost_answers(found)
    for fold in found.by_rate:
        rows = [row for row in rows_of(here / "sweep.db") if rates[row["stratum"]] == fold.key]
        found_here = shares(found.task, fold)
        assert found_here is not None and found_here.kept + found_here.sdc + found_here.due == pytest.approx(1)
        assert found_here.sdc == pytest.approx(sum(row["sdc1"] for row in rows) / len(rows))
        assert found_here.lost == pytest.approx(lost[fold.key].estimate)
        assert lost[fold.key].low <= found_here.lost <= lost[fold.key].high


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"per": "layer"}, {"per": "layer-bit", "margin": 0.45, "bits": "29-30"}])
def test_harm_belongs_to_layers_and_bits_as_sites_do(here: Path, fields: dict[str, object]) -> None:
    found = singles(here, **fields)
    rows, sizes = rows_of(here / "s.db"), {s["stratum"]: s["population"] for s in found.strata}
    runs = {n: sum(row["stratum"] == n for row in rows) for n in sizes}
    for by in ("layer", "bit"):
        harm: dict[str, float] = {}
        for row in rows:
            weight = row["sdc1"] * sizes[row["stratum"]] / runs[row["stratum"]]
            harm[str(row[by])] = harm.get(str(row[by]), 0.0) + weight
        total = sum(harm.values())
        said = dict(harm_shares(found, by))
        assert sum(said.values()) == pytest.approx(1)
        for key, share in said.items():
            assert share == pytest.approx(harm[key] / total)


def test_the_verdict_begins_with_the_gravest(here: Path) -> None:
    found = singles(here, bits="30", margin=0.05)
    first, second, *others = findings(found)
    assert first.startswith("One flipped bit changes one answer in ") and "SDC-1" in first
    assert second.startswith("The layer that suffers most") or second.startswith("Without faults top-1 is")
    assert any("DUE" in line for line in others) and all(line.endswith(".") for line in (first, second, *others))
    assert design(found) == "one fault per trial (flip) in its weights"
    assert "Most papers on classifiers call SDC-1" in any_bit(found)


def test_the_cost_is_counted_in_golden_inferences(here: Path) -> None:
    found = singles(here)
    with Store.open(here / "s.db", create=True) as opened:
        mean = sum(opened.times()) / len(opened.times())
        opened.put(golden_s=2 * mean)
        n, population = len(opened.times()), found.everything.population
    cost, stood = cost_sentences(found)
    assert cost.startswith("A trial cost 0.5 golden inferences") and f"{n:,} trials as much as {n / 2:.3g}" in cost
    assert population is not None and f"{population - n:,} were not run" in stood
    every = singles(here, "all.db", single=False, margin=None, exhaustive=True, bits="30")
    assert any("was run, so that these rates are exact" in line for line in cost_sentences(every))
