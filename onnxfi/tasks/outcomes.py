"""Outcomes: the effect of a trial on each sample and on the trial.

Per sample first. MASKED: the task counts the faulty answer as the golden one. DUE: a value that is not finite came up
(where that counts as DUE). SDC: anything else. The outcome of the trial is that of its gravest sample: DUE > SDC >
MASKED.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from onnxfi.faults.trials import json_value
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.engine.ports import Array
from onnxfi.tasks.answers import AnswerPair, Answers, Flags, LabelArray, share
from onnxfi.tasks.task import Task


@dataclass(frozen=True)
class GoldenRun:
    """The golden run of a campaign: scores ([N, …]), labels ([N]), and the task that gives them a meaning.

    `kind` says how scores of classes are read, `tolerance` how far a masked sample may deviate, and `due` names the
    causes that count as detected.
    """

    scores: Array
    labels: LabelArray | None
    task: Task
    kind: str = "auto"
    tolerance: float = 0.0
    due: tuple[str, ...] = ("nonfinite",)

    @classmethod
    def of(
        cls, scores: Array, labels: LabelArray | None, task: Task, kind: str, tolerance: float, due: tuple[str, ...]
    ) -> GoldenRun:
        """Return a golden run; the kind of its scores is settled once."""
        settled = task.score_kind(scores) if task.score_kind is not None and kind == "auto" else kind
        return cls(scores, labels, task, settled, tolerance, due)

    @cached_property
    def answers(self) -> Answers:
        """The scores with their labels; facts about them are found once for all trials."""
        return Answers(self.scores, self.labels, self.kind)

    @property
    def detects(self) -> bool:
        """True where a value that is not finite counts as DUE."""
        return "nonfinite" in self.due

    @property
    def read_as(self) -> str | None:
        """The kind of the scores; None where the task has none."""
        return self.kind if self.task.score_kind is not None else None

    def pair(self, faulty: Array) -> AnswerPair:
        """Return the golden answers beside faulty ones."""
        return AnswerPair(self.answers, Answers(faulty), self.detects, self.tolerance)


@dataclass(frozen=True)
class Judgement:
    """The outcome of one trial: `masked`, `sdc` or `due`, its cause where DUE, and its metrics by name."""

    outcome: str
    cause: str | None
    metrics: dict[str, Any]
    #: Samples whose answer is silently another one ([N] as packed bits, zlib); None where the task has no such rule.
    changed: bytes | None = None
    #: The route of its execution.
    route: Route = Route.FULL


def judge(golden: GoldenRun, faulty: Array) -> Judgement:
    """Compare the scores of a trial with the golden ones ([N, …]).

    Where a fault changes the shape of the outputs, every sample has changed.
    """
    pair = golden.pair(faulty)
    if faulty.shape != golden.scores.shape:
        silent = not (golden.detects and pair.faulty.nonfinite.any())
        return _all_alike(golden, "sdc" if silent else "due", None if silent else "nonfinite")
    due, masked = pair.detected, golden.task.masked(pair)
    metrics = {"masked_samples": share(masked), "sdc_samples": share(~masked & ~due), "due_samples": share(due)}
    metrics |= {m.name: m.measure(pair) for m in golden.task.applicable(labelled=golden.labels is not None)}
    outcome = "due" if due.any() else "masked" if masked.all() else "sdc"
    wrong = golden.task.wrong
    changed = None if wrong is None else _packed(wrong(pair))
    return Judgement(outcome, "nonfinite" if outcome == "due" else None, _strict(metrics), changed)


def failed(golden: GoldenRun, cause: str) -> Judgement:
    """Return the judgement of a trial without an answer: DUE where the cause counts as such, else SDC."""
    return _all_alike(golden, "due" if cause in golden.due else "sdc", cause)


def _all_alike(golden: GoldenRun, outcome: str, cause: str | None) -> Judgement:
    """Return the judgement where every sample has this outcome, and every metric its value at failure."""
    due = outcome == "due"
    metrics = {"masked_samples": 0.0, "sdc_samples": float(not due), "due_samples": float(due)}
    for metric in golden.task.applicable(labelled=golden.labels is not None):
        metrics[metric.name] = metric.at_failure(golden.answers, due=due)
    metrics["nonfinite"] = float(cause == "nonfinite")
    changed = None if golden.task.wrong is None else _packed(np.full(len(golden.scores), not due))
    return Judgement(outcome, cause, _strict(metrics), changed)


def _packed(here: Flags) -> bytes:
    return zlib.compress(np.packbits(here).tobytes(), 9)


def unpacked(changed: bytes, samples: int) -> Flags:
    """Return the samples whose answer changed silently ([N]), from `Judgement.changed`."""
    return np.unpackbits(np.frombuffer(zlib.decompress(changed), np.uint8), count=samples).astype(np.bool_)


def _strict(metrics: dict[str, float]) -> dict[str, Any]:
    return {name: json_value(float(value)) for name, value in metrics.items()}
