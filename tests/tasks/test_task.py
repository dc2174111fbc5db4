"""Metrics: laws that every metric in the table keeps, and worked examples of each."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from score_pairs import LABELLED, METRICS, OF_SCORES, Pair, outputs

from onnxfi.errors import DataError
from onnxfi.tasks.kinds.classification import CLASSIFICATION
from onnxfi.tasks.kinds.deviation import DEVIATION
from onnxfi.tasks.task import Metric

laws = settings(max_examples=40)  # drawn once for all metrics: to draw costs more than to measure
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


# Laws of every metric


@laws
@given(pair=outputs())
def test_a_metric_is_a_plain_number_and_silent(pair: Pair) -> None:
    before = [one.tobytes() for one in pair]
    for metric in METRICS.values():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value = metric(*pair)
        assert type(value) is float, metric
        assert not np.isnan(value), metric
        assert value == metric(*pair), metric
        assert [one.tobytes() for one in pair] == before, metric


@laws
@given(pair=outputs(finite=True))
def test_golden_against_itself_is_unchanged(pair: Pair) -> None:
    golden, _, labels = pair
    for metric in METRICS.values():
        value = metric(golden, golden.copy(), labels)
        assert metric.needs_labels or value == metric.unchanged, metric


@laws
@given(pair=outputs())
def test_golden_against_itself_is_unchanged_whatever_it_holds(pair: Pair) -> None:
    golden, _, labels = pair
    for name in METRICS.keys() - {"nonfinite", *LABELLED}:
        assert METRICS[name](golden, golden.copy(), labels) == METRICS[name].unchanged, name


@laws
@given(pair=outputs(), random=st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(pair: Pair, random: Any) -> None:
    order = list(range(len(pair[0])))
    random.shuffle(order)
    assert_the_same([one[order] for one in pair], pair)


@laws
@given(pair=outputs())
def test_samples_given_twice_count_twice(pair: Pair) -> None:
    assert_the_same([np.concatenate([one, one]) for one in pair], pair)


@laws
@given(pair=outputs())
def test_memory_layout_does_not_matter(pair: Pair) -> None:
    golden, faulty, labels = pair
    assert_the_same([np.asfortranarray(golden), np.repeat(faulty, 2, axis=1)[:, ::2], labels], pair)


def assert_the_same(other: Any, pair: Pair) -> None:
    """Every metric says of the other pair what it says of this one."""
    for metric in METRICS.values():
        assert metric(*other) == pytest.approx(metric(*pair), rel=1e-9, abs=1e-12), metric


@laws
@given(pair=outputs())
def test_shares_lie_between_none_and_all(pair: Pair) -> None:
    for metric in METRICS.values():
        bounded = metric.name not in ("max_abs", "rel_l2")
        low = -1.0 if metric.name == "cosine" else 0.0
        assert metric(*pair) >= low, metric
        assert not bounded or metric(*pair) <= 1.0, metric


@every_metric
def test_outputs_of_other_shapes_are_the_worst_case(metric: Metric) -> None:
    golden, faulty = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    value = metric(golden, faulty, np.zeros(4, np.int64))
    assert value == (metric.failed or 0.0)


@every_metric
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_compare_is_no_deviation(metric: Metric, shape: tuple[int, int]) -> None:
    if metric.needs_labels and shape[0]:
        with pytest.raises(DataError):
            metric(np.ones(shape), np.ones(shape), np.zeros(shape[0], np.int64))
    else:
        value = metric(np.ones(shape), np.ones(shape), np.zeros(0, np.int64))
        assert value == (0.0 if metric.needs_labels else metric.unchanged)


@pytest.mark.parametrize("name", sorted(METRICS.keys() - OF_SCORES))
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8, np.uint64, np.bool_, np.complex64])
def test_outputs_of_any_shape_and_type_are_measured(name: str, dtype: Any) -> None:
    metric = METRICS[name]
    for shape in ((), (4,), (4, 2), (2, 3, 4, 5)):
        golden, faulty = np.ones(shape).astype(dtype), np.zeros(shape).astype(dtype)
        assert metric(golden, golden) == metric.unchanged, shape
        assert metric(golden, faulty) == {"nonfinite": 0.0, "cosine": 0.0}.get(name, 1.0), shape


# Worked examples


# What does not fit


@pytest.mark.parametrize("name", ["top1", "top5"])
@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "accuracy needs labels; the data has none"),
        (np.zeros(3, np.int64), "3 labels for 2 samples"),
        (np.zeros((2, 1), np.int64), "2 labels for 2 samples"),
        (np.array([0, 4]), "labels go from 0 to 4, but the model scores 4 classes, counted from 0"),
        (np.array([-1, 0]), "labels go from -1 to 0, but the model scores 4 classes"),
    ],
)
def test_labels_that_do_not_fit(name: str, labels: NDArray[np.int64] | None, says: str) -> None:
    with pytest.raises(DataError, match=says):
        METRICS[name](np.zeros((2, 4)), np.zeros((2, 4)), labels)


# Which metrics, which output


def test_metrics_by_what_model_and_data_allow() -> None:
    assert {metric.name for metric in CLASSIFICATION.applicable(np.array([0]))} >= METRICS.keys()
    free = {metric.name for metric in CLASSIFICATION.applicable(None)}
    assert free & METRICS.keys() == METRICS.keys() - LABELLED
    plain = {metric.name for metric in DEVIATION.applicable(np.array([0]))}
    assert plain == {"nonfinite", "changed", "changed_samples", "max_abs", "rel_l2", "cosine"}


# Probabilities
