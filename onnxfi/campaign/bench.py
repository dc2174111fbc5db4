"""The bench: a campaign's model, data, engine and golden run, on which trials are run one after the other."""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.campaign.canary import has_loop, set_exponents
from onnxfi.campaign.flown import Flown, by_id, one_sample, valued
from onnxfi.campaign.opening import open_model, output_of, served
from onnxfi.campaign.outcomes import Golden, Judgement, failed, judge
from onnxfi.campaign.reach import Reach
from onnxfi.campaign.shortcuts import KEPT_BYTES, Shortcuts, routes_of
from onnxfi.campaign.spec import Campaign
from onnxfi.errors import EngineError, ModelError, OnnxfiError
from onnxfi.faults.faultlist import FaultList, Header, Lines
from onnxfi.faults.space import Target
from onnxfi.faults.trials import RATES, Faults
from onnxfi.graph.activations import Activation
from onnxfi.graph.model import Model
from onnxfi.graph.mutate import Edits, edits, faulty_bytes, place, write
from onnxfi.graph.routes import Routes
from onnxfi.runtime.batches import Batch
from onnxfi.runtime.data import Data, open_data
from onnxfi.runtime.engines import Session
from onnxfi.runtime.evaluation import run_scores, sample_axes
from onnxfi.runtime.golden import UnlikeError
from onnxfi.runtime.metrics import scored_output
from onnxfi.runtime.ports import Array, Port
from onnxfi.runtime.rerun import Change, Rerun, golden_scores
from onnxfi.runtime.spine import Patch
from onnxfi.runtime.staged import strike

#: Tensors of each further route in which a canary is looked for.
_TRIES = 3
#: The route of trials that strike values in flight: the model is cut there.
SPLIT = "split"
_MEMORY = re.compile(r"bad.?alloc|failed to allocate|out of memory", re.I)


