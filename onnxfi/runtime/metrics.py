"""How much faulty outputs differ from golden ones: pure functions `(golden, faulty, labels) -> float`.

Both outputs have one shape, samples first; `labels` has shape [N]. Classifier metrics take scores
[N, classes]. In the formulas g and f are the golden and the faulty output, g_i and f_i their rows, N the
number of samples, and [·] is 1 where true, else 0.

The **top-1** t(s) of a row s is the class with the highest score, the lowest such class in a tie. A class is
in the **top-5** when fewer than five others come before it in that order. A row that holds a NaN has neither:
whatever is asked of it counts as wrong, and as different from everything but the same row bit for bit.

A new metric is one row in `METRICS`; the tests of all metrics pick it up from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

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
        golden, faulty = np.atleast_1d(golden), np.atleast_1d(faulty)
        if self.reshaped is not None and golden.shape != faulty.shape:
            return self.reshaped
        if self.classifier and golden.ndim != 2:
            raise DataError(f"{self.name} takes scores of shape [N, classes], given {list(golden.shape)}")
        if self.needs_labels:
            _check_labels(labels, golden, self.name)
        with np.errstate(all="ignore"):
            return self.function(golden, faulty, labels)


def _check_labels(labels: Labels | None, scores: Array, name: str) -> None:
    labels = _known(labels)
    if labels.shape != scores.shape[:1]:
        raise DataError(f"{name}: {labels.size} labels for {len(scores)} samples")
    if labels.size and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
        found, classes = f"{labels.min()} to {labels.max()}", scores.shape[1]
        raise DataError(f"labels go from {found}, but the model scores {classes} classes, counted from 0")


def _share(true: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(true) / true.size) if true.size else 0.0


def _float64(values: Array) -> NDArray[np.float64]:
    """Numbers as float64 of the same shape, a complex one as two in a row of its own."""
    if values.dtype.kind in "OUST":
        raise DataError("this metric takes numbers, and the output is text")
    if values.dtype.kind == "c":
        return np.stack([values.real, values.imag], axis=-1).astype(np.float64)
    return values.astype(np.float64)


def differing(golden: Array, faulty: Array) -> NDArray[np.bool_]:
    """Which elements differ in any bit (so -0.0 differs from 0.0, and a NaN equals the same NaN).

    >>> differing(np.array([0.0, np.nan, 1.0]), np.array([-0.0, np.nan, 1.0]))
    array([ True, False, False])
    """
    if golden.dtype != faulty.dtype or golden.dtype.kind in "OUST":
        return np.asarray(golden != faulty, np.bool_)
    width = golden.dtype.itemsize
    words = f"u{width}" if width <= 8 else f"V{width}"
    g, f = (np.ascontiguousarray(one).reshape(-1).view(words) for one in (golden, faulty))
    return np.asarray(g != f, np.bool_).reshape(golden.shape)


def _differing_rows(golden: Array, faulty: Array) -> NDArray[np.bool_]:
    inner = tuple(range(1, golden.ndim))
    return np.asarray(differing(golden, faulty).any(axis=inner), np.bool_)


def _top(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The top-1 class of each row, -1 where there is none."""
    if not scores.size:
        return np.full(len(scores), -1, np.int64)
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))


def top(scores: Array) -> NDArray[np.int64]:
    """The top-1 class of each row of scores [N, classes], -1 where there is none.

    >>> top(np.array([[0.1, 0.9], [np.nan, 0.0]])).tolist()
    [1, -1]
    """
    return _top(_float64(scores))


