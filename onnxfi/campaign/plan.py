"""The plan: a campaign's trials as fault list lines, all chance spent, before anything runs.

Trials lie in strata: the rates of a sweep, or the layers and bits that a sample is sized for. Trial j of stratum s of S
has the number 1 + j·S + s, so that a longer campaign keeps the numbers, and with them the faults, of a shorter one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.spec import Campaign, SpecError
from onnxfi.errors import FaultListError
from onnxfi.faults import sampling
from onnxfi.faults.faultlist import FaultList, Header, lines
from onnxfi.faults.models import FaultModel, parse_fault
from onnxfi.faults.space import FaultSpace
from onnxfi.faults.statistics import Per, allocate, data_aware_p, margin_of_error
from onnxfi.faults.trials import Draw, Faults, apart, concat, draw, singles
from onnxfi.graph.model import Model
from onnxfi.graph.mutate import Progress, check_place, place, temporary
from onnxfi.graph.reals import with_reals

#: Single faults that are planned together.
_BLOCK = 1 << 14
#: Elements of a tensor that a data-aware plan looks at.
_LOOKED_AT = 1 << 16


@dataclass(frozen=True)
class Group:
    """A stratum of the plan: what it is called, the sites it draws from, how many trials it has.

    `layer` and `bit` say what it is made of (None: all); `ber` is the rate of a sweep.
    """

    label: str
    space: FaultSpace
    trials: int
    layer: str | None = None
    bit: int | None = None
    ber: float | None = None

    @property
    def population(self) -> int:
        """Sites that it draws from."""
        return self.space.size


@dataclass(frozen=True)
class Planned:
    """One trial: its number, its stratum, its lines; layer and bit where it is a single fault."""

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
    model: Model
    groups: tuple[Group, ...]
    header: Header
    listed: FaultList | None = None

    def __len__(self) -> int:
        return sum(group.trials for group in self.groups)

    @property
    def margin(self) -> float | None:
        """Half the width of an interval at p = 0.5 that a network-wise sample buys; None for other plans."""
        c, n, population = self.campaign, len(self), self.header.population
        if c.way != "single" or c.per != "network":
            return None
        return margin_of_error(n, population, c.confidence) if n < population else 0.0

    def describe(self) -> list[str]:
        """What a reader of a paper asks: population, trials, margin, confidence."""
        c, n = self.campaign, len(self)
        what = {
            "ber": f"sweep over {len(c.ber)} rates per {self.header.unit}, {c.repeat} trials each",
            "mix": f"{c.repeat} trials of {len(c.mix)} draws together",
            "single": f"one fault a trial, drawn per {c.per}",
            "exhaustive": "one fault a trial, every site once",
            "faults": f"replay of {c.faults}",
        }[c.way]
        text = [f"{what}: {n:,} trials"]
        population = self.header.population
        if c.way == "single":
            text.append(
                f"population N = {population:,} {self.header.unit}s, sample n = {n:,}, confidence {c.confidence:g}"
            )
            if self.margin is not None:
                text.append(f"margin at p = 0.5: ±{self.margin:.4%}")
            elif c.margin is not None:
                text.append(f"margin ±{c.margin:g} in each of {len(self.groups):,} strata")
        elif c.way != "faults":
            text.append(f"population N = {population:,} {self.header.unit}s")
        return text

    def trials(self) -> Iterator[Planned]:
        """The trials in the order of their numbers; a stream."""
        if self.listed is not None:
            yield from self._replayed(self.listed)
        elif self.campaign.way in ("single", "exhaustive"):
            yield from self._singles()
        else:
            yield from self._drawn()

    def cells(self) -> list[tuple[str, int | None, int]]:
        """Sites by layer and bit position (None: whole words): what the strata and the report's rows are made of."""
        if self.campaign.way in ("ber", "mix", "faults"):
            return []
        space = self.campaign.selector.space(self.model.targets, parse_fault(self.campaign.fault))
        found: dict[tuple[str, int | None], int] = {}
        for target, places, chosen in zip(space.targets, space.positions, space.chosen, strict=True):
            for bit in places:
                key = (target.layer, None if bit < 0 else bit)
                found[key] = found.get(key, 0) + chosen
        return [(layer, bit, n) for (layer, bit), n in found.items()]

    @cached_property
    def _ordinals(self) -> list[list[int]]:
        return [[self.model.by_id[t.id] for t in group.space.targets] for group in self.groups]

    def _drawn(self) -> Iterator[Planned]:
        """Trials of many faults: sweeps and mixes."""
        c, strata = self.campaign, len(self.groups)
        event = parse_fault(c.fault)
        for j in range(c.repeat):
            for s, group in enumerate(self.groups):
                trial = 1 + j * strata + s
                if c.mix:
                    how = Draw("sites", seed=c.seed)
                    faults, ordinals = self._mixed(trial), list(range(len(self.model.targets)))
                else:
                    how = Draw("ber", rate=group.ber or 0.0, seed=c.seed)
                    faults, ordinals = draw(group.space, how, event, trial), self._ordinals[s]
                placed = with_reals(self.model, place(self.model, faults)[0])
                yield Planned(trial, s, len(placed), "\n".join(lines(trial, placed, how, ordinals)))

    @cached_property
    def _parts(self) -> list[tuple[FaultSpace, Draw, FaultModel]]:
        found = []
        for part in self.campaign.mix:
            event = parse_fault(part.fault)
            how = Draw("count" if part.ber is None else "ber", part.ber or 0.0, part.count or 0, self.campaign.seed)
            found.append((part.selector.space(self.model.targets, event), how, event))
        return found

    def _mixed(self, trial: int) -> Faults:
        drawn = []
        for number, (space, how, event) in enumerate(self._parts):
            faults = draw(space, how, event, trial, part=number)
            ordinals = np.array([self.model.by_id[t.id] for t in space.targets], np.int64)
            sites = replace(faults.sites, target=ordinals[faults.sites.target])
            drawn.append(replace(faults, targets=self.model.targets, sites=sites))
        return concat(drawn)

    def _singles(self) -> Iterator[Planned]:
        """Trials of one fault each, planned in blocks."""
        c, strata = self.campaign, len(self.groups)
        event = parse_fault(c.fault)
        most = max((group.trials for group in self.groups), default=0)
        step = max(16, _BLOCK // strata)
        for first in range(0, most, step):
            rows: list[Planned] = []
            for s, group in enumerate(self.groups):
                j = np.arange(first, min(first + step, group.trials), dtype=np.uint64)
                if len(j):
                    numbers = j if c.way == "exhaustive" else sampling.permute(group.population, c.seed, s, j)
                    trials = (1 + j.astype(np.int64) * strata + s).tolist()
                    faults, lengths = singles(group.space, numbers, event, c.seed, trials)
                    struck = with_reals(self.model, apart(faults, self.model.stored(faults)))
                    rows += self._single_rows(struck, list(zip(trials, lengths, strict=True)), s)
            yield from sorted(rows, key=lambda row: row.trial)

    def _single_rows(self, faults: Faults, trials: Sequence[tuple[int, int]], stratum: int) -> Iterator[Planned]:
        first = 0
        for trial, length in trials:
            fault = faults.pick(slice(first, first + length))
            first += length
            target, bit = faults.targets[int(fault.sites.target[0])], int(fault.sites.bit[0])
            text = "\n".join(lines(trial, fault, Draw("sites"), ()))
            yield Planned(trial, stratum, length, text, target.layer, None if bit < 0 else bit)

    def _replayed(self, listed: FaultList) -> Iterator[Planned]:
        before = 0
        for trial, faults in listed.trials(self.model.targets):
            if trial <= before:
                raise FaultListError(f"{listed.path}: trial {trial} comes after trial {before}; the list is damaged")
            before = trial
            placed = with_reals(self.model, place(self.model, faults)[0])
            text = "\n".join(lines(trial, placed, listed.header.draw, range(len(self.model.targets))))
            layer = bit = None
            if len(placed) == 1:
                at = int(placed.sites.bit[0])
                layer, bit = self.model.targets[int(placed.sites.target[0])].layer, None if at < 0 else at
            yield Planned(trial, (trial - 1) % len(self.groups), len(placed), text, layer, bit)


def make_plan(campaign: Campaign, model: Model) -> Plan:
    """Lay out the strata of a campaign on a model; nothing is drawn yet.

    Raises SelectorError for a selection that leaves no site, SpecError for a plan without trials, FaultListError for
    a list of another model.
    """
    if campaign.faults is not None:
        listed = FaultList.open(campaign.faults)
        listed.bind(model.digest)
        strata = listed.header.strata or ({"label": "list", "layer": None, "bit": None, "ber": None},)
        counts = Counter((trial - 1) % len(strata) for trial, _ in listed.trials(model.targets))
        if not counts:
            raise SpecError(f"{campaign.faults} holds no trial; there is nothing to run")
        space = listed.header.selector.space(model.targets, parse_fault(listed.header.fault))
        listed_groups = tuple(
            Group(s["label"], space, counts[k], s["layer"], s["bit"], s["ber"]) for k, s in enumerate(strata)
        )
        return Plan(campaign, model, listed_groups, listed.header, listed)
    event = parse_fault(campaign.fault)
    if campaign.mix:
        groups: tuple[Group, ...] = (Group("mix", _union(campaign, model), campaign.repeat),)
        space = groups[0].space
    else:
        space = campaign.selector.space(model.targets, event)
        groups = _groups(campaign, model, space, event)
    how = Draw("ber", rate=campaign.ber[0], seed=campaign.seed) if campaign.ber else Draw("sites", seed=campaign.seed)
    header = Header(
        model.digest, str(event), campaign.selector, how, population=space.size, unit=event.unit,
        file=campaign.model,
        strata=tuple({"label": g.label, "layer": g.layer, "bit": g.bit, "ber": g.ber} for g in groups),
    )  # fmt: skip
    plan = Plan(campaign, model, groups, header)
    if not len(plan):
        raise SpecError("the plan is empty: no stratum has a trial; ask for more trials or a smaller margin")
    return plan


def _union(campaign: Campaign, model: Model) -> FaultSpace:
    """The sites of the first part stand for a mix's population; each part is checked."""
    spaces = [part.selector.space(model.targets, parse_fault(part.fault)) for part in campaign.mix]
    return spaces[0]


def _groups(campaign: Campaign, model: Model, space: FaultSpace, event: FaultModel) -> tuple[Group, ...]:
    if campaign.way == "ber":
        return tuple(Group(f"{rate:g}", space, campaign.repeat, ber=rate) for rate in campaign.ber)
    if campaign.way == "exhaustive":
        return (Group("all", space, space.size),)
    if campaign.trials is not None:
        return (Group("all", space, min(campaign.trials, space.size)),)
    assert campaign.margin is not None
    if campaign.per == "network":
        spots: list[tuple[str, FaultSpace, str | None, int | None]] = [("all", space, None, None)]
    elif campaign.per == "layer":
        spots = [(layer, space.part(layer), layer, None) for layer in space.layers()]
    else:
        if event.unit != "bit":
            raise SpecError(f"per {campaign.per!r} goes by bits, but {event} strikes whole words; use per layer")
        spots = [
            (f"{layer} bit {bit}", part, layer, bit)
            for layer in space.layers()
            for bit in sorted(
                {
                    b
                    for t, places in zip(space.targets, space.positions, strict=True)
                    for b in places
                    if t.layer == layer
                }
            )
            if (part := space.part(layer, bit)).size
        ]
    p: float | list[float] = 0.5
    if campaign.per == "data-aware":
        by_bit = _expected_rates(model, space, event)
        p = [by_bit[bit or 0] for _, _, _, bit in spots]
    sizes = allocate(
        [part.size for _, part, _, _ in spots], campaign.margin, campaign.confidence, per=cast(Per, campaign.per), p=p
    )
    return tuple(Group(label, part, n, layer, bit) for (label, part, layer, bit), n in zip(spots, sizes, strict=True))


def _expected_rates(model: Model, space: FaultSpace, event: FaultModel) -> dict[int, float]:
    """How likely an event at each bit position is to be seen, guessed from how far it moves the stored numbers.

    Mean |faulty − golden| by position over the selected weights; of a large tensor evenly spread elements are read.
    """
    sums: dict[int, list[NDArray[np.float64]]] = {}
    for target, places in zip(space.targets, space.positions, strict=True):
        index = np.unique(np.linspace(0, target.size - 1, min(target.size, _LOOKED_AT)).astype(np.int64))
        words = model.words(target, index)
        old = target.word.values(words).astype(np.float64)
        for bit in places:
            with np.errstate(all="ignore"):
                struck = event.strike(target.word, words, np.full(len(words), bit, np.int16))
                sums.setdefault(bit, []).append(np.abs(target.word.values(struck).astype(np.float64) - old))
    bits = sorted(sums)
    with np.errstate(all="ignore"):
        rates = data_aware_p([float(np.concatenate(sums[bit]).mean()) for bit in bits])
    return dict(zip(bits, rates.tolist(), strict=True))


def write_plan(made: Plan, out: str | Path, *, progress: Progress | None = None) -> None:
    """Write a plan as a fault list file, trial by trial; OutputError where the place cannot be written."""
    place_ = Path(out)
    check_place(made.model, [place_])
    with temporary([place_]) as (stream,):
        stream.write((made.header.line() + "\n").encode())
        for number, planned in enumerate(made.trials(), 1):
            if planned.lines:
                stream.write((planned.lines + "\n").encode())
            if progress is not None:
                progress(number, len(made))
