"""The choice of protections: exact against brute force, greedy within its bound."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfi.analysis.planner.choice import Offer, choose

NOTHING = (0.0, 0.0)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[Offer]], tuple[float, float]]:
    whole = st.integers(0, 20).map(float)
    parts = [
        [
            Offer(float(draw(st.integers(5, 30))), NOTHING),
            *(
                Offer(float(draw(st.integers(0, 30))), (draw(whole), draw(whole)))
                for _ in range(draw(st.integers(0, 3)))
            ),
        ]
        for _ in range(draw(st.integers(1, 4)))
    ]
    return parts, (draw(whole), draw(st.one_of(whole, st.just(float("inf")))))


def best(parts: list[list[Offer]], budget: tuple[float, float]) -> float:
    """Try every choice."""
    return min(
        sum(one.remaining for one in picked)
        for picked in product(*parts)
        if (np.sum([one.costs for one in picked], axis=0) <= budget).all()
    )


@given(problems())
@settings(max_examples=30, deadline=None)
def test_the_exact_choice_is_that_of_brute_force(problem: tuple[list[list[Offer]], tuple[float, float]]) -> None:
    parts, budget = problem
    found = choose(parts, budget)
    picked = [row[k] for row, k in zip(parts, found.picks, strict=True)]
    assert found.exact and (np.sum([one.costs for one in picked], axis=0) <= np.array(budget) + 1e-9).all()
    assert found.remaining == pytest.approx(best(parts, budget)) and found.bound == found.remaining


@given(problems())
@settings(max_examples=30, deadline=None)
def test_the_greedy_choice_fits_and_its_bound_holds(problem: tuple[list[list[Offer]], tuple[float, float]]) -> None:
    parts, budget = problem
    found = choose(parts, budget, most_exact=0)
    picked = [row[k] for row, k in zip(parts, found.picks, strict=True)]
    assert not found.exact and (np.sum([one.costs for one in picked], axis=0) <= np.array(budget) + 1e-9).all()
    assert found.bound - 1e-6 <= best(parts, budget) <= found.remaining + 1e-9


def test_many_parts_are_chosen_greedily_near_the_bound() -> None:
    rng = np.random.default_rng(3)
    parts = [
        [Offer(x, NOTHING), *(Offer(x * rng.uniform(0, 0.5), tuple(rng.uniform(1, 50, 2))) for _ in range(3))]
        for x in rng.uniform(0, 1, 700)
    ]
    found = choose(parts, (4000.0, 4000.0))
    assert not found.exact and found.bound <= found.remaining <= 1.1 * found.bound


def test_the_cheaper_of_two_equal_offers_is_taken() -> None:
    parts = [[Offer(1.0, NOTHING), Offer(0.0, (9.0, 9.0)), Offer(0.0, (1.0, 1.0)), Offer(0.0, (1.0, 0.0))]]
    assert choose(parts, (10.0, 10.0)).picks == (3,)
