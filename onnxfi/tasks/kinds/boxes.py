"""Boxes: their overlap, suppression, pairs of the same object in two answers, and average precision as COCO has it.

An answer is float64 [K,6], a row a box: x1, y1, x2, y2, score, class. A box without a finite extent overlaps nothing.
For average precision, by pycocotools, each image is compared with its labels once; a trial compares again only the
images whose boxes are other ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError
from onnxfi.runtime.data.labels import Labels
from onnxfi.tasks.answers import Flags, Floats

#: Boxes that suppression looks at, by falling score, as usual for detectors that output tens of thousands.
_MOST_CANDIDATES = 4096
#: Boxes of an image and class that count, by falling score, and the area that does: all.
_MOST_BOXES, _EVERY_AREA = 100, [0.0, math.inf]


def overlaps(one: Floats, other: Floats) -> Floats:
    """Return the intersection over union of each box of one answer with each of another ([K,4+], [L,4+]: [K,L]).

    >>> overlaps(np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 0, 2, 1], [5, 5, 6, 6], [np.nan, 0, 2, 2]])).tolist()
    [[0.5, 0.0, 0.0]]
    """
    a, b = one[:, None, :4], other[None, :, :4]
    with np.errstate(all="ignore"):
        sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
        shared = np.maximum(sides, 0.0).prod(axis=-1)
        areas = [np.maximum(box[..., 2:] - box[..., :2], 0.0).prod(axis=-1) for box in (a, b)]
        found = shared / (areas[0] + areas[1] - shared)
    return np.where(np.isfinite(found), found, 0.0)


def suppressed(boxes: Floats, limit: float, most: int) -> Floats:
    """Return the boxes that are left by non-maximum suppression, by falling score, `most` of them at most.

    A box goes where one of its class with a higher score overlaps it by more than `limit`; the first of equal scores
    stays.

    >>> rows = np.array([[0, 0, 9, 9, 0.8, 1], [0, 0, 9, 8, 0.9, 1], [0, 0, 9, 9, 0.7, 2]], float)
    >>> suppressed(rows, 0.5, 10)[:, 4].tolist()
    [0.9, 0.7]
    """
    left = boxes[np.argsort(-boxes[:, 4], kind="stable")][:_MOST_CANDIDATES]
    kept = list[Floats]()
    while len(left) and len(kept) < most:
        first, left = left[0], left[1:]
        kept.append(first)
        left = left[(left[:, 5] != first[5]) | (overlaps(first[None], left)[0] <= limit)]
    return np.array(kept).reshape(-1, boxes.shape[1])


def pairs(golden: Floats, faulty: Floats, match: float) -> int:
    """Return the number of boxes of two answers that are the same object: of one class, and overlapping enough.

    Each box is in one pair at most, and there are as many pairs as there can be, so the order of the boxes does not
    count.

    >>> one, other = np.array([[0.0, 0, 9, 9, 0.9, 1]]), np.array([[0.0, 0, 9, 8, 0.3, 1], [0, 0, 9, 9, 0.9, 0]])
    >>> pairs(one, other, 0.5), pairs(one, other, 0.95), pairs(one, other[:0], 0.5)
    (1, 0, 0)
    """
    same = (overlaps(golden, faulty) >= match) & (golden[:, None, 5] == faulty[None, :, 5])
    if not same.any():
        return 0
    if (same.sum(axis=0) <= 1).all() and (same.sum(axis=1) <= 1).all():
        return int(same.sum())
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    found: NDArray[np.int32] = maximum_bipartite_matching(csr_array(same), perm_type="column")
    return int(np.count_nonzero(found >= 0))


def finite(boxes: Floats) -> Flags:
    """Return the boxes all of whose numbers are finite ([K])."""
    return np.asarray(np.isfinite(boxes).all(axis=1))


@dataclass(frozen=True)
class Precision:
    """AP at an overlap of 0.5, its mean over 0.5, 0.55, … 0.95, and the mean recall over the same; NaN without labels.

    Each is the mean over the classes that have a box among the labels.
    """

    ap50: float
    ap: float
    recall: float


@dataclass(frozen=True)
class ImageMatches:
    """The comparison of every image with its labels: for each of `classes` and images a record of pycocotools."""

    classes: tuple[int, ...]
    records: tuple[tuple[Any, ...], ...]

    def replaced(self, images: NDArray[np.int64], other: ImageMatches) -> ImageMatches:
        """Return the comparison with that of some images from another one."""
        records = []
        for before, after in zip(self.records, other.records, strict=True):
            row = list(before)
            for image, record in zip(images.tolist(), after, strict=True):
                row[image] = record
            records.append(tuple(row))
        return ImageMatches(self.classes, tuple(records))

    def precision(self) -> Precision:
        """Return what is found of all images together."""
        if not self.classes:
            return Precision(np.nan, np.nan, np.nan)
        judge = _evaluator(self.classes, len(self.records[0]))
        judge.evalImgs = [record for row in self.records for record in row]
        judge._paramsEval = judge.params
        _silent(type(judge).accumulate)(judge)
        found = judge.eval["precision"][..., 0, 0], judge.eval["recall"][..., 0, 0]  # [overlaps,recalls,classes]
        return Precision(float(found[0][0].mean()), float(found[0].mean()), float(found[1].mean()))


def matches(labels: Labels, boxes: Sequence[Floats], classes: Sequence[int]) -> ImageMatches:
    """Compare the boxes of each image ([K,6]: corners, score, class) with its labels ([K,6]: class, corners, crowd)."""
    judge = _evaluator(classes, len(boxes))
    judge.cocoGt = _dataset(_labels_of(labels), classes, len(boxes))
    judge.cocoDt = _dataset(_boxes_of(boxes), classes, len(boxes))
    _silent(type(judge).evaluate)(judge)
    n = len(boxes)
    return ImageMatches(tuple(classes), tuple(tuple(judge.evalImgs[k * n : k * n + n]) for k in range(len(classes))))


def check_installed() -> None:
    """Raise DataError if pycocotools is absent."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError:
        raise DataError(
            "average precision needs pycocotools: pip install 'onnxfi[detection]', or leave the labels out to see how "
            "often detections change"
        ) from None


