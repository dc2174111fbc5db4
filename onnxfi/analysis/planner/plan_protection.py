"""Planning a protection: which parts get which protection or memory code, so that least damage remains in a budget.

A plan is chosen by one half of the recorded trials, and its forecast comes from the other half, run again on the
planned protection: what was chosen because it looked well in the first half is judged by trials that had no say. With a
store for weights and one for activations both share the budget, and count by the bits that each has in memory.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxfi.analysis.exposure import resident_shares
from onnxfi.analysis.planner.choice import Choice, Offer, choose
from onnxfi.analysis.planner.option_effects import Values, option_effects
from onnxfi.analysis.planner.options import (
    ALARMS,
    DEFAULT_WITH,
    RESOURCES,
    ProtectionOption,
    check_kinds,
    find_options,
    is_for,
    merged,
    parse_budget,
)
from onnxfi.analysis.planner.recorded_trials import Cell, RecordedTrials
from onnxfi.campaign.report.rates import ends_row
from onnxfi.errors import InputError, closest
from onnxfi.faults.space import NamePattern, Selector
from onnxfi.graph.dataflow.macs import layer_macs
from onnxfi.graph.write.output_file import check_output_files
from onnxfi.graph.write.scratch_folder import scratch_folder
from onnxfi.protection.protect import protect
from onnxfi.protection.protection import Setting
from onnxfi.protection.protection_plan import GraphEntry, MemoryEntry, ProtectionPlan, write_protection_plan
from onnxfi.protection.protections import protections as graph_protections
from onnxfi.runtime.data.open_data import Data, open_data
from onnxfi.statistics.intervals import Interval


@dataclass(frozen=True)
class PlannedPart:
    """A part of the network, the protection that it gets (None: none), and the harm of one fault anywhere due to it.

    `before` and `after` are shares of the rate over all faults, estimated from the choosing half.
    """

    part: str
    bits: int
    protection: ProtectionOption | None
    before: float
    after: float

    def document(self) -> dict[str, Any]:
        """Return the part as plain values."""
        option = self.protection
        return {
            "layer": self.part, "bits": self.bits, "protection": None if option is None else option.protection,
            **{name: 0 if option is None else int(option.costs[k]) for k, name in enumerate(RESOURCES)},
            "rate_before": float(f"{self.before:.4g}"), "rate_after": float(f"{self.after:.4g}"),
        }  # fmt: skip


@dataclass(frozen=True)
class PlannedProtection:
    """A plan with its cost, and the forecast of the rate that remains.

    Attributes
    ----------
    plan : ProtectionPlan
        The plan, as its file holds it.
    parts : tuple of PlannedPart
        Every part of the network with its protection.
    rate, label : str
        The rate that is reduced, and its name for people.
    kind : str
        What faults are in: weights, activations, or both.
    costs, budget : tuple of float
        Bytes and operations that it takes, and that it might take.
    unprotected, forecast : Interval
        The rate of one fault without the plan and with it, from trials that the plan was not chosen by.
    trials : int
        Those trials.
    choice : Choice
        The chosen options, and the bound of any choice.
    notes : tuple of str
        Remarks for people.

    Examples
    --------
    >>> import dataclasses
    >>> [field.name for field in dataclasses.fields(PlannedProtection)][:4]
    ['plan', 'parts', 'rate', 'label']
    """

    plan: ProtectionPlan
    parts: tuple[PlannedPart, ...]
    rate: str
    label: str
    kind: str
    costs: tuple[float, ...]
    budget: tuple[float, ...]
    unprotected: Interval
    forecast: Interval
    trials: int
    choice: Choice
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the plan as plain values for JSON."""
        return {**self.plan.document(), "exact": self.choice.exact, "notes": list(self.notes)}


@dataclass(frozen=True)
class _Side:
    """Trials in weights or in activations: their share in the rate to reduce, the options, and what those do."""

    recorded: RecordedTrials
    share: float
    options: tuple[ProtectionOption, ...]
    effects: Mapping[ProtectionOption, Values]

    def name(self, part: str) -> str:
        """Return what a part is called in a plan."""
        return part if self.share == 1 else f"{part} ({self.recorded.kind})"

    def harm(self, part: str, option: ProtectionOption | None = None) -> float:
        """Return the share of a part in the rate to reduce, under an option."""
        return self.share * _harm(self.recorded, part, {} if option is None else self.effects[option])


#: A part of one of the sides.
_Place = tuple[int, str]


