"""Labels as arrays: their kinds, how each is read, and how labels of another kind are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import DataError
from onnxfi.runtime.data.labels import KINDS, are_classes, as_kind, checked, join_labels, one_hot_columns

BOX = [[[1.0, 0, 0, 4, 5], [np.nan] * 5]]
READ: list[tuple[str, Any, Any]] = [
    ("classes", np.array([2, 0], np.uint8), [2, 0]),
    ("classes", np.array([[2], [0]]), [2, 0]),
    ("classes", np.eye(3)[[2, 0]], [2, 0]),
    ("classes", np.eye(3, dtype=bool)[[1, 1]], [1, 1]),
    ("multi-hot", np.array([[1, 0, 1], [0, 0, 0]]), [[True, False, True], [False, False, False]]),
    ("multi-hot", np.array([1.0, 0.0]), [[True], [False]]),
    ("numbers", np.array([1, -2]), [1.0, -2.0]),
    ("masks", np.array([[[0, 255], [255, 0]]], np.uint8), [[[0, 1], [1, 0]]]),
    ("masks", np.array([[[[0, 255], [2, 1]]]], np.uint8), [[[0, -1], [2, 1]]]),
    ("texts", checked(np.array([["a"], [""]]), 2, "d"), ["a", ""]),
]


@pytest.mark.parametrize(("kind", "labels", "wanted"), READ)
def test_a_kind_is_read_from_each_of_its_forms(kind: str, labels: Any, wanted: Any) -> None:
    assert as_kind(kind, labels).tolist() == wanted
    again = as_kind(kind, as_kind(kind, labels))
    assert again.tolist() == wanted and len(again) == len(labels), "what is of a kind stays as it is"


def test_boxes_get_a_column_of_crowds_and_keep_their_empty_rows() -> None:
    found = as_kind("boxes", np.array(BOX))
    np.testing.assert_array_equal(found, [[[1, 0, 0, 4, 5, 0], [np.nan] * 6]])
    np.testing.assert_array_equal(as_kind("boxes", found), found)
    assert as_kind("boxes", np.zeros((3, 0, 6))).shape == (3, 0, 6), "no box at all is an answer"


REFUSED: list[tuple[str, Any, str]] = [
    ("classes", [0.5, 1.0], "the labels are float64 [2]; classes are integers, one per sample, or one-hot rows"),
    ("classes", [3.0, 1.0], "one-hot rows; take labels.astype('int64')"),
    ("classes", [[3.0], [1.0]], "one-hot rows; take labels.astype('int64')"),
    ("classes", [True, False], "one-hot rows; take labels.astype('int64')"),
    ("classes", [-1, 3], "a label is -1; labels count the classes from 0"),
    ("classes", [[1, 1], [0, 1]], "rows of several classes are labels of --task multi-label"),
    ("classes", [[1, 2], [0, 1]], "the labels are int64 [2,2]; classes are integers, one per sample"),
    ("classes", ["cat", "dog"], "of names take their places in the list of the model's classes"),
    ("multi-hot", [0, 2], "several labels a sample are 0 and 1"),
    ("multi-hot", ["a"], "several labels a sample are 0 and 1"),
    ("numbers", ["a"], "the task takes numbers"),
    ("numbers", [1.0, np.nan], "1 of them are no finite numbers"),
    ("masks", [[1, 2]], "masks are integers [N,height,width]"),
    ("masks", [[[-2, 0]]], "masks hold classes from -2 to 0"),
    ("masks", [[[0, 1 << 15]]], "masks hold classes from 0 to 32768"),
    ("boxes", [[0, 1, 2, 3, 4]], "boxes are [N,K,5 or 6]"),
    ("boxes", [[[0, 1, np.nan, 3, 4]]], "a box of them holds a NaN"),
    ("boxes", [[[0, 5, 2, 3, 4]]], "a box ends before it begins"),
    ("boxes", [[[0.5, 1, 2, 3, 4]]], "a box has no class"),
    ("texts", [1, 2], "the labels are int64 [2]; the task takes texts"),
]


@pytest.mark.parametrize(("kind", "labels", "says"), REFUSED)
def test_labels_of_another_kind_are_refused_with_both_sides(kind: str, labels: Any, says: str) -> None:
    with pytest.raises(DataError) as caught:
        as_kind(kind, checked(np.array(labels), len(labels), "d"))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_anything_is_read_or_refused_in_one_line(kind: str, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    values = data.draw(st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.5, np.nan, np.inf, 255.0]), min_size=1, max_size=4))
    labels = np.resize(np.array(values), shape)
    if np.isfinite(labels).all() and data.draw(st.booleans()):
        labels = labels.astype(np.int64)
    try:
        assert len(as_kind(kind, labels)) == len(labels)
    except DataError as error:
        assert "\n" not in str(error)


def test_classes_are_distinguished_from_other_labels() -> None:
    assert are_classes(np.array([[3], [1]])) and not are_classes(np.array([[3, 1]]))
    assert one_hot_columns(np.eye(4)[[0, 1]]) == 4
    assert one_hot_columns(np.array([[1], [1]])) is None, "a column is not one-hot"


def test_boxes_of_batches_are_joined() -> None:
    one, other = np.zeros((2, 3, 6)), np.ones((1, 1, 6))
    found = join_labels([one, other])
    assert found.shape == (3, 3, 6) and np.isnan(found[2, 1:]).all() and (found[2, 0] == 1).all()
    assert join_labels([np.array([1]), np.array([2])]).tolist() == [1, 2]


def test_labels_are_as_many_as_samples() -> None:
    assert checked(np.arange(5), 3, "d", limited=True).tolist() == [0, 1, 2]
    for labels, limited in ((np.arange(5), False), (np.arange(2), True)):
        with pytest.raises(DataError, match=f"d: {len(labels)} labels for 3 samples"):
            checked(labels, 3, "d", limited=limited)
    with pytest.raises(DataError, match="Python objects; save numbers or texts"):
        checked(np.array([{}, "a"], object), 2, "d")
