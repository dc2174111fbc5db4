"""Runs of faults whose classes are not proved, on the samples that need one.

A small model runs as a whole on these samples; others run by the routes of a campaign, batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.proved.sample_subset_runs import SampleRuns
from onnxfi.errors import EngineError, SegmentMismatchError
from onnxfi.faults.faultlist import Header
from onnxfi.faults.space import Target
from onnxfi.faults.trials import Faults
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.partial.reexecution import Reexecution, TrialFaults
from onnxfi.tasks.answers import AnswerPair, Answers
from onnxfi.tasks.outcomes import GoldenRun, Judgement

Flags = NDArray[np.bool_]
_ROUTES = (Route.CHANNEL_DELTA, Route.PARTIAL, Route.REBUILT)


@dataclass(frozen=True)
class BatchOutcome:
    """The outcome of one fault on some samples, most often those of one batch."""

    samples: NDArray[np.int64]
    top: NDArray[np.int64]
    other: Flags
    due: Flags
    nonfinite: Flags

    @property
    def changed(self) -> Flags:
        """Return the samples of SDC-1: their class is another, silently."""
        return self.other & ~self.due


@dataclass(frozen=True)
class TensorRuns:
    """Runs of faults in one weight tensor."""

    executor: TrialExecutor
    header: Header
    golden: GoldenRun
    target: Target
    #: Runs of the whole model on some samples, where it is small.
    whole: SampleRuns | None = None

    def run(
        self, faults: Sequence[Faults], needed: Sequence[NDArray[np.int64]]
    ) -> Iterator[list[BatchOutcome] | Judgement]:
        """Yield the outcomes of some faults on the samples that they need and others, or a judgement on all samples.

        Parameters
        ----------
        faults : sequence of Faults
            Faults in the tensor; each of these runs by itself.
        needed : sequence of int array
            The samples that each needs, in ascending order.
        """
        if self.whole is not None:
            for one, samples in zip(faults, needed, strict=True):
                try:
                    outputs = self.whole.run(one, samples)
                except (EngineError, MemoryError):  # alone it is found out whether there is an answer
                    outputs = None
                yield self.alone(one) if outputs is None else [self._judged(self._golden(samples), outputs)]
            return
        batches = [set(self._batch[samples].tolist()) for samples in needed]
        route = self.route
        at_once = 1 if route is None else route.at_once
        for first in range(0, len(faults), at_once):
            some = faults[first : first + at_once]
            found: list[list[BatchOutcome] | None] = [None] * len(some)
            if route is not None and self.executor.weights is not None:
                trials = [self.executor.weights.trial_faults(one) for one in some]
                found = self._group(route, trials, batches[first : first + at_once])
            for one, outcomes in zip(some, found, strict=True):
                yield self.alone(one) if outcomes is None else outcomes

    @property
    def kind(self) -> Route:
        """Return the route by which samples run that need to."""
        return Route.FULL if self.whole is not None or self.route is None else self.route.route

    @cached_property
    def _batch(self) -> NDArray[np.int64]:
        """Return the number of the batch of each sample."""
        return np.repeat(np.arange(len(self.golden.run)), [len(one.samples) for one in self.golden.run])

    def _golden(self, samples: NDArray[np.int64]) -> Outputs:
        """Return the golden outputs of some samples."""
        return Outputs(samples, {"": self.golden.scores[samples]})

    @cached_property
    def route(self) -> Reexecution | None:
        """Return the route by which batches run; None if there is none that is exact."""
        weights = self.executor.weights
        if weights is None:
            return None
        for kind in _ROUTES:
            for route in weights.opened([self.target], kind):
                try:
                    for k, _ in weights.segmented.golden.batches():
                        weights.check.check(k, route.outputs(k), self.golden)
                except (EngineError, MemoryError):
                    continue
                return route
        return None

    def _group(
        self, route: Reexecution, trials: list[TrialFaults], needed: Sequence[set[int]]
    ) -> list[list[BatchOutcome] | None]:
        """Run faults that share runs; None for those for which the route is not exact."""
        found: list[list[BatchOutcome] | None] = [[] for _ in trials]
        for k in sorted(set().union(*needed)):
            route.golden.release()
            if route.at_once > 1:
                try:
                    route.ready(k, trials)
                except (EngineError, MemoryError):
                    return [None] * len(trials)
            for number, trial in enumerate(trials):
                mine = found[number]
                if mine is None or k not in needed[number]:
                    trial.computed.pop(k, None)
                    continue
                try:
                    mine.append(self._judged(self.golden.run[k], route.outputs(k, trial)))
                except (SegmentMismatchError, EngineError, MemoryError):
                    found[number] = None
        return found

    def _judged(self, golden: Outputs, outputs: Outputs) -> BatchOutcome:
        pair = AnswerPair(Answers((golden,)), Answers((outputs,)), self.golden.detects)
        return BatchOutcome(golden.samples, pair.top, pair.other_top, pair.detected, pair.nonfinite)

    def alone(self, faults: Faults) -> Judgement:
        """Return the judgement of some faults on all samples, by the shortest route that is exact."""
        return TrialExecutor.judged(self.executor, self.header, self.golden, faults)
