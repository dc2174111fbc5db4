"""Ranking of groups of faults by their rates: the order that is settled so far, and the groups to draw from next.

Each group (a layer, a tensor, a field of bits) has its own confidence sequence from the draws that fell into it, at a
level divided among the groups, so that all hold together at every time. Two groups are settled where their intervals do
not overlap, and tied where their rates differ by at most a margin whichever is larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnxfi.statistics.adaptive import (
    SPENT,
    UNIFORM_SHARE,
    Allocation,
    Floats,
    Method,
    Moments,
    Numbers,
    Scores,
    asymptotic_interval,
    concatenate_scores,
    confidence_sequence,
    prepare_draws,
    score,
    shrunken_moments,
)
from onnxfi.statistics.intervals import Interval

#: The share of draws that goes to groups whose place is settled.
_SETTLED_SHARE = 0.03
#: Draws of a group from which on it has an asymptotic interval, and up to which a confidence sequence bounds that.
_FEWEST, _EARLY = 40, 800
#: Share of the draws of a group that goes by the number of its remaining faults alone, by the method of its interval:
#: what limits a guaranteed one is how seldom strata without an event are drawn.
_UNIFORM_SHARES = {"guaranteed": 0.8}


@dataclass(frozen=True)
class Standing:
    """Order of groups by their rates, of which the first `top` shall be settled.

    `intervals` hold together; `margin` is the difference of two rates up to which they count as tied.

    >>> def about(p, d):
    ...     return Interval(p - d, p + d, p, "", 0.99)
    >>> open_ = Standing((about(0.1, 0.05), about(0.3, 0.01), about(0.11, 0.01)), 1, 0.01)
    >>> open_.order, open_.settled
    ((1, 2, 0), True)
    >>> replace(open_, top=2).open_pairs
    ((2, 0),)
    """

    intervals: tuple[Interval, ...]
    top: int
    margin: float

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The groups, highest rate first; those without an estimate by the high end of their interval."""
        middles = [i.high if math.isnan(i.estimate) else i.estimate for i in self.intervals]
        return tuple(sorted(range(len(middles)), key=lambda group: (-middles[group], group)))

    def above(self, one: int, other: int) -> bool:
        """Return True if the rate of one group is larger than that of another, at the joint confidence."""
        return self.intervals[one].low > self.intervals[other].high

    def tied(self, one: int, other: int) -> bool:
        """Return True if two groups cannot be distinguished: whichever is larger, by at most the margin."""
        i, j = self.intervals[one], self.intervals[other]
        return not self.above(one, other) and max(i.high - j.low, j.high - i.low) <= self.margin

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs that decide the first `top`: neighbours in the order, and the last of them with each one behind."""
        top = min(self.top, len(self.order))
        inside = tuple(zip(self.order[: top - 1], self.order[1:top], strict=True))
        return inside + tuple((self.order[top - 1], other) for other in self.order[top:])

    @cached_property
    def open_pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs that are neither settled nor tied yet."""
        return tuple(pair for pair in self.pairs if not self.above(*pair) and not self.tied(*pair))

    @property
    def settled(self) -> bool:
        """True if no pair is open."""
        return not self.open_pairs

    @cached_property
    def aims(self) -> Floats:
        """Half the distance from which each group must be distinguished ([groups]), at least half the margin.

        That is the smallest one to a group with which it makes an open pair, else the smallest of all open pairs.
        """
        middles = [0.5 if math.isnan(i.estimate) else i.estimate for i in self.intervals]
        near = np.full(len(middles), math.inf)
        for one, other in self.open_pairs:
            for group in (one, other):
                near[group] = min(near[group], abs(middles[one] - middles[other]))
        near[np.isinf(near)] = near.min() if self.open_pairs else self.margin
        return np.asarray(np.maximum(near, self.margin) / 2)

    def ranks(self) -> Iterator[tuple[int, int]]:
        """Yield each group in the order with its rank; a group that is not below the one before it has its rank."""
        rank = 1
        for place, group in enumerate(self.order, 1):
            if place > 1 and self.above(self.order[place - 2], group):
                rank = place
            yield group, rank

    def weights(self) -> Floats:
        """Return the share of the next draws that each group gets ([groups]): by width, where its place is open."""
        wide = np.array([i.high - i.low for i in self.intervals])
        contested = np.zeros(len(wide))
        contested[list({group for pair in self.open_pairs for group in pair})] = 1
        parts = contested * wide
        some = parts.sum()
        if not some:
            return wide / wide.sum() if wide.sum() else np.full(len(wide), 1 / len(wide))
        rest = np.where(contested > 0, 0.0, wide)
        kept = _SETTLED_SHARE if rest.sum() else 0.0
        return np.asarray((1 - kept) * parts / some + (kept * rest / rest.sum() if kept else 0.0))


