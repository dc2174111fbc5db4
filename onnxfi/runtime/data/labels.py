"""Labels: what is right for each sample, as arrays whose first axis counts the samples; their kinds and conversions.

Data holds labels as they are given: integers, booleans, numbers or texts ([N, …]). A task says which kind it takes, and
`as_kind` returns that, or one line that names both sides:

========= =============================== =============================================================
kind      array                           is also read from
========= =============================== =============================================================
classes   int64 [N], counted from 0       [N,1]; one-hot rows [N,C]
multi-hot bool [N,C]: the labels that hold 0 and 1 of any type; [N] of one label
numbers   float64 [N,…]                   any numbers; none is a NaN
masks     int16 [N,H,W]: class of a pixel [N,1,H,W]; -1, and 255 where there are classes, is no class
boxes     float64 [N,K,6]                 [N,K,5] without the last column
texts     object [N], each a str          numpy's texts; [N,1]
tokens    int64 [N,T], -100 is not scored
========= =============================== =============================================================

A row of boxes is class, x1, y1, x2, y2, crowd: corners in pixels of the model's input, and crowd 1 if the box is a
crowd that may be found any number of times. A sample of fewer boxes ends with rows of NaN; none at all is an answer.

Tokens are those of the input themselves, as training libraries take them: position t is judged by the label at t + 1.
The first one is judged by nothing, so it says where a row belongs to a multiple-choice item: 2 × item + 1 in the row of
the right choice, 2 × item in the others, -100 in rows that are of no item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError
from onnxfi.runtime.engine.ports import Array, shape_text, type_name

#: Right answers of the samples, samples first.
Labels = NDArray[Any]
#: The pixel that belongs to no class, in masks and in PNG files of them.
VOID, PNG_VOID = -1, 255
#: The label of a token that is not scored.
NOT_SCORED = -100
_LARGEST_CLASS = 1 << 15


def checked(labels: Array, rows: int, what: str, *, limited: bool = False) -> Labels:
    """Return labels of as many samples, of more the first where `limited`: class indices as int64, texts as objects.

    >>> checked(np.array(["a", "b"]), 2, "d.npz")
    array(['a', 'b'], dtype=object)
    """
    given = f"{type_name(labels)} {shape_text(labels.shape)}"
    if labels.ndim < 1 or (labels.dtype.kind not in "iubfOUT" and "float" not in labels.dtype.name):
        raise DataError(f"{what}: labels are {given}; they are integers, numbers or texts, samples first")
    if len(labels) != rows and not (limited and len(labels) > rows):
        raise DataError(f"{what}: {len(labels)} labels for {rows} samples")
    labels = labels[:rows]
    if labels.dtype.kind in "OUT":
        texts = labels.astype(object)
        if not all(isinstance(one, str) for one in texts.flat):
            raise DataError(f"{what}: labels are {given} of Python objects; save numbers or texts")
        return texts
    if labels.dtype.kind in "iu":
        if labels.size and int(labels.max()) >= 1 << 63:
            raise DataError(f"{what}: a label is {int(labels.max())}; labels count the classes from 0")
        return labels.astype(np.int64) if labels.ndim < 3 else labels  # masks take much memory
    return labels


def join_labels(parts: Sequence[Labels]) -> Labels:
    """Return the labels of several batches as one array; boxes get as many rows as the most in one sample.

    >>> join_labels([np.zeros((1, 2, 5)), np.zeros((1, 1, 5))]).shape
    (2, 2, 5)
    """
    most = max((part.shape[1] for part in parts if part.ndim == 3), default=0)
    padded = [_padded(part, most) if _may_be_boxes(part) else part for part in parts]
    return np.concatenate(padded)


def _may_be_boxes(labels: Labels) -> bool:
    return labels.ndim == 3 and labels.shape[2] in (5, 6) and labels.dtype.kind == "f"


def _padded(boxes: Labels, most: int) -> Labels:
    return np.pad(boxes, ((0, 0), (0, most - boxes.shape[1]), (0, 0)), constant_values=np.nan)


def as_kind(kind: str, labels: Labels) -> Labels:
    """Return labels as a kind, or raise a DataError that says what they are and what that kind is.

    >>> as_kind("classes", np.array([[0, 0, 1], [1, 0, 0]]))
    array([2, 0])
    >>> as_kind("classes", np.array([0.5, 2.0]))
    Traceback (most recent call last):
    onnxfi.errors.DataError: the labels are float64 [2]; classes are integers, one per sample, or one-hot rows
    """
    return KINDS[kind](labels)


def one_hot_columns(labels: Labels) -> int | None:
    """Return the number of classes of one-hot rows ([N,C]); None of other labels.

    >>> one_hot_columns(np.eye(3)), one_hot_columns(np.array([[1], [0]]))
    (3, None)
    """
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind in "OUT":
        return None
    return labels.shape[1] if is_binary(labels) and bool((labels.sum(axis=1) == 1).all()) else None


def are_classes(labels: Labels) -> bool:
    """Return true for labels that may be class indices, one-hot rows included.

    >>> are_classes(np.array([3, 1])), are_classes(np.array([0.5])), are_classes(np.array([[1, 1]]))
    (True, False, False)
    """
    return _not_classes(labels) == ""


def is_binary(labels: Labels) -> bool:
    """Return true for labels that are 0 and 1 alone."""
    return labels.dtype.kind not in "OUT" and bool(((labels == 0) | (labels == 1)).all())


def _given(labels: Labels) -> str:
    return f"the labels are {type_name(labels)} {shape_text(labels.shape)}"


def _not_classes(labels: Labels) -> str:
    """Return why labels are no classes, with a remedy where there is one; empty if they are."""
    if one_hot_columns(labels) is not None:
        return ""
    column = labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)
    if labels.dtype.kind in "iu" and column:
        if labels.size and labels.min() < 0:
            return f"a label is {labels.min()}; labels count the classes from 0"
        return ""
    why = f"{_given(labels)}; classes are integers, one per sample, or one-hot rows"
    if labels.dtype.kind in "OUT":
        if labels.size and all(str(label).strip().isdecimal() for label in labels.ravel()):
            return f"{why}; the lines of a .txt are texts, name a file of class indices .csv"
        return f"{why}; of names take their places in the list of the model's classes"
    if labels.ndim == 2 and not column and is_binary(labels):
        return f"{why}; rows of several classes are labels of --task multi-label"
    with np.errstate(all="ignore"):
        whole = labels.dtype.kind == "b" or bool((labels == np.floor(labels)).all())
    return f"{why}; take labels.astype('int64')" if column and whole else why


def as_classes(labels: Labels) -> Labels:
    """Return class indices (int64 [N])."""
    if why := _not_classes(labels):
        raise DataError(why)
    found = labels.argmax(axis=1) if one_hot_columns(labels) is not None else labels.reshape(-1)
    return np.asarray(found.astype(np.int64))


def as_multi_hot(labels: Labels) -> Labels:
    """Return the labels that hold for each sample (bool [N,C])."""
    if labels.ndim not in (1, 2) or not labels.size or not is_binary(labels):
        raise DataError(f"{_given(labels)}; several labels a sample are 0 and 1, [N,labels]")
    return np.asarray(labels.reshape(len(labels), -1) == 1)


def as_numbers(labels: Labels) -> Labels:
    """Return numbers (float64 [N,…])."""
    if labels.dtype.kind in "OUT":
        raise DataError(f"{_given(labels)}; the task takes numbers, one or more a sample")
    numbers = labels.astype(np.float64)
    if (bad := int(np.count_nonzero(~np.isfinite(numbers)))) > 0:
        raise DataError(f"{_given(labels)}, and {bad:,} of them are no finite numbers; leave those samples out")
    return numbers


def as_masks(labels: Labels) -> Labels:
    """Return the class of each pixel (int16 [N,H,W]), -1 if there is none."""
    flat = labels[:, 0] if labels.ndim == 4 and labels.shape[1] == 1 else labels
    if flat.ndim != 3 or flat.dtype.kind not in "iub":
        raise DataError(f"{_given(labels)}; masks are integers [N,height,width], the class of each pixel")
    low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
    if low < VOID or high >= _LARGEST_CLASS:
        raise DataError(f"masks hold classes from {low} to {high}; they count from 0, and {VOID} is none")
    masks = flat.astype(np.int16)
    values = np.unique(masks)
    if np.isin(values, (0, PNG_VOID)).all():  # black and white: a mask of one thing
        return np.asarray(np.where(masks == PNG_VOID, 1, masks).astype(np.int16))
    masks[masks == PNG_VOID] = VOID
    return masks


def as_boxes(labels: Labels) -> Labels:
    """Return boxes (float64 [N,K,6]: class, x1, y1, x2, y2, crowd), with rows of NaN after the last of a sample."""
    if labels.ndim != 3 or labels.shape[2] not in (5, 6) or labels.dtype.kind in "OUTb":
        raise DataError(f"{_given(labels)}; boxes are [N,K,5 or 6]: class, x1, y1, x2, y2 and, if any, crowd")
    boxes = labels.astype(np.float64)
    if boxes.shape[2] == 5:
        boxes = np.concatenate([boxes, np.where(np.isnan(boxes[..., :1]), np.nan, 0.0)], axis=2)
    real = boxes[~np.isnan(boxes).all(axis=2)]
    if not np.isfinite(real).all():
        raise DataError(f"{_given(labels)}, and a box of them holds a NaN or an infinity; only whole rows are NaN")
    if (real[:, 0] < 0).any() or (real[:, 0] != np.floor(real[:, 0])).any():
        raise DataError("a box has no class: the first column counts the classes from 0")
    if (real[:, 3] < real[:, 1]).any() or (real[:, 4] < real[:, 2]).any():
        raise DataError("a box ends before it begins; the columns are class, x1, y1, x2, y2")
    return boxes


def as_texts(labels: Labels) -> Labels:
    """Return texts (objects [N], each a str)."""
    column = labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)
    if labels.dtype.kind not in "OUT" or not column:
        raise DataError(f"{_given(labels)}; the task takes texts, one per sample")
    return np.asarray(labels.reshape(-1).astype(object))


def as_tokens(labels: Labels) -> Labels:
    """Return tokens (int64 [N,T]), -100 where they are not scored."""
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind not in "iu":
        raise DataError(f"{_given(labels)}; tokens are integers [N,T], {NOT_SCORED} where they are not scored")
    low = int(labels.min(initial=0, where=labels != NOT_SCORED))
    if low < 0:
        raise DataError(f"a label is token {low}; tokens count from 0, and {NOT_SCORED} is not scored")
    return labels.astype(np.int64)


#: The kinds by name.
KINDS: Mapping[str, Callable[[Labels], Labels]] = MappingProxyType({
    "classes": as_classes, "multi-hot": as_multi_hot, "numbers": as_numbers, "masks": as_masks, "boxes": as_boxes,
    "texts": as_texts, "tokens": as_tokens,
})  # fmt: skip
