"""The trials of a campaign: each takes the route that `route_of` names, and is compared with the golden run.

A route is used only if its fault-free run gives the golden scores bit for bit; otherwise the trial takes the next
longer one. The result of a trial is therefore the same by every route, and independent of earlier trials.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import ClassVar

from onnxfi.campaign.execute.activation_routes import (
    ActivationRoutes,
    OneSample,
    Run,
    SplitRoutes,
    activation_changes,
    golden_of_trial,
    judge_by_own,
    one_sample,
    row_of_one_sample,
)
from onnxfi.campaign.execute.generation_trials import GenerationTrials, by_phase, generates
from onnxfi.campaign.execute.golden_run import GoldenRuns
from onnxfi.campaign.execute.instrumented_model import InstrumentedModel, needs_numbers
from onnxfi.campaign.execute.open_campaign import OpenCampaign, open_campaign
from onnxfi.campaign.execute.route_cache import KEPT_BYTES, GoldenCheck, RouteCache, open_segments, segment
from onnxfi.campaign.execute.weight_routes import WeightRoutes, faulty_targets
from onnxfi.campaign.plan.open_model import beside
from onnxfi.campaign.plan.plan import coded_memory
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import EngineError, ModelError, ProviderError, SegmentMismatchError
from onnxfi.faults.faultlist import Header, LineReader
from onnxfi.faults.space import Target
from onnxfi.faults.trials import RATE_SAMPLERS, Faults
from onnxfi.graph.model.loading import Model
from onnxfi.graph.partition.route import Route, RouteContext, TrialFacts, route_of
from onnxfi.graph.partition.segments import Segmentation
from onnxfi.graph.partition.subgraph import PartitionGraph, half_floats, partition_graph
from onnxfi.protection.coded_memory import BLOCK_STATUSES
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.cuda import CPU, TENSORRT
from onnxfi.runtime.engine.device_errors import out_of_memory
from onnxfi.runtime.engine.protocols import Session
from onnxfi.runtime.engine.worker_thread_lock import claim
from onnxfi.runtime.partial.activation_words import InjectedWords
from onnxfi.runtime.partial.reexecution import Reexecution, TrialFaults, golden_outputs
from onnxfi.runtime.partial.segmented_model import SegmentedModel
from onnxfi.tasks.outcomes import GoldenRun, Judgement, detected, failed, judge


@dataclass(frozen=True)
class PreparedTrial:
    """The faults of a trial with what its routes need to know of them.

    Attributes
    ----------
    faults : Faults
        The faults; those in activations by step.
    weights : list of Target
        The faulty weights.
    activations : tuple of str
        The ids of the activations for which a route is opened: the faulty ones, or all that are `swept`.
    sample : int or None
        The one sample on which the trial is judged.
    one : OneSample or None
        The one row of an activation that is faulty.
    words : InjectedWords
        The words of activations before and after the faults, as the trial injects them.
    """

    faults: Faults
    weights: list[Target]
    activations: tuple[str, ...] = ()
    swept: bool = False
    sample: int | None = None
    one: OneSample | None = None
    words: InjectedWords = field(default_factory=InjectedWords)


class TrialExecutor:
    """Executes the trials of an open campaign, one after the other.

    Parameters
    ----------
    opened : OpenCampaign
        The campaign.
    kept_bytes : int
        Bytes of golden activations and sessions that are kept; what does not fit is computed again.
    session : Session, optional
        A session of the model file, for the golden run.
    """

    #: Trials that are given to it at once, where they share runs.
    most_at_once: ClassVar[int] = 32

    def __init__(self, opened: OpenCampaign, kept_bytes: int = KEPT_BYTES, session: Session | None = None) -> None:
        self.opened, self.kept_bytes = opened, kept_bytes
        self.golden_runs = GoldenRuns(opened, session)
        self.cache = RouteCache(kept_bytes // 2)
        self._reader: LineReader | None = None
        self._read_ahead: dict[tuple[str, ...], Faults] = {}
        self._segments: list[tuple[WeightRoutes, ActivationRoutes] | None] = []

    @classmethod
    def open(
        cls, campaign: Campaign, kept_bytes: int = KEPT_BYTES, *, model: Model | None = None, runs: bool = True
    ) -> TrialExecutor:
        """Open a campaign; see `open_campaign`."""
        opened, session = open_campaign(campaign, kept_bytes, model=model, runs=runs)
        return cls(opened, kept_bytes, session if runs else None)

    # What routes there are

    @cached_property
    def segmentation(self) -> Segmentation | None:
        """Return the segmentation of the model; None if it is executed as a whole."""
        try:
            campaign = self.opened.campaign
            whole = campaign.engine.route == "full" or not self.opened.engine.in_segments
            return None if whole else segment(self.opened)
        except (ModelError, MemoryError):  # too large for one message
            return None

    @property
    def weights(self) -> WeightRoutes | None:
        """Return the routes of faults in weights; None if the model does not run in segments."""
        return None if self._routes is None else self._routes[0]

    @property
    def activations(self) -> ActivationRoutes | None:
        """Return the routes of faults in activations; None if the model does not run in segments."""
        return None if self._routes is None else self._routes[1]

    @property
    def is_segmented(self) -> bool:
        """Return whether the segments of the model are open."""
        return bool(self._segments) and self._segments[0] is not None

    @property
    def _routes(self) -> tuple[WeightRoutes, ActivationRoutes] | None:
        if self._segments:
            return self._segments[0]
        # No cached_property: in Python 3.11 that has a lock of its own, held while other threads have their turn.
        with claim((id(self), "segments")):
            if not self._segments:
                segmented = self._segmented()
                if segmented is None:
                    self._segments.append(None)
                else:
                    weights = WeightRoutes(segmented, GoldenCheck(segmented), self.cache)
                    self._segments.append((weights, ActivationRoutes(self.opened, weights)))
            return self._segments[0]

    def _segmented(self) -> SegmentedModel | None:
        if self.segmentation is None:
            return None
        try:
            return open_segments(self.opened, self.segmentation, self.kept_bytes)
        except (EngineError, ModelError, MemoryError):  # the runtime does not take the segments
            return None

    def golden_in_segments(self) -> GoldenRun | None:
        """Return the golden run as the segments of the model give it, which opens them; None if there are none."""
        if self.weights is None:
            return None
        segmented, parts = self.weights.segmented, list[Outputs]()
        try:
            for k, _ in segmented.golden.batches():
                segmented.golden.release()
                parts.append(golden_outputs(segmented, k))
        except (EngineError, MemoryError):
            return None
        return self.opened.golden(parts)

    @cached_property
    def splittable(self) -> bool:
        """Return whether the model may be split: no 16-bit float is computed in float32, which a split would round.

        Nor where each part would be rebuilt for a device, as TensorRT does.
        """
        if self.opened.provider != CPU:
            return self.opened.provider != TENSORRT
        return not half_floats(self.opened.model.proto)

    @cached_property
    def _split(self) -> SplitRoutes | None:
        """Return the routes that split the model; None if it is too large for one message."""
        try:
            net = self._graph()
        except (ModelError, MemoryError):
            return None
        return SplitRoutes(
            self.opened, net, self.cache, late=self.opened.campaign.engine.route in ("auto", "late-start")
        )

    @cached_property
    def loops(self) -> GenerationTrials:
        """Return the trials of a decoder in its loop."""
        return GenerationTrials(self.opened, self.cache, self.kept_bytes // 4)

    def _graph(self) -> PartitionGraph:
        return partition_graph(self.opened.model) if self.segmentation is None else self.segmentation.net

    def close(self) -> None:
        """Close what is open for trials, but for the segments that they share."""
        self.cache.close()

    def close_segments(self) -> None:
        """Close the segments too: others run the trials."""
        self.close()
        for routes in self._segments:
            if routes is not None:
                routes[0].segmented.first = None  # which holds them in turn
        self._segments.clear()

    # One trial

    def trial(self, header: Header, golden: GoldenRun, lines: Sequence[str]) -> Judgement:
        """Run one trial from its lines in a fault list, and compare it with the golden run."""
        faults, counts = self.read_faults(header, lines)
        if counts is None:
            return self.judged(header, golden, faults)
        found = detected(golden, "memory-code") if counts["stopped"] else self.judged(header, golden, faults)
        return replace(found, metrics=found.metrics | {f"blocks_{s}": counts[s] for s in BLOCK_STATUSES})

    def read_faults(self, header: Header, lines: Sequence[str]) -> tuple[Faults, Mapping[str, int] | None]:
        """Return the faults of a trial as the model reads them: what a memory code leaves, with its counts, if any."""
        faults = self.faults(header, lines)
        if self.opened.campaign.memory.memory_code is None:
            return faults, None
        memory = coded_memory(self.opened.campaign, self.opened.fault_targets, header)
        number = json.loads(lines[0])["trial"]
        # A list of chosen sites has no rate, nor have single faults: check bits are fault-free.
        rate = (header.strata[header.place(number)[1]]["ber"] or 0.0) if header.strata else 0.0
        return memory.read(self.opened.model, faults, rate, header.sampler.seed, number)

    def judged(self, header: Header, golden: GoldenRun, faults: Faults) -> Judgement:
        """Run a trial with these faults by the shortest route that is exact."""
        if not len(faults):
            return judge(golden, golden.run)
        trial = self.prepare(header, faults)
        facts, inexact = self.facts(trial), frozenset[Route]()
        while True:
            route = self.route(facts, inexact)
            try:
                return replace(EXECUTORS[route](self, trial, golden), words=trial.words.rows())
            except SegmentMismatchError:
                if route is Route.FULL:
                    raise
                inexact |= {route}
            except (EngineError, MemoryError):  # the full route finds whether there is an output
                if route in _LONGEST:
                    raise
                inexact = frozenset(Route) - _LONGEST

    def prepare(self, header: Header, faults: Faults) -> PreparedTrial:
        """Return the faults of a trial with what its routes need to know of them."""
        here = self.opened.fault_targets.in_activations(faults)
        if not here.any():
            return PreparedTrial(faults, faulty_targets(faults))
        faults = self.opened.fault_targets.by_step(faults)
        here = self.opened.fault_targets.in_activations(faults)
        weights = faulty_targets(faults.pick(~here))
        swept, words = header.sampler.kind in RATE_SAMPLERS, InjectedWords()
        one = row_of_one_sample(self.opened, header, faults, words)
        if swept and self.splittable:  # one route for all trials of a sweep
            listed = [t.id for t in self.opened.fault_targets.listed(header).targets if t.is_activation]
            ids = [step for name in listed for step in self.opened.fault_targets.steps_of.get(name, (name,))]
        else:
            ids = [target.id for target in faulty_targets(faults.pick(here))]
        return PreparedTrial(faults, weights, tuple(ids), swept, one_sample(header, faults), one, words)

    def facts(self, trial: PreparedTrial) -> TrialFacts:
        """Return the facts of a trial that decide its route."""
        activations, weights = self.opened.fault_targets.activations, self.weights
        paths = [] if weights is None else [weights.segmented.segmentation.alone(target) for target in trial.weights]
        alone = paths[0] if len(paths) == 1 else None
        return TrialFacts(
            weights=len(trial.weights),
            in_segments=weights is not None and None not in paths,
            constant=alone is not None and alone.rebuilt,
            channels=alone is not None and alone.channels is not None,
            activations=bool(trial.activations),
            nested=any(bool(activations[name].path) for name in trial.activations),
            one_sample=trial.one is not None,
            in_loop=generates(self.opened),
        )

    def route(self, facts: TrialFacts, inexact: frozenset[Route] = frozenset()) -> Route:
        """Return the route of a trial with these facts, but for the routes that are inexact."""
        segmentation = None if self.weights is None else self.weights.segmented.segmentation
        segments, late = (0, True) if segmentation is None else (len(segmentation.segments), segmentation.late)
        return route_of(facts, RouteContext(segments, late, self.splittable, inexact))

    def longest(self, trial: PreparedTrial, *, batches: int | None = None) -> tuple[Run, Run]:
        """Run a trial with faults in activations by its longest route; return its golden and faulty outputs."""
        if generates(self.opened):
            return self.loops.outputs(trial.faults, batches)
        route = self.route(self.facts(trial), frozenset(Route) - _LONGEST)
        if route is Route.SPLIT:
            with suppress(SegmentMismatchError):  # it cannot be split there, as at a constant
                return self._split_outputs(trial, batches)
        return self._full_outputs(trial, batches)

    def shorter(self, trial: PreparedTrial) -> tuple[Reexecution, TrialFaults] | None:
        """Return the open route of a trial that runs from golden activations, with its faults; None if none does."""
        if self.weights is None or self.activations is None:
            return None
        if trial.activations:
            names = [
                a.name for name in trial.activations if not (a := self.opened.fault_targets.activations[name]).path
            ]
            if trial.weights or len(names) < len(trial.activations):
                return None
            found = self.activations.opened_for(names, any_of=trial.swept)
            return None if found is None else (found, activation_changes(self.opened, trial.faults))
        facts, inexact = self.facts(trial), frozenset[Route]()
        while (route := self.route(facts, inexact)) is not Route.FULL:
            for reexecution in self.weights.opened(trial.weights, route):
                return reexecution, self.weights.trial_faults(trial.faults)
            inexact |= {route}
        return None

    def _split_outputs(self, trial: PreparedTrial, batches: int | None = None) -> tuple[Run, Run]:
        if self._split is None:
            raise SegmentMismatchError("the model cannot be split")
        names = [self.opened.fault_targets.activations[name].name for name in trial.activations]
        return self._split.run(names, trial.faults, trial.sample, batches=batches, words=trial.words)

    def instrumented(self, trial: PreparedTrial) -> InstrumentedModel:
        """Return the whole model with fault operators at the activations of a trial."""
        numbers = needs_numbers(self.opened.fault_targets, trial.faults)

        def opener() -> InstrumentedModel:
            return InstrumentedModel(self.opened, trial.activations, numbers=numbers)

        return self.cache.get((Route.FULL, *trial.activations, numbers), opener) or opener()

    def _full_outputs(self, trial: PreparedTrial, batches: int | None = None) -> tuple[Run, Run]:
        model = self.instrumented(trial)
        here = self.opened.fault_targets.in_activations(trial.faults)
        weights = None if here.all() else trial.faults.pick(~here)
        return model.golden, model.run(trial.faults.pick(here), weights, batches=batches, words=trial.words)

    def faults(self, header: Header, lines: Sequence[str]) -> Faults:
        """Return the faults of a trial from its lines in a fault list."""
        if (known := self._read_ahead.pop(tuple(lines), None)) is not None:
            return known
        [(_, faults)] = self._reader_of(header).trials(enumerate(lines, 1))
        return faults

    def faults_of_all(self, header: Header, trials: Sequence[Sequence[str]]) -> list[Faults]:
        """Return the faults of each of some trials; those of one fault are read together."""
        alone = [number for number, lines in enumerate(trials) if len(lines) == 1]
        read = self._reader_of(header).singles([trials[number][0] for number in alone])
        known = dict(zip(alone, read, strict=True))
        return [known.get(number) or self.faults(header, lines) for number, lines in enumerate(trials)]

    def _reader_of(self, header: Header) -> LineReader:
        if self._reader is None or self._reader.header is not header:
            fault_targets = self.opened.fault_targets
            listed = partial(fault_targets.listed, header)
            self._reader = LineReader(header, fault_targets.targets, "the store", listed)
        return self._reader

    # Trials that share runs

    @property
    def by_batch(self) -> bool:
        """Return whether trials have to run batch by batch, since golden activations do not fit."""
        return self.weights is not None and not self.weights.segmented.golden.fits

    def shares(self, header: Header) -> bool:
        """Return whether trials of a plan may share runs; see `together`."""
        if self.segmentation is None or self.opened.campaign.memory.memory_code is not None:
            return False
        targets = self.opened.fault_targets.listed(header).targets
        alone = header.of_single_faults and self.segmentation.late
        if all(target.is_activation for target in targets):
            return alone and not self.by_batch
        # In this order: to know what fits opens the segments.
        return (
            alone and (any(target.is_activation for target in targets) or self.segmentation.shares(targets))
        ) or self.by_batch

    def most_together(self, header: Header) -> int:
        """Return how many trials of a plan may share runs; 0 where none do."""
        return self.most_at_once if self.shares(header) else 0

    def together(self, header: Header, golden: GoldenRun, trials: Sequence[Sequence[str]]) -> dict[int, Judgement]:
        """Run trials that share runs; return their judgements by their place, the others being left out.

        Trials of one sample each share runs after their faulty activation, and trials of one operator those of its
        channels; those of one tensor are prepared together. Where golden activations do not fit, all that can go batch
        by batch do, so that those of each batch are needed once.
        """
        if self.weights is None or self.activations is None or not self.shares(header):
            return {}
        rows: dict[int, OneSample] = {}
        words: dict[int, InjectedWords] = {}
        weights: dict[int, tuple[Faults, Route]] = {}
        of_target: dict[int, Route] = {}
        self._read_ahead.clear()
        for number, lines in enumerate(trials):
            faults = self.faults(header, lines)
            if not len(faults):
                continue
            ordinal = int(faults.sites.target[0])
            if len(faults) == 1 and ordinal in of_target:
                weights[number] = faults, of_target[ordinal]
                continue
            trial = self.prepare(header, faults)
            route = self.route(self.facts(trial))
            if route is Route.SINGLE_SAMPLE and trial.one is not None and not self.by_batch:
                rows[number], words[number] = trial.one, trial.words
            elif not trial.activations and route in (Route.CHANNEL_DELTA, Route.PARTIAL):
                weights[number] = faults, route
                if len(faults) == 1:
                    of_target[ordinal] = route
            elif len(faults) == 1:  # it runs alone, soon
                self._read_ahead[tuple(lines)] = faults
        alone = self.activations.run_samples(rows, golden)
        alone = {number: replace(found, words=words[number].rows()) for number, found in alone.items()}
        return alone | self.weights.together(weights, golden)


_LONGEST = frozenset((Route.SPLIT, Route.FULL))


def _run_weights(route: Route) -> Executor:
    def run(executor: TrialExecutor, trial: PreparedTrial, golden: GoldenRun) -> Judgement:
        assert executor.weights is not None
        return executor.weights.run(trial.faults, route, golden)

    return run


def _run_partial(executor: TrialExecutor, trial: PreparedTrial, golden: GoldenRun) -> Judgement:
    if not trial.activations:
        return _run_weights(Route.PARTIAL)(executor, trial, golden)
    assert executor.activations is not None
    names = [executor.opened.fault_targets.activations[name].name for name in trial.activations]
    return executor.activations.run(names, trial.faults, trial.sample, golden, any_of=trial.swept, words=trial.words)


def _run_single_sample(executor: TrialExecutor, trial: PreparedTrial, golden: GoldenRun) -> Judgement:
    assert executor.activations is not None and trial.one is not None
    return executor.activations.run_sample(trial.one, golden)


def _run_steps(executor: TrialExecutor, trial: PreparedTrial, golden: GoldenRun) -> Judgement:
    try:
        found = executor.loops.judged(golden, trial.faults, trial.sample, trial.words)
    except (EngineError, MemoryError) as error:
        found = failed(golden_of_trial(golden, trial.sample), cause_of(error))
    return replace(found, route=Route.STEPS, metrics=by_phase(found.metrics, trial.faults))


def _run_split(executor: TrialExecutor, trial: PreparedTrial, golden: GoldenRun) -> Judgement:
    return _judge_longest(executor, trial, golden, executor._split_outputs, Route.SPLIT)


def _run_full(executor: TrialExecutor, trial: PreparedTrial, golden: GoldenRun) -> Judgement:
    if trial.activations:
        executor.instrumented(trial)  # what cannot be opened is no outcome of a fault
        return _judge_longest(executor, trial, golden, executor._full_outputs, Route.FULL)
    if not beside(executor.opened.model, executor.kept_bytes):
        executor.close_segments()  # the model is not open twice
    try:
        return judge(golden, executor.opened.run(executor.opened.faulty_session(trial.faults)))
    except (EngineError, MemoryError) as error:
        return failed(golden, cause_of(error))


def _judge_longest(
    executor: TrialExecutor, trial: PreparedTrial, golden: GoldenRun,
    run: Callable[[PreparedTrial], tuple[Run, Run]], route: Route,
) -> Judgement:  # fmt: skip
    try:
        own, faulty = run(trial)
        found = judge_by_own(golden, own, faulty, trial.sample)  # a later stage of a pipeline may fail
    except SegmentMismatchError:
        raise
    except (EngineError, MemoryError) as error:
        found = failed(golden_of_trial(golden, trial.sample), cause_of(error))
    return replace(found, route=route)


#: Runs a trial by one route, and compares it with the golden run.
Executor = Callable[[TrialExecutor, PreparedTrial, GoldenRun], Judgement]
EXECUTORS: Mapping[Route, Executor] = {
    Route.CHANNEL_DELTA: _run_weights(Route.CHANNEL_DELTA),
    Route.PARTIAL: _run_partial,
    Route.REBUILT: _run_weights(Route.REBUILT),
    Route.SINGLE_SAMPLE: _run_single_sample,
    Route.STEPS: _run_steps,
    Route.SPLIT: _run_split,
    Route.FULL: _run_full,
}


def cause_of(error: Exception) -> str:
    """Return the cause of a trial that gave no answer; raises an error that no fault can cause."""
    if isinstance(error, ProviderError):
        raise error
    return "memory" if out_of_memory(error) else "error"
