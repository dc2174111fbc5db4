"""The scored output is scores of classes, or numbers that are only compared; what labels cannot fit is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxfi.errors import DataError
from onnxfi.runtime.data.batches import Data, layout
from onnxfi.runtime.data.sample_outputs import without_ones
from onnxfi.runtime.engine.ports import Port
from onnxfi.tasks.class_scores import check_port, classifies, no_class_scores, reading, scored_output

SCORES = Port("scores", "float32", ("N", 10))
BOXES = Port("boxes", "float32", ("N", 5, 4))
CLASS = Port("class", "int64", ("N", 1))
OPEN = Port("open", "float16", None)


@pytest.mark.parametrize(
    ("ports", "name", "labelled", "found"),
    [
        ([SCORES], None, True, "scores"),
        ([CLASS, BOXES, SCORES, OPEN], None, True, "scores"),
        ([BOXES, OPEN], None, True, "open"),
        ([BOXES, OPEN], None, False, None),
        ([BOXES], None, False, None),
        ([], None, False, None),
        ([BOXES, SCORES], "boxes", True, "boxes"),
    ],
)
def test_the_scored_output(ports: list[Port], name: str | None, labelled: bool, found: str | None) -> None:
    assert scored_output(ports, name, labelled=labelled) == found


@pytest.mark.parametrize(
    ("ports", "name", "labelled", "says"),
    [
        ([SCORES, Port("b", "bfloat16", ("N", 2))], None, False, "several outputs could hold the scores; name one"),
        ([BOXES, CLASS], None, True, "no output is sure to hold the scores; name one with --output: 'boxes' (float32"),
        ([CLASS], None, True, "'class' (int64 [N,1])"),
        ([], None, True, "name one with --output: none"),
        ([SCORES], "score", True, "the model has no output 'score'; closest: 'scores'"),
    ],
)
def test_an_output_that_cannot_be_chosen(ports: list[Port], name: str | None, labelled: bool, says: str) -> None:
    with pytest.raises(DataError) as caught:
        scored_output(ports, name, labelled=labelled)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("ports", "found"),
    [
        ([Port("y", "float32", (1, 1000, 1, 1))], "y"),
        ([Port("y", "float32", ("N", 10, 1))], None),
        ([Port("y", "float32", (1, 1000, 7, 7))], None),
        ([Port("boxes", "float32", ("M", 4)), Port("labels", "int64", ("M",)), Port("s", "float32", ("M",))], None),
        ([Port("pred_boxes", "float32", ("N", 4)), Port("logits", "float32", ("N", 4))], "logits"),
        ([Port("checkbox_logits", "float32", ("N", 4))], "checkbox_logits"),
    ],
)
def test_boxes_are_no_scores_and_ones_at_the_end_are_left_out(ports: list[Port], found: str | None) -> None:
    assert scored_output(ports) == found


def test_maps_are_named_with_the_way_to_a_tensor() -> None:
    non_tensors = {"prob": "seq(map(int64,tensor(float)))"}
    label = Port("label", "int64", ("N",))
    for name, labelled in ((None, True), ("prob", False), ("prob", True)):
        with pytest.raises(DataError, match=r"'prob' is a seq\(map.*ZipMap.*options=\{'zipmap': False\}"):
            scored_output([label], name, labelled=labelled, non_tensors=non_tensors)
    with pytest.raises(DataError, match="ZipMap"):
        scored_output([label], non_tensors=non_tensors, whole=True)
    assert scored_output([label], non_tensors=non_tensors) is None
    assert scored_output([label, SCORES], non_tensors=non_tensors) == "scores"
    assert scored_output([label], "label", non_tensors=non_tensors) == "label"
    assert scored_output([label], non_tensors={"state": "seq(tensor(float))"}) is None


def data(labels: Sequence[int] | None, samples: int = 4, classes: int | None = None) -> Data:
    known = None if labels is None else np.array(labels, np.int64)
    return Data((), samples, known, False, "", layout([], 0), lambda _: iter(()), classes)


@pytest.mark.parametrize(
    ("scores", "name", "kind", "why"),
    [
        (np.zeros((4, 3), np.float32), "y", "auto", ""),
        (np.zeros((4, 3), ml_dtypes.bfloat16), "y", "auto", ""),
        (np.zeros((4, 3), np.uint8), "y", "auto", ""),
        (np.zeros((4, 3), np.int64), "counts", "counts", ""),
        (np.zeros((4, 4), np.float32), "boxes", "logits", ""),
        (np.zeros((4, 3), np.float32), None, "auto", "no output is sure"),
        (np.zeros((4, 1), np.float32), "y", "auto", "has one column: the score of one class"),
        (np.zeros((4, 1), np.float32), "y", "probabilities", "has one column"),
        (np.zeros(4, np.float32), "y", "auto", "has shape [4], and scores of classes have [N,classes]"),
        (np.zeros((4, 3, 2), np.float32), "y", "auto", "has shape [4,3,2]"),
        (np.zeros((9, 4), np.float32), "y", "auto", "has 9 rows for 4 samples"),
        (np.zeros((1, 36), np.float32), "y", "auto", "has 1 rows for 4 samples"),
        (np.zeros((4, 3), np.int64), "ids", "auto", "is int64, which holds class indices or text"),
        (np.zeros((4, 3), np.bool_), "y", "auto", "is bool"),
        (np.zeros((4, 3), np.complex64), "y", "auto", "is complex64"),
        (np.full((4, 3), "a", object), "y", "auto", "is object"),
        (np.zeros((4, 4), np.float32), "bbox_pred", "auto", "holds no scores of classes by its name"),
    ],
)
def test_what_scores_classes(scores: Any, name: str | None, kind: str, why: str) -> None:
    found = no_class_scores(scores.shape, scores.dtype, name, 4, kind)
    assert bool(found) == bool(why) and why in found
    assert classifies(scores, name, data(None), kind) == (not why)
    if why:
        with pytest.raises(DataError, match=r"the labels ask for accuracy, and .* leave the labels out"):
            classifies(scores, name, data([0, 1, 0, 1]), kind)
    else:
        assert classifies(scores, name, data([0, 1, 0, 1]), kind)


@pytest.mark.parametrize(
    ("labels", "classes", "says"),
    [
        ([0, 1, 2, 3], None, "labels go from 0 to 3, but the model scores 3 classes, counted from 0"),
        ([0, 1, 1, 0], 2, "the data has 2 class folders, and output 'y' scores 3 classes"),
        ([0, 1, 2, 3], 4, "the data has 4 class folders, and output 'y' scores 3 classes"),
    ],
)
def test_labels_of_other_classes_are_refused_before_and_after_running(
    labels: list[int], classes: int | None, says: str
) -> None:
    fed = data(labels, classes=classes)
    with pytest.raises(DataError, match=says):
        classifies(np.zeros((4, 3), np.float32), "y", fed)
    for shape in (("N", 3), ("N", 3, 1, 1)):
        with pytest.raises(DataError, match=says):
            check_port(Port("y", "float32", shape), fed)
    check_port(Port("y", "float32", ("N", "C")), fed)
    check_port(Port("y", "float32", None), fed)
    check_port(Port("y", "float32", ("N", 1)), data(None))
    with pytest.raises(DataError, match="has one column"):
        check_port(Port("y", "float32", ("N", 1)), fed)
    with pytest.raises(DataError, match=r"has shape \[N,3,7\]"):
        check_port(Port("y", "float32", ("N", 3, 7)), fed)


def test_the_rule_is_said_where_rows_may_be_decisions_of_their_own() -> None:
    sigmoid = np.array([[0.9, 0.8], [0.1, 0.3]])
    assert "not read by a threshold" in reading(sigmoid, "y", 2)
    assert reading(sigmoid, "y", 2, "probabilities") == ""
    assert reading(np.array([[0.2, 0.8], [0.5, 0.5]]), "y", 2) == ""
    assert reading(np.array([[-2.0, 3.0], [np.nan, 0.5]]), "y", 2) == ""
    assert "no top-1 or SDC-1, since output 'y' has one column" in reading(sigmoid[:, :1], "y", 2)
    assert reading(sigmoid, None, 2) == ""


def test_rows_without_labels_get_a_remark_that_they_are_read_as_scores() -> None:
    rows = np.array([[3.0, -1.5, 0.2], [0.4, 2.0, 9.0]])
    remark = reading(rows, "y", 2, labelled=False)
    assert remark.startswith("no labels say what output 'y' holds: its rows of 3 numbers are read as scores of as many")
    softmax = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
    for sure, kind in ((softmax, "auto"), (np.log(softmax), "auto"), (rows, "logits")):
        assert reading(sure, "y", 2, kind, labelled=False) == ""
    assert reading(rows, "y", 2) == reading(rows, None, 2, labelled=False) == ""


def test_only_ones_behind_the_classes_are_left_out() -> None:
    shapes = [(2, 5, 1, 1), (2, 5, 1, 1, 1), (2, 5, 1, 3), (2, 5, 1), (2, 5), ()]
    assert [without_ones(np.zeros(s)).shape for s in shapes] == [(2, 5), (2, 5), (2, 5, 1, 3), (2, 5, 1), (2, 5), ()]
