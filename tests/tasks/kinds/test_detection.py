"""Detection: the outcome of an image, by a table of all that may happen to its boxes; labels and outputs that misfit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onnxfi.errors import DataError, InputError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Array
from onnxfi.tasks.kinds.detection import detection
from onnxfi.tasks.outcomes import GoldenRun, judge
from onnxfi.tasks.task import Task

A, B = [10, 10, 30, 30, 0.9, 1], [40, 40, 60, 60, 0.8, 0]


def output_of(*images: list[list[float]], most: int = 4) -> dict[str, Array]:
    """Boxes of each image as padded rows."""
    rows = np.zeros((len(images), most, 6), np.float32)
    for own, boxes in zip(rows, images, strict=True):
        own[: len(boxes)] = np.reshape(boxes, (-1, 6))
    return {"dets": rows}


def golden_of(arrays: dict[str, Array], task: Task, labels: Array | None = None) -> GoldenRun:
    samples = len(next(iter(arrays.values())))
    return GoldenRun.of((Outputs(np.arange(samples), arrays),), labels, task, "auto", 0.0, ("nonfinite",))


def data_of(samples: int, labels: Array | None = None) -> Data:
    return Data((), samples, labels, False, "", None, None)  # type: ignore[arg-type]


def changed(box: list[float], **columns: float) -> list[float]:
    names = ("x1", "y1", "x2", "y2", "score", "kind")
    return [columns.get(name, value) for name, value in zip(names, box, strict=True)]


NAN, INF = float("nan"), float("inf")
#: The golden detections are A and B. Of each row: the faulty ones, the outcome, the shares of lost and of new ones.
TABLE = {
    "the same": ([A, B], "masked", 0.0, 0.0),
    "another order": ([B, A], "masked", 0.0, 0.0),
    "other scores": ([changed(A, score=0.3), B], "masked", 0.0, 0.0),
    "moved a little": ([changed(A, x1=12), B], "masked", 0.0, 0.0),
    "moved to an overlap of one half": ([changed(A, x1=20), B], "masked", 0.0, 0.0),
    "moved beyond": ([changed(A, x1=20.5), B], "sdc", 0.5, 0.5),
    "one lost": ([A], "sdc", 0.5, 0.0),
    "lost under the least score": ([A, changed(B, score=0.2)], "sdc", 0.5, 0.0),
    "all lost": ([], "sdc", 1.0, 0.0),
    "a new one": ([A, B, [0, 0, 5, 5, 0.3, 1]], "sdc", 0.0, 1 / 3),
    "the same one twice": ([A, A, B], "sdc", 0.0, 1 / 3),
    "another class": ([changed(A, kind=0), B], "sdc", 0.5, 0.5),
    "a class beyond all": ([changed(A, kind=1e30), B], "sdc", 0.5, 0.5),
    "no number as class": ([A, changed(B, kind=0.5)], "sdc", 0.5, 0.5),
    "a NaN in a box": ([changed(A, x1=NAN), B], "due", 0.5, 0.5),
    "an infinity in a box": ([changed(A, y2=INF), B], "due", 0.5, 0.5),
    "a NaN as score": ([changed(A, score=NAN), B], "due", 0.5, 0.0),
    "a NaN where there was no box": ([A, B, [NAN] * 6], "due", 0.0, 0.0),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_outcome_of_an_image(case: str) -> None:
    boxes, outcome, lost, new = TABLE[case]
    golden = golden_of(output_of([A, B]), detection())
    judged = judge(golden, (Outputs(np.arange(1), output_of(boxes)),))
    assert judged.outcome == outcome
    assert judged.metrics["ivmod_sdc"] == float(outcome == "sdc") == judged.metrics["sdc_samples"]
    assert judged.metrics["ivmod_due"] == float(outcome == "due") == judged.metrics["due_samples"]
    assert judged.metrics["lost_boxes"] == pytest.approx(lost) and judged.metrics["new_boxes"] == pytest.approx(new)


def test_an_empty_golden_image_has_nothing_to_lose() -> None:
    golden = golden_of(output_of([], [A]), detection())
    nothing = judge(golden, (Outputs(np.arange(2), output_of([], [A])),))
    assert nothing.outcome == "masked" and nothing.metrics["lost_boxes"] == 0.0 == nothing.metrics["new_boxes"]
    ghost = judge(golden, (Outputs(np.arange(2), output_of([B], [A])),))
    assert (ghost.outcome, ghost.metrics["ivmod_sdc"], ghost.metrics["new_boxes"]) == ("sdc", 0.5, 0.5)


def test_images_of_another_number_of_boxes_in_each_batch() -> None:
    """Rows [K,6] of one image each, of a network whose outputs have as many rows as it finds."""
    images = ([A, B], [], [A])
    run = tuple(
        Outputs(np.array([k]), {"dets": np.reshape(i, (-1, 6)).astype(np.float32)}) for k, i in enumerate(images)
    )
    golden = GoldenRun.of(run, None, detection(format="rows"), "auto", 0.0, ("nonfinite",))
    assert [len(boxes) for boxes in golden.answers.values] == [2, 0, 1]
    other = (run[0], Outputs(np.array([1]), {"dets": np.array([B], np.float32)}), run[1])
    judged = judge(golden, (other[0], other[1], Outputs(np.array([2]), {"dets": np.zeros((0, 6), np.float32)})))
    assert judged.outcome == "sdc" and judged.metrics["ivmod_sdc"] == pytest.approx(2 / 3)
    assert judged.metrics["lost_boxes"] == pytest.approx(1 / 3) == judged.metrics["new_boxes"]


def test_rows_that_name_their_image_are_judged_by_image() -> None:
    rows = np.array([[0, 10, 10, 30, 30, 1, 0.9], [1, 40, 40, 60, 60, 0, 0.8]], np.float32)
    task = detection(format="end2end")
    golden = GoldenRun.of((Outputs(np.arange(2), {"y": rows}),), None, task, "auto", 0.0, ("nonfinite",))
    moved = judge(golden, (Outputs(np.arange(2), {"y": rows[[1, 0]]}),))
    assert moved.outcome == "masked", "as many rows as images, and yet no row an image"
    other = rows.copy()
    other[1, 0] = 0
    assert judge(golden, (Outputs(np.arange(2), {"y": other}),)).metrics["ivmod_sdc"] == 1.0, "one lost, one new"


def test_the_overlap_of_the_same_detection_is_an_option() -> None:
    near = output_of([changed(A, x1=12), B])
    for match, outcome in ((0.5, "masked"), (0.9, "masked"), (0.91, "sdc")):
        assert (
            judge(golden_of(output_of([A, B]), detection(match=match)), (Outputs(np.arange(1), near),)).outcome
            == outcome
        )


LABELS = np.array([[[1, 10, 10, 30, 30, 0], [0, 40, 40, 60, 60, 0]], [[1, 0, 0, 9, 9, 0], [np.nan] * 6]])


def test_precision_follows_the_labels() -> None:
    golden = golden_of(output_of([A, B], []), detection(), LABELS)
    metrics = judge(golden, golden.run).metrics
    assert metrics["ap50"] == pytest.approx((1 + 51 / 101) / 2), "class 1: one of two found, recall 0 to 0.5"
    assert metrics["ar"] == pytest.approx(0.75)
    found = judge(golden, (Outputs(np.arange(2), output_of([A, B], [[0, 0, 9, 9, 0.7, 1]])),))
    assert found.outcome == "sdc" and found.metrics["ap50"] == pytest.approx(1.0), "what is new is right"
    lost = judge(golden, (Outputs(np.arange(2), output_of([], [])),))
    assert lost.metrics["ap50"] == 0.0 == lost.metrics["ap"] == lost.metrics["ar"]


def misfit(task: Task, arrays: dict[str, Array], labels: Array | None = None) -> str:
    samples = len(next(iter(arrays.values())))
    assert task.misfit is not None
    return task.misfit((Outputs(np.arange(samples), arrays),), data_of(samples, labels), "auto")


def test_what_does_not_fit_is_named() -> None:
    fine = output_of([A, B], [])
    assert misfit(detection(), fine) == "" == misfit(detection(), fine, LABELS)
    assert "do not show their box format" in misfit(detection(), {"y": np.zeros((2, 10))})
    nowhere = misfit(detection(), output_of([changed(A, x1=NAN)]))
    assert nowhere.startswith("the golden run has a box of [nan, 10.0") and nowhere.endswith("which is nowhere")
    assert "a detection of class -1" in misfit(detection(), output_of([changed(A, kind=-1)]))
    assert "a detection of class 0.5" in misfit(detection(), output_of([changed(A, kind=0.5)]))
    assert "the labels are int64 [2]" in misfit(detection(), fine, np.arange(2))
    assert "no sample has a box" in misfit(detection(), fine, np.full((2, 1, 6), np.nan))
    heads = {"y": np.zeros((2, 6, 9), np.float32)}
    beyond = LABELS.copy()
    beyond[0, 0, 0] = 2
    assert misfit(detection(), heads, beyond) == "labels go to class 2, and the model has 2 classes, counted from 0"
    shares = output_of([[0.1, 0.1, 0.4, 0.4, 0.9, 1]], [])
    assert misfit(detection(), shares, LABELS).startswith("boxes end at 0.4, those of the labels at 60; say how large")
    assert misfit(detection(size=100), shares, LABELS) == ""


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="match must be above 0"):
        detection(match=0)
    for size in ("big", "0x3", "640*480"):
        with pytest.raises(InputError, match="size is"):
            detection(size=size)
    with pytest.raises(InputError, match="give format=yolo or decode=a:b, not both"):
        detection(format="yolo", decode="a:b")


OWN = """import numpy as np


