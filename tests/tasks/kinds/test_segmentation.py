"""Segmentation: metrics against scikit-learn, the outcome of a sample by a table, and masks that misfit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from onnxfi.errors import DataError, InputError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Array, Port
from onnxfi.tasks.kinds.segmentation import segmentation
from onnxfi.tasks.outcomes import GoldenRun, judge
from onnxfi.tasks.task import ModelOutputs, Task


def golden_of(scores: Array, task: Task, labels: Array | None = None) -> GoldenRun:
    return GoldenRun.of((outputs_of(scores),), labels, task, "auto", 0.0, ("nonfinite",))


def outputs_of(scores: Array) -> Outputs:
    return Outputs(np.arange(len(scores)), {"y": scores})


def data_of(samples: int, labels: Array | None = None) -> Data:
    return Data((), samples, labels, False, "", None, None)  # type: ignore[arg-type]


def one_hot(masks: Array, classes: int) -> Array:
    return np.moveaxis(np.eye(classes, dtype=np.float32)[masks], -1, 1)


@pytest.mark.slow
def test_metrics_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        classes, shape = int(random.integers(2, 6)), (4, 5, 6)
        truth = random.integers(0, random.integers(2, classes + 1), shape)
        golden, faulty = (
            np.where(random.uniform(size=shape) < 0.6, truth, random.integers(0, classes, shape)) for _ in range(2)
        )
        faulty[0] = golden[0]  # one sample stays as it is
        labels = np.where(random.uniform(size=shape) < 0.2, 255, truth)
        run = golden_of(one_hot(golden, classes), segmentation(), labels)
        for masks in (golden, faulty):
            metrics = judge(run, (outputs_of(one_hot(masks, classes)),)).metrics
            known = labels != 255
            y, found, held = labels[known], masks[known], np.unique(labels[known])
            given = {"labels": held, "average": "macro", "zero_division": 0.0}
            assert metrics["pixel_accuracy"] == pytest.approx(accuracy_score(y, found), abs=1e-12)
            assert metrics["miou"] == pytest.approx(jaccard_score(y, found, **given), abs=1e-12)
            assert metrics["dice"] == pytest.approx(f1_score(y, found, **given), abs=1e-12)
            assert metrics["changed_pixels"] == pytest.approx(np.mean(masks != golden), abs=1e-12)


GOLDEN = np.zeros((1, 10, 10), np.int64)
GOLDEN[0, 5:] = 1


def with_changes(pixels: int, value: int = 2) -> Array:
    masks = GOLDEN.copy()
    masks.reshape(-1)[:pixels] = value
    return one_hot(masks, 3)


NAN_IN_A_SCORE = one_hot(GOLDEN, 3)
NAN_IN_A_SCORE[0, 2, 0, 0] = np.nan
#: Of each row: the share that may change, faulty scores, and the outcome.
TABLE = {
    "the same": (0.01, with_changes(0), "masked"),
    "other scores, the same classes": (0.01, 0.5 * with_changes(0), "masked"),
    "as many pixels as may change": (0.01, with_changes(1), "masked"),
    "one more": (0.01, with_changes(2), "sdc"),
    "none may": (0.0, with_changes(1), "sdc"),
    "a tenth may": (0.1, with_changes(10), "masked"),
    "more than a tenth": (0.1, with_changes(11), "sdc"),
    "another class of the labels": (0.01, with_changes(5, 1), "sdc"),
    "a NaN in one score": (0.5, NAN_IN_A_SCORE, "due"),
    "infinities everywhere": (0.01, np.full((1, 3, 10, 10), np.inf, np.float32), "due"),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_outcome_of_a_sample(case: str) -> None:
    changed, scores, outcome = TABLE[case]
    judged = judge(golden_of(one_hot(GOLDEN, 3), segmentation(changed=changed)), (outputs_of(scores),))
    assert judged.outcome == outcome
    assert judged.metrics["sdc_samples"] == float(outcome == "sdc")


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
@pytest.mark.parametrize("axis", [False, True])
def test_classes_may_come_as_integers(dtype: type, axis: bool) -> None:
    masks = GOLDEN.astype(dtype)
    golden = golden_of(masks[:, None] if axis else masks, segmentation(), GOLDEN)
    np.testing.assert_array_equal(golden.answers.values, GOLDEN)
    beyond = masks.copy()
    beyond[0, 0, :4] = 77
    metrics = judge(golden, (outputs_of(beyond[:, None] if axis else beyond),)).metrics
    assert metrics["pixel_accuracy"] == pytest.approx(0.96) and metrics["miou"] == pytest.approx((0.92 + 1) / 2)


@pytest.mark.parametrize("axis", [False, True])
def test_one_map_of_scores_is_cut_at_a_threshold(axis: bool) -> None:
    scores = np.where(GOLDEN == 1, 0.5, 0.49).astype(np.float32)
    golden = golden_of(scores[:, None] if axis else scores, segmentation(), np.where(GOLDEN == 1, 255, 0))
    np.testing.assert_array_equal(golden.answers.values, GOLDEN)
    assert judge(golden, golden.run).metrics["miou"] == 1.0, "black and white masks are one thing and its background"
    logits = golden_of(scores - 0.495, segmentation(threshold=0.0))
    np.testing.assert_array_equal(logits.answers.values, GOLDEN)


def test_classes_may_be_the_last_axis() -> None:
    scores = np.moveaxis(one_hot(GOLDEN, 3), 1, -1)
    np.testing.assert_array_equal(golden_of(scores, segmentation(channels="last")).answers.values, GOLDEN)


def test_masks_of_another_size_have_all_changed() -> None:
    golden = golden_of(one_hot(GOLDEN, 3), segmentation(), GOLDEN)
    judged = judge(golden, (outputs_of(one_hot(GOLDEN[:, :9], 3)),))
    assert (judged.outcome, judged.metrics["changed_pixels"], judged.metrics["pixel_accuracy"]) == ("sdc", 1.0, 0.0)


def test_samples_without_a_labelled_pixel_leave_metrics_undefined() -> None:
    metrics = judge(
        golden := golden_of(one_hot(GOLDEN, 3), segmentation(), np.full_like(GOLDEN, -1)), golden.run
    ).metrics
    assert metrics["miou"] == metrics["dice"] == metrics["pixel_accuracy"] == "NaN"


@pytest.mark.parametrize("of_one", [False, True])
def test_a_pixel_of_a_nan_has_no_class_and_is_wrong(of_one: bool) -> None:
    """The place of a NaN among scores is no class: taken for the background it would be right most of the time."""
    scores = (GOLDEN == 1).astype(np.float32) if of_one else one_hot(GOLDEN, 3)
    golden = golden_of(scores, segmentation(), GOLDEN)
    metrics = judge(golden, (outputs_of(np.full_like(scores, np.nan)),)).metrics
    assert (metrics["pixel_accuracy"], metrics["miou"], metrics["changed_pixels"]) == (0.0, 0.0, 1.0)
    some = scores.copy()
    some.reshape(-1, 10, 10)[0, 0, :4] = np.nan
    metrics = judge(golden, (outputs_of(some),)).metrics
    assert (metrics["pixel_accuracy"], metrics["changed_pixels"]) == (0.96, 0.04)


def misfit(scores: Array, labels: Array | None = None, task: Task | None = None) -> str:
    check = (task or segmentation()).misfit
    assert check is not None
    return check((outputs_of(scores),), data_of(len(scores), labels), "auto")


def test_what_does_not_fit_is_named() -> None:
    scores = one_hot(GOLDEN, 3)
    assert misfit(scores) == "" == misfit(scores, GOLDEN)
    assert "is float64 [4,10] for 4 samples; masks are scores [N,classes,H,W]" in misfit(np.zeros((4, 10)))
    assert "is int64 [1,3,10,10]" in misfit(scores.astype(np.int64)), "classes are one number a pixel"
    for none in (np.zeros((4, 0, 5, 5)), np.zeros((4, 3, 5, 5), complex), np.full((4, 3, 5, 5), "a")):
        assert "masks are scores [N,classes,H,W]" in misfit(none)
    assert "masks are integers" in misfit(scores, np.zeros((1, 5)))
    assert misfit(scores, GOLDEN[:, :, :8]) == "masks of the model have 10x10 pixels, those of the labels 8x10"
    assert (
        misfit(scores, GOLDEN * 3) == "masks of the labels go to class 3, and the model has 3 classes, counted from 0"
    )
    assert misfit(scores[:, :1], GOLDEN * 2).endswith("and the model has 2 classes, counted from 0")


def read(*ports: Port, asked: str | None = None) -> tuple[str, ...]:
    reads = segmentation().reads
    assert reads is not None
    return reads(ModelOutputs(ports, asked, data_of(1)))


def test_the_output_of_the_masks_is_the_only_one_with_height_and_width() -> None:
    masks, features = Port("y", "float32", ("N", 3, 8, 8)), Port("f", "float32", ("N", 16))
    assert read(masks, features) == ("y",) == read(masks, Port("aux", "float32", ("N", 3, 8, 8)), asked="y")
    with pytest.raises(DataError, match=r"several outputs could hold masks.*name one with --output: 'y'"):
        read(masks, Port("aux", "float32", ("N", 3, 8, 8)))
    with pytest.raises(DataError, match=r"no output is sure to hold masks.*'f' \(float32 \[N,16\]\)"):
        read(features)
    with pytest.raises(DataError, match="no output 'z'"):
        read(masks, asked="z")


def test_options_out_of_range_are_refused() -> None:
    for changed in (-0.1, 1, 1.5):
        with pytest.raises(InputError, match=r"changed must be in \[0, 1\)"):
            segmentation(changed=changed)
    with pytest.raises(InputError, match="channels is 'middle'; it is first or last"):
        segmentation(channels="middle")
