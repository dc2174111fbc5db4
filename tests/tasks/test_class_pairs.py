"""Judgements of classes alone, without scores."""

from __future__ import annotations

import numpy as np

from onnxfi.tasks.class_pairs import ClassPair
from onnxfi.tasks.kinds.classification import CLASS_OUTCOMES, CLASSIFICATION
from onnxfi.tasks.outcomes import GoldenRun, judge, judge_pair

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