def corners(outputs):
    return [rows[rows[:, 4] > 0.5] for rows in outputs.arrays["dets"]]


def broken(outputs):
    return [rows[:, :5] for rows in outputs.arrays["dets"]]


def overflowing(outputs):
    with np.errstate(all="ignore"):
        return [np.column_stack([np.exp(rows[:, :4]), rows[:, 4:]]) for rows in outputs.arrays["dets"].astype(float)]


def failing(outputs):
    return 1 / 0
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_boxes", raising=False)
    Path("my_boxes.py").write_text(OWN)
    return "my_boxes"


def test_a_function_of_ones_own_reads_boxes(own: str) -> None:
    arrays = output_of([A, B], [changed(A, score=0.4)])
    golden = golden_of(arrays, detection(decode=f"{own}:corners"))
    assert [len(boxes) for boxes in golden.answers.values] == [2, 0]
    assert "boxes are [4, 5]; a row is x1, y1, x2, y2" in misfit(detection(decode=f"{own}:broken"), arrays)
    assert "failed: ZeroDivisionError" in misfit(detection(decode=f"{own}:failing"), arrays)
    with pytest.raises(InputError, match="function 'my_boxes:none' cannot be loaded: module 'my_boxes' has no 'none'"):
        detection(decode=f"{own}:none")


