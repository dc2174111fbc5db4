"""Outcomes: the effect of a trial on each sample and on the trial.

Per sample first. MASKED: the task counts the faulty answer as the golden one. DUE: a value that is not finite came up
(where that counts as DUE). SDC: anything else. The outcome of the trial is that of its gravest sample: DUE > SDC >
MASKED.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxfi.errors import InputError
from onnxfi.faults.trials import json_value
from onnxfi.graph.model.byte_source import printable
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.data.labels import Labels, as_kind
from onnxfi.runtime.data.sample_outputs import KeptInputs, Outputs, as_run, same_runs, stacked
from onnxfi.runtime.engine.ports import Array
from onnxfi.runtime.pipeline.later_stages import LaterStages
from onnxfi.tasks.answers import AnswerPair, Answers, Flags, share
from onnxfi.tasks.decoded_answers import DecodedAnswers, DecodedPair
from onnxfi.tasks.task import Metric, Task

#: Letters of an answer that are shown.
_LONGEST_ANSWER = 80


@dataclass(frozen=True)
class GoldenRun:
    """The golden run of a campaign: outputs, labels ([N, …]), and the task that gives them a meaning.

    `kind` says how scores of classes are read, `tolerance` how far a masked sample may deviate, and `due` names the
    causes that count as detected. `inputs` returns inputs of some samples, where the task asks for them. `whole` is the
    golden run of all samples, where this is the one `sample` of it on which a trial is judged. In a pipeline `run` are
    the outputs of the faulty stage, of which the `later` stages make the answers.
    """

    run: tuple[Outputs, ...]
    labels: Labels | None
    task: Task
    kind: str = "auto"
    tolerance: float = 0.0
    due: tuple[str, ...] = ("nonfinite",)
    inputs: KeptInputs | None = field(default=None, repr=False)
    whole: GoldenRun | None = field(default=None, repr=False)
    sample: int | None = None
    later: LaterStages | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        run: Array | Sequence[Outputs],
        labels: Labels | None,
        task: Task,
        kind: str,
        tolerance: float,
        due: tuple[str, ...],
        inputs: KeptInputs | None = None,
        later: LaterStages | None = None,
    ) -> GoldenRun:
        """Return a golden run; the kind of its scores is settled once, and labels become those of the task's kind."""
        batches = as_run(run)
        if tolerance and not task.takes_tolerance:
            raise InputError(f"the task {task.name} says itself which answers are masked; leave --tolerance out")
        if labels is not None and task.labels:
            labels = as_kind(task.labels, labels)
        scored = batches if later is None else later.answers.run
        settled = task.score_kind(stacked(scored)) if task.score_kind is not None and kind == "auto" else kind
        return cls(batches, labels, task, settled, tolerance, due, inputs, later=later)

    @property
    def scores(self) -> Array:
        """The numbers of the outputs ([N, …])."""
        return self.answers.scores

    @cached_property
    def answers(self) -> Answers:
        """The outputs with their labels; facts about them are found once for all trials."""
        whole = None if self.whole is None else self.whole.answers
        return self._answers(self.run, self.labels, whole)

    @property
    def answered(self) -> tuple[Outputs, ...]:
        """The outputs that are scored: in a pipeline those of its answer."""
        return self.answers.run

    @property
    def apart(self) -> bool:
        """True if some rows of the run may be judged without the others of their batch."""
        return self.task.apart or self.later is not None

    @property
    def by_sample(self) -> bool:
        """True if one sample of a batch can be judged though its outputs have no row for each."""
        return self.task.decode is not None or self.later is not None

    @property
    def size(self) -> int:
        """The number of samples that are judged: 1 if outputs have no row for each."""
        if self.task.decode is None:
            return len(self.scores)
        return 1 if self.sample is not None else sum(len(outputs.samples) for outputs in self.answered)

    @cached_property
    def measured(self) -> tuple[Metric, ...]:
        """The metrics that trials have."""
        labels = self.labels if self.whole is None else self.whole.labels
        return self.task.applicable(labels, single=self.sample is not None)

    @cached_property
    def unchanged(self) -> Judgement:
        """The judgement of a trial whose outputs are the golden ones, bit for bit."""
        return _compared(self, self.run)

    @property
    def detects(self) -> bool:
        """True if a value that is not finite counts as DUE."""
        return "nonfinite" in self.due

    @property
    def read_as(self) -> str | None:
        """The kind of the scores; None if the task has none."""
        return self.kind if self.task.score_kind is not None else None

    def with_run(self, run: Sequence[Outputs]) -> GoldenRun:
        """Return the golden run with the outputs of another fault-free run, as a route gives them."""
        return replace(self, run=tuple(run), whole=self.whole or self)

    def of_sample(self, sample: int, outputs: Outputs) -> GoldenRun:
        """Return the golden run of one sample, from the outputs of that sample alone, or of its batch.

        In a pipeline `sample` is a row of the faulty stage, and what is judged is the sample that it belongs to.
        """
        sample = sample if self.later is None else int(self.later.front.samples[sample])
        labels = None if self.labels is None else self.labels[sample : sample + 1]
        return replace(self, run=(outputs,), labels=labels, whole=self.whole or self, sample=sample)

    def pair(self, faulty: Array | Sequence[Outputs]) -> AnswerPair:
        """Return the golden answers beside faulty ones."""
        run = as_run(faulty)
        golden, answers = self.answers, self._answers(run)
        alarmed = self._alarmed(run, answers)
        if isinstance(golden, DecodedAnswers) and isinstance(answers, DecodedAnswers):
            return DecodedPair(golden, answers, self.detects, self.tolerance, alarmed)
        return AnswerPair(golden, answers, self.detects, self.tolerance, alarmed)

    def _alarmed(self, run: tuple[Outputs, ...], answers: Answers) -> Flags | None:
        """Return the answers with an alarm that the golden run does not have ([N]); None without detectors."""
        found = _alarmed(self.run, run)
        if found is None or self.later is None:
            return found
        rows = np.concatenate([outputs.samples for outputs in run])
        return np.isin(answers.samples, self.later.front.samples[rows[found]])

    def _answers(self, run: tuple[Outputs, ...], labels: Labels | None = None, whole: Answers | None = None) -> Answers:
        if self.later is not None:
            every = self.later(run)
            run = tuple(outputs for outputs in every if self.sample is None or self.sample in outputs.samples)
        if self.task.decode is None:
            return Answers(run, labels, self.kind, whole)
        known = {}
        if isinstance(whole, DecodedAnswers):
            known = {id(one): values for one, values in zip(whole.run, whole.by_batch, strict=True)}
        return DecodedAnswers(
            run, labels, self.kind, whole, decode=self._decode, apart=self.task.apart, only=self.sample, known=known
        )

    def _decode(self, outputs: Outputs) -> Sequence[Any] | Array:
        assert self.task.decode is not None
        fed = {} if self.inputs is None else self.inputs.of(outputs.samples)
        return self.task.decode(replace(outputs, inputs=fed))


