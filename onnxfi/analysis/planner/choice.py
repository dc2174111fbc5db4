"""Choice of one option a part so that what remains is least within a budget: a multiple-choice knapsack.

Up to `MOST_EXACT` options the choice is exact (branch and bound by HiGHS). Beyond it the choice is greedy, by what an
option gains for its share of the budget, and the linear relaxation bounds how much better any choice could be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Options up to which the choice is exact.
MOST_EXACT = 2000
#: Seconds after which the exact choice is given up.
_MOST_S = 60.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Offer:
    """An option of a part: what of its harm remains, and what it costs of each resource of the budget."""

    remaining: float
    costs: tuple[float, ...]


@dataclass(frozen=True)
class Choice:
    """The number of the chosen offer of each part, what remains in all, and the least that any choice could reach.

    `exact` is true where no choice is better; then `bound` is `remaining`.
    """

    picks: tuple[int, ...]
    remaining: float
    bound: float
    exact: bool


def choose(parts: Sequence[Sequence[Offer]], budget: Sequence[float], *, most_exact: int = MOST_EXACT) -> Choice:
    """Return the choice of one offer a part that leaves least within the budget.

    Parameters
    ----------
    parts : sequence of sequences of Offer
        The offers of each part; the first is to do nothing, and costs nothing.
    budget : sequence of float
        What may be spent of each resource; infinite where it is not limited.
    most_exact : int
        Options up to which the choice is exact.

    Returns
    -------
    Choice
        The offers. Where two leave the same, the cheaper one.

    Examples
    --------
    >>> nothing = Offer(1.0, (0.0,))
    >>> found = choose([[nothing, Offer(0.2, (6.0,))], [nothing, Offer(0.5, (5.0,)), Offer(0.4, (7.0,))]], [11.0])
    >>> found.picks, round(found.remaining, 3), found.exact
    ((1, 1), 0.7, True)
    """
    count = sum(map(len, parts))
    picks = None
    if count <= most_exact:
        picks = _exact(parts, budget)
    exact = picks is not None
    if picks is None:
        picks = _greedy(parts, budget)
    picks = _cheapest(parts, picks)
    remaining = sum(offers[k].remaining for offers, k in zip(parts, picks, strict=True))
    relaxed = None if exact else _solved(parts, budget, whole=False)
    bound = remaining if exact else min(remaining, 0.0 if relaxed is None else relaxed[1])
    return Choice(tuple(picks), remaining, bound, exact)


def _solved(parts: Sequence[Sequence[Offer]], budget: Sequence[float], *, whole: bool) -> tuple[Floats, float] | None:
    """Return the shares of the offers that leave least, and what remains; None if they were not found in time.

    One offer a part is taken within the budget: `whole` ones, or parts of several, which no choice can better.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    offers = [offer for row in parts for offer in row]
    value = np.array([offer.remaining for offer in offers])
    scale = max(float(np.abs(value).max(initial=0.0)), 1e-300)
    of_part = np.repeat(np.arange(len(parts)), [len(row) for row in parts])
    once = csr_array((np.ones(len(offers)), (of_part, np.arange(len(offers)))), shape=(len(parts), len(offers)))
    rules = [LinearConstraint(once, 1, 1)]
    for k, limit in enumerate(budget):
        if np.isfinite(limit):
            unit = max(limit, 1.0)
            spent = np.array([[offer.costs[k] / unit for offer in offers]])
            rules.append(LinearConstraint(spent, -np.inf, limit / unit))
    options = {"mip_rel_gap": 0.0, "time_limit": _MOST_S}
    kinds = np.full(len(offers), int(whole))
    found = milp(value / scale, constraints=rules, integrality=kinds, bounds=Bounds(0, 1), options=options)
    return None if found.status != 0 or found.x is None else (found.x, float(found.fun * scale))


def _exact(parts: Sequence[Sequence[Offer]], budget: Sequence[float]) -> list[int] | None:
    """Return the best choice; None if it was not found in time."""
    found = _solved(parts, budget, whole=True)
    if found is None:
        return None
    ends = np.cumsum([len(row) for row in parts])[:-1]
    picks = [int(np.argmax(shares)) for shares in np.split(found[0], ends)]
    return picks if _fits(parts, picks, budget) else None


def _greedy(parts: Sequence[Sequence[Offer]], budget: Sequence[float]) -> list[int]:
    """Take again and again the change that gains most for its share of the budget, while one fits."""
    starts = np.cumsum([0, *(len(row) for row in parts)])[:-1]
    of_part = np.repeat(np.arange(len(parts)), [len(row) for row in parts])
    remaining = np.array([offer.remaining for row in parts for offer in row])
    costs = np.array([offer.costs for row in parts for offer in row])
    limits = np.array(budget, np.float64)
    now, left = starts.copy(), limits.copy()
    while True:
        gain, more = remaining[now][of_part] - remaining, costs - costs[now][of_part]
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(np.isfinite(limits), more / np.maximum(limits, 1e-300), 0.0).max(axis=1, initial=0.0)
        worth = np.where((gain > 0) & (more <= left).all(axis=1), gain / np.maximum(shares, 1e-9), 0.0)
        best = int(np.argmax(worth))
        if worth[best] <= 0:
            return [int(k) for k in now - starts]
        left -= more[best]
        now[of_part[best]] = best


def _cheapest(parts: Sequence[Sequence[Offer]], picks: Sequence[int]) -> list[int]:
    """Return the choice with each offer replaced by a cheaper one that leaves no more."""
    found = []
    for offers, k in zip(parts, picks, strict=True):
        same = [
            j for j, o in enumerate(offers)
            if o.remaining <= offers[k].remaining and all(a <= b for a, b in zip(o.costs, offers[k].costs, strict=True))
        ]  # fmt: skip
        found.append(min(same, key=lambda j: (offers[j].remaining, offers[j].costs, j)))
    return found


def _fits(parts: Sequence[Sequence[Offer]], picks: Sequence[int], budget: Sequence[float]) -> bool:
    spent = np.sum([offers[k].costs for offers, k in zip(parts, picks, strict=True)], axis=0)
    return bool((spent <= np.array(budget) * (1 + 1e-9)).all())
