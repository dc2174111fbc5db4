"""Average precision: by trial what pycocotools says of all images at once, through its own files."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from onnxfi.errors import DataError
from onnxfi.runtime.engine.ports import Array
from onnxfi.tasks.answers import Floats
from onnxfi.tasks.kinds.average_precision import Precision, check_installed, matches

IMAGES, CLASSES = 6, 3


def random_labels(random: np.random.Generator) -> Array:
    """Boxes of some images ([N,K,6]: class, corners, crowd), with rows of NaN behind the last."""
    labels = np.full((IMAGES, 4, 6), np.nan)
    for own in labels:
        n = int(random.integers(0, 5))
        corner = random.uniform(0, 40, (n, 2))
        own[:n] = np.column_stack([
            random.integers(0, CLASSES, n), corner, corner + random.uniform(5, 20, (n, 2)), random.uniform(size=n) < 0.1
        ])  # fmt: skip
    labels[0, 0] = [0, 3, 3, 9, 9, 0]
    return labels


def random_answers(random: np.random.Generator, labels: Array) -> list[Floats]:
    """The labels moved a little, and boxes of nothing."""
    found = []
    for own in labels:
        real = own[~np.isnan(own[:, 0])]
        moved = real[:, 1:5] + random.normal(0, 2, (len(real), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2])
        n = int(random.integers(0, 3))
        ghosts = random.uniform(0, 30, (n, 2))
        places = np.concatenate([moved, np.column_stack([ghosts, ghosts + 10])])
        kinds = np.concatenate([real[:, 0], random.integers(0, CLASSES + 1, n)])
        score = (
            random.choice([0.3, 0.5, 0.9], len(places)) if random.uniform() < 0.5 else random.uniform(size=len(places))
        )
        found.append(np.column_stack([places, score, kinds]))
    return found


def official(labels: Array, answers: Sequence[Floats]) -> Precision:
    """AP as the tool's own summary of everything says."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = [], []
    for image, (own, boxes) in enumerate(zip(labels, answers, strict=True), 1):
        for kind, x1, y1, x2, y2, crowd in own[~np.isnan(own[:, 0])].tolist():
            truth.append({
                "id": len(truth) + 1, "image_id": image, "category_id": int(kind) + 1, "iscrowd": int(crowd),
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
            })  # fmt: skip
        for x1, y1, x2, y2, score, kind in boxes.tolist():
            bbox = [x1, y1, x2 - x1, y2 - y1]
            found.append({"image_id": image, "category_id": int(kind) + 1, "bbox": bbox, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": k} for k in range(1, IMAGES + 1)], "annotations": truth,
            "categories": [{"id": k} for k in range(1, CLASSES + 1)], "info": {},
        }  # fmt: skip
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return Precision(judge.stats[1], judge.stats[0], judge.stats[8])


def classes_of(labels: Array) -> list[int]:
    real = labels[~np.isnan(labels[..., 0])]
    found: list[int] = np.unique(real[real[:, 5] == 0, 0]).astype(int).tolist()
    return found


def as_tuple(one: Precision) -> tuple[float, float, float]:
    return one.ap50, one.ap, one.recall


@pytest.mark.slow
def test_it_is_the_tools_own_and_stays_so_where_some_images_change(capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        labels = random_labels(random)
        golden, faulty = random_answers(random, labels), random_answers(random, labels)
        before = matches(labels, golden, classes_of(labels))
        assert as_tuple(before.precision()) == pytest.approx(as_tuple(official(labels, golden)), abs=1e-12)
        changed = np.flatnonzero(random.uniform(size=IMAGES) < 0.5)
        mixed = [faulty[k] if k in changed else golden[k] for k in range(IMAGES)]
        after = before.replaced(changed, matches(labels[changed], [mixed[k] for k in changed], before.classes))
        assert as_tuple(after.precision()) == pytest.approx(as_tuple(official(labels, mixed)), abs=1e-12)
    assert capsys.readouterr().out == "", "the tool talks, and a report's output is not its place"


def test_boxes_without_a_place_find_nothing_however_high_their_score() -> None:
    labels = np.array([[[0, 10, 10, 20, 20, 0]]], np.float64)
    right = [10, 10, 20, 20, 0.5, 0]
    for bad in (np.nan, np.inf, -np.inf, 1e30, -1e30):
        for column in range(4):
            wrong = [*right[:column], bad, *right[column + 1 : 4], 0.9, 0]
            found = matches(labels, [np.array([wrong, right])], [0]).precision()
            assert found.ap50 == pytest.approx(0.5), "half of the detections are wrong, and the first"
            assert matches(labels, [np.array([wrong])], [0]).precision() == Precision(0.0, 0.0, 0.0)


def test_no_detection_is_an_answer_and_no_label_leaves_it_undefined() -> None:
    labels = np.array([[[0, 10, 10, 20, 20, 0]]], np.float64)
    assert matches(labels, [np.zeros((0, 6))], [0]).precision() == Precision(0.0, 0.0, 0.0)
    undefined = matches(np.full((1, 1, 6), np.nan), [np.zeros((0, 6))], []).precision()
    assert np.isnan([undefined.ap50, undefined.ap, undefined.recall]).all()


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(DataError, match=r"pip install 'onnxfi\[detection\]', or leave the labels out"):
        check_installed()
