"""Trials with faults in weights, from the golden activations of a segmented model: alone, or several in shared runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from onnxfi.campaign.execute.route_cache import GoldenCheck, RouteCache
from onnxfi.errors import EngineError, SegmentMismatchError
from onnxfi.faults.sites import Index
from onnxfi.faults.space import Target
from onnxfi.faults.trials import Faults, apply_separately, concatenate_faults
from onnxfi.faults.words import Words
from onnxfi.graph.model.loading import by_target
from onnxfi.graph.partition.route import Route
from onnxfi.graph.partition.segments import FaultPath, Segmentation
from onnxfi.graph.partition.subgraph import TensorLocation
from onnxfi.graph.write.faulty_copy import bind_models, look_up_words
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.partial.reexecution import Reexecution, TrialFaults, open_reexecution
from onnxfi.runtime.partial.segmented_model import SegmentedModel
from onnxfi.tasks.outcomes import GoldenRun, Judgement, judge


class WeightRoutes:
    """The routes of faults in the weights of a segmented model, opened when they are needed."""

    def __init__(self, segmented: SegmentedModel, check: GoldenCheck, cache: RouteCache) -> None:
        self.segmented, self.check, self.cache = segmented, check, cache

    def run(self, faults: Faults, route: Route, golden: GoldenRun) -> Judgement:
        """Run one trial by a route, and compare it with the golden run.

        Raises
        ------
        SegmentMismatchError
            If its fault-free run differs from the golden run, or it cannot be opened.
        EngineError
            If the runtime gives no answer.
        """
        for reexecution in self.opened(faulty_targets(faults), route):
            [found] = self.judged(reexecution, golden, [self.trial_faults(faults)])
            if isinstance(found, Judgement):
                return found
            if not isinstance(found, SegmentMismatchError):
                raise found
        raise SegmentMismatchError(f"the route {route} is not exact")

    def opened(self, targets: Sequence[Target], route: Route) -> Iterator[Reexecution]:
        """Yield the ways in which a route runs faults in these weights whose fault-free run is golden."""
        for path in self.segmented.segmentation.paths(targets, route):
            key = path.route, tuple(location.fed for location in path.locations), path.entries
            reexecution = self.cache.get(key, lambda path=path: self._open(path))  # type: ignore[misc]
            if reexecution is not None:
                yield reexecution

    def _open(self, path: FaultPath) -> Reexecution:
        found = open_reexecution(self.segmented, path)
        found.outputs(0)
        return found

    def together(self, trials: Mapping[int, tuple[Faults, Route]], golden: GoldenRun) -> dict[int, Judgement]:
        """Run the trials of each tensor and route batch by batch; return those that gave an answer, by their number."""
        groups: dict[tuple[tuple[int, ...], Route], list[int]] = {}
        for number, (faults, route) in trials.items():
            groups.setdefault((tuple(np.unique(faults.sites.target).tolist()), route), []).append(number)
        found = {}
        for (_, route), numbers in groups.items():
            reexecution = next(self.opened(faulty_targets(trials[numbers[0]][0]), route), None)
            if reexecution is None:
                continue
            every = self.each_with_its_faults([trials[number][0] for number in numbers])
            for number, judgement in zip(numbers, self.judged(reexecution, golden, every), strict=True):
                if isinstance(judgement, Judgement):
                    found[number] = judgement
        return found

    def judged(
        self, reexecution: Reexecution, golden: GoldenRun, trials: Sequence[TrialFaults]
    ) -> Iterator[Judgement | EngineError | MemoryError]:
        """Yield the judgement of each of these trials, or the error of the runtime.

        All trials of a batch run together, so that the golden activations of a batch are needed once.
        """
        parts: list[list[Outputs]] = [[] for _ in trials]
        failed: dict[int, EngineError | MemoryError] = {}
        cache = self.segmented.golden
        for k, _ in cache.batches():
            cache.release()
            try:
                self.check.check(k, reexecution.outputs(k), golden)
            except (EngineError, MemoryError) as error:
                failed = dict.fromkeys(range(len(trials)), error)
                break
            for number, faults in enumerate(trials):
                if number % reexecution.at_once == 0:
                    with suppress(EngineError, MemoryError):  # then each is computed by itself
                        reexecution.ready(k, trials[number : number + reexecution.at_once])
                if number not in failed:
                    try:
                        parts[number].append(reexecution.outputs(k, faults))
                    except (EngineError, MemoryError) as error:
                        failed[number] = error
        for number, part in enumerate(parts):
            if number in failed:
                yield failed[number]
            else:
                try:
                    yield replace(judge(golden, part), route=reexecution.route)
                except (EngineError, MemoryError) as error:  # a later stage of a pipeline
                    yield error

    def trial_faults(self, faults: Faults) -> TrialFaults:
        """Return the faults of a trial as its routes take them."""
        return TrialFaults(weight_words(self.segmented.segmentation, faults))

    def each_with_its_faults(self, trials: Sequence[Faults]) -> list[TrialFaults]:
        """Return the faults of trials in the same tensors; of single ones all words are read at once."""
        if any(len(faults) != 1 for faults in trials):
            return [self.trial_faults(faults) for faults in trials]
        model, segmentation = self.segmented.segmentation.model, self.segmented.segmentation
        rows = bind_models(model, concatenate_faults(trials))
        words = apply_separately(rows, model.stored(rows)).after
        path = segmentation.alone(rows.targets[int(rows.sites.target[0])])
        assert words is not None and path is not None  # the route of these trials has one
        index = rows.sites.index
        return [TrialFaults({path.location: (index[k : k + 1], words[k : k + 1])}) for k in range(len(trials))]


def weight_words(segmentation: Segmentation, faults: Faults) -> dict[TensorLocation, tuple[Index, Words]]:
    """Return the faulty elements of each weight tensor, and their words."""
    _, final = look_up_words(segmentation.model, faults)
    words = {}
    for target, rows in by_target(faults):
        index, first = np.unique(faults.sites.index[rows], return_index=True)
        path = segmentation.alone(target)
        if path is None:
            raise SegmentMismatchError(f"{target.id!r} is in no segment")
        words[path.location] = index, final[rows][first]
    return words


def by_id(faults: Faults) -> dict[str, Faults]:
    """Return the faults of each target, by its id."""
    return {
        faults.targets[k].id: faults.pick(np.flatnonzero(faults.sites.target == k))
        for k in np.unique(faults.sites.target).tolist()
    }


def faulty_targets(faults: Faults) -> list[Target]:
    """Return the targets that have faults."""
    return [faults.targets[k] for k in np.unique(faults.sites.target).tolist()]
