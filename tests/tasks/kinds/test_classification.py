"""Classification: worked examples of its metrics, and the kinds of scores."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from score_pairs import INF, METRICS, NAN, OF_SCORES, Pair, measure, outputs

from onnxfi.errors import DataError
from onnxfi.tasks.answers import float64, softmax
from onnxfi.tasks.kinds.classification import score_kind

laws = settings(max_examples=40)  # drawn once for all metrics: to draw costs more than to measure


@laws
@given(pair=outputs())
def test_the_top_five_hold_the_top_one(pair: Pair) -> None:
    assert METRICS["top5"](*pair) >= METRICS["top1"](*pair)
    assert METRICS["sdc5"](*pair) <= METRICS["sdc1"](*pair)


@laws
@given(pair=outputs())
def test_another_top_1_is_the_accuracy_lost_on_golden_answers(pair: Pair) -> None:
    golden, faulty, _ = pair
    assume(not np.isnan(golden).any())
    assert METRICS["top1_changed"](golden, faulty) == pytest.approx(
        1 - METRICS["top1"](golden, faulty, golden.argmax(1).astype(np.int64))
    )


@laws
@given(pair=outputs())
def test_sdc1_is_silent(pair: Pair) -> None:
    golden, faulty, _ = pair
    assert METRICS["sdc1"](golden, faulty) <= METRICS["top1_changed"](golden, faulty)
    finite = np.isfinite(faulty).all(axis=1)
    assert METRICS["sdc1"](golden[finite], faulty[finite]) == METRICS["top1_changed"](golden[finite], faulty[finite])
    due = ~finite & np.isfinite(golden).all(axis=1)
    assert METRICS["sdc1"](golden[due], faulty[due]) == 0.0


ROW = [0.1, 0.7, 0.2, 0.0, 0.0, 0.0]
FIVE = [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("faulty", "label", "top1", "top5"),
    [
        (ROW, 1, 1.0, 1.0),
        (ROW, 2, 0.0, 1.0),
        (ROW, 4, 0.0, 1.0),
        (ROW, 5, 0.0, 0.0),
        ([1, 1, 1, 1, 1, 1], 0, 1.0, 1.0),
        ([1, 1, 1, 1, 1, 1], 5, 0.0, 0.0),
        ([0, 1, 1, 0, 0, 0], 2, 0.0, 1.0),
        ([INF, 1, 0, 0, 0, 0], 0, 1.0, 1.0),
        ([-INF] * 6, 0, 1.0, 1.0),
        ([NAN, 1, 0, 0, 0, 0], 1, 0.0, 0.0),
        ([NAN] * 6, 0, 0.0, 0.0),
    ],
)
def test_accuracy_with_ties_and_nan(faulty: list[float], label: int, top1: float, top5: float) -> None:
    labels = np.array([label])
    assert measure("top1", [ROW], [faulty], labels) == top1
    assert measure("top5", [ROW], [faulty], labels) == top5


NAN_LAST = [0, 0, 0, 0, 0, NAN]


@pytest.mark.parametrize(
    ("golden", "faulty", "sdc1", "sdc5", "top1_changed"),
    [
        (FIVE, FIVE, 0.0, 0.0, 0.0),
        (FIVE, [9, 4, 3, 2, 1, 0], 0.0, 0.0, 0.0),
        (FIVE, [4, 5, 3, 2, 1, 0], 1.0, 0.0, 1.0),
        (FIVE, [-1, 5, 4, 3, 2, 1], 1.0, 1.0, 1.0),
        (FIVE, [1, 5, 4, 3, 2, 1], 1.0, 0.0, 1.0),
        (FIVE, [5, 4, 3, 2, 1, NAN], 0.0, 0.0, 1.0),  # another top-1, but detected
        (FIVE, [5, INF, 3, 2, 1, 0], 0.0, 0.0, 1.0),
        (FIVE, [INF, 4, 3, 2, 1, 0], 0.0, 0.0, 0.0),
        ([5, INF, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], 1.0, 0.0, 1.0),
        ([5, 4, 3, 2, 1, -INF], [4, 5, 3, 2, 1, -INF], 1.0, 0.0, 1.0),  # an infinity of the golden output shows nothing
        (NAN_LAST, FIVE, 1.0, 1.0, 1.0),
        (NAN_LAST, NAN_LAST, 0.0, 0.0, 0.0),
        (NAN_LAST, [0, 0, 0, 0, 1, NAN], 1.0, 1.0, 1.0),
    ],
)
def test_silent_corruption(
    golden: list[float], faulty: list[float], sdc1: float, sdc5: float, top1_changed: float
) -> None:
    assert measure("sdc1", [golden], [faulty]) == sdc1
    assert measure("sdc5", [golden], [faulty]) == sdc5
    assert measure("top1_changed", [golden], [faulty]) == top1_changed


@pytest.mark.parametrize("name", sorted(OF_SCORES))
def test_classifier_metrics_take_two_dimensions(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: top-1 takes scores of shape \[N, classes\], given \[2, 3, 4\]"):
        METRICS[name](np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), np.zeros(2, np.int64))


@given(pair=outputs(finite=True))
def test_the_softmax_is_one(pair: Pair) -> None:
    found = softmax(float64(pair[0]))
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found >= 0).all()
    assert score_kind(found) == "probabilities"


def test_kinds_of_scores() -> None:
    np.testing.assert_allclose(softmax(np.log([[1.0, 3.0]])), [[0.25, 0.75]])
    half = softmax(np.random.default_rng(0).normal(size=(5, 1000))).astype(np.float16)
    assert score_kind(half) == "probabilities"
    assert score_kind(np.array([[0.5, 0.5], [0.5, 0.6]])) == "logits"
    assert score_kind(np.array([[NAN, 1.0]])) == "logits"
    assert score_kind(np.array([[3, 5, 0]], np.int64)) == "counts"


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([[8, 0, 3], [0, 0, 0]], "counts"),
        ([[8, 0, 1024], [0, 0, 1]], "counts"),
        ([[-0.0, 2.0, 0.0]], "counts"),
        ([[8, 0, 3], [0, 0, 0.5]], "logits"),
        ([[8, 0, 3], [0, 0, -1]], "logits"),
        ([[8, 0, 1025]], "logits"),
        ([[8, 0, INF]], "logits"),
        ([[1, 0, 0], [0, 0, 1]], "probabilities"),  # either is read as it is
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_small_whole_numbers_are_spike_counts(rows: list[list[float]], kind: str, dtype: Any) -> None:
    scores = np.array(rows).astype(dtype)
    assert score_kind(scores) == ("counts" if dtype is ml_dtypes.bfloat16 and rows[0][2] == 1025 else kind)


def test_scores_that_are_not_finite() -> None:
    found = softmax(np.array([[NAN, 0.0], [INF, INF], [INF, 0.0], [-INF, -INF]]))
    assert np.isnan(found[0]).all()
    assert found[1:].tolist() == [[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]