def plan_protection(
    stores: str | Path | Sequence[str | Path],
    budget: str,
    protections: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    rate: str | None = None,
    exclude: Sequence[str] = (),
    out: str | Path | None = None,
    workers: int = 0,
    allow_code: bool = False,
) -> PlannedProtection:
    """Plan which parts of a network get which protection, so that least damage remains within a budget.

    Parameters
    ----------
    stores : path or sequence of paths
        Campaigns of single bit faults in weights or in activations, by layer or tensor (`onnxfi run --rank layer`, or
        ``--single``): one of either kind, or one of each for a joint plan.
    budget : str
        What may be spent beside the model: ``bytes=…,macs=…``, each with a unit or as a share of the model's.
    protections : sequence of str
        Protections and memory codes to choose from; by default those that need no calibration data and, with `data`,
        those of ranges.
    data : str or Path, optional
        Calibration data for ranges of activations.
    rate : str, optional
        The rate to reduce; by default the headline of the task, SDC-1 for classification.
    exclude : sequence of str
        Patterns of layers that get no protection, as quantisers that cannot be changed.
    out : str or Path, optional
        The file of the plan.
    workers : int
        Processes that run trials, as in `run`.
    allow_code : bool
        Let the campaign of the store run code that it names.

    Returns
    -------
    PlannedProtection
        The plan, its cost and its forecast.

    Raises
    ------
    InputError
        For a budget that nothing fits, an unknown unit or protection, and a store without trials by layer.

    Examples
    --------
    >>> import tempfile
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     campaign = Campaign(
    ...         "models/fashion_cnn.onnx", "models/fashion_test.npz", samples=20, single=True, trials=120, bits="30")
    ...     results = list(run(campaign, folder + "/store.db"))
    ...     found = plan_protection(folder + "/store.db", "bytes=1%", ["mset", "secded"])
    >>> found.costs[0] <= 4277, found.forecast.estimate <= found.unprotected.estimate
    (True, True)
    """
    if out is not None:
        check_output_files(None, [Path(out)], copy=False)
    files = [stores] if isinstance(stores, str | Path) else list(stores)
    read = tuple(RecordedTrials.read(file, rate, allow_code=allow_code) for file in files)
    recorded = _first(read)
    limits = parse_budget(budget, model_resources(recorded))
    left_out = _excluded(read, exclude)
    setting = Setting(recorded.model, Selector(), _calibration(recorded, data), recorded.campaign.engine.open())
    with scratch_folder() as folder:
        sides = tuple(_sides(read, protections, setting, left_out, data is not None, folder, workers))
        choice, chosen = _choose(sides, limits)
        parts = tuple(_part(sides[k], name, option) for (k, name), option in chosen.items())
        taken = [option for option in chosen.values() if option is not None]
        entries = merged(taken)
        plan = ProtectionPlan(
            recorded.model.digest,
            tuple(GraphEntry(text, names) for text, memory, names in entries if not memory),
            tuple(MemoryEntry(text, names) for text, memory, names in entries if memory),
        )
        protected = None
        if plan.graph:
            protected = folder / "planned.onnx"
            protect(recorded.model, (), protected, data=setting.data, plan=plan)
        ends = []
        for k, side in enumerate(sides):
            one = side.recorded
            before = {trial.trial: trial.value for trial in one.trials}
            after = dict(before)
            for (at, _), option in chosen.items():
                after |= side.effects[option] if at == k and option is not None else {}
            code = plan.memory_code if one.kind == "weights" else None
            after |= one.rerun(one.judging, folder, model=protected, code=code, workers=workers)
            ends.append(tuple(one.interval(values, one.judging) for values in (before, after)))
    unprotected, forecast = (_joint(sides, intervals) for intervals in zip(*ends, strict=True))
    costs = tuple(math.fsum(option.costs[k] for option in dict.fromkeys(taken)) for k in range(len(RESOURCES)))
    kind, trials = " and ".join(one.kind for one in read), sum(len(one.judging) for one in read)
    remarks = _remarks(recorded.metric.name, kind, trials, parts, costs, limits, unprotected, forecast, choice)
    plan = ProtectionPlan(plan.model, plan.graph, plan.memory, remarks)
    if out is not None:
        write_protection_plan(plan, out)
    return PlannedProtection(
        plan, parts, recorded.metric.name, recorded.metric.label, kind, costs, limits, unprotected, forecast,
        trials, choice, tuple(dict.fromkeys(note for one in read for note in _notes(one, data))),
    )  # fmt: skip


