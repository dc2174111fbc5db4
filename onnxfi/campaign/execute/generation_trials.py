"""Trials of a decoder in its loop: faults in the cache and in activations at a step, run from that step on.

A fault in the cache is an edit of a tensor between two runs, so that the model stays as it is. A fault in an
activation is fed to fault operators at its step. Only the steps behind a fault run: the cache of the golden run up to
it is reused, where each step of the model only appends to the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfi.campaign.execute.activation_routes import Run, judge_by_own
from onnxfi.campaign.execute.instrumented_model import armed_model, faulty_proto, needs_numbers
from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.execute.route_cache import RouteCache
from onnxfi.campaign.execute.weight_routes import by_id
from onnxfi.faults.sites import KV_CACHE, LAST_STEP, Target
from onnxfi.faults.token_positions import Positions
from onnxfi.faults.trials import Faults
from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.dataflow.batch_layout import SampleAxis
from onnxfi.graph.model.loading import parse
from onnxfi.graph.partition.route import Route
from onnxfi.graph.passes.fault_inputs import columns
from onnxfi.graph.passes.instrument import Armed
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Array
from onnxfi.runtime.engine.recently_used import RecentlyUsed
from onnxfi.runtime.generation.generation_engine import GenerationSession, laid_out
from onnxfi.runtime.generation.greedy_loop import Generated, Progress, Prompt
from onnxfi.runtime.inject.activations import activation_faults
from onnxfi.runtime.partial.activation_words import InjectedWords, inject_words
from onnxfi.tasks.outcomes import GoldenRun, Judgement

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

_PREFILL, _DECODE = "prefill_changed", "decode_changed"


class GoldenTexts:
    """Golden texts of a session with what is needed to go back to a step, kept up to a limit, `cost_bytes`.

    `armed` are the fault operators of the session; fed with no faults they change nothing.
    """

    def __init__(self, session: GenerationSession, limit_bytes: int, armed: tuple[Armed, ...] = ()) -> None:
        self.session, self.cost_bytes, self.armed = session, limit_bytes, armed
        self._kept = RecentlyUsed[Generated](limit_bytes, _nbytes)

    def of(self, sample: int, prompt: Prompt) -> Generated:
        """Return the golden text of a sample."""
        return self._kept.of(sample, lambda: self._run(prompt))

    def _run(self, prompt: Prompt) -> Generated:
        return self.session.loop.run(prompt, self.session.shared(prompt), fed=lambda step, count: self.nothing())

    def nothing(self) -> dict[str, Array]:
        """Return the inputs of the fault operators without a fault."""
        return {name: array for armed in self.armed for name, array in columns(armed, [], batch=1).items()}


def _nbytes(found: Generated) -> int:
    return sum(array.nbytes for array in found.last.cache.values())


class GenerationTrials:
    """The trials of an open campaign of a decoder in its loop.

    Parameters
    ----------
    opened : OpenCampaign
        The campaign.
    cache : RouteCache
        Sessions with fault operators that are kept.
    limit_bytes : int
        Bytes of golden caches that are kept for each session.
    """

    def __init__(self, opened: OpenCampaign, cache: RouteCache, limit_bytes: int) -> None:
        self.opened, self.cache, self.limit_bytes = opened, cache, limit_bytes
        self._plain: list[GoldenTexts] = []
        self._prompts: list[Prompt] = []

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Return the prompts."""
        if not self._prompts:
            session = self.plain.session
            self._prompts += [p for b in self.opened.data.batches(1) for p in session.prompts(b.feeds)]
        return self._prompts

    @property
    def plain(self) -> GoldenTexts:
        """Return the golden texts of the model as every trial opens it."""
        if not self._plain:
            session = self.opened.session()
            assert isinstance(session, GenerationSession)
            self._plain.append(GoldenTexts(session, self.limit_bytes))
        return self._plain[0]

    def judged(
        self, golden: GoldenRun, faults: Faults, sample: int | None, words: InjectedWords | None = None
    ) -> Judgement:
        """Run a trial with faults in the cache or in activations, and compare it with the golden run.

        `words` keeps the words of the cache that are changed.
        """
        own, faulty = self._runs(golden.run, self._texts(faults), faults, words)
        return judge_by_own(golden, own, faulty, sample)

    def outputs(self, faults: Faults, batches: int | None) -> tuple[Run, Run]:
        """Return golden and faulty outputs of a trial, for all batches or the first ones."""
        golden = self.opened.run(self.plain.session, batches=batches)
        return self._runs(golden, self._texts(faults), faults)

    def _texts(self, faults: Faults) -> GoldenTexts:
        """Return the golden texts of the session that a trial needs: with fault operators, with faulty weights."""
        computed = self.opened.fault_targets.in_activations(faults)
        weights = None if computed.all() else faults.pick(~computed)
        named = [name for name in by_id(faults.pick(computed)) if not self._is_cache(name)]
        if weights is None and not named:
            return self.plain
        if weights is None:
            numbers = needs_numbers(self.opened.fault_targets, faults)

            def opener() -> GoldenTexts:
                return self._instrumented(named, None, numbers=numbers)

            return self.cache.get((Route.STEPS, *named, numbers), opener) or opener()
        return self._instrumented(named, weights, numbers=needs_numbers(self.opened.fault_targets, faults))

    def _is_cache(self, name: str) -> bool:
        return self.opened.fault_targets.activations[name].target.kind == KV_CACHE

    def _instrumented(self, names: Sequence[str], weights: Faults | None, *, numbers: bool) -> GoldenTexts:
        """Open a session with fault operators at some activations, and perhaps with faulty weights."""
        model = self.opened.model
        if weights is None:
            return self._armed(parse(model), names, None if model.path is None else model.path.parent, numbers=numbers)
        with faulty_proto(model, weights) as (proto, folder):
            return self._armed(proto, names, folder, numbers=numbers)

    def _armed(
        self, proto: onnx.ModelProto, names: Sequence[str], folder: Path | None, *, numbers: bool
    ) -> GoldenTexts:
        rows = [self.opened.fault_targets.activations[name] for name in names]
        made, armed = armed_model(proto, rows, folder, numbers=numbers)
        session = self.opened.engine.prepare(made.SerializeToString())
        assert isinstance(session, GenerationSession)
        return GoldenTexts(session, self.limit_bytes, armed)

    # One run

    def _runs(
        self, golden: Run, texts: GoldenTexts, faults: Faults, words: InjectedWords | None = None
    ) -> tuple[Run, Run]:
        """Return golden and faulty outputs of a session; those of the golden run where nothing is faulty."""
        of_sample = faults.sites.times_or_all()[:, 0]
        mine, theirs = list[Outputs](), list[Outputs]()
        weights = not self.opened.fault_targets.in_activations(faults).all()
        for outputs in golden:
            own, faulty = outputs, outputs
            for row, sample in enumerate(outputs.samples.tolist()):
                here = (of_sample < 0) | (of_sample == sample)
                if not here.any() and not weights:
                    continue
                if texts is not self.plain and not weights:
                    own = _replaced(own, row, texts.of(sample, self.prompts[sample]).last, texts)
                faulty = _replaced(faulty, row, self._text(texts, sample, faults.pick(here), weights, words), texts)
            mine.append(own)
            theirs.append(faulty)
        return tuple(mine), tuple(theirs)

    def _text(
        self, texts: GoldenTexts, sample: int, faults: Faults, weights: bool, words: InjectedWords | None
    ) -> Progress:
        """Return the state behind a faulty text, run from the first step that has a fault."""
        prompt, loop = self.prompts[sample], texts.session.loop
        trial = _TextFaults.of(faults, self.opened.fault_targets.activations, texts, sample, words)
        begin = texts.session.shared(prompt)
        if not weights and trial.first > 0:
            known = texts.of(sample, prompt)
            if trial.first >= known.steps:  # of a fault in every sample, behind the end of this text
                return known.last
            if known.reusable:
                begin = known.before(trial.first)
        return loop.run(prompt, begin, edit=trial.edit, fed=trial.fed).last


