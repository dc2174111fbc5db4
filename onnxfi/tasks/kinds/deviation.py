"""Deviation: numbers of any shape that are only compared, without labels.

In the formulas g and f are the golden and the faulty output over all samples.
"""

from __future__ import annotations

import math

import numpy as np

from onnxfi.tasks.answers import AnswerPair, share
from onnxfi.tasks.task import OUTCOMES, Metric, Task


def changed(pair: AnswerPair) -> float:
    """Share of elements that differ in any bit."""
    return float(pair.differ.sum() / pair.golden.rows.size) if pair.golden.rows.size else 0.0


def changed_samples(pair: AnswerPair) -> float:
    """Share of samples in whose output some element differs in any bit."""
    return share(pair.differ > 0)


def max_abs(pair: AnswerPair) -> float:
    """Largest deviation: max |f - g|; infinite if a NaN or an infinity came or went."""
    return pair.farthest


def rel_l2(pair: AnswerPair) -> float:
    """Relative deviation: ‖f - g‖₂ / ‖g‖₂, over finite g; infinite as in `max_abs`, and where g is 0."""
    far, large = pair.farthest, pair.golden.largest
    if far == 0.0:
        return 0.0
    if np.isinf(far) or large == 0.0:
        return math.inf
    return float(far / large * np.sqrt(pair.away / float(pair.golden.squares.sum())))


def cosine(pair: AnswerPair) -> float:
    """Cosine of the angle between the outputs: g·f / (‖g‖₂ ‖f‖₂); 0 if one is zero or not finite."""
    return pair.cosine


_UNBOUNDED = (0.0, math.inf)
#: The deviations of any output; every task may declare them.
DEVIATIONS = (
    Metric("changed", changed, label="changed elements"),
    Metric("changed_samples", changed_samples, label="changed samples, any bit"),
    Metric("max_abs", max_abs, label="max |f - g|", per="set", unit="", bounds=_UNBOUNDED, failed=math.inf),
    Metric("rel_l2", rel_l2, label="relative L2", per="set", unit="", bounds=_UNBOUNDED, failed=math.inf),
    Metric(
        "cosine", cosine, per="set", unit="", bounds=(-1.0, 1.0), better="higher", unchanged=1.0, failed=0.0,
    ),
)  # fmt: skip

DEVIATION = Task(
    "deviation",
    DEVIATIONS,
    reported=(
        *OUTCOMES, "nonfinite", "masked_samples", "sdc_samples", "due_samples", *(m.name for m in DEVIATIONS),
    ),
    columns=(("sdc_samples",), ("rel_l2",), ("max_abs",), ("cosine",), ("sdc",), ("due",)),
    panels=("sdc", "due"),
    tiles=("due",),
    orders=(("sdc_samples", "changed_samples"), ("changed", "changed_samples")),
)  # fmt: skip
