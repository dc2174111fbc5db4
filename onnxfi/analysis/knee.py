"""The knee of a sweep: the bit error rate up to which a network keeps its answers, found by bisection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxfi.campaign.report.rates import CampaignRates
from onnxfi.tasks.task import Metric

#: Flips in the whole network, on average, at the lowest and at the highest rate.
_LEAST_FLIPS, _MOST_FLIPS = 0.3, 1e4
#: A loss up to which a network counts as keeping its answers: a point.
KEPT = 0.01


def sweep_rates(bits: int) -> tuple[float, ...]:
    """Return the rates 1 and 3 in each decade that flip from a third of a bit to 10,000 bits of so many, rising.

    >>> sweep_rates(3_387_712)[:3], len(sweep_rates(3_387_712))
    ((1e-07, 3e-07, 1e-06), 9)
    """
    low, high = _LEAST_FLIPS / bits, min(_MOST_FLIPS / bits, 0.5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return tuple(rate for k in decades for m in (1, 3) if low * 0.99 <= (rate := float(f"{m}e{k}")) <= high * 1.01) or (
        low,
    )


def measured(found: CampaignRates) -> tuple[Metric, float]:
    """Return the metric of a curve, and its value without faults."""
    metrics = found.golden["metrics"]
    metric = found.task.first(found.task.curves, metrics)
    golden = metrics.get(metric.name, metric.unchanged)
    return metric, 0.0 if golden is None else float(golden)


@dataclass(frozen=True)
class Curve:
    """Losses against the golden run by the number of the rate, as far as they were measured.

    >>> Curve({0: 0.0, 2: 0.3}).around(5)
    {0, 1, 2}
    """

    losses: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, found: CampaignRates) -> Curve:
        """Return the curve of a sweep."""
        metric, golden = measured(found)
        losses = {}
        for place, fold in enumerate(found.by_rate):
            i = fold.estimated(metric.name)
            if i is not None and fold.trials:
                losses[place] = golden - i.estimate if metric.better == "higher" else i.estimate - golden
        return cls(losses)

    @property
    def kept(self) -> int:
        """The highest measured rate at which the network keeps its answers; -1 for none."""
        return max((place for place, loss in self.losses.items() if loss <= KEPT), default=-1)

    @property
    def lost(self) -> int | None:
        """The lowest measured rate above `kept` at which it does not; None if there is none."""
        return min((place for place, loss in self.losses.items() if loss > KEPT and place > self.kept), default=None)

    def around(self, rates: int) -> set[int]:
        """Return the rates from the last that is kept to the second one beyond."""
        first = max(self.kept, 0)
        return set(range(first, min(first + 3, rates)))


def next_rate(rates: int, curve: Curve) -> int | None:
    """Return the rate to measure next; None once the knee lies between two neighbours.

    >>> next_rate(9, Curve()), next_rate(9, Curve({4: 0.5})), next_rate(9, Curve({4: 0.5, 2: 0.0, 3: 0.2}))
    (4, 1, None)
    """
    low, high = curve.kept, rates if curve.lost is None else curve.lost
    return None if high - low <= 1 else (low + high) // 2