def _alarmed(golden: Sequence[Outputs], faulty: Sequence[Outputs]) -> Flags | None:
    """Return the rows of a run with an alarm that the golden run does not have ([N]); None without detectors."""
    if any(outputs.alarms is None for outputs in faulty):
        return None
    known = [np.zeros(len(g.samples), np.bool_) if g.alarms is None else g.alarms for g in golden]
    found = np.concatenate([outputs.alarms for outputs in faulty if outputs.alarms is not None])
    before = np.concatenate(known) if known else found[:0]
    return np.asarray(found & ~before) if before.shape == found.shape else found


@dataclass(frozen=True)
class Judgement:
    """The outcome of one trial: `masked`, `sdc` or `due`, its cause where DUE, and its metrics by name."""

    outcome: str
    cause: str | None
    metrics: dict[str, Any]
    #: Samples whose answer is silently another one ([N] as packed bits, zlib); None if the task has no such rule.
    changed: bytes | None = None
    #: The route of its execution.
    route: Route = Route.FULL
    #: Words of activations before and after faults, as they were injected; see `InjectedWords.rows`.
    words: tuple[dict[str, Any], ...] = ()


def judge(golden: GoldenRun, faulty: Array | Sequence[Outputs]) -> Judgement:
    """Compare the outputs of a trial with the golden ones.

    Where a fault changes the shape of outputs that are not decoded, every sample has changed.
    """
    run = as_run(faulty)
    if golden.later is None and same_runs(golden.run, run):
        return golden.unchanged
    return _compared(golden, run)