@dataclass(frozen=True)
class GroupScores:
    """Scores of the draws that fell into each group; `groups` ([strata]) says which group each stratum is part of."""

    groups: Numbers
    scores: tuple[Scores | None, ...]
    intervals: tuple[Interval, ...]
    confidence: float
    method: Method = "guaranteed"

    @classmethod
    def empty(cls, groups: Numbers, confidence: float, method: Method = "guaranteed") -> GroupScores:
        """Return groups without a draw, whose intervals shall hold together with this confidence."""
        count = int(groups.max()) + 1
        each = 1 - (1 - confidence) / count
        return cls(groups, (None,) * count, (Interval(0.0, 1.0, math.nan, "none", each),) * count, each, method)

    def plus(self, allocation: Allocation, drawn: Numbers, values: Floats, aims: Floats, weight: float) -> GroupScores:
        """Return the scores with those of another round, drawn by this allocation; `aims` ([groups]) size its bets."""
        scores, intervals = list(self.scores), list(self.intervals)
        of_draw = self.groups[drawn]
        for group in np.unique(of_draw).tolist():
            strata = np.flatnonzero(self.groups == group)
            place = np.full(len(self.groups), -1)
            place[strata] = np.arange(len(strata))
            here = of_draw == group
            before = scores[group]
            total = 0.0 if before is None else float(before.total[-1] + before.value[-1])
            draws = prepare_draws(allocation.restricted_to(strata), place[drawn[here]], float(aims[group]), weight)
            new = score(draws, values[here], total)
            scores[group] = together = new if before is None else concatenate_scores([before, new])
            if self.method == "asymptotic":
                found = _early_or_asymptotic(together, len(strata), self.confidence)
            else:
                found = confidence_sequence(
                    together, self.confidence, before=None if before is None else intervals[group]
                )
            intervals[group] = _inside(found, together)
        return replace(self, scores=tuple(scores), intervals=tuple(intervals))

    def standing(self, top: int, margin: float) -> Standing:
        """Return the order of the groups."""
        return Standing(self.intervals, top, margin)


def _early_or_asymptotic(scores: Scores, strata: int, confidence: float) -> Interval:
    """Return the asymptotic interval, within a confidence sequence where there are few draws yet.

    Each has a part of alpha, so that both hold together: many groups are settled before a variance can be estimated.
    """
    found = asymptotic_interval(scores, strata, confidence, fewest=_FEWEST)
    if len(scores.value) > _EARLY:
        return found
    early = confidence_sequence(scores, 1 - (1 - confidence) * (1 - SPENT))
    low, high = max(found.low, early.low), min(found.high, early.high)
    return replace(found, low=low, high=high) if low <= high else found


def _inside(i: Interval, scores: Scores) -> Interval:
    """Return an interval whose estimate lies inside what was observed, and inside its ends."""
    seen = min(max(i.estimate, float(scores.value.min())), float(scores.value.max()))
    return replace(i, estimate=min(max(seen, i.low), i.high))


def allocate_groups(
    sizes: Floats, parents: Numbers, seen: Moments, groups: Numbers, weights: Floats, method: Method = "asymptotic"
) -> Allocation:
    """Return the next allocation: draws go to groups by `weights` ([groups]), inside each as `allocate_round` does.

    >>> sizes, group = np.array([900.0, 100.0, 500.0]), np.array([0, 0, 1])
    >>> found = allocate_groups(sizes, np.array([0, 1, 0]), Moments.empty(3), group, np.array([0.2, 0.8]))
    >>> found.probability.round(2).tolist()
    [0.18, 0.02, 0.8]
    """
    left = sizes - seen.n
    expected, variance = shrunken_moments(parents, seen)
    uneven = left * np.sqrt(variance)
    count = len(weights)
    of_group, uneven_of_group = (np.bincount(groups, each, count)[groups] for each in (left, uneven))
    uniform = _UNIFORM_SHARES.get(method, UNIFORM_SHARE)
    inside = (1 - uniform) * uneven / np.maximum(uneven_of_group, 1e-300)
    inside += uniform * left / np.maximum(of_group, 1e-300)
    chance = inside * weights[groups] * (left > 0)
    if not chance.sum():
        chance = left
    return Allocation(left, chance / math.fsum(chance), expected, variance)
