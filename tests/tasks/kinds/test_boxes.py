"""Overlaps, suppression and pairs of boxes, against ONNX Runtime's operator and brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxfi.tasks.answers import Floats
from onnxfi.tasks.kinds.boxes import finite, overlaps, pairs, suppressed


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
