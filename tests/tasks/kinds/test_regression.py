"""Regression and signals: the tolerance against its truth table, metrics against scikit-learn and their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as oracle

from onnxfi.errors import DataError, InputError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.tasks.kinds.regression import regression
from onnxfi.tasks.outcomes import GoldenRun, failed, judge
from onnxfi.tasks.registry import choose_task, find_task

NAN, INF = np.nan, np.inf


def golden_of(values: Any, labels: Any = None, task: str = "regression", tolerance: float = 0.0) -> GoldenRun:
    run = (Outputs(np.arange(len(values)), {"y": np.array(values, np.float32)}),)
    labels = None if labels is None else np.array(labels)
    return GoldenRun.of(run, labels, find_task(task), "auto", tolerance, ("nonfinite",))


@pytest.mark.parametrize(
    ("task", "golden", "faulty", "outcome"),
    [
        ("regression", [1.0, 2.0], [1.0, 2.0], "masked"),
        ("regression", [1.0, 2.0], [1.0, 2.0000002], "sdc"),
        ("regression:tolerance=0.5", [1.0, 2.0], [1.5, 1.5], "masked"),
        ("regression:tolerance=0.5", [1.0, 2.0], [1.51, 2.0], "sdc"),
        ("regression:tolerance=0", [1.0, 2.0], [1.0, 2.0000002], "sdc"),
        ("regression:relative=0.1", [1.0, 20.0], [1.0, 22.0], "masked"),
        ("regression:relative=0.1", [1.0, 20.0], [1.2, 20.0], "sdc"),
        ("regression:relative=0.1", [0.0, 20.0], [0.001, 20.0], "sdc"),
        ("regression:relative=0.1,tolerance=0.01", [0.0, 20.0], [0.0099, 22.0], "masked"),
        ("regression:tolerance=0.5", [1.0, 2.0], [NAN, 2.0], "due"),
        ("regression:tolerance=0.5", [1.0, 2.0], [INF, 2.0], "due"),
        ("regression:tolerance=0.5", [NAN, 2.0], [NAN, 2.1], "masked"),
        ("regression:tolerance=0.5", [NAN, 2.0], [1.0, 2.0], "sdc"),
        ("regression:relative=0.5", [INF, 2.0], [3.0, 2.0], "sdc"),
    ],
)
def test_a_sample_is_wrong_beyond_the_tolerance(task: str, golden: Any, faulty: Any, outcome: str) -> None:
    assert judge(golden_of([golden], task=task), np.array([faulty], np.float32)).outcome == outcome


def test_without_a_tolerance_that_of_the_campaign_counts_and_never_both() -> None:
    assert judge(golden_of([[1.0]], tolerance=0.5), np.array([[1.4]], np.float32)).outcome == "masked"
    with pytest.raises(InputError, match="leave --tolerance out"):
        golden_of([[1.0]], task="regression:tolerance=1", tolerance=0.5)


def test_metrics_are_scikit_learns_on_a_hundred_random_cases() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        shape = (int(random.integers(2, 30)), int(random.integers(1, 4)))
        truth = random.normal(size=shape) * 10
        values = (truth + random.normal(size=shape)).astype(np.float32)
        faulty = np.where(random.random(shape) < 0.2, random.normal(size=shape) * 100, values).astype(np.float32)
        found = judge(golden_of(values, truth), faulty).metrics
        wanted = {
            "mae": oracle.mean_absolute_error(truth, faulty), "rmse": oracle.root_mean_squared_error(truth.ravel(), faulty.ravel()),
            "max_error": oracle.max_error(truth.ravel(), faulty.ravel()), "r2": oracle.r2_score(truth, faulty),
        }  # fmt: skip
        assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_signals_have_the_ratios_of_their_definitions_on_a_hundred_random_cases() -> None:
    random = np.random.default_rng(1)
    for _ in range(100):
        truth = random.normal(size=(3, 50))
        faulty = (0.5 * truth + random.normal(0, 0.3, truth.shape)).astype(np.float32)
        found = judge(golden_of(truth, truth, task="signal:peak=2"), faulty).metrics
        ratios = []
        for y, f in zip(truth, faulty.astype(np.float64), strict=True):
            (scale,), (left,), _, _ = np.linalg.lstsq(y[:, None], f, rcond=None)  # what is left is orthogonal to y
            ratios.append(10 * math.log10(np.sum((scale * y) ** 2) / left))
        assert found["si_sdr"] == pytest.approx(np.mean(ratios))
        assert found["psnr"] == pytest.approx(
            10 * math.log10(4 / oracle.mean_squared_error(truth.ravel(), faulty.ravel()))
        )


def test_values_that_are_not_finite_are_infinitely_wrong() -> None:
    truth = np.array([[1.0, 2.0], [3.0, 5.0]])
    golden = golden_of(truth, truth, task="signal")
    wanted = {
        "mae": "Infinity",
        "rmse": "Infinity",
        "max_error": "Infinity",
        "r2": "-Infinity",
        "psnr": "-Infinity",
        "si_sdr": "-Infinity",
    }
    for bad in (NAN, INF):
        found = judge(golden, np.array([[1.0, 2.0], [bad, 5.0]], np.float32)).metrics
        assert {name: found[name] for name in wanted} == wanted
    lost = failed(golden, "crash").metrics
    assert {name: lost[name] for name in wanted} == wanted
    perfect = judge(golden, golden.run).metrics
    assert (perfect["mae"], perfect["r2"], perfect["psnr"]) == (0.0, 1.0, "Infinity")


def test_what_labels_do_not_define_is_left_out() -> None:
    same = judge(golden_of([[1.0], [2.0]], [[3.0], [3.0]]), np.ones((2, 1), np.float32)).metrics
    assert "r2" not in same and same["mae"] == 2.0, "labels that do not vary explain nothing"
    silent = judge(golden_of([[1.0], [2.0]], [[0.0], [0.0]], task="signal"), np.ones((2, 1), np.float32)).metrics
    assert "psnr" not in silent and "si_sdr" not in silent


def test_numbers_of_any_shape_are_compared_with_as_many() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    found = judge(golden_of(values, values.reshape(2, 12) + 1), values.astype(np.float32))
    assert found.metrics["mae"] == 1.0


@pytest.mark.parametrize(
    ("values", "labels", "says"),
    [
        (np.zeros((2, 3)), [1.0, 2.0], "has shape [2,3], and the labels [2]"),
        (np.zeros((2, 3)), np.array(["a", "b"], object), "the labels are string [2]; the task takes numbers"),
        (np.zeros((3, 3)), None, "has shape [3,3] for 2 samples"),
        (np.array(["a", "b"]), None, "holds "),
    ],
)
def test_outputs_and_labels_of_another_task_are_refused(values: Any, labels: Any, says: str) -> None:
    data = Data((), 2, None if labels is None else np.asarray(labels), False, "", None, None)  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        choose_task("regression", values, "y", data)
    assert says in str(caught.value)


@pytest.mark.parametrize("given", [-1, "much", True, NAN])
def test_tolerances_are_numbers_of_0_or_more(given: Any) -> None:
    with pytest.raises(InputError, match=r"tolerance .*(give a number from 0|must be a number)"):
        regression(tolerance=given)


def test_units_are_shown() -> None:
    assert regression(unit="mm").metric("mae").text(1.5) == "1.5 mm"
