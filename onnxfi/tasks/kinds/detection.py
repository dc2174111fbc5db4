"""Detection: boxes with a score and a class, for each sample as many as there are; none is an answer too.

An image is compared with the golden run's detections of it. A faulty detection that is none of them is **new**; a
golden detection that no faulty one is any more is **lost**. Two are the same where they have one class and overlap by
`match` or more; score and place may differ otherwise. This is the image-wise vulnerability of Qutub et al.:
**IVMOD_SDC** is the share of images with a new or a lost detection and no NaN or infinity, **IVMOD_DUE** the
share of those with a NaN or an infinity. They count false positives and false negatives against the labels; against the
golden detections none cancels another, and no labels are needed.

With labels ([K,6] a sample: class, x1, y1, x2, y2, crowd, in pixels of the input) there is the average precision of
COCO, of all images of a trial together.

References
----------
S. Qutub et al., "Hardware faults that matter: understanding and estimating the safety impact of hardware faults on
object detection DNNs", SAFECOMP 2022, arXiv:2209.03225.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, InputError
from onnxfi.extensions import imported
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.labels import as_kind
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import one_line
from onnxfi.tasks.answers import AnswerPair, Answers, Flags, Floats, share
from onnxfi.tasks.kinds.box_formats import FROM_ONE, BoxFormat
from onnxfi.tasks.kinds.boxes import ImageMatches, Precision, check_installed, finite, matches, pairs
from onnxfi.tasks.task import Metric, Task

#: Boxes that end below this are shares of the input, not pixels.
_LARGEST_SHARE = 4.0


@dataclass(frozen=True)
class Changes:
    """For each image the detections of the golden run and of the faulty one, and those that are the same ([N] each)."""

    golden: NDArray[np.int64]
    faulty: NDArray[np.int64]
    same: NDArray[np.int64]

    @property
    def other(self) -> Flags:
        """Images with a new or a lost detection ([N])."""
        return (self.same < self.golden) | (self.same < self.faulty)


def changes(pair: AnswerPair, match: float) -> Changes:
    """Pair the detections of each image that differs."""
    golden = np.array([len(boxes) for boxes in pair.golden.values], np.int64)
    faulty, same = golden.copy(), golden.copy()
    for k in np.flatnonzero(pair.differ).tolist():
        faulty[k] = len(pair.values[k])
        same[k] = pairs(pair.golden.values[k], pair.values[k], match)
    return Changes(golden, faulty, same)


@dataclass(frozen=True)
class _Rule:
    """The outcome of an image, by the overlap from which on detections are the same."""

    match: float

    def changes(self, pair: AnswerPair) -> Changes:
        return pair.once(self._changes)

    def _changes(self, pair: AnswerPair) -> Changes:
        return changes(pair, self.match)

    def masked(self, pair: AnswerPair) -> Flags:
        """Return the images with all golden detections and no other ([N])."""
        return ~self.changes(pair).other

    def wrong(self, pair: AnswerPair) -> Flags:
        """Return the images with a new or a lost detection and no NaN or infinity ([N])."""
        return self.changes(pair).other & ~pair.detected

    def ivmod_sdc(self, pair: AnswerPair) -> float:
        """Share of images with a new or a lost detection and no NaN or infinity."""
        return share(self.wrong(pair))

    def lost(self, pair: AnswerPair) -> float:
        """Share of the golden detections that are lost, over all images."""
        found = self.changes(pair)
        return 1 - float(found.same.sum() / found.golden.sum()) if found.golden.any() else 0.0

    def detections(self, pair: AnswerPair) -> float:
        """Count the detections of an image, as the mean of all images."""
        found = self.changes(pair).faulty
        return float(found.mean()) if found.size else 0.0

    def new(self, pair: AnswerPair) -> float:
        """Share of the faulty detections that are new, over all images."""
        found = self.changes(pair)
        return 1 - float(found.same.sum() / found.faulty.sum()) if found.faulty.any() else 0.0


def ivmod_due(pair: AnswerPair) -> float:
    """Share of images in whose outputs or boxes there is a NaN or an infinity that the golden run does not have."""
    return share(pair.detected)


def _golden_matches(golden: Answers) -> ImageMatches:
    assert golden.labels is not None  # the metrics need them
    real = golden.labels[~np.isnan(golden.labels[..., 0])]
    classes = np.unique(real[real[:, 5] == 0, 0]).astype(int).tolist()
    return matches(golden.labels, list(golden.values), classes)


def precision(pair: AnswerPair) -> Precision:
    """Return the average precision of the faulty detections."""
    found, other = pair.golden.once(_golden_matches), np.flatnonzero(pair.differ)
    if other.size and found.classes:
        assert pair.labels is not None
        found = found.replaced(
            other, matches(pair.labels[other], [pair.values[k] for k in other.tolist()], found.classes)
        )
    return found.precision()


def _precision(pair: AnswerPair, part: str) -> float:
    found: float = getattr(pair.once(precision), part)
    return found


def _of_labels(name: str, part: str, label: str, axis: str) -> Metric:
    return Metric.of_labels(name, partial(_precision, part=part), label, axis=axis, per="set", needs_all=True)


def detection(
    format: str = "auto",
    score: float = 0.25,
    iou: float = 0.45,
    match: float = 0.5,
    most: int = 300,
    size: str | int = "",
    classes: int | None = None,
    first_class: int | None = None,
    activation: str = "none",
    anchors: str = "",
    ids: str = "",
    decode: str = "",
) -> Task:
    """Return the task of a detector.

    Parameters
    ----------
    format : str
        The box format of the outputs (see `box_formats`); ``auto`` where their names and shapes show it.
    score, iou, most, classes, first_class, activation, anchors, ids
        See `BoxFormat`.
    match : float
        The overlap (intersection over union) from which on two boxes of a class are the same detection.
    size : str or int
        Width and height of the input, as ``640x480`` or ``640``, where boxes go from 0 to 1.
    decode : str
        ``module:function`` of one's own in place of a format: of `Outputs` it returns [K,6] for each sample.

    Examples
    --------
    >>> detection(format="yolo", score=0.5).headline
    'ivmod_sdc'
    """
    if not 0 < match <= 1:
        raise InputError(f"match must be above 0 and at most 1, got {match}")
    how = BoxFormat(format, score, iou, most, _size(size), first_class, classes, activation, anchors, ids)
    if decode and (ids or format != "auto"):
        raise InputError(f"give {f'ids={ids}' if ids else f'format={format}'} or decode={decode}, not both")
    boxes = _Own(decode, imported(decode, what="function")).boxes if decode else how.boxes
    rule = _Rule(match)
    return Task(
        "detection",
        (
            _of_labels("ap50", "ap50", "AP50", "AP at IoU 0.5 (%)"),
            _of_labels("ap", "ap", "AP50:95", "AP at IoU 0.5 to 0.95 (%)"),
            _of_labels("ar", "recall", "AR", "Average recall (%)"),
            Metric("ivmod_sdc", rule.ivmod_sdc, label="IVMOD_SDC", axis="IVMOD_SDC\n(% of images)", silent=True),
            Metric("ivmod_due", ivmod_due, label="IVMOD_DUE", axis="IVMOD_DUE\n(% of images)", detected=True),
            Metric("lost_boxes", rule.lost, label="lost detections", per="set"),
            Metric("new_boxes", rule.new, label="new detections", per="set"),
            Metric(
                "detections", rule.detections, label="detections per image", per="set", unit="", better="higher",
                bounds=(0.0, math.inf), unchanged=None, failed=0.0, golden=True,
            ),
        ),
        headline="ivmod_sdc",
        columns=(("ap50",), ("ivmod_sdc",), ("ivmod_due",), ("lost_boxes",), ("new_boxes",), ("sdc",), ("due",)),
        panels=("ivmod_sdc", "ivmod_due", "sdc", "due"),
        curves=("ap50", "ivmod_sdc"),
        tiles=("ivmod_sdc", "ivmod_due"),
        orders=(("ivmod_sdc", "sdc_samples"), ("ivmod_due", "due_samples")),
        absent="the outputs are not read as detections; name the task with --task detection",
        labels="boxes",
        takes_tolerance=False,
        apart=format != "end2end",
        masked=rule.masked,
        wrong=rule.wrong,
        decode=boxes,
        misfit=partial(_misfit, boxes=boxes, how=None if decode else how),
    )  # fmt: skip


def _size(size: str | int) -> tuple[float, float] | None:
    if not (found := re.fullmatch(r"(\d+)(?:x(\d+))?", str(size))):
        if size == "":
            return None
        raise InputError(f"size is {str(size)!r}; it is the width and height of the input, as 640x480 or 640")
    wide, high = float(found[1]), float(found[2] or found[1])
    if not wide or not high:
        raise InputError(f"size is {str(size)!r}; width and height are 1 or more")
    return wide, high


@dataclass(frozen=True)
class _Own:
    """A user's own function that reads boxes."""

    spec: str
    function: Callable[[Outputs], Sequence[Any]]

    def boxes(self, outputs: Outputs) -> list[Floats]:
        """Return the boxes of each sample; DataError if they are not [K,6] each."""
        found = []
        try:
            for one in self.function(outputs):
                rows = np.asarray(one, np.float64)
                if rows.size and (rows.ndim != 2 or rows.shape[1] != 6):
                    raise DataError(f"boxes are {list(rows.shape)}; a row is x1, y1, x2, y2, score, class")
                found.append(rows.reshape(-1, 6))
            if len(found) != len(outputs.samples):
                raise DataError(f"{len(found)} answers for {len(outputs.samples)} samples; give one per sample")
        except Exception as error:
            kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
            raise DataError(f"decode {self.spec!r} failed: {kind}{one_line(error)}") from error
        return found


