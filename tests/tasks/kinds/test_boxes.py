"""Boxes against ONNX Runtime's operator and brute force; average precision against pycocotools through its files."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxfi.errors import DataError
from onnxfi.runtime.engine.ports import Array
from onnxfi.tasks.answers import Floats
from onnxfi.tasks.kinds.boxes import Precision, check_installed, finite, matches, overlaps, pairs, suppressed


def random_boxes(random: np.random.Generator, count: int, classes: int = 3, side: int = 20) -> Floats:
    corner = random.integers(0, side, (count, 2))
    size = random.integers(1, side, (count, 2))
    score = random.permutation(100)[:count] / 100
    return np.column_stack([corner, corner + size, score, random.integers(0, classes, count)]).astype(np.float64)


def area_of_cells(one: Floats, other: Floats) -> float:
    """Intersection over union of boxes at whole pixels, by counting pixels."""
    pixels = [{(x, y) for x in range(int(b[0]), int(b[2])) for y in range(int(b[1]), int(b[3]))} for b in (one, other)]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


def test_the_overlap_is_that_of_counted_pixels() -> None:
    random = np.random.default_rng(0)
    one, other = random_boxes(random, 6), random_boxes(random, 5)
    expected = [[area_of_cells(a, b) for b in other] for a in one]
    np.testing.assert_allclose(overlaps(one, other), expected, rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_box_that_is_nowhere_overlaps_nothing(bad: float) -> None:
    there = np.array([[0.0, 0, 5, 5, 1, 0]])
    for column in range(4):
        nowhere = there.copy()
        nowhere[0, column] = bad
        assert overlaps(nowhere, there).item() == 0.0 == overlaps(nowhere, nowhere).item()
        assert not finite(nowhere)[0]
    assert overlaps(there[:, [2, 3, 0, 1]], there).item() == 0.0, "it ends before it begins"
    assert overlaps(np.zeros((1, 4)), np.zeros((1, 4))).item() == 0.0, "no extent"


def nms_model() -> ort.InferenceSession:
    """NonMaxSuppression as the operator of ONNX has it: boxes [1,K,4], scores [1,C,K]."""
    names = ("boxes", "scores", "most", "limit", "least")
    node = helper.make_node("NonMaxSuppression", names, ["picked"])
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT, TensorProto.FLOAT)
    shapes: tuple[list[object], ...] = ([1, "K", 4], [1, "C", "K"], [1], [1], [1])
    inputs = [helper.make_tensor_value_info(*given) for given in zip(names, kinds, shapes, strict=True)]
    output = helper.make_tensor_value_info("picked", TensorProto.INT64, ["M", 3])
    graph = helper.make_graph([node], "nms", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_suppression_is_that_of_the_operator_of_onnx() -> None:
    random, session = np.random.default_rng(1), nms_model()
    for _ in range(100):
        boxes, limit = random_boxes(random, int(random.integers(0, 30))), float(random.choice([0.3, 0.45, 0.7]))
        scores = np.where(np.arange(3)[:, None] == boxes[:, 5], boxes[:, 4] + 0.01, 0.0)[None].astype(np.float32)
        (picked,) = session.run(None, {
            "boxes": boxes[None, :, :4].astype(np.float32), "scores": scores, "most": np.array([100], np.int64),
            "limit": np.array([limit], np.float32), "least": np.array([0.005], np.float32),
        })  # fmt: skip
        found = suppressed(boxes, limit, 100)
        assert sorted(map(tuple, found)) == sorted(map(tuple, boxes[picked[:, 2]])), limit
        assert (np.diff(found[:, 4]) <= 0).all()


def test_suppression_keeps_no_more_than_it_may() -> None:
    apart = np.array([[k * 10.0, 0, k * 10 + 5, 5, k / 10, 0] for k in range(9)])
    assert suppressed(apart, 0.5, 3)[:, 4].tolist() == [0.8, 0.7, 0.6]
    assert suppressed(apart[:0], 0.5, 3).shape == (0, 6)


def most_pairs(golden: Floats, faulty: Floats, match: float) -> int:
    """The largest number of pairs, by trying every order of the longer answer."""
    few, many = sorted((golden, faulty), key=len)
    same = (overlaps(few, many) >= match) & (few[:, None, 5] == many[None, :, 5])
    return max(sum(same[k, j] for k, j in enumerate(order)) for order in permutations(range(len(many)), len(few)))


def test_pairs_are_as_many_as_there_can_be_in_any_order() -> None:
    random = np.random.default_rng(2)
    for _ in range(100):
        golden, faulty = (random_boxes(random, int(random.integers(0, 6)), 2, 8) for _ in range(2))
        found = pairs(golden, faulty, 0.3)
        assert found == most_pairs(golden, faulty, 0.3) == pairs(faulty, golden, 0.3)
        assert found == pairs(golden[random.permutation(len(golden))], faulty, 0.3)


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
