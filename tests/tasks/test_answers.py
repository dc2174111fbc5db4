"""Answers: what is found of each sample by blocks is what a loop over plain rows finds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray
from score_pairs import INF, NAN, Pair, outputs

from onnxfi.errors import DataError
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.tasks import answers
from onnxfi.tasks.answers import AnswerPair, Answers, ClassPair, differing, float64, magnitude, share, softmax
from onnxfi.tasks.kinds.classification import CLASS_OUTCOMES, CLASSIFICATION
from onnxfi.tasks.outcomes import GoldenRun, judge, judge_pair


def order(row: NDArray[Any]) -> list[int]:
    """Classes from the highest score down, lower classes first in a tie; none where a score is NaN."""
    values = [float(v) for v in row]
    return [] if any(map(math.isnan, values)) else sorted(range(len(values)), key=lambda k: (-values[k], k))


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@settings(max_examples=30)
@given(pair=outputs())
def test_what_is_found_of_each_sample_is_what_a_loop_finds(block: int, pair: Pair) -> None:
    golden, _, labels = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "BLOCK", block)
        found = Answers.of(golden, labels)
        orders = [order(row) for row in golden]
        assert found.top.tolist() == [one[0] if one else -1 for one in orders]
        assert found.right.tolist() == [
            bool(one) and one[0] == label for one, label in zip(orders, labels, strict=True)
        ]
        assert found.five.tolist() == [label in one[:5] for one, label in zip(orders, labels, strict=True)]
        assert found.nonfinite.tolist() == [not all(map(math.isfinite, map(float, row))) for row in golden]
        finite = np.abs(golden.astype(np.float64))[np.isfinite(golden)]
        assert found.largest == (finite.max() if finite.size else 0.0)


@settings(max_examples=30)
@given(pair=outputs())
def test_what_changed_is_what_differs_in_a_bit(pair: Pair) -> None:
    golden, faulty, labels = pair
    found = AnswerPair(Answers.of(golden, labels), Answers.of(faulty))
    bits = [
        [g.tobytes() != f.tobytes() for g, f in zip(one, other, strict=True)]
        for one, other in zip(golden, faulty, strict=True)
    ]
    assert found.differ.tolist() == [sum(row) for row in bits]
    assert found.changed.tolist() == [k for k, row in enumerate(bits) if any(row)]
    assert differing(golden, faulty).tolist() == bits
    broken = [not np.isfinite(row).all() for row in faulty]
    assert found.nonfinite.tolist() == broken


@settings(max_examples=30)
@given(pair=outputs(finite=True))
def test_detected_and_silent_changes_are_apart(pair: Pair) -> None:
    golden, faulty, labels = pair
    faulty = faulty.copy()
    faulty[::2, 0] = np.nan
    found = AnswerPair(Answers.of(golden, labels), Answers.of(faulty))
    assert not (found.detected & found.silent_top).any() and not (found.silent_five & ~found.silent_top).any()
    assert found.detected[::2].all() and not found.detected[1::2].any()
    tops = [order(one)[:1] != order(other)[:1] for one, other in zip(golden, faulty, strict=True)]
    assert found.other_top.tolist() == tops


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.0, 0.0]], [[0.5, 0.5]]),
        ([[1000.0, 1000.0, -INF]], [[0.5, 0.5, 0.0]]),
        ([[INF, 1.0, INF]], [[0.5, 0.0, 0.5]]),
        ([[NAN, 1.0]], [[NAN, NAN]]),
        ([[math.log(1), math.log(3)]], [[0.25, 0.75]]),
    ],
)
def test_the_softmax(rows: list[list[float]], expected: list[list[float]]) -> None:
    np.testing.assert_allclose(softmax(np.array(rows)), expected)


def test_logits_have_a_chance_and_counts_are_their_own() -> None:
    scores = np.array([[0.0, math.log(3)], [2.0, 2.0]])
    np.testing.assert_allclose(Answers.of(scores).chance, [0.75, 0.5])
    np.testing.assert_allclose(Answers.of(scores, kind="counts").chance, [math.log(3), 2.0])


def test_shares_and_numbers_in_float64() -> None:
    assert share(np.array([True, False, False, True])) == 0.5 and share(np.zeros(0, np.bool_)) == 0.0
    assert float64(np.array([1.5, 2.5], np.float16)).dtype == np.float64
    assert magnitude(np.array([[-3.0, 2.0], [1.0, np.nan]])).tolist() == pytest.approx([3.0, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        (np.zeros((2, 3, 4)), None, r"top-1 takes scores of shape \[N, classes\], given \[2, 3, 4\]"),
        (np.zeros((2, 3)), None, "accuracy needs labels; the data has none"),
        (np.zeros((2, 3)), np.array([0]), "1 labels for 2 samples"),
        (np.zeros((2, 3)), np.array([0, 3]), "labels go from 0 to 3, but the model scores 3 classes, counted from 0"),
        (np.zeros((2, 3)), np.array([-1, 2]), "labels go from -1 to 2"),
    ],
)
def test_scores_and_labels_that_do_not_fit(scores: Any, labels: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        _ = Answers.of(scores, labels).right


def test_batches_are_one_set_of_samples() -> None:
    first, second = (Outputs(np.array(samples), {"y": np.array(rows, np.float32)})
                     for samples, rows in (([4, 5], [[0, 1], [1, 0]]), ([6], [[3, 2]])))  # fmt: skip
    found = Answers((first, second), np.array([1, 0, 1]))
    assert found.samples.tolist() == [4, 5, 6] and found.top.tolist() == [1, 0, 0]
    assert found.right.tolist() == [True, True, False] and found.rows.shape == (3, 2)


SCORES = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [5.0, 1.0]], np.float32)


def test_classes_are_judged_as_scores_are() -> None:
    faulty = SCORES.copy()
    faulty[0, 1], faulty[1, 0], faulty[2] = 9.0, 0.5, (np.inf, 0.0)
    labels = np.array([0, 1, 0, 1])
    golden = GoldenRun.of(SCORES, labels, CLASS_OUTCOMES, "auto", 0.0, ("nonfinite",))
    truth = judge(golden, faulty)
    due = np.array([False, False, True, False])
    pair = ClassPair(
        golden.answers, golden.answers, top=np.array([1, 1, 0, 0]), other_top=np.array([True, False, False, False]),
        detected=due, nonfinite=due, proved=~due,
    )  # fmt: skip
    found = judge_pair(golden, pair)
    assert found.metrics == truth.metrics | {"proved_samples": 0.75} and found.outcome == truth.outcome == "due"
    assert found.changed == truth.changed and truth.metrics["proved_samples"] == 0
    every = judge(GoldenRun.of(SCORES, labels, CLASSIFICATION, "auto", 0.0, ("nonfinite",)), faulty).metrics
    assert all(every[name] == truth.metrics[name] for name in ("sdc1", "top1", "critical", "top1_changed", "nonfinite"))
    assert truth.metrics["masked_samples"] == 0.5 and every["masked_samples"] == 0.25
