"""The sweep that a store holds: rates that a campaign adds to it, and those of it that are asked for again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxfi.campaign.plan.plan import Plan
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import BerSweep, PerSampleSweep


def extended(
    file: Path, campaign: Campaign, strata: Collection[int] | None, *, fresh: bool
) -> tuple[Campaign, Collection[int] | None, Callable[[Plan], Plan]]:
    """Return a campaign with the rates of its store, the strata that are asked for, and the lengths as a function.

    Its own new rates come behind those of the store. Of rates that are not asked for the plan has no more trials than
    the store has planned.
    """
    design, identity = campaign.design, dict[str, Any]()
    if isinstance(design, BerSweep | PerSampleSweep) and not fresh and file.is_file():
        with Store.open(file) as opened:
            identity, held = opened.get("identity") or {}, opened.strata()
    if not isinstance(design, BerSweep | PerSampleSweep) or identity.get("design") != design.key:
        return campaign, strata, lambda plan: plan
    rates = [row["ber"] for row in held]
    if set(rates) == set(design.rates) and (not identity.get("added") or design.added):
        return campaign, strata, lambda plan: plan
    new = [rate for rate in design.rates if rate not in rates]
    named = [rate for k, rate in enumerate(design.rates) if strata is None or k in strata]
    asked = tuple(k for k, rate in enumerate((*rates, *new)) if rate in named)
    lengths = {k: row["trials"] for k, row in enumerate(held) if k not in asked}

    def with_lengths(plan: Plan) -> Plan:
        kept = (replace(one, trials=lengths.get(k, one.trials)) for k, one in enumerate(plan.strata))
        return replace(plan, strata=tuple(kept))

    added = (*identity.get("added", ()), *new)
    joined = campaign.with_fields(**{design.key: tuple(sorted((*rates, *new))), "added": added})
    return joined, asked, with_lengths
