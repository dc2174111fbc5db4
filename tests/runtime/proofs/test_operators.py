"""Rules of operators: every value between the bounds of an input lies between those of the output."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxfi.errors import UnprovableError
from onnxfi.runtime.proofs.bounds import ValueBounds
from onnxfi.runtime.proofs.operators import (
    Average,
    Clip,
    Convolution,
    Flatten,
    Linear,
    Matrix,
    MaxPool,
    Normalization,
    Sum,
    convolution,
    window,
)

SAMPLES = 3


def bounds_around(rng: np.random.Generator, golden: np.ndarray) -> tuple[ValueBounds, np.ndarray]:
    """Return bounds of two faults, and values between them."""
    centre = golden + rng.standard_normal((2, *golden.shape))
    reach = rng.random(centre.shape)
    inside = centre + reach * rng.uniform(-1, 1, centre.shape)
    return ValueBounds(centre - reach, centre + reach, np.ones((2, len(golden)), np.bool_)), inside


@given(st.integers(0, 2**32 - 1))
def test_values_stay_between_the_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    golden = rng.standard_normal((SAMPLES, 2, 4, 4))
    faulty, inside = bounds_around(rng, golden)
    pool = MaxPool((2, 2), (2, 2), (1, 1, 1, 1))
    weights = Convolution(rng.standard_normal((3, 2, 3, 3)), (1, 1), (1, 1, 1, 1))
    linear = Linear(golden, weights(golden), weights.magnitudes(np.abs(golden)), weights)
    scale, shift = rng.standard_normal(2), rng.standard_normal(2)
    normal = Normalization(scale, shift, np.abs(shift))
    cases = (
        (Clip(-0.5, 0.5), inside.clip(-0.5, 0.5)),
        (pool, pool(ValueBounds(inside, inside, faulty.live)).low),
        (Average(None), inside.mean((-2, -1), keepdims=True)),
        (Sum(golden), inside + golden),
        (normal, inside * scale[:, None, None] + shift[:, None, None]),
        (linear, weights(inside)),
        (Flatten((SAMPLES, 32)), inside.reshape(2, SAMPLES, -1)),
    )
    for rule, values in cases:
        found = rule(faulty)
        assert (found.low <= values).all() and (values <= found.high).all(), type(rule).__name__


def test_a_sum_that_may_overflow_is_unknown() -> None:
    product = Matrix(np.array([[1.0, 1.0], [1.0, -1.0]]))
    golden = np.ones((1, 2))
    linear = Linear(golden, product(golden), product.magnitudes(golden), product)
    for change, expected in ((1e30, (1e30, 1e30)), (3.4e38, (np.nan, np.nan)), (4e38, (np.nan, np.nan))):
        added = np.full((1, 1, 1), change)
        found = linear.entry(added, added, np.abs(added), np.array([0]))
        np.testing.assert_allclose((found.low.item(), found.high.item()), expected, rtol=1e-5)
        assert np.isnan(Clip()(linear(found)).low).any() == np.isnan(expected[0])


def test_a_node_without_a_rule_is_named() -> None:
    weights = np.zeros((2, 1, 3, 3))
    with pytest.raises(UnprovableError, match="no rule for this Conv"):
        convolution(helper.make_node("Conv", ["x", "w"], ["y"], group=2), weights)
    with pytest.raises(UnprovableError, match="no rule for this MaxPool"):
        window(helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], ceil_mode=1))
