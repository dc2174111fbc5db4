"""The bound on a float32 sum, held against sums in many orders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.runtime.certain.rounding import absolute, gamma


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
