"""Class indices as answers: outcomes, metrics against scikit-learn, what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from onnxfi.errors import DataError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.sample_outputs import as_run
from onnxfi.tasks.kinds.class_indices import CLASS_INDICES
from onnxfi.tasks.kinds.classification import CLASSIFICATION
from onnxfi.tasks.outcomes import GoldenRun, failed, judge
from onnxfi.tasks.registry import choose_task, remark


def golden_of(numbers: Any, labels: Any = None) -> GoldenRun:
    labels = None if labels is None else np.array(labels)
    return GoldenRun.of(np.array(numbers), labels, CLASS_INDICES, "auto", 0.0, ("crash", "nonfinite"))


def test_metrics_are_scikit_learns_on_a_hundred_random_cases() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        n, classes = int(random.integers(1, 30)), int(random.integers(2, 5))
        labels, numbers = random.integers(0, classes, n), random.integers(0, classes, n)
        faulty = np.where(random.random(n) < 0.3, random.integers(0, classes, n), numbers)
        found = judge(golden_of(numbers, labels), faulty).metrics
        assert found["top1"] == pytest.approx(accuracy_score(labels, faulty))
        held = np.unique(labels)
        wanted = np.mean([accuracy_score(labels[labels == c], faulty[labels == c]) for c in held])
        assert found["balanced_accuracy"] == pytest.approx(wanted)
        if len(held) > 1 and set(faulty) <= set(held.tolist()):
            assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, faulty))
        assert found["sdc1"] == found["top1_changed"] == np.mean(numbers != faulty)
        assert found["critical"] == np.mean((numbers != faulty) & (numbers == labels))


def test_balanced_accuracy_of_scores_is_that_of_their_top_1() -> None:
    random = np.random.default_rng(1)
    for _ in range(100):
        scores, labels = random.normal(size=(20, 3)).astype(np.float32), np.arange(20) % 3
        golden = GoldenRun.of(scores, labels, CLASSIFICATION, "auto", 0.0, ("nonfinite",))
        faulty = np.where(random.random((20, 1)) < 0.5, random.normal(size=(20, 3)), scores).astype(np.float32)
        found = judge(golden, faulty).metrics["balanced_accuracy"]
        assert found == pytest.approx(balanced_accuracy_score(labels, faulty.argmax(1)))


def test_an_answer_is_its_number_or_wrong() -> None:
    golden = golden_of([[2], [1]], [2, 0])
    assert judge(golden, np.array([[2], [1]])).outcome == "masked"
    changed = judge(golden, np.array([[2], [0]]))
    assert (changed.outcome, changed.metrics["sdc_samples"], changed.metrics["critical"]) == ("sdc", 0.5, 0.0)
    lost = failed(golden, "crash")
    assert (lost.outcome, lost.metrics["top1"], lost.metrics["balanced_accuracy"]) == ("due", 0.0, 0.0)


@pytest.mark.parametrize(
    ("scores", "labels", "name"),
    [
        (np.zeros(2, np.int64), [0, 1], "top1"),
        (np.zeros((2, 1), np.int32), [0, 5], "top1"),
        (np.zeros((2, 3), np.float32), [0, 1], "top5"),
    ],
)
def test_the_form_of_the_task_follows_from_the_output(scores: Any, labels: Any, name: str) -> None:
    data = Data((), 2, np.array(labels), False, "", None, None)  # type: ignore[arg-type]
    for spec in ("auto", "classification"):
        task = choose_task(spec, scores, "y", data)
        assert task.name == "classification" and name in task.by_name
        assert ("top5" in task.by_name) == (name == "top5")
        run = as_run(scores)
        assert "no top-1" not in remark(spec, task, run, "y", 2, labelled=True)


def test_what_may_be_anything_is_no_class_without_labels() -> None:
    data = Data((), 2, None, False, "", None, None)  # type: ignore[arg-type]
    assert choose_task("auto", np.zeros(2, np.int64), "y", data).name == "deviation"
    assert choose_task("classification", np.zeros(2, np.int64), "y", data) is CLASS_INDICES
    with pytest.raises(DataError, match="task classification does not fit"):
        choose_task("classification", np.array([-1, 2]), "y", data)
