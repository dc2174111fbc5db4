"""Multi-label and binary classification: decisions by a threshold, one or several a sample.

The output holds a score for each label ([N,C]; of the binary task [N,1] or [N]): a sigmoid, or its logit. A label
holds from its threshold t_c on: d(s)_c = [s_c ≥ t_c]. Without ``threshold`` that is 0.5 where all golden scores are in
[0, 1], and 0, the logit of 0.5, elsewhere. A score that is NaN decides nothing, and differs from any decision.

A sample is wrong where a label changed, d(f_i) ≠ d(g_i), without a new NaN or infinity.

With labels, the F1 score is 2 TP / (2 TP + FP + FN): micro over all decisions, macro the mean over the labels that some
sample has. Average precision and the area under the ROC curve (ROC-AUC) are scikit-learn's, as the mean over the labels
that some samples have (for ROC-AUC: and some have not); in their order of scores a NaN comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, InputError
from onnxfi.extensions import library
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.labels import Labels, as_kind
from onnxfi.runtime.data.sample_outputs import Outputs, class_axes, stacked
from onnxfi.runtime.engine.ports import Array, Port, shape_text
from onnxfi.tasks.answers import AnswerPair, Answers, Flags, Floats, float64, share
from onnxfi.tasks.class_scores import only_output
from onnxfi.tasks.task import Metric, Task

Decisions = NDArray[np.int8]
_NONE = -1


@dataclass(frozen=True)
class Decision:
    """A rule of decision: the threshold of each label, one for all, or none given."""

    thresholds: tuple[float, ...] = ()

    def of(self, scores: Array, kind: str) -> Decisions:
        """Return the decisions of scores ([n,C]): 1, 0, or -1 if a score is NaN.

        >>> Decision().of(np.array([[0.5, 0.2, np.nan]]), "probabilities").tolist()
        [[1, 0, -1]]
        """
        limits = self.thresholds or (0.5 if kind == "probabilities" else 0.0,)
        values, near = float64(scores), np.array(limits)
        if scores.dtype.kind not in "iub":
            near = float64(near.astype(scores.dtype))  # so that a score of 0.7 in float32 is one of 0.7
        return np.where(np.isnan(values), _NONE, values >= near).astype(np.int8)

    def golden(self, golden: Answers) -> Decisions:
        """Return the golden decisions ([N,C])."""
        return self.of(golden.rows, golden.kind)

    def faulty(self, pair: AnswerPair) -> Decisions:
        """Return the faulty decisions ([N,C])."""
        found = pair.golden.once(self.golden).copy()
        found[pair.changed] = self.of(pair.faulty.rows[pair.changed], pair.golden.kind)
        return found

    def other(self, pair: AnswerPair) -> Flags:
        """Return the decisions that are another ([N,C])."""
        return np.asarray(pair.once(self.faulty) != pair.golden.once(self.golden))

    def masked(self, pair: AnswerPair) -> Flags:
        """Return the samples with all their golden decisions ([N])."""
        return np.asarray(~pair.once(self.other).any(axis=1))

    def changed(self, pair: AnswerPair) -> float:
        """Share of the decisions that are another than in the golden run."""
        return share(pair.once(self.other))

    def counts(self, pair: AnswerPair) -> tuple[Floats, Floats]:
        """Return for each label 2 TP and 2 TP + FP + FN."""
        truth, found = truth_of(pair), pair.once(self.faulty) == 1
        right = 2.0 * (truth & found).sum(axis=0)
        return right, np.asarray(truth.sum(axis=0) + found.sum(axis=0), np.float64)

    def f1_micro(self, pair: AnswerPair) -> float:
        """F1 score over all decisions: 2 TP / (2 TP + FP + FN); 0 if no sample has or is given a label."""
        right, both = pair.once(self.counts)
        return float(right.sum() / max(both.sum(), 1.0))

    def f1_macro(self, pair: AnswerPair) -> float:
        """F1 score of each label that some sample has, and of these the mean."""
        right, both = pair.once(self.counts)
        held = truth_of(pair).any(axis=0)
        return float((right[held] / both[held]).mean())

    def accuracy(self, pair: AnswerPair) -> float:
        """Share of the decisions that are right."""
        return share(pair.once(self.faulty) == truth_of(pair))


def truth_of(pair: AnswerPair) -> Flags:
    """Return the labels ([N,C])."""
    if pair.labels is None:
        raise DataError("this metric needs labels; the data has none")
    return as_kind("multi-hot", pair.labels)


def ranks(scores: Array) -> NDArray[np.int64]:
    """Return the ranks of scores ([N]) from 0 on, equal for equal scores: a NaN is the lowest.

    >>> ranks(np.array([0.5, np.nan, np.inf, 0.5])).tolist()
    [1, 0, 2, 1]
    """
    values = float64(scores)
    order = np.unique(values[~np.isnan(values)], return_inverse=True)[1]
    found = np.zeros(len(values), np.int64)
    found[~np.isnan(values)] = order + 1
    return np.asarray(found - found.min(initial=1))


@dataclass(frozen=True)
class LabelRanking:
    """A metric of the order in which the scores of a label bring the samples, as the mean over labels."""

    name: str
    both: bool = False

    def labels(self, labels: Labels) -> NDArray[np.int64]:
        """Return the labels for which it is defined: those that some samples have, with `both` and some have not."""
        truth = as_kind("multi-hot", labels)
        return np.flatnonzero(truth.any(axis=0) & (~truth.all(axis=0) if self.both else True))

    def defined(self, labels: Labels) -> bool:
        """Return true if it is defined for some label."""
        return self.labels(labels).size > 0

    def _of(self, truth: Flags, scores: Array) -> float:
        return float(getattr(library("sklearn.metrics", "metrics"), self.name)(truth, ranks(scores)))

    def golden(self, golden: Answers) -> Floats:
        """Return the golden value of each label ([C])."""
        assert golden.labels is not None
        truth = as_kind("multi-hot", golden.labels)
        found = np.full(truth.shape[1], np.nan)
        for k in self.labels(golden.labels).tolist():
            found[k] = self._of(truth[:, k], golden.rows[:, k])
        return found

    def measure(self, pair: AnswerPair) -> float:
        """Mean over the labels."""
        truth, found = truth_of(pair), pair.golden.once(self.golden).copy()
        for k in np.flatnonzero(~np.isnan(found)).tolist():
            golden, faulty = pair.golden.rows[pair.changed, k], pair.faulty.rows[pair.changed, k]
            if golden.tobytes() != faulty.tobytes():
                found[k] = self._of(truth[:, k], pair.faulty.rows[:, k])
        return float(np.nanmean(found))


_PRECISION = LabelRanking("average_precision_score")
_AREA = LabelRanking("roc_auc_score", both=True)


def score_kind(golden: Array) -> str:
    """Return how scores are read: `probabilities` where all are in [0, 1], else `logits`."""
    values = float64(golden)
    return "probabilities" if bool(((values >= 0) & (values <= 1)).all()) else "logits"


def _task(name: str, threshold: object, metrics: Callable[[Decision], tuple[Metric, ...]], *, single: bool) -> Task:
    rule = Decision(_thresholds(threshold))
    own = metrics(rule)
    ranked = (
        Metric.of_labels(
            "average_precision",
            _PRECISION.measure,
            "average precision",
            per="set",
            needs_all=True,
            defined=_PRECISION.defined,
        ),
        Metric.of_labels("roc_auc", _AREA.measure, "ROC-AUC", per="set", needs_all=True, defined=_AREA.defined),
    )
    return Task(
        name,
        (
            *own, *ranked,
            Metric("changed_labels", rule.changed, label="changed labels", axis="Changed labels (%)"),
        ),
        columns=((own[0].name, "changed_labels"), ("sdc_samples",), ("sdc",), ("due",)),
        page_columns=(own[0].name, "average_precision", "changed_labels", "sdc_samples", "sdc", "due", "masked"),
        curves=(own[0].name, "changed_labels", "sdc"),
        absent=f"the output is not read as {name}; name the task with --task {name}",
        labels="multi-hot",
        takes_tolerance=False,
        masked=rule.masked,
        reads=partial(only_output, fits=partial(_fits, single=single), what="scores of labels"),
        misfit=partial(_misfit, rule=rule, single=single),
        score_kind=score_kind,
        remark=partial(_remark, rule=rule),
    )  # fmt: skip


def _fits(port: Port, *, single: bool) -> bool:
    """Return true for an output as it is declared that may hold a score for each label."""
    if "float" not in port.dtype:
        return False
    shape = class_axes(port.shape or ())
    several = len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 1
    return port.shape is None or (len(shape) == 2 and not (single and several)) or (single and len(shape) == 1)


def _misfit(run: Sequence[Outputs], data: Data, kind: str, *, rule: Decision, single: bool) -> str:
    """Return why golden outputs or labels are none of this task; empty if they are."""
    scores = stacked(run)
    shape = shape_text(scores.shape)
    if scores.dtype.kind in "OUSTbc" or scores.ndim > 2 or len(scores) != data.samples:
        return f"the output has shape {shape} for {data.samples} samples, and scores of labels have [N,labels]"
    columns = scores.shape[1] if scores.ndim == 2 else 1
    if single and columns != 1:
        return f"the output has shape {shape}, and one decision a sample has one score, [N,1] or [N]"
    if len(rule.thresholds) not in (0, 1, columns):
        return f"{len(rule.thresholds)} thresholds for {columns} labels; give one, or one for each"
    if kind == "counts" and not rule.thresholds:
        return "counts have no usual threshold; give threshold=…"
    if data.labels is None:
        return ""
    truth = as_kind("multi-hot", data.labels)
    if truth.shape[1] != columns:
        return f"the output has shape {shape}, and the labels {shape_text(data.labels.shape)}; give a score a label"
    if not truth.any():
        return "no sample has a label, so there is nothing to find; leave the labels out"
    library("sklearn.metrics", "metrics")
    return ""


def _thresholds(given: object) -> tuple[float, ...]:
    """Return thresholds: none, one number, or several with slashes."""
    if given is None:
        return ()
    try:
        found = tuple(float(part) for part in str(given).split("/"))
    except ValueError:
        raise InputError(f"threshold is {str(given)[:60]!r}; give a number, or one for each label as 0.5/0.3") from None
    if not np.isfinite(found).all():
        raise InputError(f"threshold is {str(given)[:60]!r}; give finite numbers")
    return found


def _remark(
    scores: Array, output: str | None, samples: int, kind: str = "auto", *, labelled: bool = True, rule: Decision
) -> str:
    """Return the thresholds, where they are not given."""
    if rule.thresholds:
        return ""
    if (score_kind(scores) if kind == "auto" else kind) == "probabilities":
        return "a label holds from a score of 0.5 on, as golden scores are in [0, 1]; threshold=… sets another"
    return "a label holds from a score of 0 on, as golden scores are logits, not in [0, 1]; threshold=… sets another"


def multi_label(threshold: object = None) -> Task:
    """Return the task of several labels a sample.

    Parameters
    ----------
    threshold : float or str, optional
        The score from which on a label holds, or one for each label, as ``0.5/0.3/0.7``; by default 0.5 of scores in
        [0, 1], and 0 of others.

    Raises
    ------
    InputError
        If a threshold is no finite number.

    Examples
    --------
    >>> multi_label(threshold="0.5/0.3").name
    'multi-label'
    """
    return _task(
        "multi-label", threshold,
        lambda rule: (
            Metric.of_labels("f1_micro", rule.f1_micro, "F1 (micro)", per="set", axis="F1, micro (%)", needs_all=True),
            Metric.of_labels("f1_macro", rule.f1_macro, "F1 (macro)", per="set", axis="F1, macro (%)", needs_all=True),
        ),
        single=False,
    )  # fmt: skip


def binary(threshold: object = None) -> Task:
    """Return the task of one decision a sample.

    Parameters
    ----------
    threshold : float, optional
        The score from which on it is yes; by default 0.5 of scores in [0, 1], and 0 of others.

    Raises
    ------
    InputError
        If the threshold is no finite number.

    Examples
    --------
    >>> binary(threshold=0.3).metrics[7].name
    'accuracy'
    """
    return _task(
        "binary", threshold,
        lambda rule: (
            Metric.of_labels("accuracy", rule.accuracy, "accuracy", per="set", axis="Accuracy (%)"),
            Metric.of_labels("f1", rule.f1_micro, "F1", per="set", axis="F1 (%)", needs_all=True),
        ),
        single=True,
    )  # fmt: skip
