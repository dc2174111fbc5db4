"""The rounds of an adaptive campaign: each is drawn from the results of the complete rounds before it alone.

So neither workers nor interruptions change the draws. A round is drawn and written before its first trial runs; its
results count once every trial has one. A trial on which the harness fails leaves its round open: it is run again, never
left out, since that would bias the estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np

from onnxfi.campaign.plan.plan import Plan, PlannedTrial
from onnxfi.campaign.plan.strata import bit_field_label, stratum_kind
from onnxfi.campaign.results.store import Store, declared_task
from onnxfi.campaign.spec.designs import AdaptiveFaults
from onnxfi.errors import SpecError
from onnxfi.faults import sampling
from onnxfi.faults.trials import json_value
from onnxfi.statistics.adaptive import (
    Allocation,
    Floats,
    Method,
    Moments,
    Numbers,
    RoundDraws,
    Scores,
    allocate_round,
    asymptotic_interval,
    concatenate_scores,
    confidence_sequence,
    prepare_draws,
    round_size,
    round_weight,
    score,
    shrunken_moments,
    simple_interval,
    without_exhausted,
)
from onnxfi.statistics.intervals import Interval
from onnxfi.statistics.ranking import GroupScores, Standing, allocate_groups

#: Draws of the first round, and of a later one at least, of a campaign that draws evenly.
_FIRST_SIMPLE, _NEXT_SIMPLE = 100, 10
#: Assumed rate before the first round.
_GUESS = 0.02


#: Known before a round: its allocation, and the aim of each ranked part.
Known = tuple[Allocation, Floats]


@dataclass(frozen=True)
class Look:
    """An estimate of the measured rate after the complete rounds, with the requested precision.

    `trials` were run of `population` faults in `strata` strata; `margin` and `relative_margin` are half the width that
    is wanted, of 1 and of the rate. `ranking` is the order of parts, where a campaign ranks them.
    """

    rate: str
    method: str
    interval: Interval
    rounds: int
    trials: int
    strata: int
    population: int
    margin: float
    relative_margin: float | None
    ranking: Ranking | None = None

    @property
    def wanted(self) -> float:
        """Half the width that the interval may have."""
        rate = _GUESS if np.isnan(self.interval.estimate) else self.interval.estimate
        return max(self.margin, (self.relative_margin or 0.0) * rate)

    @property
    def exhausted(self) -> bool:
        """True if every fault was run: then the rate is exact."""
        return self.trials == self.population

    @property
    def reached(self) -> bool:
        """True if the interval is as narrow as requested, or the first of a ranking are settled."""
        if self.ranking is not None:
            return self.rounds > 0 and (self.exhausted or self.ranking.standing.settled)
        return self.rounds > 0 and (self.exhausted or self.interval.half_width <= self.wanted)

    def row(self) -> dict[str, Any]:
        """As plain values for JSON."""
        i = self.interval
        return {
            "rate": self.rate, "method": self.method, "interval": i.method, "value": json_value(i.estimate),
            "low": i.low, "high": i.high, "margin": self.margin, "relative_margin": self.relative_margin,
            "reached": self.reached, "rounds": self.rounds, "trials": self.trials, "strata": self.strata,
            "population": self.population, "ranking": None if self.ranking is None else self.ranking.document(),
        }  # fmt: skip


@dataclass(frozen=True)
class Ranking:
    """Parts of a network in the order of their rates: what each is called, and the trials that fell into it."""

    by: str
    names: tuple[str, ...]
    trials: tuple[int, ...]
    standing: Standing

    def rows(self) -> Iterator[RankedPart]:
        """Yield the parts, highest rate first."""
        standing = self.standing
        behind = dict(zip(standing.order, standing.order[1:], strict=False))
        for group, rank in standing.ranks():
            other = behind.get(group)
            apart = other is not None and standing.above(group, other)
            tied = other is not None and standing.tied(group, other)
            yield RankedPart(rank, self.names[group], self.trials[group], standing.intervals[group], apart, tied)

    def document(self) -> dict[str, Any]:
        """Return the ranking as plain values for JSON."""
        return {
            "by": self.by, "top": self.standing.top, "settled": self.standing.settled,
            "order": [row.document() for row in self.rows()],
        }  # fmt: skip


@dataclass(frozen=True)
class RankedPart:
    """A part of a network in a ranking.

    `apart` is true if its rate is larger than that of the next one, `tied` where the two differ by the margin at
    most; else the order of the two is open. Intervals of all parts hold together.
    """

    rank: int
    name: str
    trials: int
    interval: Interval
    apart: bool
    tied: bool

    def document(self) -> dict[str, Any]:
        """Return the part as plain values for JSON."""
        i, value = self.interval, json_value(self.interval.estimate) if self.trials else None
        return {
            "rank": self.rank, "name": self.name, "trials": self.trials, "value": value, "low": i.low, "high": i.high,
            "apart": self.apart, "tied": self.tied,
        }  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The strata of an adaptive campaign: how many faults each has ([strata]), which are alike, and which are ranked.

    `groups` ([strata]) numbers the ranked parts, whose `names` are those of layers, tensors, channels or bits.
    """

    sizes: Floats
    parents: Numbers
    groups: Numbers = field(default_factory=lambda: np.zeros(0, np.int64))
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, strata: list[dict[str, Any]], rank: str = "none") -> Layout:
        """Return the layout of a store."""
        fields = [stratum_kind(s["label"], s["layer"]) for s in strata]
        sizes = np.array([s["population"] for s in strata], np.float64)
        ranked = [bit_field_label(s["label"], s["layer"]) if rank == "bit" else str(s["layer"]) for s in strata]
        (parents, _), (groups, names) = _numbered(fields), _numbered(ranked)
        return cls(sizes, parents, groups, names)


