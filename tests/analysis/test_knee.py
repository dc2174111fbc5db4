"""Bisection to the knee, on curves that are known."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from onnxfi.analysis.knee import next_rate, sweep_rates
from onnxfi.campaign.report.findings import KEPT, Curve


@given(st.integers(1, 40), st.integers(0, 40))
def test_bisection_ends_at_the_knee_of_any_falling_curve(rates: int, knee: int) -> None:
    losses: dict[int, float] = {}
    while (place := next_rate(rates, Curve(losses))) is not None:
        assert place not in losses
        losses[place] = 0.0 if place < knee else 0.5
    curve = Curve(losses)
    assert curve.kept == min(knee, rates) - 1
    assert curve.lost == (knee if knee < rates else None)
    assert len(losses) <= math.ceil(math.log2(rates + 1)) + 1
    assert all(0 <= place < rates for place in curve.around(rates))


@given(st.dictionaries(st.integers(0, 9), st.floats(-0.1, 1), max_size=10))
def test_a_noisy_curve_ends_too(noise: dict[int, float]) -> None:
    losses: dict[int, float] = {}
    for _ in range(11):
        place = next_rate(10, Curve(losses))
        if place is None:
            break
        losses[place] = noise.get(place, KEPT)
    assert next_rate(10, Curve(losses)) is None


@given(st.integers(1, 10**12))
def test_rates_rise_and_go_from_a_part_of_a_flip_to_many(bits: int) -> None:
    rates = sweep_rates(bits)
    assert all(one < other for one, other in pairwise(rates)) and rates[0] > 0 and rates[-1] <= 0.5
    assert rates[0] * bits <= 10 and rates[-1] * bits <= 10_100
    assert rates[-1] * bits >= min(3_000, 0.1 * bits) * 0.9
