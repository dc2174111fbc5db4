"""ValueBounds: some channels of a tensor; and the bound on a float32 sum, held against sums in many orders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.runtime.proofs.bounds import ValueBounds, absolute, gamma


def test_bounds_are_mapped_and_keep_their_channels() -> None:
    low = np.full((1, 2, 1, 3), -1.0)
    bounds = ValueBounds(low, low + 3, np.ones((1, 2), np.bool_), np.array([1]))
    mapped = bounds.mapped(lambda values: values * 2)
    assert mapped.low.min() == -2 and mapped.high.max() == 4 and mapped.channels is bounds.channels


@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.sampled_from([1e-40, 1e-20, 1.0, 1e15]))
def test_bound_holds_for_every_order_of_summation(terms: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x = (scale * rng.standard_normal(terms)).astype(np.float32)
    w = rng.standard_normal(terms).astype(np.float32)
    exact = np.sum(x.astype(np.longdouble) * w)
    size = float(np.abs(x.astype(np.float64) * w).sum())
    bound = gamma(terms) * size + absolute(terms)
    products = x * w
    backward = np.float32(0)
    for one in products[::-1]:
        backward += one
    blocked = sum((part.sum() for part in np.array_split(products, 1 + terms // 8)), np.float32(0))
    for found in (np.cumsum(products, dtype=np.float32)[-1], backward, blocked, x @ w):
        assert abs(float(np.longdouble(found) - exact)) <= bound


def test_a_sum_of_too_many_terms_has_no_bound() -> None:
    with pytest.raises(ValueError, match="no bound"):
        gamma(1 << 24)
