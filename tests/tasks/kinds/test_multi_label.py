"""Multi-label and binary: decisions against their truth table, metrics against scikit-learn, what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as oracle

from onnxfi.errors import DataError, InputError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Port
from onnxfi.tasks.kinds.multi_label import binary, multi_label, ranks
from onnxfi.tasks.outcomes import GoldenRun, failed, judge
from onnxfi.tasks.registry import choose_task, find_task
from onnxfi.tasks.task import ModelOutputs

NAN, INF = np.nan, np.inf


def golden_of(scores: Any, labels: Any = None, *, task: str = "multi-label", dtype: type = np.float32) -> GoldenRun:
    run = (Outputs(np.arange(len(scores)), {"y": np.array(scores, dtype)}),)
    return GoldenRun.of(run, None if labels is None else np.array(labels), find_task(task), "auto", 0.0, ("nonfinite",))


@pytest.mark.parametrize(
    ("task", "golden", "faulty", "outcome"),
    [
        ("multi-label", [0.4, 0.6], [0.1, 0.9], "masked"),
        ("multi-label", [0.4, 0.6], [0.5, 0.6], "sdc"),
        ("multi-label", [0.4, 0.6], [0.4, 0.49], "sdc"),
        ("multi-label", [0.4, 0.6], [0.4, NAN], "due"),
        ("multi-label", [0.4, 0.6], [0.4, INF], "due"),
        ("multi-label", [0.4, NAN], [0.1, NAN], "masked"),
        ("multi-label", [0.4, NAN], [0.1, 0.2], "sdc"),
        ("multi-label", [-0.5, 3.0], [-0.1, 0.1], "masked"),
        ("multi-label", [-0.5, 3.0], [0.0, 3.0], "sdc"),
        ("multi-label:threshold=0.7", [0.6, 0.8], [0.69, 0.7], "masked"),
        ("multi-label:threshold=0.7", [0.6, 0.8], [0.7, 0.8], "sdc"),
        ("multi-label:threshold=0.9/0.1", [0.8, 0.8], [0.2, 0.2], "masked"),
        ("multi-label:threshold=0.9/0.1", [0.8, 0.8], [0.8, 0.0], "sdc"),
        ("binary", [0.9], [0.5], "masked"),
        ("binary", [0.9], [0.4999], "sdc"),
        ("binary:threshold=0.3", [0.9], [0.4999], "masked"),
    ],
)
def test_a_sample_is_wrong_where_a_label_changed(task: str, golden: Any, faulty: Any, outcome: str) -> None:
    with np.errstate(invalid="ignore"):
        judged = judge(golden_of([golden], task=task), np.array([faulty], np.float32))
    assert judged.outcome == outcome
    shares = [judged.metrics[f"{name}_samples"] for name in ("masked", "sdc", "due")]
    assert shares == [float(name == outcome) for name in ("masked", "sdc", "due")]


@pytest.mark.slow
def test_metrics_are_scikit_learns_on_a_hundred_random_cases() -> None:
    random = np.random.default_rng(0)
    for case in range(100):
        n, c = int(random.integers(3, 40)), int(random.integers(1, 5))
        truth = random.random((n, c)) < random.uniform(0.1, 0.9)
        if not truth.any():
            continue
        scores = random.random((n, c)).round(int(random.integers(1, 4))).astype(np.float32)  # with ties
        golden = golden_of(scores, truth)
        faulty = scores.copy()
        faulty[random.random(n) < 0.3] = random.random(c)
        found = judge(golden, faulty).metrics
        held, both = truth.any(axis=0), truth.any(axis=0) & ~truth.all(axis=0)
        wanted = {
            "f1_micro": oracle.f1_score(truth.ravel(), faulty.ravel() >= 0.5, zero_division=0),
            "f1_macro": oracle.f1_score(truth[:, held], faulty[:, held] >= 0.5, average="macro", zero_division=0)
            if held.sum() > 1 else oracle.f1_score(truth[:, held].ravel(), faulty[:, held].ravel() >= 0.5, zero_division=0),
            "average_precision": np.mean([oracle.average_precision_score(truth[:, k], faulty[:, k]) for k in np.flatnonzero(held)]),
            "changed_labels": np.mean((faulty >= 0.5) != (scores >= 0.5)),
        }  # fmt: skip
        if both.any():
            wanted["roc_auc"] = np.mean([oracle.roc_auc_score(truth[:, k], faulty[:, k]) for k in np.flatnonzero(both)])
        assert ("roc_auc" in found) == bool(both.any()), "no area where a label has one answer alone"
        assert {name: found[name] for name in wanted} == pytest.approx(wanted), case


@pytest.mark.slow
def test_binary_metrics_are_scikit_learns() -> None:
    random = np.random.default_rng(1)
    for _ in range(100):
        truth = np.arange(20) % 3 == 0
        scores = random.random((20, 1)).astype(np.float32)
        faulty = np.where(random.random((20, 1)) < 0.2, random.random((20, 1)), scores).astype(np.float32)
        found = judge(golden_of(scores, truth, task="binary"), faulty).metrics
        yes = faulty[:, 0] >= 0.5
        wanted = {
            "accuracy": oracle.accuracy_score(truth, yes), "f1": oracle.f1_score(truth, yes, zero_division=0),
            "roc_auc": oracle.roc_auc_score(truth, faulty), "average_precision": oracle.average_precision_score(truth, faulty),
        }  # fmt: skip
        assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_a_score_that_is_no_number_is_the_last_and_never_right() -> None:
    truth = [[True], [False], [True], [False]]
    scores = np.array([[0.9], [0.1], [0.8], [0.2]], np.float32)
    faulty = scores.copy()
    faulty[0] = NAN
    found = judge(golden_of(scores, truth, task="binary"), faulty).metrics
    last = np.array([-1, 0.1, 0.8, 0.2])
    assert found["roc_auc"] == oracle.roc_auc_score(np.ravel(truth), last)
    assert found["accuracy"] == 0.75
    assert ranks(np.array([INF, -INF, NAN, 0.0])).tolist() == [3, 1, 0, 2]


def test_a_trial_without_an_answer_is_wrong_in_every_metric() -> None:
    golden = golden_of([[0.9, 0.2], [0.3, 0.8]], [[1, 0], [0, 1]])
    lost = failed(golden, "crash").metrics
    assert {lost[name] for name in ("f1_micro", "f1_macro", "average_precision", "roc_auc")} == {0.0}
    assert lost["changed_labels"] == 1.0


def data(labels: Any, samples: int = 2) -> Data:
    return Data((), samples, None if labels is None else np.array(labels), False, "", None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "scores", "labels", "says"),
    [
        ("multi-label", np.zeros((2, 3, 1)), None, "has shape [2,3,1] for 2 samples, and scores of labels have [N,labels]"),
        ("binary", np.zeros((2, 3)), None, "has shape [2,3], and one decision a sample has one score"),
        ("multi-label", np.zeros((2, 3)), [[1, 0], [0, 1]], "has shape [2,3], and the labels [2,2]"),
        ("multi-label", np.zeros((2, 3)), [2, 1], "the labels are int64 [2]; several labels a sample are 0 and 1"),
        ("multi-label", np.zeros((2, 2)), [[0, 0], [0, 0]], "no sample has a label"),
        ("multi-label:threshold=0.1/0.2", np.zeros((2, 3)), None, "2 thresholds for 3 labels"),
    ],
)  # fmt: skip
def test_outputs_and_labels_of_another_task_are_refused(task: str, scores: Any, labels: Any, says: str) -> None:
    with pytest.raises(DataError) as caught:
        choose_task(task, np.asarray(scores, np.float32), "y", data(labels))
    remedy = "tasks that fit: " if labels is None else "name labels of this task with --labels"
    assert says in str(caught.value) and remedy in str(caught.value)


@pytest.mark.parametrize("threshold", ["high", "0.5/", "nan", "inf"])
def test_thresholds_are_numbers(threshold: str) -> None:
    with pytest.raises(InputError, match="threshold is"):
        multi_label(threshold=threshold)


def test_the_output_is_the_one_that_fits() -> None:
    ports = (Port("y", "float32", ("N", 1)), Port("boxes", "float32", ("N", 4, 2)), Port("n", "int64", ("N",)))
    task = binary()
    assert task.reads is not None
    assert task.reads(ModelOutputs(ports, None, data(None))) == ("y",)
    with pytest.raises(DataError, match="several outputs could hold scores of labels"):
        task.reads(ModelOutputs((*ports, Port("z", "float32", ("N",))), None, data(None)))
    assert task.reads(ModelOutputs((*ports, Port("z", "float32", ("N", 2))), None, data(None))) == ("y",)


def test_thresholds_that_are_not_given_are_shown() -> None:
    remark = multi_label().remark
    assert remark is not None
    assert "from a score of 0.5 on" in remark(np.array([[0.2, 1.0]]), "y", 1)
    assert "from a score of 0 on" in remark(np.array([[-3.0, 1.0]]), "y", 1)
    shown = multi_label(threshold=0.2).remark
    assert shown is not None and shown(np.array([[0.2]]), "y", 1) == ""
