"""Outcomes: what a trial did to each sample, and to the trial.

Per sample first. MASKED: the scored output is golden's, bit for bit or within the declared tolerance, and so is the
top-1. DUE: a value that is not finite came up (where that counts as DUE). SDC: anything else. The trial's outcome is
its gravest sample's: DUE > SDC > MASKED.

For classifiers the exclusive classes of the published tables stand beside it: *fully masked* (the top-1 and its
probability or count are unchanged), *SDC-1* (the top-1 is another, and nothing tells), the relative change of that
probability or count where the top-1 is kept, in [0, 5), [5, 10), [10, 20) and from 20 %, and *DUE*: a value that is not
finite, or no answer. They sum to 1. Tolerance widens what is masked and unchanged; whether the top-1 is another it
leaves alone.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from onnxfi.faults.trials import json_value
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.engine.model_io import Array
from onnxfi.tasks.comparison import Answers, Comparison, Flags, share
from onnxfi.tasks.metrics import Labels, applicable, score_kind

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
        """A golden run; the kind of scores is settled once, on golden. `output` is None where no classes are scored."""
        classifier = output is not None and scores.ndim == 2
        settled = score_kind(scores) if classifier and kind == "auto" else kind
        return cls(scores, labels, classifier, settled, tolerance, due)

    @cached_property
    def answers(self) -> Answers:
        """The scores, and what is found of them once for all trials."""
        return Answers(self.scores, self.labels, self.kind)

    @property
    def detects(self) -> bool:
        """Whether a value that is not finite counts as DUE."""
        return "nonfinite" in self.due

    @cached_property
    def right(self) -> Flags:
        """Samples whose golden top-1 is their label ([N])."""
        return np.asarray(self.answers.top == self.labels)


@dataclass(frozen=True)
class Judgement:
    """The outcome of one trial: `masked`, `sdc` or `due`, its cause where DUE, and its metrics by name."""

    outcome: str
    cause: str | None
    metrics: dict[str, Any]
    #: Samples of SDC-1 ([N] as packed bits, zlib); None where there is no top-1.
    changed: bytes | None = None
    #: How it was run.
    route: Route = Route.FULL


def judge(golden: Golden, faulty: Array) -> Judgement:
    """Compare a trial's scores with golden's ([N, …]).

    Metrics are shares of the samples (`masked_samples`, `sdc_samples`, `due_samples`, the classes, `critical`: of SDC-1
    those that were right) and those of `METRICS`. Where a fault changes the shape of the outputs, every sample has
    changed.
    """
    pair = Comparison(golden.answers, Answers(faulty), golden.detects)
    if faulty.shape != golden.scores.shape:
        silent = not (golden.detects and pair.faulty.nonfinite.any())
        return _all_alike(golden, "sdc" if silent else "due", None if silent else "nonfinite")
    due, masked = pair.detected, _masked(golden, pair)
    shares = {"masked_samples": share(masked), "sdc_samples": share(~masked & ~due), "due_samples": share(due)}
    changed = None
    if golden.classifier:
        shares |= _classes(golden, pair, masked)
        changed = _packed(pair.silent_top)
        if golden.labels is not None:
            shares["critical"] = share(golden.right & pair.silent_top)
    metrics = {m.name: m.of(pair) for m in applicable(classifier=golden.classifier, labelled=golden.labels is not None)}
    outcome = "due" if due.any() else "masked" if masked.all() else "sdc"
    return Judgement(outcome, "nonfinite" if outcome == "due" else None, _strict(shares | metrics), changed)


def failed(golden: Golden, cause: str) -> Judgement:
    """The judgement of a trial that gave no answer: DUE where that counts as such, else every answer is wrong."""
    return _all_alike(golden, "due" if cause in golden.due else "sdc", cause)


def _all_alike(golden: Golden, outcome: str, cause: str | None) -> Judgement:
    """The judgement where every sample has this outcome, every answer is another one, and every label is missed."""
    due = float(outcome == "due")
    metrics = {"masked_samples": 0.0, "sdc_samples": 1 - due, "due_samples": due}
    metrics |= {"nonfinite": float(cause == "nonfinite"), "changed": 1.0, "changed_samples": 1.0}
    if not golden.classifier:
        return Judgement(outcome, cause, metrics)
    metrics |= dict.fromkeys(CLASSES, 0.0) | {"class_due": due, "class_sdc_1": 1 - due}
    metrics |= {"sdc1": 1 - due, "sdc5": 1 - due, "top1_changed": 1.0}
    if golden.labels is not None:
        metrics |= {"top1": 0.0, "top5": 0.0, "critical": (1 - due) * share(golden.right)}
    return Judgement(outcome, cause, metrics, _packed(np.full(len(golden.scores), not due)))


def _packed(here: Flags) -> bytes:
    return zlib.compress(np.packbits(here).tobytes(), 9)


def unpacked(changed: bytes, samples: int) -> Flags:
    """The samples of SDC-1 ([N]), from `Judgement.changed`."""
    return np.unpackbits(np.frombuffer(zlib.decompress(changed), np.uint8), count=samples).astype(np.bool_)


def _masked(golden: Golden, pair: Comparison) -> Flags:
    """Samples that are golden's: in every bit, or by no more than the tolerance and with golden's top-1 ([N])."""
    same = pair.differ == 0
    if golden.tolerance > 0 and golden.scores.dtype.kind in "fiuV":
        same |= pair.distances <= golden.tolerance
    return np.asarray(same & ~pair.other_top if golden.classifier else same)


def _classes(golden: Golden, pair: Comparison, masked: Flags) -> dict[str, float]:
    """The share of samples in each of `CLASSES`; each sample is in one."""
    unchanged, step = masked.copy(), np.zeros(len(masked), np.int64)
    which = np.flatnonzero(~masked & ~pair.other_top & ~pair.detected)
    first = golden.answers.top[which]
    before = golden.answers.chance[which]
    after = pair.faulty.chances(first, which, golden.kind)
    within = golden.tolerance if golden.kind != "logits" else 0.0  # of scores, not of their softmax
    with np.errstate(all="ignore"):
        unchanged[which] = (after == before) | (np.abs(after - before) <= within)
        shift = np.abs(after - before) / np.maximum(np.abs(before), np.finfo(np.float64).tiny)
    step[which] = np.searchsorted(_EDGES, shift, side="right")
    kept = ~unchanged & ~pair.other_top & ~pair.detected
    found = [unchanged, pair.silent_top, *(kept & (step == k) for k in range(4)), pair.detected]
    return {name: share(here) for name, here in zip(CLASSES, found, strict=True)}


def _strict(metrics: dict[str, float]) -> dict[str, Any]:
    return {name: json_value(float(value)) for name, value in metrics.items()}
