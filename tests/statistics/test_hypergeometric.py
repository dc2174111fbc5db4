"""Chances where nothing is put back, against scipy's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from onnxfi.statistics.hypergeometric import first_true, upper_tail


@st.composite
def populations(draw: st.DrawFn) -> tuple[int, int, int]:
    """Draws, marked balls and balls, of any size; few are marked, or most, as often as some."""
    size = draw(st.integers(1, 10**9))
    few = st.integers(0, min(size, 40))
    marked = draw(few | few.map(lambda x: size - x) | st.integers(0, size))
    return draw(st.integers(1, min(size, 10**6))), marked, size


@given(populations(), st.floats(-1, 6))
def test_the_tail_is_scipys(population: tuple[int, int, int], deviations: float) -> None:
    n, marked, size = population
    mean = n * marked / size
    k = min(max(0, round(mean + deviations * (mean * (1 - marked / size) + 1) ** 0.5)), n)
    chance, wanted = upper_tail(k, n, marked, size), float(stats.hypergeom.sf(k - 1, size, marked, n))
    if k <= n * marked // size:
        assert chance == 0.5 <= wanted + 1e-5
    else:
        assert chance == pytest.approx(wanted, rel=1e-4, abs=1e-300)


@given(populations())
def test_more_than_there_are_cannot_be_drawn(population: tuple[int, int, int]) -> None:
    n, marked, size = population
    most = min(n, marked)
    assert upper_tail(most + 1, n, marked, size) == 0
    assert upper_tail(0, n, marked, size) == 0.5


@given(st.integers(0, 10**9), st.integers(-5, 10**9), st.integers(0, 10**9))
def test_the_first_is_found_from_anywhere(count: int, near: int, wanted: int) -> None:
    tried: list[int] = []
    assert first_true(lambda x: (tried.append(x), x >= wanted)[1], near, count) == min(wanted, count)
    assert all(0 <= x < count for x in tried) and len(tried) <= 65


def test_what_is_near_is_found_in_a_few_steps() -> None:
    tried: list[int] = []
    assert first_true(lambda x: (tried.append(x), x >= 10**6)[1], 10**6 + 3, 10**9) == 10**6 and len(tried) < 9
