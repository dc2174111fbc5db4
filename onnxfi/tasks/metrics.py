"""How much faulty outputs differ from golden ones: pure functions of a `Comparison`.

Both outputs have one shape, samples first; `labels` has shape [N]. Classifier metrics take scores
[N, classes]. In the formulas g and f are the golden and the faulty output, g_i and f_i their rows, N the
number of samples, and [·] is 1 where true, else 0.

The **top-1** t(s) of a row s is the class with the highest score, the lowest such class in a tie. A class is
in the **top-5** when fewer than five others come before it in that order. A row that holds a NaN has neither:
whatever is asked of it counts as wrong, and as different from everything but the same row bit for bit.

**SDC-1** and **SDC-5** are silent: an answer with a NaN or an infinity that golden does not have there is detected
(DUE), and counts in neither. `top1_changed` counts every other top-1, detected or not.

A new metric is one row in `METRICS`; the tests of all metrics pick it up from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, InputError, closest
from onnxfi.runtime.engine.model_io import Array
from onnxfi.tasks.comparison import Answers, Comparison, Labels, differing, float64, share, softmax

__all__ = [
    "KINDS",
    "METRICS",
    "Labels",
    "Metric",
    "applicable",
    "differing",
    "probabilities",
    "score_kind",
]

Function = Callable[[Comparison], float]


@dataclass(frozen=True)
class Metric:
    """A metric, and when it applies.

    `unchanged` is its value where faulty is golden and all is finite, None where that depends on the labels.
    `reshaped` is its value where the outputs differ in shape, as those of a detector may: the worst, or None
    where only the faulty one counts. `share` says that the value is a share, for people a percentage. A
    `classifier` metric takes scores [N, classes].

    >>> METRICS["sdc1"](np.array([[0.1, 0.9]]), np.array([[0.8, 0.9]]))
    0.0
    """

    name: str
    function: Function
    unchanged: float | None
    reshaped: float | None
    classifier: bool = False
    share: bool = True

    @property
    def needs_labels(self) -> bool:
        """Whether it compares with labels."""
        return self.unchanged is None

    def __call__(self, golden: Array, faulty: Array, labels: Labels | None = None) -> float:
        """The metric's value; `DataError` where labels or shapes do not fit."""
        return self.of(Comparison(Answers(golden, labels), Answers(faulty)))

    def of(self, pair: Comparison) -> float:
        """The metric's value of a comparison, which all metrics can share."""
        golden, faulty = (np.shape(one.scores) or (1,) for one in (pair.golden, pair.faulty))
        if self.reshaped is not None and golden != faulty:
            return self.reshaped
        if self.classifier and len(golden) != 2:
            raise DataError(f"{self.name} takes scores of shape [N, classes], given {list(golden)}")
        if self.needs_labels:
            _check_labels(pair.labels, pair.golden.scores, self.name)
        with np.errstate(all="ignore"):
            return self.function(pair)


def _check_labels(labels: Labels | None, scores: Array, name: str) -> None:
    labels = _known(labels)
    if labels.shape != scores.shape[:1]:
        raise DataError(f"{name}: {labels.size} labels for {len(scores)} samples")
    if labels.size and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
        found, classes = f"{labels.min()} to {labels.max()}", scores.shape[1]
        raise DataError(f"labels go from {found}, but the model scores {classes} classes, counted from 0")


def _known(labels: Labels | None) -> Labels:
    if labels is None:
        raise DataError("accuracy needs labels; the data has none")
    return labels


def top1(pair: Comparison) -> float:
    """Accuracy of the faulty output: Σ [t(f_i) = label_i] / N."""
    return share(pair.top == _known(pair.labels))


def top5(pair: Comparison) -> float:
    """Share of samples whose label is in the faulty top-5: Σ [label_i ∈ top-5(f_i)] / N."""
    _known(pair.labels)
    return share(pair.label_five)


def sdc1(pair: Comparison) -> float:
    """Share of samples whose top-1 is another, silently: Σ [t(f_i) ≠ t(g_i) and f_i has no new NaN or infinity] / N."""
    return share(pair.silent_top)


def sdc5(pair: Comparison) -> float:
    """Share of samples whose golden top-1 left the top-5, silently: Σ [t(g_i) ∉ top-5(f_i), as in SDC-1] / N."""
    return share(pair.silent_five)


def top1_changed(pair: Comparison) -> float:
    """Share of samples whose top-1 is another, whether something tells or not: Σ [t(f_i) ≠ t(g_i)] / N."""
    return share(pair.other_top)


