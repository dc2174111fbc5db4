"""Outcomes: what a trial did to each sample, and to the trial.

Per sample first. MASKED: the scored output is golden's, bit for bit or within the declared tolerance. DUE: a non-finite
output (where that counts as DUE). SDC: anything else. The trial's outcome is its gravest sample's: DUE > SDC > MASKED.

For classifiers the exclusive classes of the published tables stand beside it: *fully masked* (the top-1 and its score
are unchanged), *SDC-1* (the top-1 is another), the relative change of the golden top-1's probability or count where the
top-1 is kept, in [0, 5), [5, 10), [10, 20) and from 20 %, and *DUE*: non-finite, or no answer. They sum to 1.
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


def judge(golden: Golden, faulty: Array) -> Judgement:
    """Compare a trial's scores with golden's ([N, …], one shape).

    Metrics are shares of the samples (`masked_samples`, `sdc_samples`, `due_samples`, the classes, `critical`: right
    before and wrong now) and those of `METRICS`.
    """
    metrics = {
        m.name: m(golden.scores, faulty, golden.labels)
        for m in applicable(classifier=golden.classifier, labelled=golden.labels is not None)
    }
    if faulty.shape != golden.scores.shape:
        return Judgement(
            "sdc", None, _strict({"masked_samples": 0.0, "sdc_samples": 1.0, "due_samples": 0.0, **metrics})
        )
    masked = ~_moved(golden.scores, faulty, golden.tolerance)
    broken = _nonfinite(faulty) & ~masked
    due = broken if "nonfinite" in golden.due else np.zeros_like(broken)
    sdc = ~masked & ~due
    shares = {"masked_samples": _share(masked), "sdc_samples": _share(sdc), "due_samples": _share(due)}
    changed = None
    if golden.classifier:
        shares |= _classes(golden, faulty, masked, broken)
        changed = _packed(~masked & (top(faulty) != top(golden.scores)))
        if golden.labels is not None:
            right = top(golden.scores) == golden.labels
            shares["critical"] = _share(right & (broken | (top(faulty) != golden.labels)))
    outcome = "due" if due.any() else "sdc" if sdc.any() else "masked"
    return Judgement(outcome, "nonfinite" if outcome == "due" else None, _strict(shares | metrics), changed)


def failed(golden: Golden, cause: str) -> Judgement:
    """The judgement of a trial that gave no answer: every sample is DUE, nothing is silent, every label missed."""
    metrics = {"masked_samples": 0.0, "sdc_samples": 0.0, "due_samples": 1.0}
    if not golden.classifier:
        return Judgement("due", cause, metrics)
    metrics |= dict.fromkeys((*CLASSES, "sdc1", "sdc5"), 0.0) | {"class_due": 1.0}
    if golden.labels is not None:
        metrics |= {"top1": 0.0, "top5": 0.0, "critical": 0.0}
    return Judgement("due", cause, metrics, _packed(np.zeros(len(golden.scores), np.bool_)))


def _packed(here: NDArray[np.bool_]) -> bytes:
    return zlib.compress(np.packbits(here).tobytes(), 9)


def unpacked(changed: bytes, samples: int) -> NDArray[np.bool_]:
    """The samples whose top-1 changed ([N]), from `Judgement.changed`."""
    return np.unpackbits(np.frombuffer(zlib.decompress(changed), np.uint8), count=samples).astype(np.bool_)


def _moved(golden: Array, faulty: Array, tolerance: float) -> NDArray[np.bool_]:
    """Per sample: whether any value is another one; NaN equals the same NaN."""
    differ = differing(golden, faulty)
    if tolerance > 0 and golden.dtype.kind == "f":
        with np.errstate(all="ignore"):
            near = np.abs(faulty.astype(np.float64) - golden.astype(np.float64)) <= tolerance
        differ = differ & ~near
    return np.asarray(differ.reshape(len(golden), -1).any(axis=1))


def _nonfinite(scores: Array) -> NDArray[np.bool_]:
    if scores.dtype.kind in "iub":
        return np.zeros(len(scores), np.bool_)
    return np.asarray(~np.isfinite(scores.astype(np.float64)).reshape(len(scores), -1).all(axis=1))


def _classes(golden: Golden, faulty: Array, masked: NDArray[np.bool_], broken: NDArray[np.bool_]) -> dict[str, float]:
    rows = np.arange(len(faulty))
    first = top(golden.scores)
    kept = (top(faulty) == first) & ~broken
    with np.errstate(all="ignore"):
        before = probabilities(golden.scores, golden.kind)[rows, first]
        after = probabilities(faulty, golden.kind)[rows, first]
        shift = np.abs(after - before) / np.maximum(before, np.finfo(np.float64).tiny)
    same = kept & (masked | ~differing(golden.scores[rows, first], faulty[rows, first]))
    step = np.searchsorted(_EDGES, shift, side="right")
    found = [same, ~kept & ~broken, *(kept & ~same & (step == k) for k in range(4)), broken]
    return {name: _share(here) for name, here in zip(CLASSES, found, strict=True)}


def _share(here: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(here) / len(here)) if len(here) else 0.0


def _strict(metrics: dict[str, float]) -> dict[str, Any]:
    return {name: json_value(float(value)) for name, value in metrics.items()}
