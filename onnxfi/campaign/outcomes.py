"""Outcomes: what a trial did to each sample, and to the trial.

Per sample first. MASKED: the scored output is golden's, bit for bit or within the declared tolerance. DUE: a value that
is not finite came up (where that counts as DUE). SDC: anything else. The trial's outcome is its gravest sample's:
DUE > SDC > MASKED.

For classifiers the exclusive classes of the published tables stand beside it: *fully masked* (the top-1 and its score
are unchanged), *SDC-1* (the top-1 is another), the relative change of the golden top-1's probability or count where the
top-1 is kept, in [0, 5), [5, 10), [10, 20) and from 20 %, and *DUE*: a value that is not finite, or no answer. They sum
to 1. Tolerance widens what is masked and unchanged; whether the top-1 is another it leaves alone.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.faults.trials import json_value
from onnxfi.runtime.metrics import Labels, applicable, differing, probabilities, score_kind, top
from onnxfi.runtime.ports import Array

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
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Golden:
    """The golden run of a campaign: scores ([N, …]), labels, and how scores are read."""

    scores: Array
    labels: Labels | None
    classifier: bool
    kind: str = "auto"
    tolerance: float = 0.0
    due: tuple[str, ...] = ("nonfinite",)

    @classmethod
    def of(
        cls, scores: Array, labels: Labels | None, output: str | None, kind: str, tolerance: float, due: tuple[str, ...]
    ) -> Golden:
        """A golden run; the kind of scores is settled once, on golden."""
        classifier = output is not None and scores.ndim == 2
        settled = score_kind(scores) if classifier and kind == "auto" else kind
        return cls(scores, labels, classifier, settled, tolerance, due)


@dataclass(frozen=True)
class Judgement:
    """The outcome of one trial: `masked`, `sdc` or `due`, its cause where DUE, and its metrics by name."""

    outcome: str
    cause: str | None
    metrics: dict[str, Any]
    #: Samples whose top-1 is another ([N] as packed bits, zlib); None where there is no top-1.
    changed: bytes | None = None
    #: How it was run.
    route: str = "plain"


def judge(golden: Golden, faulty: Array) -> Judgement:
    """Compare a trial's scores with golden's ([N, …]).

    Metrics are shares of the samples (`masked_samples`, `sdc_samples`, `due_samples`, the classes, `critical`: right
    before and wrong now) and those of `METRICS`. Where a fault changes the shape of the outputs, every sample has
    changed.
    """
    if faulty.shape != golden.scores.shape:
        silent = bool(_finite(faulty).all()) or "nonfinite" not in golden.due
        return _all_alike(golden, "sdc" if silent else "due", None if silent else "nonfinite")
    moved = _moved(golden.scores, faulty, golden.tolerance)
    masked = ~_any(moved)
    broken = _any(moved & ~_finite(faulty))
    due = broken if "nonfinite" in golden.due else np.zeros_like(broken)
    shares = {"masked_samples": _share(masked), "sdc_samples": _share(~masked & ~due), "due_samples": _share(due)}
    changed = None
    if golden.classifier:
        other = _any(differing(golden.scores, faulty)) & (
            (top(faulty) != top(golden.scores)) | (top(golden.scores) < 0)
        )
        shares |= _classes(golden, faulty, moved, broken, other)
        changed = _packed(other)
        if golden.labels is not None:
            right = top(golden.scores) == golden.labels
            shares["critical"] = _share(right & (broken | (top(faulty) != golden.labels)))
    metrics = {
        m.name: m(golden.scores, faulty, golden.labels)
        for m in applicable(classifier=golden.classifier, labelled=golden.labels is not None)
    }
    outcome = "due" if due.any() else "masked" if masked.all() else "sdc"
    return Judgement(outcome, "nonfinite" if outcome == "due" else None, _strict(shares | metrics), changed)


def failed(golden: Golden, cause: str) -> Judgement:
    """The judgement of a trial that gave no answer: DUE where that counts as such, else every answer is wrong."""
    return _all_alike(golden, "due" if cause in golden.due else "sdc", cause)


def _all_alike(golden: Golden, outcome: str, cause: str | None) -> Judgement:
    """Every sample has this outcome, every answer is another one, and every label is missed."""
    due = float(outcome == "due")
    metrics = {"masked_samples": 0.0, "sdc_samples": 1 - due, "due_samples": due}
    metrics |= {"nonfinite": float(cause == "nonfinite"), "changed": 1.0, "changed_samples": 1.0}
    if not golden.classifier:
        return Judgement(outcome, cause, metrics)
    metrics |= dict.fromkeys(CLASSES, 0.0) | {"class_due": due, "class_sdc_1": 1 - due, "sdc1": 1.0, "sdc5": 1.0}
    if golden.labels is not None:
        metrics |= {"top1": 0.0, "top5": 0.0, "critical": _share(top(golden.scores) == golden.labels)}
    return Judgement(outcome, cause, metrics, _packed(np.ones(len(golden.scores), np.bool_)))


def _packed(here: Flags) -> bytes:
    return zlib.compress(np.packbits(here).tobytes(), 9)


def unpacked(changed: bytes, samples: int) -> Flags:
    """The samples whose top-1 changed ([N]), from `Judgement.changed`."""
    return np.unpackbits(np.frombuffer(zlib.decompress(changed), np.uint8), count=samples).astype(np.bool_)


def _any(elements: Flags) -> Flags:
    """Per sample: whether it holds for any element."""
    return np.asarray(elements.reshape(len(elements), -1).any(axis=1)) if elements.ndim else elements.reshape(1)


def _moved(golden: Array, faulty: Array, tolerance: float) -> Flags:
    """Elements that are others: in any bit, and by more than the tolerance."""
    differ = differing(golden, faulty)
    if tolerance > 0 and golden.dtype.kind in "fiuV":
        with np.errstate(all="ignore"):
            differ &= ~(np.abs(faulty.astype(np.float64) - golden.astype(np.float64)) <= tolerance)
    return differ


def _finite(scores: Array) -> Flags:
    """Elements that are finite; text and whole numbers always are."""
    return np.ones(scores.shape, np.bool_) if scores.dtype.kind in "iubOUST" else np.asarray(np.isfinite(scores))


def _classes(golden: Golden, faulty: Array, moved: Flags, broken: Flags, other: Flags) -> dict[str, float]:
    rows, first = np.arange(len(faulty)), np.maximum(top(golden.scores), 0)
    with np.errstate(all="ignore"):
        before = probabilities(golden.scores, golden.kind)[rows, first]
        after = probabilities(faulty, golden.kind)[rows, first]
        shift = np.abs(after - before) / np.maximum(np.abs(before), np.finfo(np.float64).tiny)
    kept = ~other & ~broken
    same = kept & ~moved[rows, first]
    step = np.searchsorted(_EDGES, shift, side="right")
    found = [same, other & ~broken, *(kept & ~same & (step == k) for k in range(4)), broken]
    return {name: _share(here) for name, here in zip(CLASSES, found, strict=True)}


def _share(here: Flags) -> float:
    return float(np.count_nonzero(here) / len(here)) if len(here) else 0.0


def _strict(metrics: dict[str, float]) -> dict[str, Any]:
    return {name: json_value(float(value)) for name, value in metrics.items()}
