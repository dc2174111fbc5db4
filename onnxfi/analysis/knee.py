"""The knee of a sweep: the bit error rate up to which a network keeps its answers, found by bisection."""

from __future__ import annotations

import math

from onnxfi.campaign.report.findings import Curve

#: Flips in the whole network, on average, at the lowest and at the highest rate.
_LEAST_FLIPS, _MOST_FLIPS = 0.3, 1e4


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


def next_rate(rates: int, curve: Curve) -> int | None:
    """Return the rate to measure next; None once the knee lies between two neighbours.

    >>> next_rate(9, Curve()), next_rate(9, Curve({4: 0.5})), next_rate(9, Curve({4: 0.5, 2: 0.0, 3: 0.2}))
    (4, 1, None)
    """
    low, high = curve.kept, rates if curve.lost is None else curve.lost
    return None if high - low <= 1 else (low + high) // 2