def _misfit(
    run: Sequence[Outputs], data: Data, kind: str, *, boxes: Callable[[Outputs], list[Floats]], how: BoxFormat | None
) -> str:
    """Return why golden outputs or labels are no detections; empty if they are."""
    found = [boxes(outputs) for outputs in run]
    labels = None if data.labels is None else as_kind("boxes", data.labels)
    every = np.concatenate([one for batch in found for one in batch] or [np.zeros((0, 6))])
    if not finite(every).all():
        bad = every[~finite(every)][0].round(3).tolist()
        return f"the golden run has a box of {bad} (x1, y1, x2, y2, score, class), which is nowhere"
    if ((every[:, 5] < 0) | (every[:, 5] != np.floor(every[:, 5]))).any():
        from_one = how is not None and how.first_class is None and how.format(run[0].arrays) in FROM_ONE
        helps = "; where the outputs count from 0, first_class=0 says so" if from_one else ""
        return f"the golden run has a detection of class {every[:, 5].min():g}; classes count from 0{helps}"
    if how is not None and (ids := how.category_ids) is not None and len(every) and every[:, 5].max() >= len(ids):
        number = every[:, 5].max() - len(ids)
        return f"the golden run has a detection of class {number:g}, which is no category of {how.ids!r}"
    if labels is None:
        return ""
    check_installed()
    real = labels[~np.isnan(labels[..., 0])]
    if not len(real):
        return "no sample has a box among its labels, of which no average precision is taken; leave the labels out"
    most = how.classes_of(run[0].arrays) if how is not None else None
    if most is not None and real[:, 0].max() >= most:
        return f"labels go to class {real[:, 0].max():g}, and the model has {most} classes, counted from 0"
    if len(every) and every[:, :4].max() <= _LARGEST_SHARE < real[:, 1:5].max():
        return (
            f"boxes end at {every[:, :4].max():.3g}, those of the labels at {real[:, 1:5].max():g}; say how large the "
            "input is, as size=640x480"
        )
    return ""
