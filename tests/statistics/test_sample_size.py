"""Sample sizes and allocations against published tables, and the p that weights suggest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxfi.errors import InputError
from onnxfi.statistics.intervals import Stratum, stratified_interval
from onnxfi.statistics.sample_size import (
    allocate,
    data_aware_p,
    exact_sample_size,
    margin_of_error,
    sample_size,
    trials_needed,
)

Floats = NDArray[np.float64]
RUNS = 1000

# ResNet-20 for CIFAR-10: 19 convolutions and the classifier; the shortcuts have no weights.
RESNET20 = [432, *[2304] * 6, 4608, *[9216] * 5, 18432, *[36864] * 5, 640]
# The tables published with Ruospo et al., DATE 2023, count ten weights more in the twelfth layer.
PUBLISHED = [*RESNET20[:11], 9226, *RESNET20[12:]]
# p of bits 31 to 22 that their data-aware table implies (found by inverting it); 1.05e-4 below.
PUBLISHED_P = [0.002143, 0.4916, 0.00045, 0.00045, 0.00046, 0.00341, 0.02772, 0.00524, 0.00036]


def stuck_at(weights: Sequence[int], bits: int = 32) -> list[int]:
    """Faults of each layer: every bit, stuck at 0 and at 1."""
    return [2 * bits * w for w in weights]


@pytest.mark.parametrize(
    ("population", "margin", "t", "p", "expected"),
    [
        (2_560, 0.01, 2.576, 0.5, 2217.8813),
        (10_000, 0.01, 2.576, 0.5, 6239.3431),
        (41_792, 0.01, 2.576, 0.5, 11875.6535),
        (168_640, 0.01, 2.576, 0.5, 15103.7452),
        (10**6, 0.01, 2.576, 0.5, 16318.7376),
        (10**7, 0.01, 2.576, 0.5, 16561.9663),
        (10**9, 0.01, 2.576, 0.5, 16589.1648),
        (10_000, 0.05, 1.96, 0.5, 369.9837),
        (10**6, 0.05, 1.96, 0.5, 384.0129),
        (168_640, 0.01, 2.576, 0.0115, 750.9837),
    ],
)
def test_sample_size_pins(population: int, margin: float, t: float, p: float, expected: float) -> None:
    assert exact_sample_size(population, margin, p=p, t=t) == pytest.approx(expected, abs=5e-5)
    assert sample_size(population, margin, p=p, t=t) == math.ceil(expected)


def test_the_quantile_is_exact_unless_given() -> None:
    z = 2.5758293035489
    assert exact_sample_size(10**6, 0.01) == pytest.approx(exact_sample_size(10**6, 0.01, t=z), rel=1e-12)
    assert exact_sample_size(10**6, 0.05, 0.95) == pytest.approx(exact_sample_size(10**6, 0.05, t=1.959963984540054))


def test_published_resnet20_tables_round_to_nearest() -> None:
    """t = 2.58, e = 1 %, a population of 17,174,144, and rounding to nearest in each cell give all four sums."""
    layers = stuck_at(PUBLISHED)
    faults = sum(layers)
    assert faults == 17_174_144
    network = exact_sample_size(faults, 0.01, t=2.58)
    assert network == pytest.approx(16_624.892, abs=1e-3)
    assert sample_size(faults, 0.01, t=2.58) == 16_625
    assert sum(round(network * size / faults) for size in layers) == 16_628
    assert sum(round(exact_sample_size(size, 0.01, t=2.58)) for size in layers) == 307_650
    bits = stuck_at(PUBLISHED, 1)
    assert sum(32 * round(exact_sample_size(size, 0.01, t=2.58)) for size in bits) == 4_885_760
    aware = [*PUBLISHED_P, *[1.05e-4] * 23]
    assert sum(round(exact_sample_size(size, 0.01, p=p, t=2.58)) for size in bits for p in aware) == 201_079


def test_allocate_rounds_up_in_every_stratum() -> None:
    layers, bits = stuck_at(RESNET20), [size for size in stuck_at(RESNET20, 1) for _ in range(32)]
    assert sum(layers) == 17_173_504
    assert sum(allocate(layers, 0.01, t=2.58)) == 16_628
    assert sum(allocate(layers, 0.01, t=2.58, per="layer")) == 307_660
    assert sum(allocate(bits, 0.01, t=2.58, per="layer-bit")) == 4_885_696
    # With the published layer sizes: one, ten and 96 trials more than rounding to nearest.
    layers, bits = stuck_at(PUBLISHED), [size for size in stuck_at(PUBLISHED, 1) for _ in range(32)]
    assert sum(allocate(layers, 0.01, t=2.58)) == 16_629
    assert sum(allocate(layers, 0.01, t=2.58, per="layer")) == 307_660
    assert sum(allocate(bits, 0.01, t=2.58, per="layer-bit")) == 4_885_856


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30), st.floats(0.005, 0.2))
def test_allocations_fit_their_strata(sizes: list[int], margin: float) -> None:
    total = sample_size(sum(sizes), margin)
    shared = allocate(sizes, margin)
    assert total <= sum(shared) < total + len(sizes)
    each = allocate(sizes, margin, per="layer")
    assert each == tuple(sample_size(size, margin) for size in sizes)
    assert all(1 <= n <= size for row in (shared, each) for n, size in zip(row, sizes, strict=True))
    assert allocate(sizes, margin, per="data-aware", p=[0.5] * len(sizes)) == each


@given(st.integers(2, 10**9), st.floats(1e-4, 0.3), st.floats(0.5, 0.999), st.floats(1e-3, 0.999))
def test_margin_inverts_the_sample_size(population: int, margin: float, confidence: float, p: float) -> None:
    n = sample_size(population, margin, confidence, p)
    assert margin_of_error(n, population, confidence, p) <= margin * (1 + 1e-9)
    if n > 1:
        assert margin_of_error(n - 1, population, confidence, p) > margin * (1 - 1e-9)


def test_margin_is_zero_when_everything_was_run() -> None:
    assert margin_of_error(640, 640) == 0
    assert margin_of_error(1, 1) == 0


def mean_distances(weights: NDArray[Any], word: type[np.unsignedinteger[Any]]) -> Floats:
    """Mean |faulty - golden| of a flip in each bit of the weights."""
    words: NDArray[Any] = weights.view(word)
    with np.errstate(invalid="ignore"):
        flipped = [(words ^ word(1 << b)).view(weights.dtype) for b in range(8 * words.itemsize)]
        return np.array([np.abs(f.astype(np.float64) - weights.astype(np.float64)).mean() for f in flipped])


@pytest.mark.parametrize(("dtype", "word", "mantissa"), [("f4", np.uint32, 23), ("f2", np.uint16, 10)])
def test_data_aware_p_of_float_weights(dtype: str, word: type[np.unsignedinteger[Any]], mantissa: int) -> None:
    weights = np.random.default_rng(0).normal(0, 0.08, 20_000).astype(dtype)
    p = data_aware_p(mean_distances(weights, word))
    bits = len(p)
    assert bits == 8 * weights.itemsize
    assert ((p >= 1e-4) & (p <= 0.5)).all()
    assert p[bits - 2] == 0.5  # the exponent's highest bit, whose distance dwarfs the others
    assert (np.sort(p)[::-1][:2] == 0.5).all()  # it does not press the next one down
    assert all(a <= b for a, b in pairwise(p[:mantissa]))
    sizes = [20_000] * bits
    aware = sum(allocate(sizes, 0.01, per="data-aware", p=p))
    assert aware < 0.5 * sum(allocate(sizes, 0.01, per="layer-bit"))


def test_data_aware_p_where_distances_are_not_finite() -> None:
    finite = data_aware_p([0.25, 0.5, 1.0, 2.0])
    assert finite.tolist() == [0.0625, 0.125, 0.25, 0.5]
    assert data_aware_p([0.25, 0.5, 1.0, 2.0, math.inf, math.nan]).tolist() == [*finite, 0.5, 0.5]
    assert data_aware_p([0.0, 0.0]).tolist() == [0.5, 0.5]
    assert data_aware_p([math.nan]).tolist() == [0.5]
    assert data_aware_p([0.0, 3.0]).tolist() == [1e-4, 0.5]
    assert data_aware_p([7.0]).tolist() == [0.5]


@given(
    st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), min_size=1, max_size=12), st.sampled_from([0.03, 0.05, 0.2])
)
def test_as_many_trials_as_are_needed_are_enough_and_no_fewer(values: list[float], margin: float) -> None:
    needed = trials_needed([Stratum.of(values)], margin)

    def width(n: int) -> float:
        share = n / len(values)
        one = Stratum(None, n, sum(values) * share, sum(x * x for x in values) * share)
        return stratified_interval([one]).half_width

    assert width(needed) <= margin and needed >= len(values)
    assert needed == len(values) or width(needed - 1) > margin


def test_more_trials_than_faults_are_never_needed() -> None:
    assert trials_needed([Stratum.of([0.0, 1.0, 0.0, 1.0], 20)], 0.01) == 20
    with pytest.raises(InputError, match="there are no trials"):
        trials_needed([Stratum.of([])], 0.05)