def _in_top_5(scores: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each row has its class (-1: none) among its five first."""
    if not scores.size:
        return np.zeros(len(scores), np.bool_)
    own = np.take_along_axis(scores, np.maximum(classes, 0)[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < classes[:, None]
    before = np.count_nonzero((scores > own) | ((scores == own) & earlier), axis=1)
    return np.asarray((before < 5) & (classes >= 0) & ~np.isnan(scores).any(axis=1), np.bool_)


def _known(labels: Labels | None) -> Labels:
    if labels is None:
        raise DataError("accuracy needs labels; the data has none")
    return labels


def top1(golden: Array, faulty: Array, labels: Labels | None) -> float:
    """Accuracy of the faulty output: Σ [t(f_i) = label_i] / N."""
    return _share(_top(_float64(faulty)) == _known(labels))


def top5(golden: Array, faulty: Array, labels: Labels | None) -> float:
    """Share of samples whose label is in the faulty top-5: Σ [label_i ∈ top-5(f_i)] / N."""
    return _share(_in_top_5(_float64(faulty), _known(labels)))


def sdc1(golden: Array, faulty: Array, labels: Labels | None) -> float:
    """Share of samples whose top-1 changed: Σ [t(f_i) ≠ t(g_i)] / N."""
    g, f = _top(_float64(golden)), _top(_float64(faulty))
    return _share(((g != f) | (g < 0)) & _differing_rows(golden, faulty))


def sdc5(golden: Array, faulty: Array, labels: Labels | None) -> float:
    """Share of samples whose golden top-1 left the top-5: Σ [t(g_i) ∉ top-5(f_i)] / N."""
    kept = _in_top_5(_float64(faulty), _top(_float64(golden)))
    return _share(~kept & _differing_rows(golden, faulty))


def nonfinite(golden: Array, faulty: Array, labels: Labels | None) -> float:
    """Share of samples in whose faulty output there is a NaN or an infinity; text has none."""
    if faulty.dtype.kind in "OUST":
        return 0.0
    inner = tuple(range(1, faulty.ndim))
    return _share(np.asarray(~np.isfinite(faulty).all(axis=inner), np.bool_))


def changed(golden: Array, faulty: Array, labels: Labels | None) -> float:
    """Share of elements that differ in any bit."""
    return _share(differing(golden, faulty))


def changed_samples(golden: Array, faulty: Array, labels: Labels | None) -> float:
    """Share of samples in whose output some element differs in any bit."""
    return _share(_differing_rows(golden, faulty))


def _distance(golden: Array, faulty: Array) -> NDArray[np.float64]:
    """|f - g| of each element: 0 where they agree bit for bit, infinite where a NaN leaves it undefined."""
    g, f = _float64(golden), _float64(faulty)
    distance = np.abs(f - g)
    distance[np.isnan(distance)] = np.inf
    distance[~differing(g, f)] = 0.0
    return distance


def max_abs(golden: Array, faulty: Array, labels: Labels | None) -> float:
    """Largest deviation: max |f - g|; infinite where a NaN or an infinity came or went."""
    return float(_distance(golden, faulty).max(initial=0.0))


def rel_l2(golden: Array, faulty: Array, labels: Labels | None) -> float:
    """Relative deviation: ‖f - g‖₂ / ‖g‖₂, over finite g; infinite as in `max_abs`, and where g is 0."""
    distance, g = _distance(golden, faulty), np.abs(_float64(golden))
    g = g[np.isfinite(g)]
    far, large = float(distance.max(initial=0.0)), float(g.max(initial=0.0))
    if far == 0.0:
        return 0.0
    if np.isinf(far) or large == 0.0:
        return float("inf")
    # Scaled by the largest, so that squares of large float64 values do not overflow.
    return float(far / large * np.sqrt(np.sum((distance / far) ** 2) / np.sum((g / large) ** 2)))


def cosine(golden: Array, faulty: Array, labels: Labels | None) -> float:
    """Cosine of the angle between the outputs: g·f / (‖g‖₂ ‖f‖₂); 0 where one is zero or not finite."""
    g, f = _float64(golden), _float64(faulty)
    if np.array_equal(g, f) or not differing(g, f).any():
        return 1.0
    large, larger = np.abs(g).max(), np.abs(f).max()
    if not (0.0 < large < np.inf and 0.0 < larger < np.inf):
        return 0.0
    g, f = g / large, f / larger
    return float(np.clip(np.sum(g * f) / np.sqrt(np.sum(g * g) * np.sum(f * f)), -1.0, 1.0))


_ALL = (
    Metric("top1", top1, unchanged=None, reshaped=0.0, classifier=True),
    Metric("top5", top5, unchanged=None, reshaped=0.0, classifier=True),
    Metric("sdc1", sdc1, unchanged=0.0, reshaped=1.0, classifier=True),
    Metric("sdc5", sdc5, unchanged=0.0, reshaped=1.0, classifier=True),
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


def scored_output(outputs: Sequence[Port], name: str | None = None, *, labelled: bool = False) -> str | None:
    """The output that holds the scores: `name`, else the only float output of two dimensions.

    Where a model has none, and no labels ask for one, it is None: only metrics of any shape apply then. With
    labels, a single float output of undeclared rank will do. Else a `DataError` lists the outputs.

    >>> scored_output([Port("boxes", "float32", ("N", 4, 4)), Port("scores", "float32", ("N", 10))])
    'scores'
    """
    if name is not None:
        known = [port.name for port in outputs]
        if name not in known:
            raise DataError(f"the model has no output {name!r}{closest(name, known)}")
        return name
    floats = [port for port in outputs if "float" in port.dtype]
    fitting = [port for port in floats if port.shape is not None and len(port.shape) == 2]
    if labelled and not fitting:
        fitting = [port for port in floats if port.shape is None]
    if len(fitting) == 1:
        return fitting[0].name
    if not fitting and not labelled:
        return None
    what = "several outputs could" if fitting else "no output is sure to"
    listed = "; ".join(map(str, fitting or outputs)) or "none"
    raise DataError(f"{what} hold the scores; name one with --output: {listed}")


KINDS = ("auto", "logits", "probabilities", "counts")


def score_kind(golden: Array) -> str:
    """`probabilities` where all rows are 0 or more and sum to 1 (within 0.01: float16), else `logits`.

    Ask it of golden scores, once: a fault may leave rows that are no probabilities any more.

    >>> score_kind(np.array([[0.2, 0.8]])), score_kind(np.array([[-2.0, 3.0]]))
    ('probabilities', 'logits')
    """
    scores = _float64(golden)
    with np.errstate(all="ignore"):
        fits = bool((scores >= 0).all() and (np.abs(scores.sum(axis=1) - 1) <= 0.01).all())
    return "probabilities" if fits else "logits"


def probabilities(scores: Array, kind: str = "auto") -> NDArray[np.float64]:
    """What score shifts are measured on: the softmax of logits; probabilities and spike counts as they are.

    Shape [N, classes]. Rows with a NaN stay NaN; where infinities are highest they share the whole.

    >>> probabilities(np.array([[0.0, 0.0, -np.inf], [np.inf, 0.0, 0.0]]), "logits").tolist()
    [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
    """
    if kind not in KINDS:
        raise InputError(f"no kind of scores {kind!r}{closest(kind, KINDS)}")
    values = _float64(scores)
    if (score_kind(scores) if kind == "auto" else kind) != "logits":
        return values
    with np.errstate(all="ignore"):
        highest = values.max(axis=1, keepdims=True, initial=-np.inf)
        weights = np.exp(np.where(values == highest, 0.0, values - highest))
        shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares
