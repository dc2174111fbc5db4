"""Box formats: the boxes of each sample from the outputs of detectors, raw or behind their suppression.

========== =============================================================================================
format     outputs of n samples, A anchors or cells, C classes, K boxes at most
========== =============================================================================================
yolo       one [n,4+C,A] of YOLOv8 and later: centre and size, scores of the classes
yolov5     one [n,A,5+C] of YOLOv5 to v7: centre and size, score of an object, scores of the classes
ssd        boxes [n,A,4] and scores [n,A,C], class 0 the background; with anchors, boxes are offsets from them
rows       one [n,K,6], or [K,6] of one sample: x1, y1, x2, y2, score, class
padded     boxes [n,K,4], scores and classes [n,K], and the number of boxes [n], if any
tensorflow the same with y1, x1, y2, x2 from 0 to 1, and classes from 1
torchvision boxes [K,4], labels from 1 and scores [K] of one sample
end2end    one [M,7] of YOLOv7: number of the sample, x1, y1, x2, y2, class, score
========== =============================================================================================

The first three are raw: what scores less than `score` goes, then non-maximum suppression of each class (`iou`). The
others have that behind them, and lose only what scores less.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np

from onnxfi.errors import DataError, InputError, closest
from onnxfi.numbers import named_number, named_whole, optional_whole
from onnxfi.runtime.data.label_files import category_ids
from onnxfi.runtime.data.npz import read_npy, read_npz
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Array, one_line, shape_text
from onnxfi.tasks.answers import Floats, float64, softmax
from onnxfi.tasks.kinds.boxes import suppressed

#: The parts that outputs play, by what their names hold.
_ROLES = {
    "boxes": re.compile(r"box|(?<![a-z])loc", re.I),
    "scores": re.compile(r"score|conf", re.I),
    "classes": re.compile(r"class|label|(?<![a-z])cls", re.I),
    "count": re.compile(r"num|count|valid", re.I),
}
#: Factors of the offsets of SSD, of centres and of sizes.
_VARIANCES = (0.1, 0.2)
RAW = ("yolo", "yolov5", "ssd")
#: Most axes of an output of boxes.
_BOXES_RANK = 3
#: Formats whose classes count from 1 unless `first_class` says otherwise.
FROM_ONE = ("tensorflow", "torchvision")
#: Kinds of numpy's types that hold no boxes: text, objects and complex numbers.
_NONE = "OUSTc"


@dataclass(frozen=True)
class BoxFormat:
    """A description of how boxes are read from outputs.

    Parameters
    ----------
    name : str
        The format; ``auto`` where names and shapes of the outputs say it.
    score, iou : float
        The least score of a box, and the overlap with a better one beyond which a raw box goes.
    most : int
        The largest number of boxes of a sample.
    size : tuple of float, optional
        Width and height of the input where boxes go from 0 to 1; they are multiplied by it.
    first_class : int, optional
        The number of the first class, 1 for ``tensorflow`` and ``torchvision`` and else 0.
    classes : int, optional
        The number of classes of ``yolo`` and ``yolov5``, where other numbers follow their scores, as of masks.
    activation : {"none", "sigmoid", "softmax"}
        The function that turns raw scores into probabilities.
    anchors : str
        A .npy or .npz file of the anchors of SSD, [A,4]: centre and size.
    ids : str
        A COCO .json whose category ids are the class indices of the outputs, where those have gaps as COCO's 1 to 90.
    """

    name: str = "auto"
    score: float = 0.25
    iou: float = 0.45
    most: int = 300
    size: tuple[float, float] | None = None
    first_class: int | None = None
    classes: int | None = None
    activation: str = "none"
    anchors: str = ""
    ids: str = ""

    def __post_init__(self) -> None:
        if self.name not in (*FORMATS, "auto"):
            raise InputError(f"no box format {self.name!r}{closest(self.name, FORMATS)}; formats: {', '.join(FORMATS)}")
        if self.activation not in _ACTIVATIONS:
            raise InputError(f"activation is {self.activation!r}; it is one of {', '.join(_ACTIVATIONS)}")
        given: tuple[tuple[str, object], ...] = (
            ("score", named_number("score", self.score, 0, 1)),
            ("iou", named_number("iou", self.iou, 0, 1)),
            ("most", named_whole("most", self.most, 1)),
            ("classes", optional_whole("classes", self.classes, 1)),
        )
        for name, value in given:
            object.__setattr__(self, name, value)
        if self.anchors and self.name != "ssd":
            raise InputError(f"anchors are for format ssd, and the format is {self.name}")
        if self.ids and self.first_class is not None:
            raise InputError("ids= says the number of each class; leave first_class= out")

    def boxes(self, outputs: Outputs) -> list[Floats]:
        """Return the boxes of each sample (float64 [K,6] each); DataError where the outputs have another format."""
        arrays = _numbers(outputs.arrays)
        name = self.format(arrays)
        found = FORMATS[name](self, replace(outputs, arrays=arrays))
        if len(found) != len(outputs.samples):
            raise DataError(
                f"outputs {_listed(arrays)} have boxes of {len(found)} samples, given {len(outputs.samples)}"
            )
        first = self.first_class if self.first_class is not None else int(name in FROM_ONE)
        scale = np.array([*(self.size or (1, 1)) * 2, 1, 1])
        finished = [self._finished(rows, name in RAW) * scale for rows in found]
        if (ids := self.category_ids) is not None:
            return [np.column_stack([rows[:, :5], _ranks(rows[:, 5], ids)]) for rows in finished]
        return [rows - [0, 0, 0, 0, 0, first] for rows in finished]

    def _finished(self, boxes: Floats, raw: bool) -> Floats:
        if raw:
            return suppressed(boxes, self.iou, self.most)
        there = boxes[boxes[:, 4] >= self.score]
        return there[np.argsort(-there[:, 4], kind="stable")][: self.most]

    def activated(self, scores: Floats) -> Floats:
        """Return probabilities of raw scores ([…, classes])."""
        with np.errstate(all="ignore"):
            return _ACTIVATIONS[self.activation](scores)

    @cached_property
    def offsets_from(self) -> Floats | None:
        """The anchors of SSD ([A,4]: centre and size); None if boxes are no offsets."""
        return _read_anchors(Path(self.anchors)) if self.anchors else None

    @cached_property
    def category_ids(self) -> Floats | None:
        """The class indices of the outputs in order, those of a COCO file; None where they follow one another."""
        return np.array(category_ids(Path(self.ids)), np.float64) if self.ids else None

    def format(self, arrays: Mapping[str, Array]) -> str:
        """Return the name of the format, which may be that which these outputs show."""
        return format_of(_numbers(arrays)) if self.name == "auto" else self.name

    def classes_of(self, arrays: Mapping[str, Array]) -> int | None:
        """Return the number of classes of raw heads; None if shapes do not say it."""
        arrays = _numbers(arrays)
        name = self.format(arrays)
        if self.category_ids is not None:
            return len(self.category_ids)
        if name == "ssd":
            return int(arrays[roles(arrays)["scores"]].shape[2]) - 1
        if name not in RAW or self.classes is not None:
            return self.classes
        array = _only(arrays, 3)
        return int(array.shape[1] - 4 if name == "yolo" else array.shape[2] - 5)


def _ranks(numbers: Floats, ids: Floats) -> Floats:
    """Return the place of each class index among the ids; one that is none of them lies behind them all."""
    ranks = np.minimum(np.searchsorted(ids, numbers), len(ids) - 1).astype(np.float64)
    return np.where(ids[ranks.astype(int)] == numbers, ranks, np.where(numbers >= 0, len(ids) + numbers, numbers))


def _numbers(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.atleast_1d(array) for name, array in arrays.items() if array.dtype.kind not in _NONE}


def _sigmoid(scores: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-scores)))


def _softmax(scores: Floats) -> Floats:
    return softmax(scores.reshape(-1, scores.shape[-1])).reshape(scores.shape)


_ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = MappingProxyType(
    {"none": lambda scores: scores, "sigmoid": _sigmoid, "softmax": _softmax}
)


def _read_anchors(path: Path) -> Floats:
    try:
        array = next(iter(read_npz(path).values())) if zipfile.is_zipfile(path) else read_npy(path)
        anchors = float64(array)
    except (DataError, OSError, ValueError, StopIteration, TypeError) as error:
        raise DataError(f"anchors in {str(path)!r} cannot be read: {one_line(error)}") from None
    if anchors.ndim != 2 or anchors.shape[1] != 4 or not np.isfinite(anchors).all():
        raise DataError(f"anchors in {str(path)!r} are {shape_text(anchors.shape)}; [A,4] finite numbers would do")
    return anchors


def roles(arrays: Mapping[str, Array]) -> dict[str, str]:
    """Return the output that holds the boxes, scores, classes and their number, by their names, shapes and types.

    >>> sorted(roles({"dets": np.zeros((1, 4, 4)), "p": np.zeros((1, 4)), "y": np.zeros((1, 4), np.int64)}).items())
    [('boxes', 'dets'), ('classes', 'y'), ('scores', 'p')]
    """
    found: dict[str, str] = {}
    for role in ("count", "classes", "scores", "boxes"):
        named = [name for name, array in arrays.items() if name not in found.values() and _named(role, name, array)]
        if len(named) == 1:
            found[role] = named[0]
    # Masks have four axes; of two other outputs of four columns, that of the higher rank has the boxes.
    rank = max(
        (array.ndim for array in arrays.values() if array.ndim <= _BOXES_RANK and array.shape[-1:] == (4,)), default=0
    )
    padded = any(array.ndim == 3 for array in arrays.values())
    for name, array in arrays.items():
        if name not in found.values():
            whole = array.dtype.kind in "iu"
            corners = array.ndim == max(rank, 2) and array.shape[-1] == 4 and "boxes" not in found
            role = "boxes" if corners else "classes" if whole else "scores"
            found.setdefault("count" if whole and padded and array.size == array.shape[0] else role, name)
    return found


def _named(role: str, name: str, array: Array) -> bool:
    """Return true for an output that plays a role by its name: "class_scores" are scores, "num_dets" one per sample."""
    if role == "count" and array.size != array.shape[0]:
        return False
    return _ROLES[role].search(name) is not None and not (role == "classes" and _ROLES["scores"].search(name))


def format_of(arrays: Mapping[str, Array]) -> str:
    """Return the format that names and shapes of outputs show; DataError if they do not.

    >>> format_of({"output0": np.zeros((1, 84, 8400))})
    'yolo'
    >>> format_of({"output0": np.zeros((1, 25200, 85))})
    Traceback (most recent call last):
    onnxfi.errors.DataError: outputs 'output0' [1,25200,85] do not show their box format; name it with format=NAME, ...
    """
    if len(arrays) == 1:
        (array,) = arrays.values()
        if array.shape[-1:] == (6,) and array.ndim in (2, 3):
            return "rows"
        if array.ndim == 3 and 4 < array.shape[1] < array.shape[2]:
            return "yolo"
    else:
        found = roles(arrays)
        ranks = {role: arrays[name].ndim for role, name in found.items()}
        if ranks.get("boxes") == 3 and ranks.get("scores") == 3 and "classes" not in found:
            return "ssd"
        if {"boxes", "scores", "classes"} <= found.keys():
            if ranks["scores"] == 1:
                return "torchvision"
            if ranks["boxes"] == 3 and ranks["scores"] == 2:
                return "tensorflow" if found["boxes"].startswith("detection_boxes") else "padded"
    raise DataError(
        f"outputs {_listed(arrays)} do not show their box format; name it with format=NAME, of "
        f"{', '.join(FORMATS)}, or give decode=module:function"
    )


def _listed(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"{name!r} {shape_text(array.shape)}" for name, array in arrays.items())


def _only(arrays: Mapping[str, Array], rank: int) -> Array:
    """Return the only output of a rank."""
    found = [array for array in arrays.values() if array.ndim == rank]
    if len(found) != 1:
        raise DataError(f"{len(found)} of the outputs {_listed(arrays)} have {rank} dimensions; name one with --output")
    return found[0]


def _corners(boxes: Floats) -> Floats:
    """Return x1, y1, x2, y2 of centre and size ([…,4])."""
    with np.errstate(all="ignore"):
        half = boxes[..., 2:4] / 2
        return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def _best(how: BoxFormat, cells: Array, first: int) -> Floats:
    """Return the boxes of one sample with their best class, of a row a cell: centre, size, scores from `first` on."""
    scores = how.activated(float64(cells[:, first : None if how.classes is None else first + how.classes]))
    with np.errstate(all="ignore"):
        best = scores.max(axis=1)
        if first == 5:
            objects = float64(cells[:, 4])
            best = best * (how.activated(objects) if how.activation == "sigmoid" else objects)
    there = np.flatnonzero(best >= how.score)
    rows = _corners(float64(cells[there, :4]))
    return np.column_stack([rows, best[there], scores[there].argmax(axis=1)])


def _yolo(how: BoxFormat, outputs: Outputs) -> list[Floats]:
    array = _only(outputs.arrays, 3)
    if array.shape[1] < 5:
        raise DataError(f"the output is {shape_text(array.shape)}; yolo is [n,4+classes,cells]")
    return [_best(how, cells.T, 4) for cells in array]


def _yolov5(how: BoxFormat, outputs: Outputs) -> list[Floats]:
    array = _only(outputs.arrays, 3)
    if array.shape[2] < 6:
        raise DataError(f"the output is {shape_text(array.shape)}; yolov5 is [n,anchors,5+classes]")
    return [_best(how, cells, 5) for cells in array]


def _ssd(how: BoxFormat, outputs: Outputs) -> list[Floats]:
    places, scores = _parts(outputs, "boxes", "scores")
    if places.ndim != 3 or scores.ndim != 3 or places.shape[:2] != scores.shape[:2] or scores.shape[2] < 2:
        raise DataError(f"outputs are {_listed(outputs.arrays)}; ssd is boxes [n,A,4] and scores [n,A,1+classes]")
    found = []
    for place, own in zip(places, how.activated(float64(scores)), strict=True):
        anchor, number = np.nonzero(own[:, 1:] >= how.score)
        rows = _moved(how, float64(place))[anchor]
        found.append(np.column_stack([rows, own[anchor, number + 1], number]))
    return found


def _moved(how: BoxFormat, boxes: Floats) -> Floats:
    """Return x1, y1, x2, y2 of the boxes of SSD, with anchors from offsets ([A,4])."""
    anchors = how.offsets_from
    if anchors is None:
        return boxes
    if len(anchors) != len(boxes):
        raise DataError(f"{how.anchors!r} has {len(anchors):,} anchors, and the model {len(boxes):,} boxes")
    with np.errstate(all="ignore"):
        centres = anchors[:, :2] + boxes[:, :2] * _VARIANCES[0] * anchors[:, 2:]
        sizes = anchors[:, 2:] * np.exp(boxes[:, 2:] * _VARIANCES[1])
    return _corners(np.concatenate([centres, sizes], axis=1))


def _parts(outputs: Outputs, *wanted: str) -> list[Array]:
    found = roles(outputs.arrays)
    if missing := [role for role in wanted if role not in found]:
        raise DataError(f"none of the outputs {_listed(outputs.arrays)} is sure to hold the {' or the '.join(missing)}")
    return [outputs.arrays[found[role]] for role in wanted]


def _by_sample(outputs: Outputs, array: Array, width: int = 0) -> Floats:
    """Return an output as [n,K] or [n,K,width]; that of one sample may have no axis of samples."""
    n = len(outputs.samples)
    shape = (n, -1, width) if width else (n, -1)
    if n != 1 and (array.ndim != len(shape) or len(array) != n):
        raise DataError(f"an output {shape_text(array.shape)} has no row for each of {n} samples; run with --batch 1")
    if width and array.shape[-1] != width:
        raise DataError(f"boxes are {shape_text(array.shape)}; a row has {width} columns")
    return float64(array).reshape(n, array.size // (width or 1) // max(n, 1), *shape[2:])


def _rows(how: BoxFormat, outputs: Outputs) -> list[Floats]:
    if len(outputs.arrays) != 1:
        raise DataError(f"format rows reads one output of {_listed(outputs.arrays)}; name it with --output")
    (array,) = outputs.arrays.values()
    return list(_by_sample(outputs, array, 6))


def _padded(how: BoxFormat, outputs: Outputs, order: Sequence[int] = (0, 1, 2, 3)) -> list[Floats]:
    places, scores, classes = _parts(outputs, "boxes", "scores", "classes")
    places, scores, classes = _by_sample(outputs, places, 4), _by_sample(outputs, scores), _by_sample(outputs, classes)
    most = min(places.shape[1], scores.shape[1], classes.shape[1])
    rows = np.concatenate([places[:, :most, list(order)], scores[:, :most, None], classes[:, :most, None]], axis=2)
    count = roles(outputs.arrays).get("count")
    if count is None:
        return list(rows)
    numbers = float64(outputs.arrays[count]).reshape(len(rows), -1)[:, 0]
    ends = np.clip(np.nan_to_num(numbers, nan=0.0), 0, most).astype(np.int64)
    return [own[:end] for own, end in zip(rows, ends, strict=True)]


def _tensorflow(how: BoxFormat, outputs: Outputs) -> list[Floats]:
    return _padded(how, outputs, (1, 0, 3, 2))


def _end2end(how: BoxFormat, outputs: Outputs) -> list[Floats]:
    if len(outputs.arrays) != 1:
        raise DataError(f"format end2end reads one output of {_listed(outputs.arrays)}; name it with --output")
    (array,) = outputs.arrays.values()
    if array.shape[-1] != 7:
        raise DataError(f"the output is {shape_text(array.shape)}; end2end is [boxes,7]")
    rows = float64(array).reshape(-1, 7)
    return [rows[rows[:, 0] == k][:, [1, 2, 3, 4, 6, 5]] for k in range(len(outputs.samples))]


#: The formats by name: functions that return rows of x1, y1, x2, y2, score, class of each sample.
FORMATS: Mapping[str, Callable[[BoxFormat, Outputs], list[Floats]]] = MappingProxyType({
    "yolo": _yolo, "yolov5": _yolov5, "ssd": _ssd, "rows": _rows, "padded": _padded, "tensorflow": _tensorflow,
    "torchvision": _padded, "end2end": _end2end,
})  # fmt: skip
