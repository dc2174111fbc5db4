"""Classification: scores of classes ([N, classes]), one row per sample.

In the formulas g and f are the golden and the faulty scores, g_i and f_i their rows, N the number of samples, and [·]
is 1 if true, else 0.

The **top-1** t(s) of a row s is the class with the highest score, the lowest such class in a tie. A class is in the
**top-5** when fewer than five others come before it in that order. A row that holds a NaN has neither: it counts as
wrong, and as different from everything but the same row bit for bit.

**SDC-1** and **SDC-5** are silent: an answer with a NaN or an infinity that the golden output does not have there is
detected (DUE), and counts in neither. `top1_changed` counts every other top-1, detected or not.

The exclusive classes of the published tables stand beside them: *fully masked* (the top-1 and its probability or count
are unchanged), *SDC-1*, the relative change of that probability or count where the top-1 is the same, in [0, 5),
[5, 10), [10, 20) and from 20 %, and *DUE*. They sum to 1. A tolerance widens the masked and unchanged classes and has
no effect on the top-1.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from onnxfi.runtime.engine.ports import Array
from onnxfi.tasks.answers import AnswerPair, Flags, float64, share
from onnxfi.tasks.class_scores import class_misfit, class_output, reading
from onnxfi.tasks.kinds.class_indices import CLASS_INDICES, balanced
from onnxfi.tasks.kinds.deviation import DEVIATIONS
from onnxfi.tasks.task import OUTCOME_SUMS, OUTCOMES, Metric, Task

CLASSES = (
    "class_fully_masked",
    "class_sdc_1",
    "class_sdc_0_5",
    "class_sdc_5_10",
    "class_sdc_10_20",
    "class_sdc_20",
    "class_due",
)
_EDGES = (0.05, 0.10, 0.20)


def top1(pair: AnswerPair) -> float:
    """Accuracy of the faulty output: Σ [t(f_i) = label_i] / N."""
    return share(pair.top == pair.golden.truth)


def top5(pair: AnswerPair) -> float:
    """Share of samples whose label is in the faulty top-5: Σ [label_i ∈ top-5(f_i)] / N."""
    return share(pair.label_five)


def sdc1(pair: AnswerPair) -> float:
    """Share of samples whose top-1 is another, silently: Σ [t(f_i) ≠ t(g_i) and f_i has no new NaN or infinity] / N."""
    return share(pair.silent_top)


def sdc5(pair: AnswerPair) -> float:
    """Share of samples whose golden top-1 left the top-5, silently: Σ [t(g_i) ∉ top-5(f_i), as in SDC-1] / N."""
    return share(pair.silent_five)


def top1_changed(pair: AnswerPair) -> float:
    """Share of samples whose top-1 is another, detected or not: Σ [t(f_i) ≠ t(g_i)] / N."""
    return share(pair.other_top)


def critical(pair: AnswerPair) -> float:
    """Share of samples of SDC-1 whose golden answer was right: Σ [t(g_i) = label_i, as in SDC-1] / N."""
    return share(pair.golden.right & pair.silent_top)


def masked(pair: AnswerPair) -> Flags:
    """Return the samples within the tolerance of the golden scores that have the same top-1 ([N])."""
    return np.asarray(pair.within_tolerance & ~pair.other_top)


def shift_classes(pair: AnswerPair) -> tuple[Flags, ...]:
    """Return the samples of each of `CLASSES` ([N] each); every sample is in one."""
    same = masked(pair)
    unchanged, step = same.copy(), np.zeros(len(same), np.int64)
    which = np.flatnonzero(~same & ~pair.other_top & ~pair.detected)
    first = pair.golden.top[which]
    before = pair.golden.chance[which]
    after = pair.faulty.chances(first, which, pair.golden.kind)
    within = pair.tolerance if pair.golden.kind != "logits" else 0.0  # of scores, not of their softmax
    with np.errstate(all="ignore"):
        unchanged[which] = (after == before) | (np.abs(after - before) <= within)
        shift = np.abs(after - before) / np.maximum(np.abs(before), np.finfo(np.float64).tiny)
    step[which] = np.searchsorted(_EDGES, shift, side="right")
    shifted = ~unchanged & ~pair.other_top & ~pair.detected
    return (unchanged, pair.silent_top, *(shifted & (step == k) for k in range(4)), pair.detected)


def _class_share(pair: AnswerPair, number: int) -> float:
    return share(pair.once(shift_classes)[number])


def _class(number: int, name: str) -> Metric:
    failed, silent, detected = float(name in ("class_sdc_1", "class_due")), name == "class_sdc_1", name == "class_due"
    return Metric(
        name, partial(_class_share, number=number), better="lower" if number else "higher",
        unchanged=float(not number), failed=failed, silent=silent, detected=detected,
    )  # fmt: skip


def proved_samples(pair: AnswerPair) -> float:
    """Share of samples whose class was proved, so that they did not run."""
    return share(pair.proved)


def class_masked(pair: AnswerPair) -> Flags:
    """Return the samples that have the same top-1 ([N])."""
    return np.asarray(~pair.other_top)


KINDS = ("auto", "logits", "probabilities", "counts")
#: Spike counts are no larger than the time steps; scores that are whole numbers beyond this are taken for logits.
_MOST_SPIKES = 1024


def score_kind(golden: Array) -> str:
    """Return the default reading of scores.

    `probabilities` where all rows are 0 or more and sum to 1 (within 0.01: float16), `counts` where all scores are
    whole numbers from 0 to 1,024, as the spikes that a spiking network outputs, else `logits`. Ask it of golden
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


