"""Paired differences against scipy, brute force, and their own coverage."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from onnxfi.errors import InputError
from onnxfi.statistics.intervals import clopper_pearson
from onnxfi.statistics.paired import difference_interval, exact_test, paired, rate_ratio


@pytest.mark.parametrize(("b", "c"), [(0, 1), (5, 5), (2, 11), (30, 12), (0, 40)])
def test_the_test_is_the_exact_one(b: int, c: int) -> None:
    assert exact_test(b, c) == pytest.approx(binomtest(b, b + c, 0.5).pvalue)


def test_the_test_is_that_of_all_signs() -> None:
    """Six discordant trials: every assignment of signs is equally likely where both versions are alike."""
    splits = [abs(sum(signs)) for signs in product((-1, 1), repeat=6)]
    for c in range(7):
        uneven = abs(2 * c - 6)
        assert exact_test(6 - c, c) == pytest.approx(sum(s >= uneven for s in splits) / 64)


def test_means_discordant_trials_and_difference() -> None:
    found = paired([1, 1, 0, 0, 1], [1, 0, 0, 1, 0])
    assert (found.n, found.first, found.second, found.only_first, found.only_second) == (5, 0.6, 0.4, 2, 1)
    assert found.difference.estimate == pytest.approx(-0.2)
    assert found.difference.low < -0.2 < found.difference.high and found.difference.low >= -1


@pytest.mark.parametrize(("both", "first", "second"), [(0.05, 0.1, 0.02), (0.3, 0.0, 0.0), (0.0, 0.02, 0.02)])
def test_the_interval_holds_the_difference_as_often_as_it_says(both: float, first: float, second: float) -> None:
    draws = np.random.default_rng(11).choice(4, size=(300, 80), p=[both, first, second, 1 - both - first - second])
    held = 0
    for row in draws:
        found = paired(row <= 1, (row == 0) | (row == 2), 0.95)
        held += found.difference.low <= second - first <= found.difference.high
    assert held / 300 >= 0.93


def test_the_ratio_holds_the_true_one_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(3), 0
    for a, b in zip(rng.binomial(500, 0.2, 200), rng.binomial(500, 0.02, 200), strict=True):
        found = rate_ratio(int(a), int(b), 500, 0.95)
        held += found.low <= 10 <= found.high
    assert held / 200 >= 0.95
    assert rate_ratio(0, 0, 100).low == 0 and rate_ratio(10, 0, 100).estimate == np.inf


def test_other_bounds_and_none() -> None:
    assert paired([10.0, 20.0], [30.0, 5.0], bounds=(0.0, 100.0)).difference.low >= -100
    wide = paired([1.0, 2.0, 3.0], [2.0, 3.0, 4.5], bounds=(0.0, np.inf)).difference
    assert wide.method == "t" and wide.estimate == pytest.approx(7 / 6)


def test_trials_that_do_not_pair_are_refused() -> None:
    for one, two in (([1, 0], [1]), ([2.0], [0.0]), ([np.nan], [0.0])):
        with pytest.raises(InputError):
            paired(one, two)


@pytest.mark.parametrize(("first", "second", "n"), [(0.1, 0.1, 60), (0.02, 0.3, 40), (0.5, 0.7, 100)])
def test_the_interval_of_two_apart_holds_as_often_as_it_says(first: float, second: float, n: int) -> None:
    """By the exact probability of every pair of counts."""
    ends = [[clopper_pearson(k, n, 0.95) for k in range(n + 1)] for _ in range(2)]
    chances = [stats.binom.pmf(np.arange(n + 1), n, p) for p in (first, second)]
    held = 0.0
    for a, one in enumerate(ends[0]):
        for b, two in enumerate(ends[1]):
            if chances[0][a] * chances[1][b] > 1e-9:
                found = difference_interval(one, two)
                held += chances[0][a] * chances[1][b] * (found.low <= second - first <= found.high)
    assert held >= 0.95