def _numbered(texts: Sequence[str]) -> tuple[Numbers, tuple[str, ...]]:
    """Return the number of each text among the different ones, and those."""
    numbers = {name: k for k, name in enumerate(dict.fromkeys(texts))}
    return np.array([numbers[name] for name in texts], np.int64), tuple(numbers)


@dataclass(frozen=True)
class Seen:
    """Results of complete rounds: the moments of each stratum, the scores of all draws, and those of ranked parts."""

    moments: Moments
    scores: Scores | None = None
    rounds: int = 0
    ranked: GroupScores | None = None

    @classmethod
    def none(cls, layout: Layout, rank: str, confidence: float, method: Method = "guaranteed") -> Seen:
        """Return what is seen before the first round."""
        ranked = None if rank == "none" else GroupScores.empty(layout.groups, confidence, method)
        return cls(Moments.empty(len(layout.sizes)), ranked=ranked)

    @property
    def trials(self) -> int:
        """Trials of complete rounds."""
        return int(self.moments.n.sum())

    def plus(self, draws: RoundDraws, values: Floats, known: Known | None = None) -> Seen:
        """With another round; where parts are ranked, with all that was known of each stratum and part before it."""
        before, ranked = self.scores, self.ranked
        if ranked is not None and known is not None:
            ranked = ranked.plus(known[0], draws.stratum, values, known[1], draws.weight)
        total = 0.0 if before is None else float(before.total[-1] + before.value[-1])
        scores = score(draws, values, total)
        return Seen(
            self.moments.add(draws.stratum, values),
            scores if before is None else concatenate_scores([before, scores]),
            self.rounds + 1,
            ranked,
        )

    def interval(self, method: str, confidence: float) -> Interval:
        """Return the rate and its interval; all of [0, 1] before the first round."""
        m = self.moments
        if self.scores is None:
            return Interval(0.0, 1.0, np.nan, "none", confidence)
        if method == "guaranteed":
            return confidence_sequence(self.scores, confidence)
        if method == "asymptotic":
            return asymptotic_interval(self.scores, len(m.n), confidence)
        population = int(self.scores.population)
        return simple_interval(self.trials, float(m.total.sum()), float(m.squares.sum()), population, confidence)


def turns(store: Store, plan: Plan) -> Iterator[tuple[Look, list[int]]]:
    """Yield the state before each round and its trials; the caller runs those without a result.

    Ends where the interval is narrow enough or the first of a ranking are settled, all faults were run, or trials of a
    round have no result.
    """
    design = plan.campaign.adaptive
    assert design is not None
    rate, layout = design.rate, Layout.of(store.strata(), design.rank)
    seen = Seen.none(layout, design.rank, float(store.get("length")["confidence"]), design.method)
    if rate not in (task := declared_task(store)).by_name or not task.metric(rate).measured_in(
        store.get("golden")["metrics"]
    ):
        raise SpecError(f"rate {rate!r} cannot be measured on this output; take sdc_samples, with --fresh", "rate")
    for number in count(1):
        found = read_round(store, number)
        if found is None:
            look = look_at(store, seen)
            if look.reached:
                return
            found = _draw(store, plan, design, seen, number, look)
        draws, trials = found
        if store.results(number) < len(trials):
            yield look_at(store, seen), trials
            if store.results(number) < len(trials):
                return
        seen = seen.plus(draws, _values(store, number, trials, rate), _known(store, number, layout, seen))


def complete_rounds(store: Store) -> Iterator[tuple[RoundDraws, list[int]]]:
    """Yield the complete rounds of a store, each with its trials in the order of the draws."""
    for number in count(1):
        found = read_round(store, number)
        if found is None or store.results(number) < len(found[1]):
            return
        yield found


def look_at(store: Store, seen: Seen | None = None, confidence: float | None = None) -> Look:
    """Estimate the measured rate from a store, at its confidence or another; `seen` where it is known already."""
    identity, length, strata = store.get("identity"), store.get("length"), store.strata()
    rank, level = identity.get("rank", "none"), confidence or float(length["confidence"])
    layout = Layout.of(strata, rank)
    if seen is None:
        seen = Seen.none(layout, rank, level, identity["method"])
        for number, (draws, trials) in enumerate(complete_rounds(store), 1):
            known = _known(store, number, layout, seen)
            seen = seen.plus(draws, _values(store, number, trials, identity["rate"]), known)
    interval = seen.interval(identity["method"], level)
    population, margin = sum(s["population"] for s in strata), float(length["margin"])
    ranking = None
    if seen.ranked is not None:
        trials_of = np.bincount(layout.groups, seen.moments.n, len(layout.names)).astype(int)
        standing = seen.ranked.standing(int(length["top"]), margin)
        ranking = Ranking(rank, layout.names, tuple(trials_of.tolist()), standing)
    return Look(
        identity["rate"], identity["method"], interval, seen.rounds, seen.trials, len(strata), population,
        margin, length["relative_margin"], ranking,
    )  # fmt: skip


