"""Trials of chosen flips: a model opened on labelled samples, and what a flip, or several together, does to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.attacks.candidates import Flips
from onnxfi.attacks.goals import Goal
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError
from onnxfi.faults import sampling
from onnxfi.faults.faultlist import Header
from onnxfi.faults.trials import Faults, Sampler
from onnxfi.graph.model.loading import Model
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.npz import write_npz
from onnxfi.tasks.answers import AnswerPair
from onnxfi.tasks.kinds.classification import CLASSIFICATION
from onnxfi.tasks.outcomes import GoldenRun, Judgement

#: Trials of one tensor that run together.
_TOGETHER = 32
#: Routes whose trials share runs.
_SHARED = (Route.CHANNEL_DELTA, Route.PARTIAL)


@dataclass(frozen=True)
class Harm:
    """Effect of some flips on samples: the share of right answers, of silent changes, and of detected samples.

    Of a targeted attack also `reached`, the share of the attacked samples that are answered as the target, and `kept`,
    that of the others answered right.
    """

    accuracy: float
    sdc1: float
    due: float
    reached: float | None = None
    kept: float | None = None

    @classmethod
    def of(cls, found: Judgement) -> Harm:
        """Return the harm of a trial."""
        metrics = found.metrics
        targeted = (float(metrics["reached"]), float(metrics["kept"])) if "reached" in metrics else ()
        return cls(float(metrics["top1"]), float(metrics["sdc1"]), float(metrics["due_samples"]), *targeted)


class FlipTrials:
    """A classifier, open on samples, whose answers under chosen flips are judged by a goal.

    Parameters
    ----------
    model : Path
        The model.
    data : Path
        An .npz of samples with labels.
    goal : Goal
        The attacker's goal.
    fields : mapping
        Further fields of the campaign: engine, batch size, output.

    Raises
    ------
    InputError
        If the samples have no labels, or the model is no classifier.
    """

    def __init__(self, model: Path, data: Path, goal: Goal, fields: Mapping[str, Any]) -> None:
        campaign = Campaign(model, data, single=True, trials=1, **fields)
        self.executor = TrialExecutor.open(campaign)
        plain = self.executor.golden_runs.run()[0]
        if plain.labels is None or plain.task.name != CLASSIFICATION.name:
            why = "have no labels" if plain.labels is None else f"are judged by the task {plain.task.name}"
            raise InputError(f"an attack lowers the accuracy of a classifier, and the samples {why}; give class labels")
        if plain.answers.rows.shape[1] == 1:
            raise InputError(
                "the output holds class indices, and an attack needs their scores; name the output of those with "
                "--output"
            )
        labels = np.asarray(plain.answers.truth, np.int64)
        goal.check(labels, plain.answers.rows.shape[1])
        self.accuracy = float(np.mean(plain.answers.right))
        #: The share of the most common class, which a network that always answers one class reaches.
        self.majority = float(np.bincount(labels).max() / len(labels))
        task = replace(plain.task, metrics=(*plain.task.metrics, *goal.metrics))
        self.golden: GoldenRun = replace(plain, task=task)
        #: Of a targeted attack what is reached and kept without faults.
        self.success = None if goal.target is None else goal.success(AnswerPair(plain.answers, plain.answers))
        self.header = Header(self.model.digest, sampler=Sampler("sites"))

    @property
    def model(self) -> Model:
        """The open model."""
        return self.executor.opened.model

    def gains(self, flips: Flips) -> NDArray[np.float64]:
        """Return the gain of each flip by itself ([n]); trials of one tensor share runs where they can."""
        return np.array([one.metrics["gain"] for one in self._each(flips)], np.float64)

    def harm(self, faults: Faults) -> Harm:
        """Return the effect of all these faults together."""
        return Harm.of(self.executor.judged(self.header, self.golden, faults))

    def _each(self, flips: Flips) -> Iterator[Judgement]:
        for start in range(0, len(flips), _TOGETHER):
            rows = range(start, min(start + _TOGETHER, len(flips)))
            trials = {row: flips.faults(self.model.targets, slice(row, row + 1)) for row in rows}
            found = self._together(trials)
            for row, faults in trials.items():
                yield found[row] if row in found else self.executor.judged(self.header, self.golden, faults)

    def _together(self, trials: Mapping[int, Faults]) -> dict[int, Judgement]:
        """Run trials of one tensor that can share runs; return their judgements by number."""
        weights = self.executor.weights
        if weights is None or not trials:
            return {}
        first = self.executor.prepare(self.header, next(iter(trials.values())))
        route = self.executor.route(self.executor.facts(first))
        if route not in _SHARED:
            return {}
        return weights.together({row: (faults, route) for row, faults in trials.items()}, self.golden)


def split_samples(data: Data, first: int, seed: int, folder: Path) -> tuple[Path, Path, int]:
    """Write samples at random into two files: `first` of them to attack with, and all others to score on.

    Returns the two files, and the number of samples in the second.

    Raises
    ------
    InputError
        If the data has no labels, or no sample would be left to score on.
    """
    if data.labels is None or data.synthetic:
        raise InputError("an attack needs labelled samples to lower the accuracy of; give --data with labels")
    if not 0 < first < data.samples:
        raise InputError(
            f"--attack-samples {first} of {data.samples} samples leave none to score on; give fewer, or more --data"
        )
    axes = dict(data.layout.axes)
    parts = [batch.trim(batch.feeds) for batch in data.batches(data.layout.fixed or min(32, data.samples))]
    arrays = {
        name: np.concatenate([part[name] for part in parts], axes[name]) if name in axes else parts[0][name]
        for name in data.inputs
    }
    attacked = np.asarray(sampling.count(data.samples, first, seed, 1)).astype(np.int64)
    files = []
    for name, some in (("attack", attacked), ("score", np.setdiff1d(np.arange(data.samples), attacked))):
        chosen = {n: a.take(some, axes[n]) if n in axes else a for n, a in arrays.items()}
        files.append(write_npz(folder / f"{name}-{seed}.npz", chosen | {"labels": data.labels[some]}))
    return files[0], files[1], data.samples - first