def _compared(golden: GoldenRun, faulty: tuple[Outputs, ...]) -> Judgement:
    return judge_pair(golden, golden.pair(faulty))


def judge_pair(golden: GoldenRun, pair: AnswerPair) -> Judgement:
    """Return the judgement of a trial from its golden and faulty answers."""
    alarm = pair.alarmed is not None and bool(pair.alarmed.any())
    if not pair.same_shape:
        cause = "alarm" if alarm else "nonfinite" if golden.detects and pair.faulty.nonfinite.any() else None
        return _all_alike(golden, "due" if cause else "sdc", cause)
    due = pair.detected
    masked = golden.task.masked(pair) & ~due
    metrics = {"masked_samples": share(masked), "sdc_samples": share(~masked & ~due), "due_samples": share(due)}
    metrics |= {m.name: m.measure(pair) for m in golden.measured}
    outcome = "due" if due.any() else "masked" if masked.all() else "sdc"
    wrong = golden.task.wrong
    changed = None if wrong is None else _packed(wrong(pair))
    return Judgement(
        outcome, ("alarm" if alarm else "nonfinite") if outcome == "due" else None, _strict(metrics), changed
    )


def failed(golden: GoldenRun, cause: str) -> Judgement:
    """Return the judgement of a trial without an answer: DUE where the cause counts as such, else SDC."""
    return _all_alike(golden, "due" if cause in golden.due else "sdc", cause)


def detected(golden: GoldenRun, cause: str) -> Judgement:
    """Return the judgement of a trial in which a detector of this name stopped the inference: DUE."""
    return _all_alike(golden, "due", cause)


def _all_alike(golden: GoldenRun, outcome: str, cause: str | None) -> Judgement:
    """Return the judgement where every sample has this outcome, and every metric its value at failure."""
    due = outcome == "due"
    metrics = {"masked_samples": 0.0, "sdc_samples": float(not due), "due_samples": float(due)}
    for metric in golden.measured:
        metrics[metric.name] = metric.at_failure(golden.answers, due=due)
    metrics["nonfinite"] = float(cause == "nonfinite")
    changed = None if golden.task.wrong is None else _packed(np.full(golden.size, not due))
    return Judgement(outcome, cause, _strict(metrics), changed)


def _packed(here: Flags) -> bytes:
    return zlib.compress(np.packbits(here).tobytes(), 9)


def unpacked(changed: bytes, samples: int) -> Flags:
    """Return the samples whose answer changed silently ([N]), from `Judgement.changed`."""
    return np.unpackbits(np.frombuffer(zlib.decompress(changed), np.uint8), count=samples).astype(np.bool_)


def answer_text(task: Task, value: Any) -> str:
    """Return the answer of a sample for people: of scores of classes the class, else the decoded value, cut.

    >>> from onnxfi.tasks.kinds.classification import CLASSIFICATION
    >>> answer_text(CLASSIFICATION, np.array([0.1, 0.7, 0.2])), answer_text(CLASSIFICATION, np.array([0.1, np.nan]))
    ('class 1', 'no class')
    """
    if isinstance(value, np.ndarray) and value.ndim == 1 and task.labels == "classes":
        return "no class" if np.isnan(value).any() else f"class {int(value.argmax())}"
    if isinstance(value, np.ndarray):
        value = np.array2string(value, precision=4, threshold=6, edgeitems=3)
    text = printable(" ".join(str(value).split()))
    return text if len(text) <= _LONGEST_ANSWER else text[: _LONGEST_ANSWER - 1] + "…"


def _strict(metrics: dict[str, float]) -> dict[str, Any]:
    return {name: json_value(float(value)) for name, value in metrics.items()}