def _first(read: Sequence[RecordedTrials]) -> RecordedTrials:
    """Return the first of the stores; InputError for stores that make no joint plan."""
    first, *others = read
    for other in others:
        if other.model.digest != first.model.digest:
            raise InputError("the stores are of different models; give stores of one network")
        if other.kind == first.kind:
            raise InputError(f"two stores have faults in {first.kind}; give one store for weights, one for activations")
        if other.metric.name != first.metric.name:
            raise InputError(
                f"the stores are judged by {first.metric.name} and {other.metric.name}; name one for both with --rate"
            )
    return first


def _sides(
    read: Sequence[RecordedTrials], protections: Sequence[str], setting: Setting, left_out: set[str], calibrated: bool,
    folder: Path, workers: int,
) -> Iterator[_Side]:  # fmt: skip
    """Yield the trials of each kind with their options, tried out on the choosing half."""
    exposed = [_exposed(one) if len(read) > 1 else 1.0 for one in read]
    found = 0
    for one, weight in zip(read, exposed, strict=True):
        named = [text for text in protections if len(read) == 1 or is_for(text, one.kind)]
        kinds = check_kinds(named, one.kind) if protections else _default_kinds(one, calibrated)
        options = tuple(o for o in find_options(one, kinds, setting) if o.part not in left_out)
        found += len(options)
        effects = option_effects(one, options, folder, setting.data, workers=workers)
        yield _Side(one, weight / math.fsum(exposed), options, effects)
    if not found:
        names = ", ".join(protections) or "the protections that need no calibration data"
        raise InputError(f"none of {names} can be put into this network; name others with --with")


def _excluded(read: Sequence[RecordedTrials], patterns: Sequence[str]) -> set[str]:
    """Return the parts that patterns exclude; InputError for a pattern that matches none."""
    found: set[str] = set()
    for text in patterns:
        pattern = NamePattern(text)
        parts = {name for one in read for name in one.names if pattern.matches([name])}
        if not parts:
            names = list(dict.fromkeys(name for one in read for name in one.names))
            raise InputError(f"exclude {text!r} matches no layer{closest(text, names)}")
        found |= parts
    return found


def _exposed(one: RecordedTrials) -> float:
    """Return the bits that faults are drawn from, those of activations by their share of time in memory."""
    shares = resident_shares(one.model) if one.kind == "activations" else {}
    space = one.targets.listed(one.header)
    rows = zip(space.targets, space.bit_positions, space.element_counts, strict=True)
    return math.fsum(n * len(bits) * shares.get(target.layer, 1.0) for target, bits, n in rows)


def _joint(sides: Sequence[_Side], intervals: Sequence[Interval]) -> Interval:
    """Return the rate over all sides from that of each; the ends hold together."""
    if len(sides) == 1:
        return intervals[0]
    low, middle, high = (
        math.fsum(side.share * getattr(i, end) for side, i in zip(sides, intervals, strict=True))
        for end in ("low", "estimate", "high")
    )
    return Interval(low, high, middle, intervals[0].method, 1 - math.fsum(1 - i.confidence for i in intervals))


def model_resources(recorded: RecordedTrials) -> dict[str, float]:
    """Return the bytes of the model's files, and the multiplications of an inference."""
    size = sum(source.size for source in recorded.model.sources)
    return {"bytes": float(size), "macs": float(sum(layer_macs(recorded.model).values()))}


def _default_kinds(recorded: RecordedTrials, calibrated: bool) -> tuple[str, ...]:
    """Return the protections that are considered where none is named."""
    found = DEFAULT_WITH[recorded.kind]
    words = {t.word for name in recorded.names for t in recorded.targets_of(name)}
    narrow = min((word.bits for word in words), default=0)
    found = tuple(one for one in found if not one.startswith("tmr:top=") or int(one[8:]) < narrow)
    if not calibrated:
        return tuple(one for one in found if one.partition(":")[0] not in ("range", "nan-filter"))
    return (*found, *(one for one in ("range:clip", "nan-filter") if one not in found))


def _calibration(recorded: RecordedTrials, data: str | Path | None) -> Data | None:
    """Open calibration data in the way of the campaign's own."""
    if data is None:
        return None
    how = recorded.campaign.data
    session = recorded.campaign.engine.open().prepare(recorded.model.stored_form)
    return open_data(str(data), session.inputs, preprocess=how.preprocess, batch_axis=how.batch_axis)


