"""Estimates of an adaptive campaign: intervals of layers, fields and other rates hold the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxfi.campaign.gate.budget import Budget, BudgetLimit
from onnxfi.campaign.report.adaptive_estimates import AdaptiveRecord, Drawn
from onnxfi.campaign.run.adaptive_rounds import Layout
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SpecError
from onnxfi.faults import sampling
from onnxfi.statistics.adaptive import Moments, allocate_round, round_size
from onnxfi.tasks.kinds.classification import CLASSIFICATION


def campaign(**fields: Any) -> Campaign:
    given = {"model": "m.onnx", "data": "d.npz", "provider": "cpu", "single": True, "adaptive": True, "margin": 0.04}
    return Campaign(**{**given, **fields})


def simulated(seed: int, rates: list[list[float]], size: int, draws: int) -> AdaptiveRecord:
    """A record of two layers with these rates of fatal faults in their fields."""
    flat, rng = [rate for layer in rates for rate in layer], np.random.default_rng(seed)
    order = [rng.permutation((np.arange(size) < rate * size).astype(float)) for rate in flat]
    fields = len(rates[0])
    layout = Layout(np.full(len(flat), float(size)), np.tile(np.arange(fields), len(rates)))
    seen, rounds, values = Moments.empty(len(flat)), list[Drawn](), list[float]()
    while len(values) < draws:
        played = allocate_round(layout.sizes, layout.parents, seen)
        drawn = sampling.choose(played.probability, round_size(len(values)), seed, len(rounds) + 1)
        n = seen.n.astype(int)
        x = np.array([order[h][n[h] + np.count_nonzero(drawn[:k] == h)] for k, h in enumerate(drawn)])
        rounds.append(Drawn(played.probability, drawn, 0.02, float(np.sqrt(32 + len(values)))))
        seen, values = seen.add(drawn, x), [*values, *x]
    columns = np.full((len(values), len(CLASSIFICATION.reported)), np.nan)
    columns[:, CLASSIFICATION.reported.index("sdc1")] = values
    columns[:, CLASSIFICATION.reported.index("sdc")] = 1.0 - np.array(values)
    layers = tuple(f"l{k}" for k in range(len(rates)) for _ in range(fields))
    names = tuple(f"{k}" for _ in rates for k in range(fields))
    return AdaptiveRecord(
        "guaranteed",
        layout,
        layers,
        names,
        tuple(rounds),
        tuple(range(1, len(values) + 1)),
        CLASSIFICATION.reports,
        "sdc1",
        columns,
    )


@pytest.mark.slow
def test_intervals_of_layers_fields_and_other_rates_hold_the_truth() -> None:
    rates = [[0.0, 0.02, 0.3], [0.01, 0.0, 0.9]]
    folds = {"all": range(6), "l0": range(3), "l1": range(3, 6), "field 2": (2, 5), "field 0": (0, 3)}
    missed, middle, runs = 0, {name: list[float]() for name in folds}, 60
    flat = np.concatenate(rates)
    for seed in range(runs):
        record = simulated(seed, rates, 500, 300)
        for name, strata in folds.items():
            found = record.intervals(np.array(strata), 0.99)
            true = float(flat[list(strata)].mean())
            missed += not found["sdc1"].low <= true <= found["sdc1"].high
            missed += not found["sdc"].low <= 1 - true <= found["sdc"].high
            middle[name].append(found["sdc1"].estimate - true)
    assert missed <= 3, "of 600"
    for name, errors in middle.items():
        assert abs(np.mean(errors)) <= 3.5 * np.std(errors) / runs**0.5 + 0.005, name


def test_a_gate_takes_the_confidence_sequence_alone() -> None:
    for method in ("asymptotic", "simple"):
        with pytest.raises(SpecError, match="holds where one stops by the width of the interval, not by where it lies"):
            Budget(campaign(model="", method=method), (BudgetLimit("sdc1", max=0.2),))
