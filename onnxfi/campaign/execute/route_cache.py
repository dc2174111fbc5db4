"""Shortcuts: a campaign's trials by the shortest route, instead of a new session and a whole run for each.

A trial's route follows from the model, the campaign, the data and the tensors that hold its faults, never from the
clock, the memory or the workers. A runtime that fuses other nodes may round another way, and whether a fault is masked
may hang on that: so a route is taken where its run without a fault gives golden bit for bit, in each part of it, and
else the next longer one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from onnxfi.campaign.plan.fault_targets import Reach
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import DataError, EngineError, OnnxfiError, RouteError, SegmentMismatchError
from onnxfi.faults.space import Target
from onnxfi.faults.trials import Faults
from onnxfi.graph.model.loading import Model, by_target
from onnxfi.graph.partition.cut_points import everything, fronts, narrows
from onnxfi.graph.partition.segmentation import FaultPath, Segmentation
from onnxfi.graph.partition.subgraph import wire
from onnxfi.graph.write.faulty_copy import look_up_words
from onnxfi.runtime.data.sample_outputs import stacked
from onnxfi.runtime.data.sources import Data
from onnxfi.runtime.engine.model_io import Array, Port, drift, same_bytes
from onnxfi.runtime.engine.turn_taking import claim
from onnxfi.runtime.partial.conv_delta import FirstPieces
from onnxfi.runtime.partial.golden_cache import Chain, GoldenValues
from onnxfi.runtime.partial.reexecution import Baked, Change, Flying, Rerun, golden_scores, opened
from onnxfi.runtime.partial.segmented_model import Patch, Spine
from onnxfi.runtime.partial.single_sample import OneSample
from onnxfi.tasks.outcomes import Golden, Judgement, judge

#: Bytes of golden values and sessions that a process keeps, where nothing else is said.
KEPT_BYTES = 1 << 30
#: The provider that computes 16-bit floats in float32, and lays images in blocks of channels.
CPU = "CPUExecutionProvider"

#: How far golden runs of one model on the same data never lie apart, as a share of their range.
_ANOTHER = 0.1
#: What says that a model cannot be cut so.
_NOT_SO = (EngineError, DataError, KeyError)


def routes_of(campaign: Campaign, model: Model, reach: Reach, output: str | None, provider: str) -> Segmentation:
    """The routes of a campaign's trials; ModelError where there can be none, MemoryError where it is too large."""
    on_cpu = provider == CPU
    wiring = wire(model, halves=not on_cpu, blocks=on_cpu and campaign.optimization == "all")
    outputs = () if output is None else (output,)
    spikes = fronts(model)
    # Without early stop there is one piece.
    ends = () if campaign.route == "late-start" else spikes or narrows(wiring, everything(wiring, outputs))
    flown: set[tuple[str, ...]] = {(a.name,) for a in reach.flying.values() if not a.path}
    flown |= {steps[k:] for steps in reach.steps_of.values() for k in range(len(steps))}
    selectors = [part.selector for part in campaign.mix] or [campaign.selector]
    chosen = frozenset(t.id for t in model.targets if any(selector.selects(t) for selector in selectors))
    ready = None if campaign.faults is not None else chosen  # a list may name any
    return Segmentation(
        model, wiring, outputs, ends, bool(spikes), tuple(sorted(flown)), campaign.route != "early-stop", ready
    )


