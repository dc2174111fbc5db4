"""Average precision of boxes as COCO defines it, computed by pycocotools.

Each image is compared with its labels once; a trial compares again only the images whose boxes are other ones.
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
from onnxfi.tasks.answers import Floats
from onnxfi.tasks.kinds.boxes import finite

#: Boxes of an image and class that count, by falling score, and the area that does: all.
_MOST_BOXES, _EVERY_AREA = 100, [0.0, math.inf]


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