def _labels_of(labels: Labels) -> list[dict[str, Any]]:
    found = []
    for image, own in enumerate(labels):
        for number, x1, y1, x2, y2, crowd in own[~np.isnan(own[:, 0])].tolist():
            found.append(_box(image, number, x1, y1, x2, y2) | {"iscrowd": int(crowd)})
    return found


def _boxes_of(boxes: Sequence[Floats]) -> list[dict[str, Any]]:
    """Return boxes; one that is not finite counts as a box of no extent, which finds nothing."""
    found = []
    for image, own in enumerate(boxes):
        there = finite(own[:, :4])
        corners = np.where(there[:, None], own[:, :4], 0.0).clip(-1e15, 1e15)
        for (x1, y1, x2, y2), score, number in zip(
            corners.tolist(), own[:, 4].tolist(), own[:, 5].tolist(), strict=True
        ):
            found.append(_box(image, number, x1, y1, max(x1, x2), max(y1, y2)) | {"score": score})
    return found


def _box(image: int, number: float, x1: float, y1: float, x2: float, y2: float) -> dict[str, Any]:
    wide, high = x2 - x1, y2 - y1
    return {"image_id": image, "category_id": number, "bbox": [x1, y1, wide, high], "area": wide * high, "iscrowd": 0}


def _dataset(boxes: list[dict[str, Any]], classes: Sequence[int], images: int) -> Any:
    from pycocotools.coco import COCO

    made = COCO()
    made.dataset = {
        "images": [{"id": k} for k in range(images)],
        "annotations": [box | {"id": k} for k, box in enumerate(boxes, 1)],
        "categories": [{"id": number} for number in classes],
    }
    _silent(COCO.createIndex)(made)
    return made


def _evaluator(classes: Sequence[int], images: int) -> Any:
    from pycocotools.cocoeval import COCOeval

    judge = COCOeval(iouType="bbox")
    judge.params.imgIds, judge.params.catIds = list(range(images)), list(classes)
    judge.params.areaRng, judge.params.areaRngLbl = [_EVERY_AREA], ["all"]
    judge.params.maxDets = [_MOST_BOXES]
    return judge


def _silent(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of pycocotools that prints nothing; to redirect sys.stdout would silence other threads too."""
    assert isinstance(method, FunctionType)
    quiet = method.__globals__ | {"print": lambda *args, **options: None}
    return FunctionType(method.__code__, quiet, method.__name__, method.__defaults__, method.__closure__)
