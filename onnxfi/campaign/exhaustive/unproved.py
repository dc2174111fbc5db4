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
from onnxfi.campaign.exhaustive.sample_runs import SampleRuns
from onnxfi.errors import EngineError, SegmentMismatchError
from onnxfi.faults.faultlist import Header
from onnxfi.faults.models import Flip
from onnxfi.faults.sites import Sites
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
    changed: Flags
    due: Flags


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
        self,
        elements: NDArray[np.int64],
        bits: NDArray[np.int64],
        words: NDArray[np.uint64],
        needed: Sequence[NDArray[np.int64]],
    ) -> Iterator[list[BatchOutcome] | Judgement]:
        """Yield the outcomes of each fault on the samples that it needs and others, or its judgement on all samples.

        Parameters
        ----------
        elements, bits : int array [faults]
            The sites.
        words : uint64 array [faults]
            The faulty words.
        needed : sequence of int array
            The samples that each fault needs, in ascending order.
        """
        if self.whole is not None:
            for element, bit, samples in zip(elements.tolist(), bits.tolist(), needed, strict=True):
                outputs = self.whole.run(self._faults(element, bit), samples)
                yield self.alone(element, bit) if outputs is None else [self._judged(self._golden(samples), outputs)]
            return
        batches = [set(self._batch[samples].tolist()) for samples in needed]
        route = self._route
        path = (
            None if self.executor.weights is None else self.executor.weights.segmented.segmentation.alone(self.target)
        )
        at_once = 1 if route is None else route.at_once
        for first in range(0, len(elements), at_once):
            part = range(first, min(first + at_once, len(elements)))
            found: list[list[BatchOutcome] | None] = [None] * len(part)
            if route is not None and path is not None:
                trials = [TrialFaults({path.location: (elements[n : n + 1], words[n : n + 1])}) for n in part]
                found = self._group(route, trials, [batches[n] for n in part])
            for n, one in zip(part, found, strict=True):
                yield self.alone(int(elements[n]), int(bits[n])) if one is None else one

    @cached_property
    def _batch(self) -> NDArray[np.int64]:
        """Return the number of the batch of each sample."""
        return np.repeat(np.arange(len(self.golden.run)), [len(one.samples) for one in self.golden.run])

    def _golden(self, samples: NDArray[np.int64]) -> Outputs:
        """Return the golden outputs of some samples."""
        return Outputs(samples, {"": self.golden.scores[samples]})

    @cached_property
    def _route(self) -> Reexecution | None:
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
        return BatchOutcome(golden.samples, pair.top, pair.silent_top, pair.detected)

    def _faults(self, element: int, bit: int) -> Faults:
        sites = Sites(np.zeros(1, np.int64), np.array([element]), np.array([bit], np.int16))
        return Faults((self.target,), sites, (Flip(),))

    def alone(self, element: int, bit: int) -> Judgement:
        """Return the judgement of one fault on all samples, by the shortest route that is exact."""
        return self.executor.judged(self.header, self.golden, self._faults(element, bit))
