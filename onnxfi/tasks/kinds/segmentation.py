"""Segmentation: a class for every pixel of a sample.

Outputs are scores of classes ([N,C,H,W], or [N,H,W,C] with ``channels=last``), of which the highest counts and the
first in a tie; one map of scores ([N,1,H,W] or [N,H,W]), which is the foreground, class 1, from `threshold` on; or
classes themselves, as integers ([N,H,W] or [N,1,H,W]). A pixel with a NaN among its scores has no class.

A sample is wrong where more than the share `changed` of its pixels have another class than in the golden run, without a
new NaN or infinity.

With masks as labels ([N,H,W]; -1 and, in files, 255 is no class, and does not count) there are, of all pixels of a
trial together, with n_cd the number of pixels of class c that were given class d:

- the pixel accuracy Σ_c n_cc / Σ_cd n_cd,
- the intersection over union n_cc / (Σ_d n_cd + Σ_d n_dc - n_cc) as the mean over the classes c that the labels hold,
- the Dice coefficient 2 n_cc / (Σ_d n_cd + Σ_d n_dc) as the mean over the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, InputError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.labels import VOID, as_kind
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Array, Port, shape_text
from onnxfi.tasks.answers import AnswerPair, Answers, Flags, Floats
from onnxfi.tasks.class_scores import only_output
from onnxfi.tasks.task import Metric, Task

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class MaskFormat:
    """A description of how classes of pixels are read from an output."""

    threshold: float = 0.5
    channels: str = "first"

    def masks(self, outputs: Outputs) -> Array:
        """Return the class of each pixel ([n,H,W]); DataError if the output has another shape."""
        if len(outputs.arrays) != 1:
            raise DataError(f"{len(outputs.arrays)} outputs count; name the one of the masks with --output")
        ((name, array),) = outputs.arrays.items()
        if array.ndim == 4 and self.channels == "last":
            array = array.transpose(0, 3, 1, 2)
        whole = array.dtype.kind in "iub"
        shaped = array.ndim in (3, 4) and len(array) == len(outputs.samples) and 0 not in array.shape[1:]
        if not shaped or array.dtype.kind in "OUSTc" or (whole and array.shape[1:-2] not in ((), (1,))):
            given = f"{array.dtype} {shape_text(array.shape)}"
            raise DataError(
                f"output {name!r} is {given} for {len(outputs.samples)} samples; masks are scores [N,classes,H,W], one "
                "map of scores [N,H,W], or classes as integers [N,H,W]"
            )
        one = array[:, 0] if array.ndim == 4 and array.shape[1] == 1 else array
        if whole:
            return one.astype(np.int64)
        scores = one if one.dtype in (np.float32, np.float64) else one.astype(np.float32)
        if one.ndim == 3:
            return np.where(np.isnan(scores), VOID, scores >= self.threshold).astype(np.int16)
        found: Array = scores.argmax(axis=1).astype(np.int16 if scores.shape[1] < 1 << 15 else np.int32)
        if np.isnan(scores).any():
            found[np.isnan(scores).any(axis=1)] = VOID
        return found


def _fits(port: Port) -> bool:
    """Return true for an output as it is declared that may hold masks."""
    return port.shape is None or len(port.shape) in (3, 4)


def changed_share(pair: AnswerPair) -> Floats:
    """Return the share of the pixels of each sample that have another class ([N])."""
    found = np.zeros(len(pair.golden.values))
    for k in np.flatnonzero(pair.differ).tolist():
        golden, faulty = pair.golden.values[k], pair.values[k]
        found[k] = np.mean(golden != faulty) if golden.shape == faulty.shape else 1.0
    return found


def changed_pixels(pair: AnswerPair) -> float:
    """Share of the pixels that have another class than in the golden run, over all samples."""
    found = pair.once(changed_share)
    return float(found.mean()) if found.size else 0.0


def _over(pair: AnswerPair, limit: float) -> Flags:
    return np.asarray(pair.once(changed_share) > limit)


def counted(truth: Array, found: Array, classes: int) -> Counts:
    """Return the pixels of each class (rows) that were given each class (columns); the last column is of any other.

    >>> counted(np.array([[0, 1, -1]]), np.array([[0, 7, 0]]), 2).tolist()
    [[1, 0, 0], [0, 0, 1]]
    """
    known = truth != VOID
    rows, columns = truth[known].astype(np.int64), found[known].astype(np.int64)
    columns[(columns < 0) | (columns >= classes)] = classes
    return np.bincount(rows * (classes + 1) + columns, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


@dataclass(frozen=True)
class _Golden:
    """The labels of the golden run, the number of their classes, and the golden counts of each sample and of all."""

    masks: Array
    classes: int
    counts: Counts
    whole: Counts


def _golden(golden: Answers) -> _Golden:
    assert golden.labels is not None  # the metrics need them
    classes = int(golden.labels.max(initial=0)) + 1
    counts = np.stack([counted(*both, classes) for both in zip(golden.labels, golden.values, strict=True)])
    return _Golden(golden.labels, classes, counts, counts.sum(axis=0))


def confusion(pair: AnswerPair) -> Counts:
    """Return the pixels of each class of the labels (rows) that have each class in the faulty masks (columns)."""
    golden = pair.golden.once(_golden)
    whole = golden.whole.copy()
    for k in np.flatnonzero(pair.differ).tolist():
        found = pair.values[k]
        if found.shape != golden.masks[k].shape:
            found = np.full(golden.masks[k].shape, golden.classes)
        whole += counted(golden.masks[k], found, golden.classes) - golden.counts[k]
    return whole


def pixel_accuracy(pair: AnswerPair) -> float:
    """Share of the labelled pixels that have the class of their label."""
    counts = pair.once(confusion)
    return float(np.trace(counts) / counts.sum()) if counts.sum() else np.nan


def miou(pair: AnswerPair) -> float:
    """Intersection over union of the pixels of each class, as the mean over the classes that the labels hold."""
    return _mean_of_classes(pair, lambda right, both: right / (both - right))


def dice(pair: AnswerPair) -> float:
    """Dice coefficient of the pixels of each class, as the mean over the classes that the labels hold."""
    return _mean_of_classes(pair, lambda right, both: 2 * right / both)


def _mean_of_classes(pair: AnswerPair, of: Callable[[Counts, Counts], Floats]) -> float:
    counts = pair.once(confusion)
    right, held = np.diagonal(counts), counts.sum(axis=1)
    both = held + counts.sum(axis=0)[:-1]
    return float(of(right[held > 0], both[held > 0]).mean()) if held.any() else np.nan


def segmentation(changed: float = 0.01, threshold: float = 0.5, channels: str = "first") -> Task:
    """Return the task of a segmenter.

    Parameters
    ----------
    changed : float
        The share of changed pixels beyond which a sample is wrong: 0.01 is 1 % of them.
    threshold : float
        The score from which on a pixel is foreground, where there is one map of scores: 0.5 of sigmoids, 0 of logits.
    channels : {"first", "last"}
        The place of the classes among the axes of an output of four.

    Examples
    --------
    >>> segmentation(changed=0.05).headline
    'sdc_samples'
    """
    if not 0 <= changed < 1:
        raise InputError(f"changed must be in [0, 1), got {changed}")
    if channels not in ("first", "last"):
        raise InputError(f"channels is {channels!r}; it is first or last")
    over = partial(_over, limit=changed)
    how = MaskFormat(threshold, channels)
    return Task(
        "segmentation",
        (
            Metric.of_labels("miou", miou, "mIoU", axis="Mean IoU (%)", per="set", needs_all=True),
            Metric.of_labels("dice", dice, "Dice", axis="Mean Dice coefficient (%)", per="set", needs_all=True),
            Metric.of_labels("pixel_accuracy", pixel_accuracy, "pixel accuracy", axis="Pixel accuracy (%)", per="set"),
            Metric("changed_pixels", changed_pixels, label="changed pixels", axis="Changed pixels (%)", per="set"),
        ),
        columns=(("miou",), ("pixel_accuracy",), ("changed_pixels",), ("sdc_samples",), ("sdc",), ("due",)),
        curves=("miou", "changed_pixels"),
        absent="the output is not read as masks; name the task with --task segmentation",
        labels="masks",
        takes_tolerance=False,
        masked=lambda pair: ~over(pair),
        decode=how.masks,
        reads=partial(only_output, fits=_fits, what="masks, [N,classes,H,W] or [N,H,W]"),
        misfit=partial(_misfit, how=how),
    )  # fmt: skip


def _misfit(run: Sequence[Outputs], data: Data, kind: str, *, how: MaskFormat) -> str:
    """Return why golden outputs or labels are no masks; empty if they are."""
    found = [how.masks(outputs) for outputs in run]
    if data.labels is None:
        return ""
    labels: Any = as_kind("masks", data.labels)
    sizes = {masks.shape[1:] for masks in found} - {labels.shape[1:]}
    if sizes:
        high, wide = sizes.pop()
        return f"masks of the model have {wide}x{high} pixels, those of the labels {labels.shape[2]}x{labels.shape[1]}"
    (array,) = run[0].arrays.values()
    scored = array.ndim == 4 and array.dtype.kind not in "iub"
    classes = array.shape[1 if how.channels == "first" else 3] if scored else None
    most = None if classes is None else max(classes, 2)
    if most is not None and labels.max(initial=0) >= most:
        return f"masks of the labels go to class {labels.max()}, and the model has {most} classes, counted from 0"
    return ""
