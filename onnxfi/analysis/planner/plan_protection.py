"""Planning a protection: which parts get which protection or memory code, so that least damage remains in a budget.

A plan is chosen by one half of the recorded trials, and its forecast comes from the other half, run again on the
planned protection: what was chosen because it looked well in the first half is judged by trials that had no say.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxfi.analysis.planner.budget import parse_budget
from onnxfi.analysis.planner.choice import Choice, Offer, choose
from onnxfi.analysis.planner.option_effects import Values, option_effects
from onnxfi.analysis.planner.options import (
    ALARMS,
    DEFAULT_WITH,
    RESOURCES,
    ProtectionOption,
    check_kinds,
    find_options,
    merged,
)
from onnxfi.analysis.planner.recorded_trials import Cell, RecordedTrials
from onnxfi.errors import InputError
from onnxfi.faults.space import Selector
from onnxfi.faults.trials import json_value
from onnxfi.graph.dataflow.macs import layer_macs
from onnxfi.graph.write.output_file import check_output_files
from onnxfi.graph.write.scratch_folder import scratch_folder
from onnxfi.protection.protect import protect
from onnxfi.protection.protection import Setting
from onnxfi.protection.protection_plan import GraphEntry, MemoryEntry, ProtectionPlan, write_protection_plan
from onnxfi.protection.protections import protections as graph_protections
from onnxfi.runtime.data.sources import Data, open_data
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
        What faults are in: weights or activations.
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


def plan_protection(
    store: str | Path,
    budget: str,
    protections: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    rate: str | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    allow_code: bool = False,
) -> PlannedProtection:
    """Plan which parts of a network get which protection, so that least damage remains within a budget.

    Parameters
    ----------
    store : str or Path
        A campaign of single bit faults in weights or activations, by layer or tensor: `onnxfi run --rank layer`, or
        ``--single``.
    budget : str
        What may be spent beside the model: ``bytes=…,macs=…``, each with a unit or as a share of the model's.
    protections : sequence of str
        Protections and memory codes to choose from; by default those that need no calibration data and, with `data`,
        those of ranges.
    data : str or Path, optional
        Calibration data for ranges of activations.
    rate : str, optional
        The rate to reduce; by default the headline of the task, SDC-1 for classification.
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
    recorded = RecordedTrials.read(store, rate, allow_code=allow_code)
    limits = parse_budget(budget, model_resources(recorded))
    kinds = check_kinds(protections or _default_kinds(recorded, data), recorded.kind)
    setting = Setting(recorded.model, Selector(), _calibration(recorded, data), recorded.campaign.engine.open())
    options = tuple(find_options(recorded, kinds, setting))
    if not options:
        raise InputError(f"none of {', '.join(kinds)} can be put into this network; name others with --with")
    with scratch_folder() as folder:
        effects = option_effects(recorded, options, folder, setting.data, workers=workers)
        choice, chosen = _choose(recorded, options, effects, limits)
        parts = tuple(_part(recorded, name, option, effects) for name, option in chosen.items())
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
        after = {one.trial: one.value for one in recorded.trials}
        for option in taken:
            after |= effects[option]
        after |= recorded.rerun(recorded.judging, folder, model=protected, code=plan.memory_code, workers=workers)
    before = {one.trial: one.value for one in recorded.trials}
    unprotected, forecast = (recorded.interval(values, recorded.judging) for values in (before, after))
    costs = tuple(math.fsum(option.costs[k] for option in taken) for k in range(len(RESOURCES)))
    remarks = _remarks(recorded, parts, costs, limits, unprotected, forecast, choice)
    plan = ProtectionPlan(plan.model, plan.graph, plan.memory, remarks)
    if out is not None:
        write_protection_plan(plan, out)
    return PlannedProtection(
        plan, parts, recorded.metric.name, recorded.metric.label, recorded.kind, costs, limits, unprotected, forecast,
        len(recorded.judging), choice, _notes(recorded, data),
    )  # fmt: skip


def model_resources(recorded: RecordedTrials) -> dict[str, float]:
    """Return the bytes of the model's files, and the multiplications of an inference."""
    size = sum(source.size for source in recorded.model.sources)
    return {"bytes": float(size), "macs": float(sum(layer_macs(recorded.model).values()))}