def balanced_accuracy(pair: AnswerPair) -> float:
    """Mean over the classes of the labels of the share of samples whose faulty top-1 is right."""
    return balanced(pair.top, pair.golden.truth)


CLASSIFICATION = Task(
    "classification",
    (
        Metric("any_sdc1", label="any SDC-1", per="trial", any_of="sdc1"),
        Metric.of_labels("top1", top1, "top-1", axis="Top-1 accuracy (%)"),
        Metric.of_labels("top5", top5, "top-5"),
        Metric.of_labels(
            "balanced_accuracy", balanced_accuracy, "balanced accuracy", axis="Balanced accuracy (%)", per="set",
            golden=False, needs_all=True,
        ),
        Metric("sdc1", sdc1, label="SDC-1 (silent)", axis="SDC-1, silent\n(% of answers)", silent=True),
        Metric("sdc5", sdc5, silent=True),
        Metric("top1_changed", top1_changed, label="top-1 changed", axis="Top-1 changed (%)"),
        Metric("critical", critical, silent=True, needs_labels=True, failed=lambda golden: share(golden.right)),
        *(_class(number, name) for number, name in enumerate(CLASSES)),
        *DEVIATIONS,
    ),
    headline="sdc1",
    reported=(
        *OUTCOMES, "any_sdc1", "top1", "top5", "balanced_accuracy", "sdc1", "sdc5", "top1_changed", "critical",
        "nonfinite", "masked_samples", "sdc_samples", "due_samples", *CLASSES,
    ),
    evaluated=(
        "top1", "top5", "sdc1", "sdc5", "top1_changed", "nonfinite", *(m.name for m in DEVIATIONS),
    ),
    columns=(("top1", "top1_changed"), ("sdc1",), ("any_sdc1",), ("sdc",), ("due",)),
    curves=("top1", "top1_changed", "sdc"),
    classes=CLASSES,
    sums=(*OUTCOME_SUMS, CLASSES),
    orders=(
        ("top1", "top5"), ("sdc5", "sdc1"), ("critical", "sdc1"), ("sdc1", "any_sdc1"), ("sdc1", "top1_changed"),
        ("sdc1", "sdc_samples"),
    ),
    absent="the scored output is no classifier's; name one with --output",
    labels="classes",
    alternatives=(CLASS_INDICES,),
    masked=masked,
    wrong=lambda pair: pair.silent_top,
    reads=class_output,
    misfit=class_misfit,
    score_kind=score_kind,
    remark=reading,
)  # fmt: skip

#: Classification where the class alone is an outcome, not every bit of the scores: of most faults it can be proved.
CLASS_OUTCOMES = Task(
    CLASSIFICATION.name,
    (
        *map(
            CLASSIFICATION.metric, ("any_sdc1", "top1", "balanced_accuracy", "sdc1", "top1_changed", "critical")
        ),
        Metric(
            "proved_samples", proved_samples, label="proved", axis="Answers proved\n(% of answers)", better="higher",
            failed=0.0,
        ),
    ),
    headline="sdc1",
    columns=(("top1", "top1_changed"), ("sdc1",), ("any_sdc1",), ("due",), ("proved_samples",)),
    page_columns=("top1", "top1_changed", "sdc1", "any_sdc1", "due", "proved_samples"),
    panels=("sdc1", "due"),
    curves=("top1", "top1_changed", "sdc1"),
    compared=("top1", "top1_changed", "sdc1"),
    orders=(("critical", "sdc1"), ("sdc1", "any_sdc1"), ("sdc1", "top1_changed")),
    labels="classes",
    takes_tolerance=False,
    masked=class_masked,
    wrong=CLASSIFICATION.wrong,
    reads=class_output,
    misfit=class_misfit,
    score_kind=score_kind,
    remark=reading,
)  # fmt: skip
