"""The sweep that a store holds: rates that a campaign adds to it, and those of it that are asked for again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from onnxfi.campaign.plan.plan import Plan
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import BerSweep, PerSampleSweep


@dataclass(frozen=True)
class StoredSweep:
    """The rates of a store in the order of their strata, how many came later, and the trials planned for each."""

    rates: tuple[float, ...]
    added: tuple[float, ...]
    lengths: tuple[int, ...]

    @classmethod
    def read(cls, file: Path, campaign: Campaign) -> StoredSweep | None:
        """Return the sweep of a store, if it holds one of the kind that the campaign is, with other rates."""
        design = campaign.design
        if not isinstance(design, BerSweep | PerSampleSweep):
            return None
        with Store.open(file) as opened:
            identity, strata = opened.get("identity"), opened.strata()
        if not identity or identity.get("design") != design.key:
            return None
        rates = tuple(row["ber"] for row in strata)
        if set(rates) == set(design.rates) and (not identity.get("added") or design.added):
            return None
        return cls(rates, tuple(identity.get("added", ())), tuple(row["trials"] for row in strata))

    def joined(self, campaign: Campaign) -> Campaign:
        """Return the campaign with the rates of both, its own new ones behind those of the store."""
        design = campaign.design
        assert isinstance(design, BerSweep | PerSampleSweep)
        new = tuple(rate for rate in design.rates if rate not in self.rates)
        return campaign.with_fields(**{design.key: tuple(sorted((*self.rates, *new))), "added": (*self.added, *new)})

    def asked(self, campaign: Campaign, strata: Collection[int] | None) -> tuple[int, ...]:
        """Return the strata, of the joined campaign, of the rates that a campaign names."""
        design = campaign.design
        assert isinstance(design, BerSweep | PerSampleSweep)
        named = [rate for k, rate in enumerate(design.rates) if strata is None or k in strata]
        order = (*self.rates, *(rate for rate in design.rates if rate not in self.rates))
        return tuple(k for k, rate in enumerate(order) if rate in named)

    def with_lengths(self, plan: Plan, asked: Collection[int] | None) -> Plan:
        """Return the plan with no more trials of the rates that are not asked for than the store has planned."""
        strata = tuple(
            replace(one, trials=self.lengths[k]) if k < len(self.lengths) and k not in (asked or ()) else one
            for k, one in enumerate(plan.strata)
        )
        return replace(plan, strata=strata)


def extended(
    file: Path, campaign: Campaign, strata: Collection[int] | None, *, fresh: bool
) -> tuple[Campaign, Collection[int] | None, Callable[[Plan], Plan]]:
    """Return a campaign with the rates of its store, the strata that are asked for, and the lengths as a function."""
    held = None if fresh or not file.is_file() else StoredSweep.read(file, campaign)
    if held is None:
        return campaign, strata, lambda plan: plan
    asked = held.asked(campaign, strata)
    return held.joined(campaign), asked, lambda plan: held.with_lengths(plan, asked)