def _default_kinds(recorded: RecordedTrials, data: str | Path | None) -> tuple[str, ...]:
    """Return the protections that are considered where none is named."""
    found = DEFAULT_WITH[recorded.kind]
    words = {t.word for name in recorded.names for t in recorded.targets_of(name)}
    narrow = min((word.bits for word in words), default=0)
    found = tuple(one for one in found if not one.startswith("tmr:top=") or int(one[8:]) < narrow)
    if data is None:
        return tuple(one for one in found if one.partition(":")[0] not in ("range", "nan-filter"))
    return (*found, *(one for one in ("range:clip", "nan-filter") if one not in found))


def _calibration(recorded: RecordedTrials, data: str | Path | None) -> Data | None:
    """Open calibration data in the way of the campaign's own."""
    if data is None:
        return None
    how = recorded.campaign.data
    session = recorded.campaign.engine.open().prepare(recorded.model.path or recorded.model.source.data or b"")
    return open_data(str(data), session.inputs, preprocess=how.preprocess, batch_axis=how.batch_axis)


def _choose(
    recorded: RecordedTrials,
    options: Sequence[ProtectionOption],
    effects: Mapping[ProtectionOption, Values],
    limits: tuple[float, ...],
) -> tuple[Choice, dict[str, ProtectionOption | None]]:
    """Return the best choice, and the option of each part; at most one kind of detector is in it."""
    none = (0.0,) * len(RESOURCES)
    harm = {name: _harm(recorded, name, {}) for name in recorded.names}
    if not sum(harm.values()):
        raise InputError(
            f"no recorded fault damaged an answer, so there is nothing to plan by: let {str(recorded.store)!r} have "
            f"more trials, or name another --rate"
        )
    left = {option: _harm(recorded, option.part, effects[option]) for option in options}
    gaining = [option for option in options if left[option] < harm[option.part]]
    fitting = [o for o in gaining if all(cost <= limit for cost, limit in zip(o.costs, limits, strict=True))]
    if gaining and not fitting:
        least = min(gaining, key=lambda o: max(c / max(b, 1e-9) for c, b in zip(o.costs, limits, strict=True)))
        raise InputError(
            f"the budget fits no protection that helps: the nearest is {least.protection} on {least.part}, which takes "
            f"{least.costs[0]:,.0f} bytes and {least.costs[1]:,.0f} macs; give more, or name others with --with"
        )
    if not gaining:
        raise InputError("no protection reduces the rate on the recorded trials; name others with --with")
    best: tuple[Choice, dict[str, ProtectionOption | None]] | None = None
    detectors = [kind for kind in ALARMS if any(o.protection == kind for o in fitting)] or [""]
    for kind in detectors:
        rows: dict[str, list[ProtectionOption | None]] = {name: [None] for name in recorded.names}
        for option in fitting:
            if option.protection not in ALARMS or option.protection == kind:
                rows[option.part].append(option)
        offers = [
            [Offer(harm[name], none) if o is None else Offer(left[o], o.costs) for o in row]
            for name, row in rows.items()
        ]
        found = choose(offers, limits)
        if best is None or found.remaining < best[0].remaining:
            picked = {name: row[k] for (name, row), k in zip(rows.items(), found.picks, strict=True)}
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


def _part(
    recorded: RecordedTrials,
    name: str,
    option: ProtectionOption | None,
    effects: Mapping[ProtectionOption, Values],
) -> PlannedPart:
    bits = sum(n for cell, n in recorded.sites.items() if recorded.parts[cell] == name)
    before = _harm(recorded, name, {})
    after = before if option is None else _harm(recorded, name, effects[option])
    return PlannedPart(name, bits, option, before, after)


def _remarks(
    recorded: RecordedTrials, parts: Sequence[PlannedPart], costs: Sequence[float], limits: Sequence[float],
    unprotected: Interval, forecast: Interval, choice: Choice,
) -> dict[str, Any]:  # fmt: skip
    """Return what a plan says beside what it protects."""

    def ends(i: Interval) -> dict[str, Any]:
        return {"value": json_value(i.estimate), "low": json_value(i.low), "high": json_value(i.high)}

    return {
        "cost": {name: int(costs[k]) for k, name in enumerate(RESOURCES)},
        "budget": {name: None if math.isinf(limits[k]) else limits[k] for k, name in enumerate(RESOURCES)},
        "forecast": {
            "rate": recorded.metric.name, "faults": recorded.kind, "confidence": recorded.confidence,
            "trials": len(recorded.judging), "unprotected": ends(unprotected), "protected": ends(forecast),
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
