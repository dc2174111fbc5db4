"""How much faulty outputs differ from golden ones: pure functions `(golden, faulty, labels) -> float`.

Both outputs have one shape, samples first; `labels` has shape [N]. Classifier metrics take scores [N, classes].
g and f are the golden and faulty output, g_i and f_i their rows, N the samples, [·] is 1 where true, else 0.

The **top-1** t(s) of a row s is the class with the highest score, the lowest such class in a tie. A class is in
the **top-5** when fewer than five others come before it in that order. A row that holds a NaN has neither:
whatever is asked of it counts as wrong, and as different from everything but the same row bit for bit.

A new metric is one row in `METRICS`; the tests of all metrics pick it up from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, InputError, closest
from onnxfi.runtime.ports import Array, Port

Labels = NDArray[np.int64]
Function = Callable[[Array, Array, Labels | None], float]


@dataclass(frozen=True)
class Metric:
    """A metric, and when it applies.

    `unchanged` is its value where faulty is golden and all is finite, None where that depends on the labels.
    `reshaped` is its value where the outputs have different shapes, as those of a detector may: the worst.
    `unit` is `share` (0 to 1) or what it measures; a `classifier` metric takes scores [N, classes].

    >>> METRICS["sdc1"](np.array([[0.1, 0.9]]), np.array([[0.8, 0.9]]))
    0.0
    """

    name: str
    function: Function
    unchanged: float | None
    reshaped: float
    unit: str = "share"
    classifier: bool = False

    @property
    def needs_labels(self) -> bool:
        """Whether it compares with labels."""
        return self.unchanged is None

    def __call__(self, golden: Array, faulty: Array, labels: Labels | None = None) -> float:
        """The metric's value; `DataError` where labels or shapes do not fit."""
        golden, faulty = np.asarray(golden), np.asarray(faulty)
        if golden.shape != faulty.shape:
            return self.reshaped
        if self.classifier and golden.ndim != 2:
            raise DataError(f"{self.name} takes scores of shape [N, classes], given {list(golden.shape)}")
        if self.needs_labels:
            _check_labels(labels, golden, self.name)
        with np.errstate(all="ignore"):
            return self.function(golden, faulty, labels)


def _check_labels(labels: Labels | None, scores: Array, name: str) -> None:
    if labels is None:
        raise DataError(f"{name} needs labels")
    if labels.shape != scores.shape[:1]:
        raise DataError(f"{name}: {labels.size} labels for {len(scores)} samples")
    if labels.size and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
        raise DataError(
            f"labels go from {labels.min()} to {labels.max()}, but the model scores {scores.shape[1]} classes, "
            "counted from 0"
        )


def _share(true: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(true) / true.size) if true.size else 0.0


def _top(scores: Array) -> NDArray[np.int64]:
    """The top-1 class of each row, -1 where there is none."""
    if not scores.size:
        return np.full(len(scores), -1)
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))


def _in_top(scores: Array, classes: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Whether each row has its class among its k first; never where the row has a NaN, or the class is -1."""
    if not scores.size:
        return np.zeros(len(scores), np.bool_)
    own = np.take_along_axis(scores, np.maximum(classes, 0)[:, None], axis=1)
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < classes[:, None]))
    inside: NDArray[np.bool_] = before.sum(axis=1) < k
    return inside & (classes >= 0) & ~np.isnan(scores).any(axis=1)


def differing(golden: Array, faulty: Array) -> NDArray[np.bool_]:
    """Which elements differ in any bit (so -0.0 differs from 0.0, and a NaN equals the same NaN).

    >>> differing(np.array([0.0, np.nan, 1.0]), np.array([-0.0, np.nan, 1.0]))
    array([ True, False, False])
    """
    if golden.dtype.kind in "OUST":
        return np.asarray(golden != faulty, np.bool_)
    width = golden.dtype.itemsize
    words = [np.ascontiguousarray(one).reshape(-1).view(f"V{width}" if width > 8 else f"u{width}") for one in (golden, faulty)]
    return np.asarray(words[0] != words[1], np.bool_).reshape(golden.shape)


def _rows_differ(golden: Array, faulty: Array) -> NDArray[np.bool_]:
    return differing(golden, faulty).reshape(len(golden), -1).any(axis=1) if golden.ndim else differing(golden, faulty)