def _replaced(outputs: Outputs, row: int, found: Progress, texts: GoldenTexts) -> Outputs:
    made = laid_out([found], texts.session.loop.how.tokens)
    arrays = {name: array.copy() for name, array in outputs.arrays.items()}
    for name, array in arrays.items():
        array[row] = made[name][0]
    return replace(outputs, arrays=arrays)


def by_phase(metrics: Mapping[str, Any], faults: Faults) -> dict[str, Any]:
    """Return the metrics without that of a phase in which no fault of the trial was present."""
    sample, first, last = faults.sites.times_or_all().T
    stays = bool(((sample < 0) & (last == LAST_STEP) & (first == 0)).any())
    left = set() if stays else {_PREFILL} if (first > 0).all() else {_DECODE} if (first == 0).all() else set()
    return {name: value for name, value in metrics.items() if name not in left}


@dataclass(frozen=True)
class _TextFaults:
    """The faults of one text: those in the cache, and those in activations, by id."""

    cache: Mapping[str, Faults]
    computed: Faults
    rows: Mapping[str, Activation]
    texts: GoldenTexts
    sample: int
    words: InjectedWords | None

    @classmethod
    def of(
        cls, faults: Faults, rows: Mapping[str, Activation], texts: GoldenTexts, sample: int,
        words: InjectedWords | None,
    ) -> _TextFaults:  # fmt: skip
        kinds = np.array([t.kind == KV_CACHE for t in faults.targets], np.bool_)[faults.sites.target]
        stored = np.array([not t.is_activation for t in faults.targets], np.bool_)[faults.sites.target]
        return cls(by_id(faults.pick(kinds)), faults.pick(~kinds & ~stored), rows, texts, sample, words)

    @property
    def first(self) -> int:
        """The first step that a fault changes."""
        found = [int(self.computed.sites.times_or_all()[:, 1].min())] if len(self.computed) else []
        for faults in self.cache.values():
            times = faults.sites.times_or_all()
            found.append(int(np.where(times[:, 0] < 0, 0, times[:, 1]).min()))
        return min(found, default=0)

    def edit(self, step: int, cache: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the cache in front of a step with the faults that come with it."""
        changed = dict[str, Array]()
        for name, faults in self.cache.items():
            if name in cache:
                array = self._edited(cache[name], self.rows[name].target, faults, step)
                if array is not cache[name]:
                    changed[name] = array
        return {**cache, **changed} if changed else cache

    def _edited(self, array: Array, target: Target, faults: Faults, step: int) -> Array:
        """Return a tensor of the cache ([1, heads, positions, numbers]) with the faults that come with a step.

        A fault that names its sample comes in front of its step. One in every sample comes with its position: in front
        of the first step that reads it.
        """
        heads, held, size = array.shape[1:]
        before = held - target.positions.growth if target.positions is not None else held
        times = faults.sites.times_or_all()
        place = np.array(np.unravel_index(faults.sites.index, target.shape))
        fresh = (place[1] >= before) if step > 1 else np.ones(len(faults), np.bool_)
        if step == 1 and target.positions is not None and any(target.positions.first):
            fresh = place[1] >= target.positions.first[0]
        here = np.where(times[:, 0] < 0, fresh, times[:, 1] == step) & (place[1] < held)
        if not here.any():
            return array
        index = np.ravel_multi_index(tuple(place[:, here]), (heads, held, size))
        some = faults.pick(here)
        sites = replace(some.sites, index=index, times=None, target=np.zeros(len(index), np.int64))
        shaped = replace(target, shape=(heads, held, size))
        made = inject_words(
            array, shaped, SampleAxis(0), replace(some, targets=(shaped,), sites=sites), start=0, size=1
        )
        if self.words is not None and (self.sample == 0 or (times[here, 0] >= 0).all()):
            before, after = (target.word.words(one.reshape(-1)[index]).tolist() for one in (array, made))
            places = [(self.sample, int(element)) for element in some.sites.index]
            self.words.add(target, dict(zip(places, zip(before, after, strict=True), strict=True)), step)
        return made

    def fed(self, step: int, count: int) -> dict[str, Array]:
        """Return the inputs of the fault operators in a step that runs `count` tokens."""
        found = dict[str, Array]()
        times = self.computed.sites.times_or_all()
        here = (
            self.computed.pick((times[:, 1] <= step) & (step <= times[:, 2])) if len(self.computed) else self.computed
        )
        made = []
        for fault in activation_faults(here, self.rows) if len(here) else ():
            a = fault.activation
            assert a.target.positions is not None
            every = fault.sample is None
            for shape, element in _elements(a.target, fault.element, step, count, a.target.positions, every=every):
                one = replace(a, target=replace(a.target, shape=shape), dims=shape)
                made.append(replace(fault, activation=one, element=element, sample=None, first=0, last=LAST_STEP))
        for armed in self.texts.armed:
            found |= columns(armed, [f for f in made if (f.mask is None) == armed.values], batch=1)
        return found


def _elements(
    target: Target, element: int, step: int, count: int, held: Positions, *, every: bool
) -> list[tuple[tuple[int, ...], int]]:
    """Return the shape of an activation in a run of `count` tokens, and the elements of a fault there.

    A fault in all samples and steps is present in every token of a prompt.
    """
    prefill = step == 0
    if not (any(held.first) if prefill else any(held.next)):  # it is not computed in this phase
        return []
    if held.axis < 0:
        return [(target.shape, element)]
    shape = tuple(count if k == held.axis else n for k, n in enumerate(target.shape))
    place = list(np.unravel_index(element, target.shape))
    if every and place[held.axis] > 0:  # the first position stands for all
        return []
    found = []
    for position in range(count) if every else [int(place[held.axis])]:
        place[held.axis] = np.int64(position)
        found.append((shape, int(np.ravel_multi_index([int(k) for k in place], shape))))
    return found


def generates(opened: OpenCampaign) -> bool:
    """Return true for a campaign of a decoder in its loop."""
    space = opened.fault_targets.activation_space
    return space is not None and bool(space.positions)