@dataclass
class Shortcuts:
    """The routes of one campaign, opened when they are needed; golden values and sessions within so many bytes."""

    spine: Spine
    output: str | None
    sessions_bytes: int
    _samples: OrderedDict[str, OneSample | None] = field(default_factory=OrderedDict)
    _open: OrderedDict[str, Rerun | None] = field(default_factory=OrderedDict)
    _checked: dict[int, tuple[Array, Array]] = field(default_factory=dict)

    @classmethod
    def over(
        cls, campaign: Campaign, routes: Segmentation, data: Data, size: int, output: str | None,
        inputs: Sequence[Port], axes: Mapping[str, tuple[int, ...]], *, kept_bytes: int,
    ) -> Shortcuts:  # fmt: skip
        """Open the pieces of a model; raises EngineError where the runtime does not take them.

        `inputs` are the model's, `axes` say where outputs hold samples.
        """
        exact, engine = campaign.optimization == "off", campaign.engine()
        for some in dict.fromkeys((routes.fronts, ())):
            cut = routes if some == routes.fronts else replace(routes, fronts=some)
            try:
                chain = Chain(engine, cut, inputs, kept_bytes // 2)
                golden = GoldenValues(chain, data, size, kept_bytes // 2, axes)
                spine = Spine(golden, late=cut.late, exact=exact)
                spine.first = FirstPieces(spine) if cut.late else None
                golden_scores(spine, 0, output)
            except _NOT_SO as error:  # what goes on at a front is no tensor, or not of the shape that it should have
                why = error
            else:
                return cls(spine, output, kept_bytes // 2)
        raise EngineError(f"the model cannot be run in pieces: {why}")

    @property
    def routes(self) -> Segmentation:
        """The routes of the model."""
        return self.spine.routes

    @property
    def golden(self) -> GoldenValues:
        """The golden values of the model."""
        return self.spine.golden

    def of(self, faults: Faults) -> Rerun | None:
        """The open route of a trial of these faults; None where only the plain one is left."""
        return self._opened([faults.targets[k] for k in np.unique(faults.sites.target).tolist()])

    def _opened(self, targets: Sequence[Target]) -> Rerun | None:
        route = self.routes.of(targets)
        if route is None:
            return None
        return self._open_route(route)

    def _open_route(self, route: FaultPath | None) -> Rerun | None:
        """The open route, or the next longer one that does without a fault what the whole model does."""
        while route is not None:
            key = f"{route.route} {[home.fed for home in route.homes]} {hash(route.heads)}"
            if (found := self._kept(key, lambda route=route: opened(self.spine, route, self.output))) is not None:  # type: ignore[misc]
                return found
            route = self.routes.longer(route)
        return None

    def of_flying(self, values: Sequence[str], *, any_of: bool = False) -> Rerun | None:
        """The open route of a trial that strikes these values in flight, or `any_of` them; None where there is none."""
        key = f"{'any of' if any_of else 'flying'} {' '.join(values)}"
        return self._kept(key, lambda: Flying(self.spine, values, self.output, any_of=any_of))

    def _kept(self, key: str, make: Callable[[], Rerun]) -> Rerun | None:
        """The route of that key, opened where it is not."""
        with claim((id(self), key)):
            if key not in self._open:
                self._open[key] = self._tried(make)
                self._bound()
            self._open.move_to_end(key)
            return self._open[key]

    def _tried(self, make: Callable[[], Rerun]) -> Rerun | None:
        """A route that has run golden; None where that cannot be."""
        try:
            found = make()
            found.scores(0)
        except _NOT_SO:  # the runtime wants the tensor constant, or a value is no tensor
            return None
        return found

    def _bound(self) -> None:
        """Close the routes that were used least lately, down to the bytes that sessions may take."""
        held = [(id_, rerun) for id_, rerun in self._open.items() if rerun is not None]
        total = sum(rerun.cost_bytes for _, rerun in held)
        for id_, rerun in held[:-1]:
            if total <= self.sessions_bytes:
                return
            total -= rerun.cost_bytes
            del self._open[id_]

    def judge(self, rerun: Rerun, golden: Golden, faults: Faults, change: Change | None = None) -> Judgement:
        """Run one trial and compare it with golden; raises what the runtime has against it."""
        [found] = self.judged(rerun, golden, [change or self.change(faults)])
        while isinstance(found, SegmentMismatchError) and rerun.route is not None:
            longer = self._open_route(self.routes.longer(rerun.route))
            if longer is None:
                break
            [found], rerun = self.judged(longer, golden, [self.change(faults)]), longer
        if isinstance(found, Exception):
            raise found
        return found

    def shares(self, faults: Faults) -> bool:
        """Whether a trial of these faults can share runs with others of the same tensor."""
        route = self.routes.of([faults.targets[k] for k in np.unique(faults.sites.target).tolist()])
        return route is not None and route.shares

    def together(self, golden: Golden, trials: Sequence[Faults]) -> dict[int, Judgement]:
        """The trials by their place that share a route, run batch by batch; without those that gave no answer."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, faults in enumerate(trials):
            groups.setdefault(tuple(np.unique(faults.sites.target).tolist()), []).append(number)
        found = {}
        for struck, numbers in groups.items():
            rerun = self.of(trials[numbers[0]]) if struck else None
            if rerun is None or isinstance(rerun, Baked):  # which would hold a session for each
                continue
            changes = [self.change(trials[number]) for number in numbers]
            for number, judgement in zip(numbers, self.judged(rerun, golden, changes), strict=True):
                if isinstance(judgement, Judgement):
                    found[number] = judgement
        return found

    def judged(
        self, rerun: Rerun, golden: Golden, changes: Sequence[Change]
    ) -> Iterator[Judgement | EngineError | MemoryError]:
        """What each of these changes of one tensor does, or what the runtime has against it: batch by batch, all
        changes of a batch together, so that the golden values of a batch are needed once."""
        parts: list[list[Array]] = [[] for _ in changes]
        failed: dict[int, EngineError | MemoryError] = {}
        for k, _ in self.golden.pieces():
            self.golden.release()
            try:
                self._check(k, rerun.scores(k), golden)
            except (EngineError, MemoryError) as error:
                failed = dict.fromkeys(range(len(changes)), error)
                break
            for number, change in enumerate(changes):
                if number % rerun.at_once == 0:
                    with suppress(EngineError, MemoryError):  # then each is computed by itself
                        rerun.ready(k, changes[number : number + rerun.at_once])
                if number not in failed:
                    try:
                        parts[number].append(rerun.scores(k, change))
                    except (EngineError, MemoryError) as error:
                        failed[number] = error
        for number, part in enumerate(parts):
            if number in failed:
                yield failed[number]
            else:
                yield replace(judge(golden, stacked(part)), route=rerun.name)

    def _check(self, k: int, own: Array, golden: Golden) -> None:
        """Compare the golden run of the segments with that of the full model, bit for bit.

        Raises SegmentMismatchError if they round differently, RouteError if they are of another model or data.
        """
        known = self._checked.get(k, (None, None))
        if known[0] is own and known[1] is golden.scores:
            return
        place = self._place(k, own, golden)
        whole = golden.scores.reshape(-1)[place : place + own.size].reshape(own.shape)
        if not same_bytes(own, whole):
            if self._checked and drift(own, whole) > _ANOTHER:
                raise RouteError(
                    "the model in pieces has another golden run than the whole model; run the campaign with "
                    "--route full"
                )
            raise SegmentMismatchError("the model in pieces rounds another way than the whole model")
        self._checked[k] = own, golden.scores

    def _place(self, k: int, own: Array, golden: Golden) -> int:
        """Where the scores of a batch begin in all of them, one behind the other."""
        if golden.scores.ndim and len(golden.scores) == self.golden.data.samples:
            piece = self.golden.piece(k)
            assert piece is not None
            return piece.start * (golden.scores.size // len(golden.scores))
        return sum(golden_scores(self.spine, before, self.output).size for before in range(k))

    def one_sample(self, value: str, golden: Golden, sample: int, strike: Patch) -> Judgement | None:
        """A fault in a value in flight of one sample, judged on that sample alone; None where it cannot run alone."""
        try:
            alone = self._sample_route(value)
            truth = None if alone is None else self._truth(alone, sample, golden)
        except _NOT_SO:
            return None
        if alone is None or truth is None:
            return None
        try:
            return replace(judge(truth, alone.scores(sample, strike)), route=alone.name)
        except (EngineError, MemoryError):  # whether there is no answer, longer routes say
            return None

    def in_batch(self, rerun: Rerun, golden: Golden, sample: int, change: Change) -> Judgement | None:
        """A fault in flight in one sample, judged on that sample alone, its whole batch being run; None where scores
        have no row for each sample."""
        k, at = self.golden.place(sample)
        piece, row = self.golden.piece(k), slice(at, at + 1)
        assert piece is not None
        self.golden.release()
        own = rerun.scores(k)
        self._check(k, own, golden)
        if not own.ndim or len(own) != piece.valid or len(golden.scores) != self.golden.data.samples:
            return None
        labels = None if golden.labels is None else golden.labels[sample : sample + 1]
        truth = replace(golden, scores=own[row], labels=labels)
        try:
            found = rerun.scores(k, change)
        except (EngineError, MemoryError):
            return None
        found = found[row] if found.ndim and len(found) == len(own) else found
        return replace(judge(truth, found), route=rerun.name, changed=None)

    def samples(self, value: str, golden: Golden, asked: Mapping[int, tuple[int, Patch]]) -> dict[int, Judgement]:
        """Faults of many trials in one value, each in one sample, in as few runs as can be.

        Those that cannot run so, or give no answer, are left out.
        """
        try:
            alone = self._sample_route(value)
            if alone is None:
                return {}
            truths = {number: self._truth(alone, sample, golden) for number, (sample, _) in asked.items()}
            running = [number for number, truth in truths.items() if truth is not None]
            found = zip(running, alone.shared([asked[number] for number in running]), strict=True)
        except (OnnxfiError, MemoryError, KeyError):
            return {}
        return {n: replace(judge(truth, row), route=alone.name) for n, row in found if (truth := truths[n]) is not None}

    def _truth(self, alone: OneSample, sample: int, golden: Golden) -> Golden | None:
        """What a trial of one sample is compared with; None where that is not one of golden's rows: samples are not
        apart, or sums come otherwise for one than for many."""
        rows, own = slice(sample, sample + 1), alone.scores(sample)
        if len(golden.scores) <= sample or own.shape[1:] != golden.scores.shape[1:]:
            return None
        if not same_bytes(own, golden.scores[rows]):
            return None
        labels = None if golden.labels is None else golden.labels[rows]
        return replace(golden, scores=own, labels=labels)

    def _sample_route(self, value: str) -> OneSample | None:
        """The open route of one sample from a value on; None where that was tried in vain."""
        self.golden.release()
        with claim((id(self), value)):
            if value not in self._samples:
                while sum(one.cost_bytes for one in self._samples.values() if one) > self.sessions_bytes:
                    self._samples.popitem(last=False)
                self._samples[value] = None
                self._samples[value] = OneSample(self.spine, value, self.output)
            self._samples.move_to_end(value)
            return self._samples[value]

    def change(self, faults: Faults) -> Change:
        """What becomes of the tensors that are struck."""
        _, final = look_up_words(self.routes.model, faults)
        words = {}
        for target, rows in by_target(faults):
            index, first = np.unique(faults.sites.index[rows], return_index=True)
            route = self.routes.alone(target)
            assert route is not None  # or the trial would take the plain one
            words[route.home] = index, final[rows][first]
        return Change(words)
