"""Shortcuts: a campaign's trials by the shortest route, instead of a new session and a whole run for each.

A trial's route follows from the model, the campaign and the tensors that the trial strikes, never from the clock, the
memory or the workers. Each route has a golden of its own, its own disarmed run, since a runtime that fuses other nodes
may round another way; a trial is compared with that of its route.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxfi.campaign.outcomes import Golden, Judgement, failed, judge
from onnxfi.errors import EngineError, OnnxfiError
from onnxfi.faults.space import Target
from onnxfi.faults.trials import Faults
from onnxfi.graph.downstream import cut, wire
from onnxfi.graph.fronts import fronts
from onnxfi.graph.model import Model, by_target
from onnxfi.graph.mutate import place
from onnxfi.graph.parts import exposed
from onnxfi.graph.routes import Route, Routes
from onnxfi.runtime.data import Data
from onnxfi.runtime.engines import OrtEngine
from onnxfi.runtime.evaluation import stacked
from onnxfi.runtime.golden import GoldenValues
from onnxfi.runtime.onesample import OneSample, Strike
from onnxfi.runtime.ports import Array, same_bytes
from onnxfi.runtime.rerun import Baked, Change, Flying, Rerun, Resumed, UnlikeError, opened

#: Bytes of golden values and sessions that a process keeps, where nothing else is said.
KEPT_BYTES = 1 << 30
#: How far a route's golden may lie from golden, as a share of golden's range: other optimisations round otherwise.
_DRIFT = 0.1


class ShortcutError(OnnxfiError):
    """A shortcut does not answer as the whole model does."""


@dataclass
class Shortcuts:
    """The routes of one campaign, opened when they are needed; golden values and sessions within so many bytes.

    `exact` asks that the golden of each route is golden bit for bit.
    """

    engine: OrtEngine
    routes: Routes
    golden: GoldenValues
    output: str | None
    exact: bool
    sessions_bytes: int
    _samples: OrderedDict[str, OneSample | None] = field(default_factory=OrderedDict)
    _open: OrderedDict[str, Rerun | None] = field(default_factory=OrderedDict)

    @classmethod
    def over(
        cls,
        engine: OrtEngine,
        model: Model,
        data: Data,
        size: int,
        output: str | None,
        *,
        provider: str,
        exact: bool,
        kept_bytes: int,
        flying: Sequence[str] = (),
        series: Sequence[Sequence[str]] = (),
        late: bool = True,
        early: bool = True,
    ) -> Shortcuts:
        """Find the routes of a model; raises ModelError or EngineError where there can be none.

        `flying` are values in flight that may be struck, `series` those of them that are steps of one.
        """
        wiring = wire(model, halves=provider != "CPUExecutionProvider")
        ends = fronts(model)
        # Without early stop such a network has one front, which is nowhere.
        routes = Routes(model, wiring, () if output is None else (output,), ends if early else ends and ((),), late)
        crossing = {n for name in flying for n in cut(wiring, [name], outputs=routes.outputs).crossings}
        between = {n for steps in series for k in range(len(steps)) for n in routes.between(steps[k:])} if ends else ()
        taken = dict.fromkeys((*routes.values, *flying, *sorted({*crossing, *between, *(n for e in ends for n in e)})))
        whole = exposed(wiring, [name for name in taken if name not in wiring.inputs])
        session = engine.prepare_part(whole.data, whole.stored)
        values = GoldenValues(session, data, size, kept_bytes // 2)
        return cls(engine, routes, values, output, exact, kept_bytes // 2)

    def of(self, faults: Faults) -> Rerun | None:
        """The open route of a trial of these faults; None where only the plain one is left."""
        return self._opened([faults.targets[k] for k in np.unique(faults.sites.target).tolist()])

    def _opened(self, targets: Sequence[Target]) -> Rerun | None:
        route = self.routes.of(targets)
        if route is None:
            return None
        return self._open_route(route)

    def _open_route(self, route: Route) -> Rerun | None:
        key = f"{route.name} {route.cut.nodes if route.baked and route.channels is None else route.home.fed}"
        if key not in self._open:
            self._open[key] = self._tried(lambda: opened(self.engine, self.routes, route, self.golden, self.output))
            self._bound()
        self._open.move_to_end(key)
        return self._open[key]

    def of_flying(self, values: Sequence[str]) -> Rerun | None:
        """The open route of a trial that strikes these values in flight; None where the model runs as a whole."""
        key = "flying " + " ".join(values)
        if key not in self._open:
            self._open[key] = self._tried(lambda: Flying(self.engine, self.routes, values, self.golden, self.output))
            self._bound()
        self._open.move_to_end(key)
        return self._open[key]

    def _tried(self, make: Callable[[], Rerun]) -> Rerun | None:
        """A route that has run golden; None where that cannot be."""
        try:
            found = make()
            found.scores(0)
        except (EngineError, KeyError):  # the runtime wants the tensor constant, or a value is no tensor
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
        """Run one trial and compare it with the golden of its route; raises what the runtime has against it."""
        [found] = self.judged(rerun, golden, [change or self.change(faults)])
        if isinstance(found, UnlikeError) and isinstance(rerun, Resumed):
            other = self._open_route(rerun.fallback)
            [found] = self.judged(other, golden, [self.change(faults)]) if other is not None else [found]
        if isinstance(found, Exception):
            raise found
        return found

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
        own: list[Array] = []
        parts: list[list[Array]] = [[] for _ in changes]
        failed: dict[int, EngineError | MemoryError] = {}
        for k, piece in self.golden.pieces():
            self.golden.release()
            own.append(rerun.scores(k))
            rows = slice(piece.start, piece.start + piece.valid)
            self._check(rerun, own[-1], golden.scores[rows])
            for number, change in enumerate(changes):
                if number not in failed:
                    try:
                        parts[number].append(rerun.scores(k, change))
                    except (EngineError, MemoryError) as error:
                        failed[number] = error
        truth = replace(golden, scores=stacked(own))
        for number, part in enumerate(parts):
            if number in failed:
                yield failed[number]
            else:
                yield replace(judge(truth, stacked(part)), route=rerun.name)

    def _check(self, rerun: Rerun, own: Array, golden: Array) -> None:
        """Hold the golden of a route against golden; ShortcutError where they are not of one model and data."""
        if own.shape == golden.shape and (far := self._drift(own, golden)):
            raise ShortcutError(
                f"the route {rerun.name} of {rerun.route.home.fed!r} has another golden run than the whole model "
                f"(by {far:.3g}); run the campaign with --route plain"
            )

    def _drift(self, own: Array, golden: Array) -> float:
        """How far the golden of a route lies from golden; 0 where that is no more than rounding may do."""
        if same_bytes(own, golden):
            return 0.0
        with np.errstate(all="ignore"):
            wide = golden.astype(np.float64)
            finite = wide[np.isfinite(wide)]
            reach = max(float(np.ptp(finite)), float(np.abs(finite).max())) if finite.size else 0.0
            far = float(np.nanmax(np.abs(own.astype(np.float64) - wide), initial=0.0))
        return max(far, 1e-300) if self.exact or far > _DRIFT * reach else 0.0

    def one_sample(self, value: str, golden: Golden, sample: int, strike: Strike) -> Judgement | None:
        """A fault in a value in flight of one sample, judged on that sample alone; None where it cannot run alone."""
        try:
            alone = self._sample_route(value, sample)
            truth = None if alone is None else self._truth(alone, sample, golden)
        except (EngineError, KeyError):
            return None
        if alone is None or truth is None:
            return None
        try:
            return replace(judge(truth, alone.scores(sample, strike)), route=alone.name)
        except (EngineError, MemoryError) as error:
            memory = isinstance(error, MemoryError)
            return replace(failed(truth, "memory" if memory else "error"), route=alone.name)

    def samples(self, value: str, golden: Golden, asked: Mapping[int, tuple[int, Strike]]) -> dict[int, Judgement]:
        """Faults of many trials in one value, each in one sample, in as few runs as can be.

        Those that cannot run so, or give no answer, are left out.
        """
        try:
            alone = self._sample_route(value, next(iter(asked.values()))[0])
            if alone is None:
                return {}
            alone.prepare([sample for sample, _ in asked.values()])
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
        if self._drift(own, golden.scores[rows]):
            return None
        labels = None if golden.labels is None else golden.labels[rows]
        return replace(golden, scores=own, labels=labels)

    def _sample_route(self, value: str, sample: int) -> OneSample | None:
        """The open route of one sample from a value on; None where that was tried in vain."""
        self.golden.release()
        if value not in self._samples:
            while sum(one.cost_bytes for one in self._samples.values() if one) > self.sessions_bytes:
                self._samples.popitem(last=False)
            self._samples[value] = None
            opened_ = OneSample(self.engine, self.routes, value, self.golden, self.output)
            opened_.scores(sample)
            self._samples[value] = opened_
        self._samples.move_to_end(value)
        return self._samples[value]

    def show(self, faults: Faults, rerun: Rerun | None = None, change: Change | None = None) -> None:
        """Hold a route to what the whole model has seen in the first batch; ShortcutError where it sees no change."""
        rerun = rerun or self.of(faults)
        try:
            blind = rerun is not None and same_bytes(rerun.scores(0, change or self.change(faults)), rerun.scores(0))
        except (EngineError, MemoryError):
            blind = False
        if blind and rerun is not None:
            raise ShortcutError(
                f"a canary in {faults.targets[0].id!r} is seen by the whole model, and not by the route {rerun.name}; "
                f"run the campaign with --route plain"
            )

    def change(self, faults: Faults) -> Change:
        """What becomes of the tensors that are struck."""
        _, final = place(self.routes.model, faults)
        words = {}
        for target, rows in by_target(faults):
            index, first = np.unique(faults.sites.index[rows], return_index=True)
            words[self.routes.by_target[target.id].home] = index, final[rows][first]
        return Change(words)
