"""Metrics: laws that every metric in the table keeps, and worked examples of each."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from onnxfi.errors import DataError, InputError
from onnxfi.tasks.answers import differing
from onnxfi.tasks.kinds.classification import CLASSIFICATION, probabilities, score_kind
from onnxfi.tasks.kinds.deviation import DEVIATION
from onnxfi.tasks.task import Metric

METRICS = {metric.name: metric for metric in CLASSIFICATION.view(CLASSIFICATION.evaluated)}
LABELLED = {name for name, metric in METRICS.items() if metric.needs_labels}
OF_SCORES = METRICS.keys() - DEVIATION.by_name.keys()

laws = settings(max_examples=40)  # drawn once for all metrics: to draw costs more than to measure
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
NAN, INF = np.nan, np.inf

Pair = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]


@st.composite
def outputs(draw: st.DrawFn, *, finite: bool = False) -> Pair:
    """Golden and faulty scores [N, classes], mostly alike, and labels."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 8)))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16]))
    few = st.sampled_from([0.0, -0.0, 1.0, -2.5, 100.0, *([] if finite else [NAN, INF, -INF])])
    any_value = arrays.from_dtype(np.dtype(dtype), allow_nan=not finite, allow_infinity=not finite)
    golden = draw(arrays.arrays(dtype, shape, elements=few | any_value))
    other = draw(arrays.arrays(dtype, shape, elements=few | any_value))
    faulty = np.where(draw(arrays.arrays(np.bool_, shape)), golden, other)
    return golden, faulty, draw(arrays.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))


def measure(name: str, golden: Any, faulty: Any, labels: Any = None) -> float:
    return METRICS[name](np.array(golden, np.float32), np.array(faulty, np.float32), labels)


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


@laws
@given(pair=outputs())
def test_no_metric_moves_while_no_bit_does(pair: Pair) -> None:
    golden, faulty, labels = pair
    changed = METRICS["changed"](golden, faulty)
    for name in METRICS.keys() - {"nonfinite", *LABELLED}:
        assert changed > 0 or METRICS[name](golden, faulty, labels) == METRICS[name].unchanged, name
    assert METRICS["changed_samples"](golden, faulty) >= changed


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


@laws
@given(pair=outputs(finite=True))
def test_deviations_agree_with_numpy(pair: Pair) -> None:
    golden, faulty = (one.astype(np.float64) for one in pair[:2])
    golden, faulty = np.clip(golden, -1e100, 1e100), np.clip(faulty, -1e100, 1e100)
    assert METRICS["max_abs"](golden, faulty) == np.abs(golden - faulty).max()
    norm = np.linalg.norm(golden)
    assume(min(norm, np.linalg.norm(faulty)) > 1e-100)
    assert METRICS["rel_l2"](golden, faulty) == pytest.approx(np.linalg.norm(golden - faulty) / norm, rel=1e-6)
    cosine = np.sum(golden / norm * (faulty / np.linalg.norm(faulty)))
    assert METRICS["cosine"](golden, faulty) == pytest.approx(cosine, abs=1e-6)


# Worked examples

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


def test_shares_are_over_samples_or_elements() -> None:
    golden = np.zeros((4, 2, 3), np.float32)
    faulty = golden.copy()
    faulty[0, 0, 0], faulty[0, 1, 2], faulty[3, 0, 0] = NAN, INF, -0.0
    assert METRICS["nonfinite"](golden, faulty) == 1 / 4
    assert METRICS["changed"](golden, faulty) == 3 / 24
    assert METRICS["changed_samples"](golden, faulty) == 2 / 4


