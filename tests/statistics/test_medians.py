"""Medians against counting: the interval holds the true median as often as it says, for any distribution."""

from __future__ import annotations

import numpy as np
import pytest

from onnxfi.statistics.medians import median_interval


@pytest.mark.parametrize("n", [5, 12, 61])
def test_the_interval_holds_the_median(n: int) -> None:
    rng, held = np.random.default_rng(n), 0
    for _ in range(1000):
        values = np.exp(rng.normal(size=n) * 30)
        values[rng.random(n) < 0.1] = np.inf
        found = median_interval([(values, None)], 0.9, bounds=(0.0, np.inf))
        assert found.low <= found.estimate <= found.high
        held += found.low <= np.exp(30 * 0.139710) <= found.high  # the quantile of 0.5 / 0.9
    assert held >= 880


def test_strata_weigh_as_their_faults_do() -> None:
    low, high = np.arange(100.0), 1000 + np.arange(100.0)
    assert median_interval([(low, 900), (high, 100)]).estimate < 100
    assert median_interval([(low, 100), (high, 900)]).estimate >= 1000
    found = median_interval([(low, 500_000), (high, 500_000)], 0.95)
    assert (found.method, found.estimate) == ("Woodruff", 99.0)
    assert 60 < found.low <= 99 and 1000 <= found.high < 1040


def test_too_few_trials_leave_the_bounds() -> None:
    found = median_interval([(np.array([1.0, 2.0]), None)], bounds=(0.0, np.inf))
    assert (found.low, found.estimate, found.high) == (0.0, 1.0, np.inf)
    nothing = median_interval([(np.array([]), 10)], bounds=(0.0, 5.0))
    assert (nothing.low, nothing.high) == (0.0, 5.0) and np.isnan(nothing.estimate)


def test_a_whole_population_is_exact() -> None:
    found = median_interval([(np.array([3.0, 1.0, 2.0]), 3)])
    assert (found.low, found.estimate, found.high, found.method) == (2.0, 2.0, 2.0, "exact")