def _choose(sides: Sequence[_Side], limits: tuple[float, ...]) -> tuple[Choice, dict[_Place, ProtectionOption | None]]:
    """Return the best choice, and the option of each part; at most one kind of detector is in it."""
    none = (0.0,) * len(RESOURCES)
    harm = {(k, name): side.harm(name) for k, side in enumerate(sides) for name in side.recorded.names}
    if not sum(harm.values()):
        store = " and ".join(repr(str(side.recorded.store)) for side in sides)
        raise InputError(
            f"no recorded fault damaged an answer, so there is nothing to plan by: let {store} have "
            f"more trials, or name another --rate"
        )
    left = {(k, o): side.harm(o.part, o) for k, side in enumerate(sides) for o in side.options}
    gaining = [(k, o) for (k, o), rest in left.items() if rest < harm[k, o.part]]
    fitting = [(k, o) for k, o in gaining if all(cost <= most for cost, most in zip(o.costs, limits, strict=True))]
    if gaining and not fitting:
        tried = [option for _, option in gaining]
        least = min(tried, key=lambda o: max(c / max(b, 1e-9) for c, b in zip(o.costs, limits, strict=True)))
        raise InputError(
            f"the budget fits no protection that helps: the nearest is {least.protection} on {least.part}, which takes "
            f"{least.costs[0]:,.0f} bytes and {least.costs[1]:,.0f} macs; give more, or name others with --with"
        )
    if not gaining:
        raise InputError("no protection reduces the rate on the recorded trials; name others with --with")
    best: tuple[Choice, dict[_Place, ProtectionOption | None]] | None = None
    detectors = [kind for kind in ALARMS if any(o.protection == kind for _, o in fitting)] or [""]
    for kind in detectors:
        rows: dict[_Place, list[ProtectionOption | None]] = {place: [None] for place in harm}
        for k, option in fitting:
            if option.protection not in ALARMS or option.protection == kind:
                rows[k, option.part].append(option)
        offers = [
            [Offer(harm[place], none) if o is None else Offer(left[place[0], o], o.costs) for o in row]
            for place, row in rows.items()
        ]
        found = choose(offers, limits)
        if best is None or found.remaining < best[0].remaining:
            picked = {place: row[k] for (place, row), k in zip(rows.items(), found.picks, strict=True)}
            best = found, picked
    assert best is not None
    return best


def _harm(recorded: RecordedTrials, part: str, changed: Values) -> float:
    """Return the share of a part in the rate over all faults, by the choosing half with some values changed."""
    whole, found = sum(recorded.sites.values()), defaultdict[Cell, list[float]](list)
    for one in recorded.choosing:
        if one.part == part:
            found[one.cell].append(changed.get(one.trial, one.value))
    return math.fsum(recorded.sites[cell] / whole * math.fsum(row) / len(row) for cell, row in found.items())


def _part(side: _Side, name: str, option: ProtectionOption | None) -> PlannedPart:
    recorded = side.recorded
    bits = sum(n for cell, n in recorded.sites.items() if recorded.parts[cell] == name)
    return PlannedPart(side.name(name), bits, option, side.harm(name), side.harm(name, option))


def _remarks(
    rate: str, kind: str, trials: int, parts: Sequence[PlannedPart], costs: Sequence[float], limits: Sequence[float],
    unprotected: Interval, forecast: Interval, choice: Choice,
) -> dict[str, Any]:  # fmt: skip
    """Return what a plan says beside what it protects."""
    return {
        "cost": {name: int(costs[k]) for k, name in enumerate(RESOURCES)},
        "budget": {name: None if math.isinf(limits[k]) else limits[k] for k, name in enumerate(RESOURCES)},
        "forecast": {
            "rate": rate, "faults": kind, "confidence": forecast.confidence, "trials": trials,
            "unprotected": ends_row(unprotected), "protected": ends_row(forecast),
            "choosing": {"remaining": choice.remaining, "bound": choice.bound, "exact": choice.exact},
        },
        "layers": [part.document() for part in parts],
    }  # fmt: skip


def _notes(recorded: RecordedTrials, data: str | Path | None) -> tuple[str, ...]:
    """Return remarks on what was not considered."""
    known = [name for name in graph_protections() if name.startswith("range:")]
    if data is None and known and recorded.kind == "activations":
        return ("ranges of activations were left out: they need calibration data, --data",)
    return ()
