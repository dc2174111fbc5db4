"""The plan: a campaign's trials as lines of a fault list, with all random numbers drawn before anything runs.

Trial j of stratum s of S has the number 1 + j·S + s, so that a longer campaign has the same trials as a shorter one;
of a rate that a sweep got later, a number of a block of its own (`Header.number`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.strata import PlannedStratum, plan_strata
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import (
    AdaptiveFaults,
    BerSweep,
    Design,
    FaultDraw,
    FaultMix,
    PerSampleSweep,
    Replay,
    SingleFaults,
    Sweep,
)  # fmt: skip
from onnxfi.errors import FaultListError, SpecError
from onnxfi.faults import sampling
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.faultlist import MAX_LINES, FaultList, Header, LineReader, event_line, single_lines, trial_lines
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.space import FaultSpace, Target
from onnxfi.faults.trials import CONDITION_SAMPLERS, Faults, Sampler, concatenate_faults, draw_faults, single_faults
from onnxfi.graph.model.loading import Model
from onnxfi.graph.model.targets import target_notes
from onnxfi.graph.write.faulty_copy import OnProgress
from onnxfi.graph.write.output_file import atomic_files, check_output_files
from onnxfi.protection.coded_memory import CodedMemory
from onnxfi.protection.memory_codes import parse_code_assignment
from onnxfi.statistics.adaptive import METHOD_NAMES, min_trials
from onnxfi.statistics.sample_size import margin_of_error, sample_size

#: Single faults that are planned together.
BLOCK = 1 << 14
#: A trial that drew no fault still is a trial: this draw gives none.
_NOTHING = Sampler("count", n=0)


@dataclass(frozen=True)
class PlannedTrial:
    """One trial: its number, its stratum, its lines; its layer and bit where all its faults share them."""

    trial: int
    stratum: int
    faults: int
    lines: str
    layer: str | None = None
    bit: int | None = None


@dataclass(frozen=True)
class Plan:
    """All trials of a campaign on one model."""

    campaign: Campaign
    fault_targets: FaultTargets
    strata: tuple[PlannedStratum, ...]
    header: Header
    listed: FaultList | None = None
    faulty: tuple[Target, ...] = ()

    def __repr__(self) -> str:
        return "\n".join(self.describe())

    @property
    def model(self) -> Model:
        """The model."""
        return self.fault_targets.model

    def __len__(self) -> int:
        return sum(stratum.trials for stratum in self.strata)

    @property
    def of_singles(self) -> bool:
        """Return True if each trial is one fault drawn from its stratum without repetition, also when replayed."""
        return self.header.of_single_faults

    @property
    def margin(self) -> float | None:
        """Half the width of an interval at p = 0.5 that a network-wise sample buys; None for other plans."""
        n, population = len(self), self.strata[0].population
        if not self.of_singles or len(self.strata) > 1 or self.campaign.adaptive is not None:
            return None
        return margin_of_error(n, population, self.campaign.confidence) if n < population else 0.0

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The tensors that its faults may change; of a list those that they do."""
        spaces = [space for space, _, _ in self._parts] or [stratum.space for stratum in self.strata]
        return self.faulty or tuple({t.id: t for space in spaces for t in space.targets}.values())

    def describe(self) -> list[str]:
        """Return population, trials, margin and confidence in words."""
        if self.campaign.adaptive is not None:
            return self._describe_rounds(self.campaign.adaptive)
        design, n, unit = self.campaign.design, len(self), self.header.unit
        text = [f"{_in_words(design, unit)}: n = {n:,} trials"]
        if not isinstance(design, FaultMix):
            population = f"{self.header.population:,} {unit}s"
            text.append(f"population N = {population}, confidence {self.campaign.confidence:g}")
        if self.margin is not None:
            text.append(f"margin at p = 0.5: ±{100 * self.margin:.4g} %")
        match design:
            case SingleFaults(margin=float(margin)) if self.margin is None:
                text.append(f"margin ±{100 * margin:.4g} % in each of {len(self.strata):,} strata")
            case SingleFaults(trials=int(asked)) if n < asked:
                text.append(f"{asked:,} trials were asked for; there are {n:,} sites, each of which has one trial")
        if self.fault_targets.missed:
            text.append(
                f"{self.fault_targets.missed:,} outputs of layers cannot be injected into: "
                f"their shape on this data is not known"
            )
        return text + target_notes(self.model.targets)

    def _describe_rounds(self, design: AdaptiveFaults) -> list[str]:
        """Return what is known before the first round of an adaptive campaign."""
        margin = wanted = f"±{100 * (design.margin or 0):.4g} %"
        if design.relative_margin is not None:
            wanted = f"±{100 * design.relative_margin:.4g} % of it, or {margin} where that is more"
        fixed = self.fixed_size(design)
        size = "" if fixed is None else f"; of fixed size, for {margin} at p = 0.5, it would be {fixed:,}"
        population = f"population N = {self.header.population:,} {self.header.unit}s"
        method = f"{design.method} ({METHOD_NAMES[design.method]})"
        until = f"{design.rate} is known to {wanted}"
        if design.rank != "none":
            until = (
                f"the first {design.top:,} of the {design.rank}s are ranked by {design.rate}, or tie within {margin}"
            )
        return [
            f"one fault per trial, in rounds over {len(self.strata):,} strata, until {until}",
            f"{population}, confidence {self.campaign.confidence:g}, {method}",
            f"at least {self.fewest(design):,} trials{size}",
            *target_notes(self.model.targets),
        ]

    def fewest(self, design: AdaptiveFaults) -> int:
        """Return the trials that an adaptive campaign has at least: as many as where no fault does anything."""
        margin = max(design.margin or 0.0, design.relative_margin or 0.0)
        return min(min_trials(margin, self.campaign.confidence, design.method), self.header.population)

    def fixed_size(self, design: AdaptiveFaults) -> int | None:
        """Return the trials of a sample of fixed size for the same margin at p = 0.5; None of a relative margin."""
        if design.relative_margin:
            return None
        return sample_size(self.header.population, design.margin or 0.0, self.campaign.confidence)

    def trials(self) -> Iterator[PlannedTrial]:
        """Yield the trials in the order of their numbers."""
        if self.listed is not None:
            yield from self._replayed(self.listed)
        elif self.of_singles:
            yield from self._singles()
        else:
            yield from self._drawn()

    def cells(self) -> list[tuple[str, int | None, int]]:
        """Sites by layer and bit position (None: whole words): what the strata and the report's rows are made of."""
        if not self.of_singles:
            return []
        space = self.fault_targets.listed(self.header)
        found: Counter[tuple[str, int | None]] = Counter()
        for target, places, sites in zip(space.targets, space.bit_positions, space.sizes, strict=True):
            for bit in places:
                found[target.layer, None if bit < 0 else bit] += sites // len(places)
        return [(layer, bit, n) for (layer, bit), n in found.items()]

    def layers(self) -> list[tuple[str, int]]:
        """Layers in order of depth, by the first node that uses a target of theirs, with their sites; none of mixes.

        The file stores tensors in an order of its own, so that the order of `cells` says nothing of depth.
        """
        if self._parts or (self.listed is not None and not self.of_singles):
            return []
        space = self.fault_targets.listed(self.header) if self.of_singles else self.strata[0].space
        place: dict[str, int] = {}
        for number, node in enumerate(self.model.index.nodes):
            place.setdefault(node.label, number)
        depth, sites = dict[str, int](), Counter[str]()
        for target, places, chosen in zip(space.targets, space.bit_positions, space.element_counts, strict=True):
            here = place.get(target.node, -1 if target.node == "" else len(place))
            depth[target.layer] = min(here, depth.get(target.layer, here))
            sites[target.layer] += chosen * target.times * len(places)
        return [(layer, sites[layer]) for layer in sorted(depth, key=lambda layer: depth[layer])]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the targets of single faults by id, those of activations in one sample; else nothing."""
        return {t.id: t.axes for t in self.fault_targets.listed(self.header).targets} if self.of_singles else {}

    def _drawn(self) -> Iterator[PlannedTrial]:
        """Trials of many faults: sweeps and mixes."""
        kind, seed, event = self.header.sampler.kind, self.header.sampler.seed, parse_fault(self.header.fault)
        memories = len(self.strata) if kind in CONDITION_SAMPLERS else 0  # trials that share one
        for j in range(max(stratum.trials for stratum in self.strata)):
            for s, stratum in enumerate(self.strata):
                if j >= stratum.trials:
                    continue
                trial = self.header.number(j, s)
                how = Sampler(kind, rate=stratum.ber or 0.0, n=memories, seed=seed)
                faults = self._mixed(trial) if self._parts else draw_faults(stratum.space, how, event, trial)
                ordinals = [self.fault_targets.by_id[t.id] for t in faults.targets]
                placed = self.fault_targets.placed(faults)
                yield _planned(trial, s, placed, _text(trial, placed, how, ordinals))

    @cached_property
    def _parts(self) -> list[tuple[FaultSpace, Sampler, FaultModel]]:
        found = []
        for part in self.campaign.design.mix if isinstance(self.campaign.design, FaultMix) else ():
            event = parse_fault(part.draw.fault)
            how = Sampler(
                "count" if part.ber is None else "ber", part.ber or 0.0, part.count or 0, self.header.sampler.seed
            )
            found.append((self.fault_targets.space(part.draw.selector, part.draw.scope, event), how, event))
        return found

    def _mixed(self, trial: int) -> Faults:
        """All draws of a mixed trial, in the order of its parts, over the model's targets."""
        drawn = []
        for number, (space, how, event) in enumerate(self._parts):
            drawn.append(self.fault_targets.onto(draw_faults(space, how, event, trial, part=number)))
        return concatenate_faults(drawn)

    def _singles(self) -> Iterator[PlannedTrial]:
        """Trials of one event each, planned in blocks."""
        step = max(16, BLOCK // len(self.strata))
        for first in range(0, max(stratum.trials for stratum in self.strata), step):
            rows: list[PlannedTrial] = []
            for s, stratum in enumerate(self.strata):
                j = np.arange(first, min(first + step, stratum.trials), dtype=np.uint64)
                rows += self.nth(s, j) if len(j) else []
            yield from sorted(rows, key=lambda row: row.trial)

    def nth(self, s: int, j: sampling.Numbers) -> Iterator[PlannedTrial]:
        """Yield the trials of these numbers (from 0, [n]) of stratum s, one fault event each."""
        stratum, event, seed = self.strata[s], parse_fault(self.header.fault), self.header.sampler.seed
        # Also an exhaustive plan is in random order: what is done when it is stopped is a fair sample.
        numbers = sampling.permute(stratum.population, seed, s, j)
        trials = (1 + j.astype(np.int64) * len(self.strata) + s).tolist()
        faults, lengths = single_faults(stratum.space, numbers, event, seed, trials)
        start = 0
        if not self.fault_targets.in_activations(faults).any():  # the words of all at once
            faults = self.fault_targets.placed(faults, each=True)
            if len(faults) == len(trials) and len(faults.models) == 1:
                yield from _planned_singles(trials, s, faults)
                return
        for number, trial, length in zip(numbers.tolist(), trials, lengths, strict=True):
            one = faults.pick(slice(start, start + length))
            if one.before is None:
                one = self.fault_targets.placed(one, each=True)
            if event.composite and length > MAX_LINES:
                ordinals = [self.fault_targets.by_id[t.id] for t in one.targets]
                text = event_line(trial, stratum.space[number], one, seed, ordinals)
            else:
                text = _text(trial, one, Sampler("sites"), ())
            yield _planned(trial, s, one, text)
            start += length

    def _replayed(self, listed: FaultList) -> Iterator[PlannedTrial]:
        """Yield the trials of a list, with the words before and after; recipes stay as they are."""
        reader = LineReader(
            listed.header,
            self.fault_targets.targets,
            str(listed.path),
            lambda: self.fault_targets.listed(listed.header),
        )
        for trial, rows in _by_trial(listed):
            [(_, faults)] = reader.trials(rows)
            placed = self.fault_targets.placed(faults)
            for said, held in ((faults.before, placed.before), (faults.after, placed.after)):
                if said is not None and held is not None and not np.array_equal(said, held):
                    raise FaultListError(
                        f"{listed.path}: trial {trial} records other words than the model holds; it was changed by hand"
                    )
            recipe = any("sampler" in json.loads(text) for _, text in rows)
            text = "\n".join(row.strip() for _, row in rows) if recipe else _text(trial, placed, Sampler("sites"), ())
            yield _planned(trial, self.header.place(trial)[1], placed, text)


def _text(trial: int, faults: Faults, how: Sampler, ordinals: list[int] | tuple[int, ...]) -> str:
    """Return the lines of a trial; of one without faults a recipe for none."""
    if len(faults):
        return "\n".join(trial_lines(trial, faults, how, ordinals))
    return no_faults_line(trial, how.seed)


def no_faults_line(trial: int, seed: int = 0) -> str:
    """Return the line of a trial that drew no fault: a recipe for none."""
    row = {"trial": trial, "sampler": _NOTHING.kind, "per": 0, "seed": seed, "n": 0}
    return json.dumps({**row, "sha256": _NO_SITES})


_NO_SITES = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing


def _planned(trial: int, stratum: int, faults: Faults, text: str) -> PlannedTrial:
    layers = {faults.targets[k].layer for k in set(faults.sites.target.tolist())}
    bits = set(faults.sites.bit.tolist())
    return PlannedTrial(
        trial, stratum, len(faults), text,
        layers.pop() if len(layers) == 1 else None,
        bits.pop() if len(bits) == 1 and bits != {-1} else None,
    )  # fmt: skip


def _planned_singles(trials: Sequence[int], stratum: int, faults: Faults) -> Iterator[PlannedTrial]:
    """Yield trials of one fault in a weight each."""
    layers = [target.layer for target in faults.targets]
    sites = zip(faults.sites.target.tolist(), faults.sites.bit.tolist(), strict=True)
    for trial, (ordinal, bit), text in zip(trials, sites, single_lines(trials, faults), strict=True):
        yield PlannedTrial(trial, stratum, 1, text, layers[ordinal], None if bit < 0 else bit)


def _by_trial(listed: FaultList) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """Yield the numbered lines of a list, trial by trial."""
    with listed.path.open(encoding="utf-8") as stream:
        numbered = islice(enumerate(stream, 1), 1, None)
        for trial, rows in groupby(numbered, key=lambda row: json.loads(row[1])["trial"]):
            yield trial, list(rows)


def _in_words(design: Design, unit: str) -> str:
    match design:
        case BerSweep():
            return f"sweep, {design.repeat:,} trials at each of {len(design.rates):,} rates per {unit}"
        case PerSampleSweep():
            return f"sweep, {design.repeat:,} trials at each of {len(design.rates):,} rates per sample"
        case Sweep():
            return f"sweep, {design.repeat:,} memories, each at {len(design.rates):,} {design.key}s"
        case FaultMix():
            return f"{len(design.mix)} draws together in each trial"
        case SingleFaults():
            return f"one fault per trial, drawn per {design.per}"
        case Replay():
            return f"replay of {design.faults}"
    return "one fault per trial, every site once"


def enough(campaign: Campaign, shard: tuple[int, int] | None, workers: int) -> bool:
    """Return True if a campaign has a trial for each worker, as far as known before its model is opened."""
    least = workers * (shard[1] if shard else 1)
    match campaign.design:
        case Sweep() as design:
            return design.repeat * len(design.rates) >= least
        case FaultMix(repeat=n) | SingleFaults(trials=int(n)):
            return n >= least
        case Replay():
            return False
    return True


def make_plan(campaign: Campaign, fault_targets: FaultTargets) -> Plan:
    """Lay out the strata of a campaign on a model; no fault is drawn yet.

    Raises SelectorError for a selection that leaves no site, SpecError for a plan without trials, FaultListError for
    a list of another model.
    """
    made = _made(campaign, fault_targets)
    if campaign.memory.memory_code is not None:
        coded_memory(campaign, fault_targets, made.header)  # refuses words that the code does not cover
    return made


def coded_memory(campaign: Campaign, fault_targets: FaultTargets, header: Header) -> CodedMemory:
    """Return the coded memory of a plan; SpecError if no fault of its list can pass the codes."""
    memory = campaign.memory
    assert memory.memory_code is not None
    assigned = parse_code_assignment(memory.memory_code)
    at_rates = all(stratum["ber"] is not None for stratum in header.strata)
    if not at_rates and not assigned.leaves_single_faults:
        raise SpecError("memory_code needs a list that was drawn at bit error rates, as onnxfi plan --ber writes it")
    targets = fault_targets.listed(header).targets
    return CodedMemory.over(assigned, targets, memory.scrub_interval)


def _made(campaign: Campaign, fault_targets: FaultTargets) -> Plan:
    design = campaign.design
    if isinstance(design, Replay):
        return _replay(campaign, design.faults, fault_targets)
    strata = plan_strata(campaign, fault_targets)
    single = design.sampler == "count"
    rate = design.rates[0] if isinstance(design, Sweep) else 0.0
    how = Sampler(design.sampler, rate, int(single), design.seed)
    draw = FaultDraw() if isinstance(design, FaultMix) else design.draw
    event = parse_fault(draw.fault)
    header = Header(
        fault_targets.model.digest, str(event), draw.selector, how,
        population=sum(stratum.population for stratum in (strata if single else strata[:1])), unit=event.unit,
        file=campaign.model, strata=tuple(one.row() for one in strata),
        added=len(getattr(design, "added", ())), activations=fault_targets.activation_space,
    )  # fmt: skip
    return Plan(campaign, fault_targets, strata, header)


def _replay(campaign: Campaign, faults: str, fault_targets: FaultTargets) -> Plan:
    """Return the plan of a list, in the strata that it was drawn from."""
    listed = FaultList.open(faults)
    header = listed.header
    listed.check_model(fault_targets.model.digest)
    rows = header.strata or ({"label": "list", "layer": None, "bit": None, "ber": None},)
    counts: Counter[int] = Counter()
    faulty: set[int] = set()
    for trial, drawn in listed.trials(fault_targets.targets, lambda: fault_targets.listed(header)):
        fault_targets.by_step(drawn)  # or it has a step that does not exist
        counts[header.place(trial)[1]] += 1
        faulty.update(np.unique(drawn.sites.target).tolist())
    if not counts:
        raise SpecError(f"{faults} holds no trial; there is nothing to run", "faults")
    space = fault_targets.listed(header)
    parts = [space if (s["layer"], s["bit"]) == (None, None) else space.subspace(s["layer"], s["bit"]) for s in rows]
    strata = tuple(PlannedStratum(trials=counts[k], space=parts[k], **row) for k, row in enumerate(rows))
    return Plan(
        campaign, fault_targets, strata, header, listed, tuple(fault_targets.targets[k] for k in sorted(faulty))
    )


def write_plan(made: Plan, out: str | Path, *, progress: OnProgress | None = None) -> None:
    """Write a plan as a fault list file, trial by trial; OutputError if the place cannot be written."""
    if made.campaign.adaptive is not None:
        raise SpecError("an adaptive campaign draws each round by what the one before found; there is no list to write")
    file = Path(out)
    check_output_files(made.model, [file], copy=False)
    with atomic_files([file]) as (stream,):
        stream.write((made.header.line() + "\n").encode())
        for number, planned in enumerate(made.trials(), 1):
            stream.write((planned.lines + "\n").encode())
            if progress is not None:
                progress(number, len(made))
