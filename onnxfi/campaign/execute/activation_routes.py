"""Trials with faults in activations, from the golden activations of a segmented model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.execute.route_cache import RouteCache, SplitModel
from onnxfi.campaign.execute.weight_routes import WeightRoutes, by_id, faulty_targets, weight_words
from onnxfi.errors import OnnxfiError, SegmentMismatchError
from onnxfi.faults.faultlist import Header
from onnxfi.faults.trials import Faults
from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.dataflow.batch_layout import SampleAxis
from onnxfi.graph.partition.route import Route
from onnxfi.graph.partition.subgraph import PartitionGraph
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.data.sample_outputs import Outputs, alike, same_outputs
from onnxfi.runtime.engine.ports import Array, same_by
from onnxfi.runtime.partial.activation_words import InjectedWords, inject_words
from onnxfi.runtime.partial.reexecution import FaultyActivations, Reexecution, TrialFaults
from onnxfi.runtime.partial.segmented_model import ActivationChange
from onnxfi.runtime.partial.single_sample import SingleSample
from onnxfi.tasks.outcomes import GoldenRun, Judgement, judge

#: The name of an activation, the sample in which it is faulty, and its change there.
OneSample = tuple[str, int, ActivationChange]
#: The outputs of all batches.
Run = tuple[Outputs, ...]


class ActivationRoutes:
    """The routes of faults in activations of a segmented model, opened when they are needed."""

    def __init__(self, opened: OpenCampaign, weights: WeightRoutes) -> None:
        self.opened, self.segmented, self.cache = opened, weights.segmented, weights.cache
        self.check = weights.check

    def run_sample(self, one: OneSample, golden: GoldenRun) -> Judgement:
        """Run one sample alone, from its faulty activation on, and compare it with the golden run.

        Raises SegmentMismatchError if it does not give its golden scores without a fault, or cannot run alone.
        """
        name, sample, change = one
        alone = self._single_sample(name)
        try:
            truth = None if alone is None else self._golden_row(alone, sample, golden)
        except (OnnxfiError, KeyError) as error:
            raise SegmentMismatchError(str(error)) from error
        if alone is None or truth is None:
            raise SegmentMismatchError(f"no sample runs alone behind {name!r}")
        return replace(judge(truth, [alone.outputs(sample, change)]), route=Route.SINGLE_SAMPLE, changed=None)

    def run_samples(self, trials: Mapping[int, OneSample], golden: GoldenRun) -> dict[int, Judgement]:
        """Run many trials of one sample each, those with the same faulty activation in shared runs.

        Returns judgements by the number of the trial, without those that cannot run so or give no answer.
        """
        groups: dict[str, list[int]] = {}
        for number, (name, _, _) in trials.items():
            groups.setdefault(name, []).append(number)
        found: dict[int, Judgement] = {}
        for name, numbers in groups.items():
            try:
                alone = self._single_sample(name)
                if alone is None:
                    continue
                truths = {number: self._golden_row(alone, trials[number][1], golden) for number in numbers}
                running = {number: truth for number, truth in truths.items() if truth is not None}
                rows = alone.shared([trials[number][1:] for number in running])
            except (OnnxfiError, MemoryError, KeyError):
                continue
            for (number, truth), row in zip(running.items(), rows, strict=True):
                found[number] = replace(judge(truth, [row]), route=Route.SINGLE_SAMPLE, changed=None)
        return found

    def run(
        self, names: Sequence[str], faults: Faults, sample: int | None, golden: GoldenRun, *, any_of: bool,
        words: InjectedWords | None = None,
    ) -> Judgement:  # fmt: skip
        """Run what the faulty activations reach, for all samples, or for the batch of the one faulty `sample`.

        `names` are the activations that the route allows to be faulty: all of them are, or `any_of` them. Raises
        SegmentMismatchError if its fault-free run differs from the golden run.
        """
        reexecution = self.opened_for(names, any_of=any_of)
        if reexecution is None:
            raise SegmentMismatchError(f"the model cannot be cut at {names[0]!r}")
        parts: list[Outputs] = []
        cache, injected = self.segmented.golden, activation_changes(self.opened, faults, words)
        batches = [k for k, _ in cache.batches()] if sample is None else [cache.place(sample)[0]]
        for k in batches:
            cache.release()
            own = reexecution.outputs(k)
            self.check.check(k, own, golden)
            parts.append(reexecution.outputs(k, injected))
        if sample is None:
            return replace(judge(golden, parts), route=Route.PARTIAL)
        found = judge_sample(golden, own, parts[0], sample)
        if found is None:
            raise SegmentMismatchError("the outputs have no row for each sample")
        return replace(found, route=Route.PARTIAL)

    def opened_for(self, names: Sequence[str], *, any_of: bool = False) -> Reexecution | None:
        """Return the open route of faults in these activations, or `any_of` them; None if it is not exact."""

        def opener() -> Reexecution:
            found = FaultyActivations(self.segmented, names, any_of=any_of)
            found.outputs(0)
            return found

        return self.cache.get((Route.PARTIAL, *names, any_of), opener)

    def _single_sample(self, name: str) -> SingleSample | None:
        self.segmented.golden.release()
        return self.cache.get((Route.SINGLE_SAMPLE, name), lambda: SingleSample(self.segmented, name))

    def _golden_row(self, alone: SingleSample, sample: int, golden: GoldenRun) -> GoldenRun | None:
        """Return the golden run of one sample; None if the sample alone gives other scores than in its batch."""
        own, whole = alone.outputs(sample), batch_of(golden.run, sample)
        if not golden.apart or not whole.has_rows:
            return None
        known = whole.take(np.flatnonzero(whole.samples == sample))
        return golden.of_sample(sample, known) if same_outputs(own, known) else None


class SplitRoutes:
    """The routes of faults in activations at which the model is split, each with a golden run of its own."""

    def __init__(self, opened: OpenCampaign, net: PartitionGraph, cache: RouteCache, *, late: bool) -> None:
        self.opened, self.net, self.cache, self.late = opened, net, cache, late

    def run(
        self, names: Sequence[str], faults: Faults, sample: int | None, *, batches: int | None = None,
        words: InjectedWords | None = None,
    ) -> tuple[Run, Run]:  # fmt: skip
        """Return the golden outputs of the model split at these activations, and its outputs with the faults.

        Of a trial of one `sample` only its batch is executed. Raises SegmentMismatchError if the model cannot be
        split there, or a fault changes the shape of an activation between segments.
        """
        here = self.opened.fault_targets.in_activations(faults)
        budget, late = self.cache.limit_bytes // 2, self.late
        split = self.cache.get(
            (Route.SPLIT, *names), lambda: SplitModel(self.opened, self.net, names, budget, late=late)
        )
        if split is None:
            raise SegmentMismatchError(f"the model cannot be split at {names[0]!r}")
        injected = activation_changes(self.opened, faults.pick(here), words)
        reexecution = split.reexecution if here.all() else split.with_weights(faulty_targets(faults.pick(~here)))
        if not here.all():
            injected = replace(injected, words=weight_words(split.segmented.segmentation, faults.pick(~here)))
        cache, parts = split.segmented.golden, []
        batch = None if sample is None else cache.place(sample)[0]
        for k, _ in islice(cache.batches(), batches):
            cache.release()
            parts.append(reexecution.outputs(k, injected if batch in (None, k) else None))
        return split.golden, tuple(parts)


def activation_changes(opened: OpenCampaign, faults: Faults, words: InjectedWords | None = None) -> TrialFaults:
    """Return the change of each faulty activation of a trial; `words` keeps what is injected."""

    def change(a: Activation, mine: Faults) -> Callable[[Batch, Array], Array]:
        return lambda batch, array: inject_words(
            array, a.target, a.place, mine, start=batch.start, size=batch.size, kept=words
        )

    rows = [(opened.fault_targets.activations[name], mine) for name, mine in by_id(faults).items()]
    return TrialFaults({}, {a.name: change(a, mine) for a, mine in rows})


def one_sample(header: Header, faults: Faults) -> int | None:
    """Return the one sample that a trial of a single fault names, on which it is judged; None for other trials."""
    if not header.of_single_faults or faults.sites.times is None:
        return None
    samples = np.unique(faults.sites.times[:, 0])
    return int(samples[0]) if len(samples) == 1 and samples[0] >= 0 else None


def row_of_one_sample(
    opened: OpenCampaign, header: Header, faults: Faults, words: InjectedWords | None = None
) -> OneSample | None:
    """Return the one row of an activation that a trial changes; None if it changes anything else."""
    sample, targets = one_sample(header, faults), faulty_targets(faults)
    if sample is None or len(targets) != 1 or opened.data.layout.fixed is not None:
        return None
    a = opened.fault_targets.activations.get(targets[0].id)
    if a is None or a.path or a.place != SampleAxis(0):
        return None
    own = a.target, a.place, faults
    return a.name, sample, lambda array: inject_words(array, *own, start=sample, size=1, kept=words)


def judge_by_own(whole: GoldenRun, own: Run, faulty: Run, sample: int | None) -> Judgement:
    """Compare a trial's outputs with the golden outputs of its own route.

    Samples that are the same there have the answers of the whole model. A trial of one `sample` is judged on that
    alone, where outputs have a row for each.
    """
    pairs = [whole_where_same(*batch, whole.apart) for batch in zip(whole.run, own, faulty, strict=True)]
    truth, found = tuple(golden for golden, _ in pairs), tuple(one for _, one in pairs)
    if sample is not None:
        judged = judge_sample(whole, batch_of(truth, sample), batch_of(found, sample), sample)
        if judged is not None:
            return judged
    return judge(whole.with_run(truth), found)


def judge_sample(golden: GoldenRun, own: Outputs, faulty: Outputs, sample: int) -> Judgement | None:
    """Judge a trial on one sample, from golden and faulty outputs of its batch; None if the sample cannot be isolated.

    Samples of SDC-1 mean nothing if each trial has a sample of its own, so none are kept.
    """
    if golden.apart and own.has_rows:
        row = np.flatnonzero(own.samples == sample)
        own, faulty = own.take(row), faulty.take(row) if faulty.has_rows else faulty
    elif not golden.by_sample:
        return None
    return replace(judge(golden.of_sample(sample, own), [faulty]), changed=None)


def golden_of_trial(golden: GoldenRun, sample: int | None) -> GoldenRun:
    """Return the golden run that a trial is compared with: of its one `sample`, where outputs have a row for each."""
    if sample is None:
        return golden
    own = batch_of(golden.run, sample)
    if golden.apart and own.has_rows:
        return golden.of_sample(sample, own.take(np.flatnonzero(own.samples == sample)))
    return golden.of_sample(sample, own) if golden.by_sample else golden


def batch_of(run: Run, sample: int) -> Outputs:
    """Return the outputs of the batch of a sample."""
    return next(outputs for outputs in run if sample in outputs.samples)


def whole_where_same(whole: Outputs, own: Outputs, faulty: Outputs, apart: bool = True) -> tuple[Outputs, Outputs]:
    """Return a route's golden and faulty outputs of a batch, with the whole model's where the route's two are the same.

    >>> own, faulty = Outputs.of(np.array([[1.0], [2.0]])), Outputs.of(np.array([[1.0], [9.0]]))
    >>> found = whole_where_same(Outputs.of(np.array([[1.1], [2.1]])), own, faulty)
    >>> [one.arrays[""].ravel().tolist() for one in found]
    [[1.1, 2.0], [1.1, 9.0]]
    """
    if same_outputs(own, faulty):
        return whole, whole
    if not (apart and own.has_rows and alike(own, faulty) and alike(own, whole)):
        return own, faulty
    same = np.all([same_by(array, faulty.arrays[name], 0) for name, array in own.arrays.items()], axis=0)
    rows = np.flatnonzero(same)

    def mixed(found: Outputs) -> Outputs:
        arrays = {name: array.copy() for name, array in found.arrays.items()}
        for name, array in arrays.items():
            array[rows] = whole.arrays[name][rows]
        return replace(found, arrays=arrays)

    return mixed(own), mixed(faulty)