@pytest.mark.parametrize(
    ("golden", "faulty", "max_abs", "rel_l2", "cosine"),
    [
        ([3, 4], [3, 4], 0.0, 0.0, 1.0),
        ([3, 4], [0, 0], 4.0, 1.0, 0.0),
        ([3, 4], [-3, -4], 8.0, 2.0, -1.0),
        ([3, 4], [4, -3], 7.0, 2**0.5, 0.0),
        ([0, 0], [-0.0, 0], 0.0, 0.0, 1.0),
        ([0, 0], [1, 0], 1.0, INF, 0.0),
        ([3, NAN], [3, NAN], 0.0, 0.0, 1.0),
        ([3, INF], [3, INF], 0.0, 0.0, 1.0),
        ([3, INF], [6, INF], 3.0, 1.0, 0.0),
        ([3, 4], [3, NAN], INF, INF, 0.0),
        ([3, NAN], [3, 4], INF, INF, 0.0),
        ([3, INF], [3, -INF], INF, INF, 0.0),
    ],
)
def test_deviations(golden: list[float], faulty: list[float], max_abs: float, rel_l2: float, cosine: float) -> None:
    assert measure("max_abs", golden, faulty) == max_abs
    assert measure("rel_l2", golden, faulty) == pytest.approx(rel_l2)
    assert measure("cosine", golden, faulty) == pytest.approx(cosine)


def test_large_numbers_do_not_overflow() -> None:
    golden = np.array([1e300, 1e300])
    assert METRICS["rel_l2"](golden, golden * 2) == pytest.approx(1.0)
    assert METRICS["cosine"](golden * 1e8, golden * [1e8, 1.5e8]) == pytest.approx(5 / 26**0.5)


def test_text_can_change_but_has_no_distance() -> None:
    golden, faulty = np.array(["a", "b"], object), np.array(["a", "c"], object)
    assert METRICS["changed"](golden, faulty) == 0.5
    assert METRICS["nonfinite"](golden, faulty) == 0.0
    with pytest.raises(DataError, match="takes numbers, and the output is text"):
        METRICS["max_abs"](golden, faulty)


def test_bits_decide_what_differs() -> None:
    quiet = np.array([0x7FC00000, 0x7FC00001, 0], np.uint32).view(np.float32)
    other = np.array([0x7FC00000, 0x7FC00002, 0x80000000], np.uint32).view(np.float32)
    assert differing(quiet, other).tolist() == [False, True, True]
    assert differing(np.array([1 + 2j, 3j]), np.array([1 + 2j, 4j])).tolist() == [False, True]


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


@pytest.mark.parametrize("name", sorted(OF_SCORES))
def test_classifier_metrics_take_two_dimensions(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: top-1 takes scores of shape \[N, classes\], given \[2, 3, 4\]"):
        METRICS[name](np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), np.zeros(2, np.int64))


# Which metrics, which output


def test_metrics_by_what_model_and_data_allow() -> None:
    assert {metric.name for metric in CLASSIFICATION.applicable(np.array([0]))} >= METRICS.keys()
    free = {metric.name for metric in CLASSIFICATION.applicable(None)}
    assert free & METRICS.keys() == METRICS.keys() - LABELLED
    plain = {metric.name for metric in DEVIATION.applicable(np.array([0]))}
    assert plain == {"nonfinite", "changed", "changed_samples", "max_abs", "rel_l2", "cosine"}


# Probabilities


@given(pair=outputs(finite=True))
def test_the_softmax_is_one(pair: Pair) -> None:
    found = probabilities(pair[0], "logits")
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found >= 0).all()
    assert score_kind(found) == "probabilities"
    np.testing.assert_array_equal(probabilities(found), found)


def test_kinds_of_scores() -> None:
    counts = np.array([[3, 5, 0]], np.int64)
    np.testing.assert_array_equal(probabilities(counts, "counts"), [[3.0, 5.0, 0.0]])
    np.testing.assert_allclose(probabilities(np.log([[1.0, 3.0]])), [[0.25, 0.75]])
    half = probabilities(np.random.default_rng(0).normal(size=(5, 1000)), "logits").astype(np.float16)
    assert score_kind(half) == "probabilities"
    assert score_kind(np.array([[0.5, 0.5], [0.5, 0.6]])) == "logits"
    assert score_kind(np.array([[NAN, 1.0]])) == "logits"
    np.testing.assert_array_equal(probabilities(counts), [[3.0, 5.0, 0.0]])
    with pytest.raises(InputError, match="no kind of scores 'logit'; closest: 'logits'"):
        probabilities(counts, "logit")


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
    found = probabilities(np.array([[NAN, 0.0], [INF, INF], [INF, 0.0], [-INF, -INF]]), "logits")
    assert np.isnan(found[0]).all()
    assert found[1:].tolist() == [[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]
