"""Rates beside proofs: brute force, and coverage over whole paths."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import InputError
from onnxfi.statistics.proved_strata import rate_beside_proofs


@given(st.integers(1, 40), st.data())
def test_ends_are_those_of_a_search_through_all_numbers(size: int, data: st.DataObject) -> None:
    drawn = data.draw(st.integers(0, size))
    hits = data.draw(st.integers(0, drawn))
    mean = Fraction(1, (drawn + 1) * math.comb(drawn, hits))

    def likelihood(marked: int) -> Fraction:
        ways = math.perm(marked, hits) * math.perm(size - marked, drawn - hits)
        return Fraction(ways, math.perm(size, drawn))

    kept = [m for m in range(size + 1) if likelihood(m) > Fraction(1, 20) * mean]
    found = rate_beside_proofs(size + 60, 60, drawn, hits, 0.95)
    assert (round(found.low * (size + 60)), round(found.high * (size + 60))) == (kept[0], kept[-1])


def test_interval_holds_the_rate_at_every_time() -> None:
    rng, size, marked, missed = np.random.default_rng(7), 200, 30, 0
    for _ in range(200):
        outcomes = rng.permutation(np.arange(size) < marked)
        hits = np.cumsum(outcomes)
        found = [rate_beside_proofs(10**6, 10**6 - size, n, int(hits[n - 1]), 0.9) for n in range(1, size + 1, 7)]
        missed += not all(one.low <= marked / 10**6 <= one.high for one in found)
    assert missed <= 30  # 20 are expected at most, 30 or more with probability 0.02


def test_all_drawn_is_known_and_nothing_open_is_zero() -> None:
    found = rate_beside_proofs(1000, 990, 10, 4)
    assert (found.low, found.high, found.estimate) == (0.004, 0.004, 0.004)
    assert rate_beside_proofs(1000, 1000, 0, 0).high == 0
    assert rate_beside_proofs(1000, 990, 0, 0).high == 0.01


@pytest.mark.parametrize("given", [(10, 11, 0, 0), (10, 5, 6, 0), (10, 5, 2, 3), (0, 0, 0, 0), (10, 5, 1, 1, 1.0)])
def test_what_does_not_fit_is_refused(given: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        rate_beside_proofs(*given)