class CampaignError(OnnxfiError):
    """The campaign cannot be trusted: golden is not deterministic, or no fault reaches the runtime's weights."""


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
    kept_bytes: int = KEPT_BYTES
    _flown: dict[tuple[tuple[str, ...], bool], Flown] = field(default_factory=dict, repr=False, compare=False)
    _first: list[Array] = field(default_factory=list, repr=False, compare=False)
    _served: list[Session] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def open(cls, campaign: Campaign, kept_bytes: int = KEPT_BYTES) -> Bench:
        """Open everything that the campaign names; raises what is wrong with it."""
        model = open_model(campaign)
        session = campaign.engine().prepare(served(model))
        data = open_data(
            campaign.data, session.inputs, preprocess=campaign.preprocess, limit=campaign.samples,
            batch_axis=campaign.batch_axis,
        )  # fmt: skip
        output = scored_output(session.outputs, output_of(campaign, model), labelled=data.labels is not None)
        listed = None if campaign.faults is None else FaultList.open(campaign.faults).header
        reach, axes = Reach.of(model, campaign.aims, data, listed, campaign.custom_ops), sample_axes(session, data)
        return cls(
            campaign, model, data, output, session.provider, session.note, reach, axes, session.inputs, kept_bytes,
            _served=[session],
        )  # fmt: skip

    @property
    def size(self) -> int:
        """Samples that run together."""
        return self.data.layout.fixed or self.campaign.batch

    def scores(self, session: Session, *, batches: int | None = None) -> Array:
        """The scored output over all samples, or over the first batches."""
        return run_scores(session, self.data, self.size, self.output, batches=batches)

    def golden(self, kept: Array | None = None) -> tuple[Golden, float]:
        """Golden, and the seconds that one run takes with all that a trial needs.

        It runs twice, on the model as it lies and through the door of every trial; `kept` are scores that stand for the
        first run if the second agrees. CampaignError where the two runs differ.
        """
        begun = time.perf_counter()
        second = self.golden_again().scores
        golden_s = time.perf_counter() - begun
        first = kept
        if first is None or _differ(first, second):
            first = self.scores(
                self._served.pop() if self._served else self.campaign.engine().prepare(served(self.model))
            )
        self._served.clear()
        if _differ(first, second):
            raise CampaignError(
                "two golden runs differ, so no trial could be told from chance; use --threads 1, or another --provider"
            )
        return self._golden(first), golden_s

    def golden_again(self, *, served: bool = False) -> Golden:
        """One golden run through the door of every trial, or on the session of the model as it lies, if that is open
        still: what a worker holds against the first."""
        try:
            scores = self.scores(self._served.pop() if served and self._served else self._session(Edits()))
        except EngineError as error:
            if self.data.synthetic:
                raise EngineError(f"{error}; these are synthetic inputs, give real ones with --data") from None
            raise
        if scores.ndim and len(scores) == self.data.samples:
            self._first[:] = [scores[: self.size]]
        return self._golden(scores)

    def _golden(self, scores: Array) -> Golden:
        c = self.campaign
        kind = "counts" if c.time_axis is not None and c.scores == "auto" else c.scores
        return Golden.of(scores, self.data.labels, self.output, kind, c.tolerance, c.due)

    def _session(self, change: Edits) -> Session:
        """A session of the model with this change."""
        engine = self.campaign.engine()
        if not self.model.external:
            return engine.prepare(faulty_bytes(self.model, change))
        with tempfile.TemporaryDirectory(prefix="onnxfi-", ignore_cleanup_errors=True) as folder:
            copy = Path(folder) / "faulty.onnx"
            write(self.model, change, copy)
            return engine.prepare(copy)

    def struck(self, faults: Faults) -> Session:
        """A session of the model with these faults."""
        return self._session(edits(self.model, faults, place(self.model, faults)[1]))

    @cached_property
    def routes(self) -> Routes | None:
        """The shorter routes of the campaign's trials; None where all take the plain one."""
        try:
            plain = self.campaign.route == "plain"
            return None if plain else routes_of(self.campaign, self.model, self.reach, self.output, self.provider)
        except (ModelError, MemoryError):  # too large for one message
            return None

    @cached_property
    def shortcuts(self) -> Shortcuts | None:
        """The same, opened."""
        known = self.data, self.size, self.output, self.inputs, self.axes
        try:
            over = partial(Shortcuts.over, self.campaign, kept_bytes=self.kept_bytes)
            return over(self.routes, *known) if self.routes is not None else None
        except (EngineError, ModelError, MemoryError):  # the runtime does not take the pieces
            return None

    def warm(self) -> None:
        """Open the shortcuts and run golden through them, which the first trial would do."""
        if self.shortcuts is not None:
            with suppress(EngineError, MemoryError):
                golden_scores(self.shortcuts.spine, 0, self.output)

    def trial(self, header: Header, golden: Golden, lines: Sequence[str]) -> Judgement:
        """Run one trial from its lines, and compare it with golden."""
        faults = self._faults(header, lines)
        if not len(faults):
            return judge(golden, golden.scores)
        if self.reach.in_flight(faults).any():
            faults = self.reach.by_step(faults)
            alone = self._one_sample(header, faults, golden)
            return alone or self._behind(header, faults, golden) or self._in_flight(header, faults)
        shortcut = self.shortcuts.of(faults) if self.shortcuts is not None else None
        try:
            if self.shortcuts is not None and shortcut is not None:
                with suppress(UnlikeError):
                    return self.shortcuts.judge(shortcut, golden, faults)
                shortcut = None
            return judge(golden, self.scores(self.struck(faults)))
        except (EngineError, MemoryError) as error:
            lost = failed(golden, "memory" if out_of_memory(error) else "error")
            return lost if shortcut is None else replace(lost, route=shortcut.name)

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
        if value is None or value.path or value.axis != 0:
            return None
        return value.name, (sample, lambda array: strike(array, value.target, 0, faults, start=sample, size=1))

    def _behind(self, header: Header, faults: Faults, golden: Golden) -> Judgement | None:
        """A trial that strikes values in flight, run behind them; None where no route does that."""
        rerun = self._flying(faults, self.cuts(header, faults), any_of=header.draw.kind in RATES)
        if self.shortcuts is None or rerun is None:
            return None
        sample, change = one_sample(header, faults), self._flown_change(faults)
        try:
            one = None if sample is None else self.shortcuts.in_batch(rerun, golden, sample, change)
            return one if sample is not None else self.shortcuts.judge(rerun, golden, faults, change)
        except UnlikeError:
            return None
        except (EngineError, MemoryError) as error:
            return replace(failed(golden, "memory" if out_of_memory(error) else "error"), route=rerun.name)

    def _flying(self, faults: Faults, cuts: Sequence[str], *, any_of: bool = False) -> Rerun | None:
        """The open route of a trial of faults in flight, in these values or `any_of` them."""
        struck = {faults.targets[k].id for k in np.unique(faults.sites.target).tolist()}
        names = [a.name for name in cuts if (a := self.reach.flying.get(name)) is not None and not a.path]
        if self.shortcuts is None or not struck.issubset(cuts) or len(names) < len(cuts):
            return None
        return self.shortcuts.of_flying(names, any_of=any_of)

    def _flown_change(self, faults: Faults) -> Change:
        """What becomes of the values in flight of a trial."""

        def strikes(a: Activation, mine: Faults) -> Callable[[Batch, Array], Array]:
            return lambda batch, array: strike(array, a.target, a.axis, mine, start=batch.start, size=batch.size)

        rows = [(self.reach.flying[name], mine) for name, mine in by_id(faults).items()]
        return Change({}, {a.name: strikes(a, mine) for a, mine in rows})

    def _in_flight(self, header: Header, faults: Faults) -> Judgement:
        """A trial that strikes values in flight, against the golden run of the route that it takes."""
        here = self.reach.in_flight(faults)
        flown = self.flown(self.cuts(header, faults), values=valued(self.reach, faults))
        golden = self._golden(flown.golden)
        only = one_sample(header, faults)
        rows = slice(None) if only is None else slice(only, only + 1)
        if only is not None and len(golden.scores) == self.data.samples:
            labels = None if golden.labels is None else golden.labels[rows]
            golden = replace(golden, scores=golden.scores[rows], labels=labels)
        try:
            stored = None if here.all() else faults.pick(~here)
            faulty = flown.scores(faults.pick(here), stored)
        except (EngineError, MemoryError) as error:
            return replace(failed(golden, "memory" if out_of_memory(error) else "error"), route=SPLIT)
        found = judge(golden, faulty[rows] if len(faulty) == self.data.samples else faulty)
        # Which samples change their top-1 is no matter of the samples where each trial has one of its own.
        return replace(found, route=SPLIT, changed=found.changed if only is None else None)

    def cuts(self, header: Header, faults: Faults) -> tuple[str, ...]:
        """The values in flight through which a trial's route leads: those that it strikes, or all that a sweep may."""
        if header.draw.kind in RATES:
            listed = [t.id for t in self.reach.listed(header).targets if t.in_flight]
            return tuple(step for name in listed for step in self.reach.steps_of.get(name, (name,)))
        struck = np.unique(faults.sites.target[self.reach.in_flight(faults)]).tolist()
        return tuple(faults.targets[k].id for k in struck)

    def flown(self, cuts: tuple[str, ...], *, values: bool = False) -> Flown:
        """The model cut at these values in flight, ready to run; a few are kept. `values`: see Flown."""
        key = (cuts, values)
        if key not in self._flown:
            most = max(1, self.kept_bytes // max(1, sum(source.size for source in self.model.sources)))
            while len(self._flown) >= most:
                del self._flown[next(iter(self._flown))]
            engine = self.campaign.engine()
            self._flown[key] = Flown.open(
                self.reach, cuts, engine, self.data, self.size, self.output, self.axes, values=values
            )
        return self._flown[key]

    def _faults(self, header: Header, lines: Sequence[str]) -> Faults:
        reader = Lines(header, self.reach.targets, "the store", lambda: self.reach.listed(header))
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
        known = [self.routes.by_target.get(target.id) for target in self.reach.listed(header).targets]
        alone = bool(self.reach.flying) or any(route is not None and route.shares for route in known)
        return (alone and header.of_singles and self.routes.late) or self.apart

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

    @property
    def loops(self) -> bool:
        """Whether the model has a loop, which a fault may keep from ending."""
        proto = self.model.proto
        return has_loop(proto.graph.node) or any(has_loop(function.node) for function in proto.functions)

    def notices(self, target: Target) -> bool:
        """Whether a canary changes an answer; ShortcutError where a shortcut does not show it."""
        canary = self.reach.by_step(set_exponents(target))
        cuts = self.reach.steps_of.get(target.id, (target.id,))
        flown = self.flown(cuts) if target.in_flight else None
        if flown is None and not self._first:
            self._first[:] = [self.scores(self._session(Edits()), batches=1)]
        golden = self._first[0] if flown is None else flown.scores(None, batches=1)
        try:
            if flown is not None:
                seen = _differ(flown.scores(canary, batches=1), golden)
                rerun = self._flying(canary, cuts) if seen else None
                if rerun is not None and self.shortcuts is not None:
                    self.shortcuts.show(canary, rerun, self._flown_change(canary))
                return seen
            seen = _differ(self.scores(self.struck(canary), batches=1), golden)
        except (EngineError, MemoryError):
            seen = True
        if seen and self.shortcuts is not None:
            self.shortcuts.show(canary)
        return seen

    def _kind(self, target: Target) -> str:
        """By which kind of route faults in a target go."""
        if target.in_flight:
            return "downstream" if self.routes is not None and self.routes.steps else SPLIT
        route = self.routes.of([target]) if self.routes is not None else None
        return "plain" if route is None else route.name

    def canary(self, targets: Sequence[Target], notices: Callable[[Target], bool] | None = None) -> dict[str, Any]:
        """Set one tensor after the other until a change is seen, by each kind of route that there is.

        `notices` asks elsewhere, where what is struck could hang or kill this process. CampaignError where
        none is seen.
        """
        seen, unseen, routes, tries = None, list[str](), dict[str, str](), Counter[str]()
        for target in targets:
            kind = self._kind(target)
            if seen is not None and (kind == "plain" or kind in routes or tries[kind] == _TRIES):
                continue
            tries[kind] += 1
            if (notices or self.notices)(target):
                seen, routes = seen or target.id, {**routes, kind: target.id}
            elif seen is None:
                unseen.append(target.id)
        if seen is not None:
            return {"seen": seen, "unseen": unseen, "routes": routes}
        raise CampaignError(
            f"no canary was seen: all exponent bits set in {', '.join(unseen[:5])} changed nothing in "
            f"{f'output {self.output!r}' if self.output else 'the outputs'}, so faults there cannot either; "
            f"select other targets, or score another --output"
        )


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, MemoryError) or _MEMORY.search(str(error)) is not None


def _differ(one: Array, other: Array) -> bool:
    return (one.dtype, one.shape) != (other.dtype, other.shape) or one.tobytes() != other.tobytes()


def digest(golden: Golden) -> str:
    """SHA-256 of golden's scores: what runs that belong together must agree in."""
    return hashlib.sha256(golden.scores.tobytes()).hexdigest()
