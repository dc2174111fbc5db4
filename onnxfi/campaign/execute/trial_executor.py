"""The bench: a campaign's model, data, engine and golden run, on which trials are run one after the other."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from onnxfi.campaign.execute.activation_faults import Flown, by_id, one_sample, valued
from onnxfi.campaign.execute.memory_limit import out_of_memory
from onnxfi.campaign.execute.route_cache import CPU, KEPT_BYTES, Shortcuts, routes_of
from onnxfi.campaign.plan.fault_targets import Reach
from onnxfi.campaign.plan.open_model import beside, changed, open_model, output_of, served, told
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import CampaignError, EngineError, ModelError, ProviderError, SegmentMismatchError
from onnxfi.faults.faultlist import FaultList, Header, LineReader
from onnxfi.faults.trials import RATE_SAMPLERS, Faults
from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.dataflow.random_nodes import find_random_node
from onnxfi.graph.dataflow.sample_axis import SampleAxis
from onnxfi.graph.model.loading import Model
from onnxfi.graph.partition.route import Route
from onnxfi.graph.partition.segmentation import Segmentation
from onnxfi.graph.partition.subgraph import half_floats
from onnxfi.graph.write.faulty_copy import FileEdits, find_edits, look_up_words
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.data.sample_outputs import run_scores, sample_axes, stacked
from onnxfi.runtime.data.sources import Data, open_data
from onnxfi.runtime.engine.dry_run import dry_run
from onnxfi.runtime.engine.engines import Session, short_name
from onnxfi.runtime.engine.model_io import Array, Port, same_by, same_bytes
from onnxfi.runtime.engine.turn_taking import claim
from onnxfi.runtime.partial.golden_cache import of_golden_shapes
from onnxfi.runtime.partial.reexecution import Change, Rerun, golden_scores
from onnxfi.runtime.partial.segmented_model import Patch
from onnxfi.runtime.partial.split_execution import strike
from onnxfi.tasks.evaluation import does_not_run, scored_port
from onnxfi.tasks.outcomes import Golden, Judgement, failed, judge
from onnxfi.tasks.registry import choose_task


@dataclass(frozen=True)
class Bench:
    """A campaign ready to run; its shortcuts keep up to `kept_bytes` of golden values and sessions."""

    campaign: Campaign
    model: Model
    data: Data
    output: str | None
    provider: str
    note: str
    reach: Reach
    axes: Mapping[str, tuple[int, ...]]
    inputs: tuple[Port, ...]
    opened_s: float = 0.0
    kept_bytes: int = KEPT_BYTES
    _flown: dict[tuple[tuple[str, ...], bool, bool], Flown] = field(default_factory=dict, repr=False, compare=False)
    _first: list[Array] = field(default_factory=list, repr=False, compare=False)
    _served: list[Session] = field(default_factory=list, repr=False, compare=False)
    _shortcuts: list[Shortcuts | None] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def open(
        cls, campaign: Campaign, kept_bytes: int = KEPT_BYTES, *, model: Model | None = None, runs: bool = True
    ) -> Bench:
        """Open everything that the campaign names, but for a `model` that is open; raises what is wrong with it.

        Where the model as it lies is not to run, it is only asked what it takes and gives, which is done sooner.
        """
        model = model or open_model(campaign)
        dry_run(campaign.engine(), served(model))
        begun = time.perf_counter()
        session = told(campaign, model) if not runs else campaign.engine().prepare(served(model))
        opened_s = time.perf_counter() - begun
        if campaign.provider.lower() == "auto":  # one campaign, one provider, whatever later sessions would get
            campaign = replace(campaign, provider=short_name(session.provider))
        data = open_data(
            campaign.data, session.inputs, preprocess=campaign.preprocess, limit=campaign.samples,
            batch_axis=campaign.batch_axis,
        )  # fmt: skip
        alone = runs and not beside(model, kept_bytes)
        if alone:
            del session  # the dry run opens the model too
        if runs:
            dry_run(campaign.engine(), served(model), data)
        if alone:
            session = campaign.engine().prepare(served(model))
        output = scored_port(
            session, output_of(campaign, model), data, kind_of(campaign), task=campaign.task, whole=True
        )
        listed = None if campaign.faults is None else FaultList.open(campaign.faults).header
        reach = Reach.of(model, campaign.aims, data, listed, campaign.custom_ops)
        return cls(
            campaign, model, data, output, session.provider, session.note, reach, sample_axes(session, data, model),
            session.inputs, opened_s, kept_bytes, _served=[session] if runs else [],
        )  # fmt: skip

    @property
    def size(self) -> int:
        """Samples that run together."""
        return self.data.layout.fixed or self.campaign.batch

    def scores(self, session: Session, *, batches: int | None = None) -> Array:
        """The scored output over all samples, or over the first batches."""
        return run_scores(session, self.data, self.size, self.output, batches=batches, axes=self.axes)

    def golden(self, kept: Array | None = None, *, again: bool = True) -> tuple[Golden, float]:
        """Golden, and the seconds that one run takes with all that a trial needs.

        It runs on the model as it lies, and `again` through the door of every trial, which else workers do; `kept` are
        scores that stand for the first run if the second agrees. CampaignError where the two runs differ.
        """
        begun = time.perf_counter()
        if not again:
            found = self._golden(self._as_it_lies())
            self.first(found)
            return found, self.opened_s + time.perf_counter() - begun
        first = self._as_it_lies() if kept is None else kept  # and then it is closed: one session at a time
        begun = time.perf_counter()
        session = self._session(FileEdits())
        second = self._ran(session)
        golden_s = time.perf_counter() - begun
        self._steady(session, second)
        if kept is not None and not same_bytes(first, second):
            first = self._as_it_lies()
        self._served.clear()
        if not same_bytes(first, second):
            raise CampaignError(
                "two golden runs differ, so no trial could be told from chance; use --threads 1, or another --provider"
            )
        found = self._golden(first)
        self.first(found)
        return found, golden_s

    def _as_it_lies(self) -> Array:
        """Golden's scores from the model's own file."""
        session = self._served.pop() if self._served else self.campaign.engine().prepare(served(self.model))
        scores = self._ran(session)
        self._steady(session, scores)
        return scores

    def golden_again(self) -> Golden:
        """One golden run of the whole model through the door of every trial."""
        return self._golden(self._ran(self._session(FileEdits())))

    def golden_in_pieces(self) -> Golden | None:
        """Golden as the model's pieces give it, which opens them; None where there are none."""
        if self.shortcuts is None:
            return None
        parts, golden = [], self.shortcuts.golden
        try:
            for k, _ in golden.pieces():
                golden.release()
                parts.append(golden_scores(self.shortcuts.spine, k, self.output))
        except (EngineError, MemoryError):
            return None
        return self._golden(stacked(parts))

    def _ran(self, session: Session) -> Array:
        """The golden scores from a session."""
        try:
            return self.scores(session)
        except EngineError as error:
            raise does_not_run(error, self.data, self.size) from None

    def _steady(self, session: Session, scores: Array) -> None:
        """Refuse a model that does not answer the same each time: one that draws random numbers, or whose first batch,
        run once more in the session that gave these scores, comes out as another one."""
        if (node := find_random_node(self.model.proto, () if self.output is None else (self.output,))) is not None:
            raise CampaignError(
                f"the model draws random numbers in {node}, so no trial could be told from chance: fault-free runs "
                f"must give the same each time; export the model for inference, or put a stored tensor there"
            )
        again = self.scores(session, batches=1).reshape(-1)
        if not same_bytes(again, scores.reshape(-1)[: len(again)]):
            raise CampaignError(
                "two golden runs differ, in one session, so no trial could be told from chance: an operator draws "
                "random numbers or keeps a state, or use --threads 1, or another --provider"
            )

    def first(self, golden: Golden | None = None) -> Array:
        """Golden's scores of the first batch, which may be known."""
        known = None if golden is None else golden.scores
        if known is not None and known.ndim and len(known) == self.data.samples:
            self._first[:] = [known[: self.size]]
        if not self._first:
            self._first[:] = [self.scores(self._session(FileEdits()), batches=1)]
        return self._first[0]

    def _golden(self, scores: Array) -> Golden:
        c = self.campaign
        task = choose_task(c.task, scores, self.output, self.data, kind_of(c), c.metric)
        return Golden.of(scores, self.data.labels, task, kind_of(c), c.tolerance, c.due)

    def _session(self, change: FileEdits) -> Session:
        """A session of the model with this change."""
        return changed(self.campaign.engine(), self.model, change)

    def struck(self, faults: Faults) -> Session:
        """A session of the model with these faults."""
        return self._session(find_edits(self.model, faults, look_up_words(self.model, faults)[1]))

    @cached_property
    def routes(self) -> Segmentation | None:
        """The shorter routes of the campaign's trials; None where all take the plain one."""
        try:
            plain = self.campaign.route == Route.FULL
            return None if plain else routes_of(self.campaign, self.model, self.reach, self.output, self.provider)
        except (ModelError, MemoryError):  # too large for one message
            return None

    @property
    def shortcuts(self) -> Shortcuts | None:
        """The same, opened."""
        # No cached_property: in Python 3.11 that has a lock of its own, which would be held while others have the turn.
        with claim((id(self), "shortcuts")):
            if not self._shortcuts:
                self._shortcuts.append(self._opened())
            return self._shortcuts[0]

    def _opened(self) -> Shortcuts | None:
        if self.routes is None:
            return None
        known = self.data, self.size, self.output, self.inputs, self.axes
        try:
            return Shortcuts.over(self.campaign, self.routes, *known, kept_bytes=self.kept_bytes)
        except (EngineError, ModelError, MemoryError):  # the runtime does not take the pieces
            return None

    def trial(self, header: Header, golden: Golden, lines: Sequence[str]) -> Judgement:
        """Run one trial from its lines, and compare it with golden."""
        faults = self._faults(header, lines)
        if not len(faults):
            return judge(golden, golden.scores)
        if self.reach.in_flight(faults).any():
            faults = self.reach.by_step(faults)
            alone = self._one_sample(header, faults, golden)
            return alone or self._behind(header, faults, golden) or self._in_flight(header, faults, golden)
        if self.shortcuts is not None and (shortcut := self.shortcuts.of(faults)) is not None:
            with suppress(EngineError, MemoryError):  # whether the model gives no answer, the whole of it says
                return self.shortcuts.judge(shortcut, golden, faults)
        try:
            return judge(golden, self.scores(self.struck(faults)))
        except (EngineError, MemoryError) as error:
            return failed(golden, cause_of(error))

    def _one_sample(self, header: Header, faults: Faults, golden: Golden) -> Judgement | None:
        """A trial that strikes one value in flight of one sample, where that sample can run alone."""
        asked = self._alone(header, faults)
        if asked is None or self.shortcuts is None or not self.shortcuts.routes.late:
            return None
        found = self.shortcuts.one_sample(asked[0], golden, *asked[1])
        return None if found is None else replace(found, changed=None)

    def _alone(self, header: Header, faults: Faults) -> tuple[str, tuple[int, Patch]] | None:
        """The value in flight that a trial strikes, in which sample and how; None where it strikes anything else."""
        sample, struck = one_sample(header, faults), np.unique(faults.sites.target)
        if sample is None or len(struck) != 1 or self.data.layout.fixed is not None:
            return None
        value = self.reach.flying.get(faults.targets[int(struck[0])].id)
        if value is None or value.path or value.place != SampleAxis(0):
            return None
        own = value.target, value.place, faults
        return value.name, (sample, lambda array: strike(array, *own, start=sample, size=1))

    def _behind(self, header: Header, faults: Faults, golden: Golden) -> Judgement | None:
        """A trial that strikes values in flight, run behind them; None where no route does that."""
        rerun = self.flying(faults, self.cuts(header, faults), any_of=header.sampler.kind in RATE_SAMPLERS)
        if self.shortcuts is None or rerun is None:
            return None
        sample, change = one_sample(header, faults), self.flown_change(faults)
        try:
            one = None if sample is None else self.shortcuts.in_batch(rerun, golden, sample, change)
            return one if sample is not None else self.shortcuts.judge(rerun, golden, faults, change)
        except (EngineError, MemoryError):
            return None

    def flying(self, faults: Faults, cuts: Sequence[str], *, any_of: bool = False) -> Rerun | None:
        """The open route of a trial of faults in flight, in these values or `any_of` them."""
        struck = {faults.targets[k].id for k in np.unique(faults.sites.target).tolist()}
        names = [a.name for name in cuts if (a := self.reach.flying.get(name)) is not None and not a.path]
        if self.shortcuts is None or not struck.issubset(cuts) or len(names) < len(cuts):
            return None
        return self.shortcuts.of_flying(names, any_of=any_of)

    def flown_change(self, faults: Faults) -> Change:
        """What becomes of the values in flight of a trial."""

        def strikes(a: Activation, mine: Faults) -> Callable[[Batch, Array], Array]:
            return lambda batch, array: strike(array, a.target, a.place, mine, start=batch.start, size=batch.size)

        rows = [(self.reach.flying[name], mine) for name, mine in by_id(faults).items()]
        return Change({}, {a.name: strikes(a, mine) for a, mine in rows})

    @cached_property
    def whole(self) -> bool:
        """Whether the model must be cut nowhere where a fault in an activation cannot run behind it."""
        return self.provider == CPU and bool(half_floats(self.model.proto))

    def _in_flight(self, header: Header, faults: Faults, whole: Golden, *, loose: bool = False) -> Judgement:
        """A trial that strikes values in flight, against the golden run of the route that it takes; samples that it
        leaves as they are there have the answers of the whole model.

        Where it changes shapes, the parts are opened once more, `loose`, so that they take any.
        """
        here = self.reach.in_flight(faults)
        flown = self.flown(self.cuts(header, faults), values=valued(self.reach, faults, whole=self.whole), loose=loose)
        golden = replace(whole, scores=flown.golden)
        only = one_sample(header, faults)
        rows = slice(None) if only is None else slice(only, only + 1)
        if only is not None and len(golden.scores) == self.data.samples:
            labels = None if golden.labels is None else golden.labels[rows]
            golden = replace(golden, scores=golden.scores[rows], labels=labels)
        try:
            stored = None if here.all() else faults.pick(~here)
            with of_golden_shapes():
                faulty = flown.scores(faults.pick(here), stored)
            truth, faulty = whole_where_same(whole.scores, flown.golden, faulty)
            golden = replace(golden, scores=truth[rows] if len(truth) == self.data.samples else truth)
        except SegmentMismatchError:
            if flown.loose:
                raise
            return self._in_flight(header, faults, whole, loose=True)
        except (EngineError, MemoryError) as error:
            return replace(failed(golden, cause_of(error)), route=Route.SPLIT)
        found = judge(golden, faulty[rows] if len(faulty) == self.data.samples else faulty)
        # Which samples change their top-1 is no matter of the samples where each trial has one of its own.
        return replace(found, route=Route.SPLIT, changed=found.changed if only is None else None)

    def cuts(self, header: Header, faults: Faults) -> tuple[str, ...]:
        """The values in flight through which a trial's route leads: those that it names, or all that a sweep
        may, but where operators inject: these round, so there are no others than in the model that the trial exports.
        """
        if header.sampler.kind in RATE_SAMPLERS and not self.whole:
            listed = [t.id for t in self.reach.listed(header).targets if t.is_activation]
            return tuple(step for name in listed for step in self.reach.steps_of.get(name, (name,)))
        struck = np.unique(faults.sites.target[self.reach.in_flight(faults)]).tolist()
        return tuple(faults.targets[k].id for k in struck)

    def flown(self, cuts: tuple[str, ...], *, values: bool = False, loose: bool = False) -> Flown:
        """The model cut at these values in flight, ready to run; a few are kept. `values` and `loose`: see Flown."""
        key = cuts, values, loose
        with claim((id(self), key)):
            if key not in self._flown:
                most = max(1, self.kept_bytes // max(1, sum(source.size for source in self.model.sources)))
                while len(self._flown) >= most:
                    del self._flown[next(iter(self._flown))]
                known = self.campaign.engine(), self.data, self.size, self.output, self.axes
                self._flown[key] = Flown.open(self.reach, cuts, *known, values=values, loose=loose, whole=self.whole)
            return self._flown[key]

    def let_go(self) -> None:
        """Close what is open for trials, which others run."""
        self._flown.clear()

    def _faults(self, header: Header, lines: Sequence[str]) -> Faults:
        reader = LineReader(header, self.reach.targets, "the store", lambda: self.reach.listed(header))
        [(_, faults)] = reader.trials(enumerate(lines, 1))
        return faults

    @property
    def apart(self) -> bool:
        """Whether shortcuts have to run batch by batch, since golden values do not fit."""
        return self.shortcuts is not None and not self.shortcuts.golden.fits

    def shares(self, header: Header) -> bool:
        """Whether trials of a plan may share runs: see `together`."""
        if self.routes is None:
            return False
        alone = header.of_single_faults and self.routes.late
        if alone and (self.reach.flying or self.routes.shares(self.reach.listed(header).targets)):
            return True
        return self.apart

    def together(self, header: Header, golden: Golden, trials: Sequence[Sequence[str]]) -> dict[int, Judgement]:
        """Trials by their place that share runs: those of one sample each, those whose struck channels one run can
        compute, and where golden values do not fit, those that can go batch by batch, so that each batch's are needed
        once. What is left out runs one by one.
        """
        if self.shortcuts is None or not self.shares(header):
            return {}
        every = [self._faults(header, lines) for lines in trials]
        if self.apart:
            return self.shortcuts.together(golden, every)
        values: dict[str, dict[int, tuple[int, Patch]]] = {}
        stored: list[int] = []
        for number, faults in enumerate(every):
            if not self.reach.in_flight(faults).any():
                stored += [number] if self.shortcuts.shares(faults) else []
            elif (asked := self._alone(header, self.reach.by_step(faults))) is not None:
                values.setdefault(asked[0], {})[number] = asked[1]
        found: dict[int, Judgement] = {}
        for value, trials_of in values.items():
            found |= self.shortcuts.samples(value, golden, trials_of)
        found = {number: replace(judgement, changed=None) for number, judgement in found.items()}
        resumed = self.shortcuts.together(golden, [every[number] for number in stored])
        return found | {stored[number]: judgement for number, judgement in resumed.items()}


def kind_of(campaign: Campaign) -> str:
    """What the scores are: of spikes over time their counts, unless something else is said."""
    return "counts" if campaign.time_axis is not None and campaign.scores == "auto" else campaign.scores


def whole_where_same(whole: Array, own: Array, faulty: Array) -> tuple[Array, Array]:
    """A route's golden and faulty scores, with those of the whole model where the route's two are the same.

    >>> own, faulty = np.array([[1.0], [2.0]]), np.array([[1.0], [9.0]])
    >>> [one.ravel().tolist() for one in whole_where_same(own + 0.1, own, faulty)]
    [[1.1, 2.0], [1.1, 9.0]]
    """
    if not own.shape == faulty.shape == whole.shape or not own.ndim or not own.dtype == faulty.dtype == whole.dtype:
        return own, faulty
    same = same_by(own, faulty, 0).reshape(-1, *[1] * (own.ndim - 1))
    return np.where(same, whole, own), np.where(same, whole, faulty)


def cause_of(error: Exception) -> str:
    """The cause of a trial that gave no answer; raises what is no fault's doing."""
    if isinstance(error, ProviderError):
        raise error
    return "memory" if out_of_memory(error) else "error"


def digest(golden: Golden) -> str:
    """SHA-256 of golden's scores: what runs that belong together must agree in."""
    return hashlib.sha256(golden.scores.tobytes()).hexdigest()