def test_the_example_reads_the_heads_of_yolox(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box of the middle grid, written as offsets from its cell and the logarithm of its size."""
    monkeypatch.chdir(Path(__file__).parents[3] / "examples")
    heads = np.zeros((2, 52 * 52 + 26 * 26 + 13 * 13, 8), np.float32)
    centre, size = np.array([100.0, 250.0]), np.array([40.0, 24.0])
    column, row = (centre // 16).astype(int)
    heads[1, 52 * 52 + 26 * row + column] = [*(centre / 16 - [column, row]), *np.log(size / 16), 0.9, 0.1, 0.8, 0.2]
    golden = golden_of({"output": heads}, detection(decode="own_boxes:yolox"))
    nothing, found = golden.answers.values
    assert nothing.shape == (0, 6)
    np.testing.assert_allclose(found, [[80, 238, 120, 262, 0.72, 1]], rtol=1e-5)


def test_a_box_that_decoding_sends_nowhere_is_a_due_in_a_trial(own: str) -> None:
    task = detection(decode=f"{own}:overflowing")
    small = output_of([[0, 0, 1, 1, 0.9, 0]], [[0, 0, 2, 2, 0.9, 0]])
    golden = golden_of(small, task)
    large = {"dets": small["dets"].copy()}
    large["dets"][0, 0, 2] = 1e4
    judged = judge(golden, (Outputs(np.arange(2), large),))
    assert (judged.outcome, judged.metrics["ivmod_due"], judged.metrics["ivmod_sdc"]) == ("due", 0.5, 0.0)
    assert "which is nowhere" in misfit(task, large), "in a golden run it is refused"


def test_precision_without_boxes_as_labels_is_refused() -> None:
    with pytest.raises(DataError, match="the labels are int64"):
        golden_of(output_of([A]), detection(), np.arange(1))