def nonfinite(pair: Comparison) -> float:
    """Share of samples in whose faulty output there is a NaN or an infinity; text has none."""
    return share(pair.nonfinite)


def changed(pair: Comparison) -> float:
    """Share of elements that differ in any bit."""
    return float(pair.differ.sum() / pair.golden.rows.size) if pair.golden.rows.size else 0.0


def changed_samples(pair: Comparison) -> float:
    """Share of samples in whose output some element differs in any bit."""
    return share(pair.differ > 0)


def max_abs(pair: Comparison) -> float:
    """Largest deviation: max |f - g|; infinite where a NaN or an infinity came or went."""
    return pair.farthest


def rel_l2(pair: Comparison) -> float:
    """Relative deviation: ‖f - g‖₂ / ‖g‖₂, over finite g; infinite as in `max_abs`, and where g is 0."""
    far, large = pair.farthest, pair.golden.largest
    if far == 0.0:
        return 0.0
    if np.isinf(far) or large == 0.0:
        return float("inf")
    return float(far / large * np.sqrt(pair.away / float(pair.golden.squares.sum())))


def cosine(pair: Comparison) -> float:
    """Cosine of the angle between the outputs: g·f / (‖g‖₂ ‖f‖₂); 0 where one is zero or not finite."""
    return pair.cosine


_ALL = (
    Metric("top1", top1, unchanged=None, reshaped=0.0, classifier=True),
    Metric("top5", top5, unchanged=None, reshaped=0.0, classifier=True),
    Metric("sdc1", sdc1, unchanged=0.0, reshaped=1.0, classifier=True),
    Metric("sdc5", sdc5, unchanged=0.0, reshaped=1.0, classifier=True),
    Metric("top1_changed", top1_changed, unchanged=0.0, reshaped=1.0, classifier=True),
    Metric("nonfinite", nonfinite, unchanged=0.0, reshaped=None),
    Metric("changed", changed, unchanged=0.0, reshaped=1.0),
    Metric("changed_samples", changed_samples, unchanged=0.0, reshaped=1.0),
    Metric("max_abs", max_abs, unchanged=0.0, reshaped=float("inf"), share=False),
    Metric("rel_l2", rel_l2, unchanged=0.0, reshaped=float("inf"), share=False),
    Metric("cosine", cosine, unchanged=1.0, reshaped=0.0, share=False),
)
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})


def applicable(*, classifier: bool, labelled: bool) -> tuple[Metric, ...]:
    """The metrics that a model and its data allow.

    >>> [metric.name for metric in applicable(classifier=True, labelled=False)][:2]
    ['sdc1', 'sdc5']
    """
    return tuple(
        metric for metric in METRICS.values() if classifier >= metric.classifier and labelled >= metric.needs_labels
    )


KINDS = ("auto", "logits", "probabilities", "counts")


#: Spike counts are no larger than the time steps; scores that are whole numbers beyond this are taken for logits.
_MOST_SPIKES = 1024


def score_kind(golden: Array) -> str:
    """Return how scores are to be read where nobody says.

    `probabilities` where all rows are 0 or more and sum to 1 (within 0.01: float16), `counts` where all scores are
    whole numbers from 0 to 1,024, as the spikes that a spiking network puts out, else `logits`. Ask it of golden
    scores, once: a fault may leave rows that are no probabilities any more.

    >>> score_kind(np.array([[0.2, 0.8]])), score_kind(np.array([[3.0, 8.0]])), score_kind(np.array([[-2.0, 3.0]]))
    ('probabilities', 'counts', 'logits')
    """
    scores = float64(golden)
    with np.errstate(all="ignore"):
        if not (scores >= 0).all():  # also NaN
            return "logits"
        if (np.abs(scores.sum(axis=1) - 1) <= 0.01).all():
            return "probabilities"
        return "counts" if ((scores <= _MOST_SPIKES) & (scores == np.floor(scores))).all() else "logits"


def probabilities(scores: Array, kind: str = "auto") -> NDArray[np.float64]:
    """What score shifts are measured on: the softmax of logits; probabilities and spike counts as they are.

    Shape [N, classes]. Rows with a NaN stay NaN; where infinities are highest they share the whole.

    >>> probabilities(np.array([[0.0, 0.0, -np.inf], [np.inf, 0.0, 0.0]]), "logits").tolist()
    [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
    """
    if kind not in KINDS:
        raise InputError(f"no kind of scores {kind!r}{closest(kind, KINDS)}")
    values = float64(scores)
    return softmax(values) if (score_kind(scores) if kind == "auto" else kind) == "logits" else values