def _known(store: Store, number: int, layout: Layout, seen: Seen) -> Known | None:
    """Return the allocation of a round and the aims of parts, as known before it; None if no part is ranked by it."""
    if seen.ranked is None:
        return None
    left = layout.sizes - seen.moments.n
    length = store.get("length")
    standing = seen.ranked.standing(int(length["top"]), float(length["margin"]))
    chances = stratum_probabilities(store, number)
    return Allocation(left, chances, *shrunken_moments(layout.parents, seen.moments)), standing.aims


def stratum_probabilities(store: Store, number: int) -> Floats:
    """Return the probability of each stratum in a round ([strata])."""
    asked = "SELECT probability FROM allocations WHERE round = ? ORDER BY stratum"
    return np.array([chance for (chance,) in store.db.execute(asked, (number,))])


def _values(store: Store, number: int, trials: list[int], rate: str) -> Floats:
    """Return the contributions of the trials of a round to a rate, in the order of the draws."""
    metric = declared_task(store).metric(rate)
    found = {row.trial: metric.value(row.outcome, row.metrics) for row in store.rows(number)}
    return np.array([found[trial] for trial in trials], np.float64)


def _draw(
    store: Store, plan: Plan, design: AdaptiveFaults, seen: Seen, number: int, look: Look
) -> tuple[RoundDraws, list[int]]:
    """Draw a round and write it, all in one transaction."""
    layout, half_width = Layout.of(store.strata(), design.rank), look.wanted
    if look.ranking is None:
        played = allocate_round(layout.sizes, layout.parents, seen.moments)
    else:
        standing = look.ranking.standing
        half_width = float(standing.aims.min())
        played = allocate_groups(
            layout.sizes, layout.parents, seen.moments, layout.groups, standing.weights(), design.method
        )
    size = round_size(seen.trials)
    if design.method == "simple":
        size = round_size(seen.trials, first=_NEXT_SIMPLE if number > 1 else _FIRST_SIMPLE)
    chosen = sampling.choose(played.probability, size, design.seed, number)
    draws = prepare_draws(played, without_exhausted(chosen, played.remaining), half_width, round_weight(seen.trials))
    strata, planned = list(plan.strata), list[PlannedTrial]()
    trials = np.zeros(len(draws.stratum), np.int64)
    for s in np.unique(draws.stratum).tolist():
        here = draws.stratum == s
        first = int(seen.moments.n[s])
        j = np.arange(first, first + int(here.sum()), dtype=np.uint64)
        trials[here] = 1 + j.astype(np.int64) * len(strata) + s
        planned += plan.nth(s, j)
        strata[s] = replace(strata[s], trials=first + len(j))
    with store.db:
        _write_round(store, number, seen.trials, draws, played, trials.tolist())
        store.plan(strata, sorted(planned, key=lambda row: row.trial))
    return draws, trials.tolist()


def _write_round(
    store: Store, number: int, before: int, draws: RoundDraws, played: Allocation, trials: list[int]
) -> None:
    d = draws
    store.insert("rounds", [(number, len(trials), d.half_width, d.variance, d.weight, d.below, d.above)])
    chances = zip(played.remaining.tolist(), played.probability.tolist(), strict=True)
    store.insert("allocations", ((number, s, int(left), chance) for s, (left, chance) in enumerate(chances)))
    columns = (column.tolist() for column in (d.stratum_remaining, d.remaining, d.probability, d.expected, d.baseline))
    store.insert(
        "draws",
        (
            (trial, before + k, number, int(here), int(left), *rest)
            for k, (trial, here, left, *rest) in enumerate(zip(trials, *columns, strict=True), 1)
        ),
    )


def read_round(store: Store, number: int) -> tuple[RoundDraws, list[int]] | None:
    """Return a round and its trials in the order of the draws; None if it was not drawn yet."""
    row = store.db.execute(
        "SELECT below, above, variance, aim, weight FROM rounds WHERE round = ?", (number,)
    ).fetchone()  # fmt: skip
    if row is None:
        return None
    cursor = store.db.execute(
        "SELECT draws.trial, stratum, stratum_population, population, base, probability, expected "
        "FROM draws JOIN plan USING (trial) WHERE round = ? ORDER BY draw",
        (number,),
    )
    trials, stratum, *columns = zip(*cursor, strict=True)
    here, left, base, probability, expected = (np.array(column, np.float64) for column in columns)
    draws = RoundDraws(
        np.array(stratum, np.int64), here, left, base, probability, expected, *row
    )  # fmt: skip
    return draws, list(trials)
