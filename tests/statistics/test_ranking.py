"""Rankings: laws of the order, joint coverage on rates that are known, and draws that go where the order is open."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.statistics.adaptive import (
    Method,
    Moments,
    allocate_round,
    confidence_sequence,
    prepare_draws,
    round_size,
    score,
)
from onnxfi.statistics.intervals import Interval
from onnxfi.statistics.ranking import GroupScores, Standing, allocate_groups

ends = st.tuples(*[st.floats(0, 1)] * 3).map(sorted).map(lambda e: Interval(e[0], e[2], e[1], "", 0.99))
standings = st.builds(
    Standing, st.lists(ends, min_size=1, max_size=8).map(tuple), st.integers(1, 9), st.floats(0.01, 0.5)
)


@given(standings)
def test_laws_of_an_order(standing: Standing) -> None:
    count = len(standing.intervals)
    assert sorted(standing.order) == list(range(count))
    assert len(standing.pairs) == count - 1
    for one, other in standing.pairs:
        apart, tied = standing.above(one, other), standing.tied(one, other)
        assert not (apart and tied) and ((one, other) in standing.open_pairs) == (not apart and not tied)
        assert not standing.above(other, one)
        if tied:
            i, j = standing.intervals[one], standing.intervals[other]
            assert max(i.high, j.high) - min(i.low, j.low) <= standing.margin + max(i.high - i.low, j.high - j.low)
    weights = standing.weights()
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    assert all(standing.aims >= standing.margin / 2) and len(standing.aims) == len(standing.intervals)
    ranks = dict(standing.ranks())
    assert ranks[standing.order[0]] == 1
    assert all(1 <= ranks[g] <= place for place, g in enumerate(standing.order, 1))


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12))
def test_draws_go_to_groups_by_their_weights(rows: list[tuple[int, int, int]]) -> None:
    sizes = np.array([size for size, _, _ in rows], np.float64)
    groups = np.unique([group for _, group, _ in rows], return_inverse=True)[1]
    parents = np.unique([parent for _, _, parent in rows], return_inverse=True)[1]
    weights = np.arange(1.0, groups.max() + 2) / np.arange(1.0, groups.max() + 2).sum()
    found = allocate_groups(sizes, parents, Moments.empty(len(rows)), groups, weights)
    assert np.bincount(groups, found.probability) == pytest.approx(weights)
    if groups.max() == 0:
        whole = allocate_round(sizes, parents, Moments.empty(len(rows)))
        assert found.probability == pytest.approx(whole.probability)


def test_one_group_has_the_interval_of_the_whole() -> None:
    sizes, parents, rng = np.array([900.0, 5000.0]), np.array([0, 1]), np.random.default_rng(3)
    known = allocate_round(sizes, parents, Moments.empty(2))
    drawn = rng.choice(2, 200, p=known.probability)
    values = rng.random(200) * (drawn == 0)
    found = GroupScores.empty(np.array([0, 0]), 0.99).plus(known, drawn, values, np.array([0.02]), 5.0).intervals[0]
    whole = confidence_sequence(score(prepare_draws(known, drawn, 0.02, 5.0), values), 0.99)
    assert (found.low, found.high) == pytest.approx((whole.low, whole.high))


RATES = np.array(
    [0.4, 0.0, 0.1, 0.0, 0.1, 0.0, 0.02, 0.0]
)  # two strata in each of four groups, the second without effect
GROUPS, SIZES = np.repeat(np.arange(4), 2), np.tile([2000.0, 8000.0], 4)


def rank(
    seed: int, rates: np.ndarray = RATES, most: int = 20_000, method: Method = "guaranteed"
) -> tuple[int, Standing, list[bool]]:
    """Rank until it is settled; for each round whether every interval holds the true rate."""
    rng, seen = np.random.default_rng(seed), Moments.empty(len(SIZES))
    scores, held = GroupScores.empty(GROUPS, 0.9, method), []
    true = np.bincount(GROUPS, SIZES * rates) / np.bincount(GROUPS, SIZES)
    while True:
        standing, trials = scores.standing(2, 0.02), int(seen.n.sum())
        held.append(all(i.low - 1e-9 <= p <= i.high + 1e-9 for i, p in zip(standing.intervals, true, strict=True)))
        if (trials and standing.settled) or trials > most:
            return trials, standing, held
        known = allocate_groups(SIZES, np.tile([0, 1], 4), seen, GROUPS, standing.weights(), method)
        drawn = rng.choice(len(SIZES), round_size(trials), p=known.probability)
        values = (rng.random(len(drawn)) < rates[drawn]).astype(float)
        scores = scores.plus(known, drawn, values, standing.aims, 1.0 + trials)
        seen = seen.add(drawn, values)


@pytest.mark.slow
def test_intervals_hold_together_and_the_order_is_right() -> None:
    wrong, found = 0, []
    for seed in range(20):
        trials, standing, held = rank(seed)
        wrong += not all(held)
        found.append(trials)
        assert standing.settled and standing.order[0] == 0
        assert standing.above(0, standing.order[1])
        assert all(0 <= i.estimate <= 1 and i.low <= i.estimate <= i.high for i in standing.intervals)
    assert wrong <= 4  # at 90 % all rounds of 20 campaigns: 5 or more have a chance of 4 % at worst
    assert np.median(found) < 6000


@pytest.mark.slow
def test_asymptotic_rankings_take_fewer_trials_and_are_right() -> None:
    made = [rank(seed, method="asymptotic") for seed in range(20)]
    assert all(standing.settled and standing.above(0, standing.order[1]) for _, standing, _ in made)
    assert sum(not held[-1] for _, _, held in made) <= 4  # where it ends; in some round more of them miss a rate
    # 1,934 against 3,823 trials as medians of these 20 seeds, which is 1 to 1.98: what must hold is that it is far fewer
    assert 1.8 * np.median([trials for trials, _, _ in made]) < np.median([rank(seed)[0] for seed in range(4)])


def test_an_asymptotic_ranking_of_rates_that_never_occur_ends_as_tied() -> None:
    _, standing, _ = rank(1, np.zeros(8), method="asymptotic")
    assert standing.settled and all(i.low == 0 and i.high <= 0.02 for i in standing.intervals)


def test_equal_groups_end_as_tied() -> None:
    trials, standing, _ = rank(1, np.tile([0.1, 0.0], 4), most=60_000)
    assert standing.settled and not any(standing.above(*pair) for pair in standing.pairs)
    assert {rank_ for _, rank_ in standing.ranks()} == {1} and trials < 60_000


def test_a_rate_that_never_occurs_ends_as_tied() -> None:
    _, standing, _ = rank(1, np.zeros(8))
    assert standing.settled and all(i.estimate == i.low == 0 and i.high <= 0.02 for i in standing.intervals)
    assert math.isnan(GroupScores.empty(GROUPS, 0.9).standing(2, 0.02).intervals[0].estimate)
