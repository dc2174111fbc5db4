"""An adaptive campaign's results, scored: every rate, over all its faults, a layer, or a field of bits.

Most draws went to the strata that determine one rate. With the probabilities that they were drawn by, the same draws
score any other rate without bias; and of those that fell into some of the strata, the rate there, as they were drawn by
the same probabilities divided by their sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.plan.strata import bit_field_label
from onnxfi.campaign.results.store import Store, declared_task
from onnxfi.campaign.run.adaptive_rounds import Layout, complete_rounds, stratum_probabilities
from onnxfi.statistics.adaptive import (
    Allocation,
    Floats,
    Moments,
    Numbers,
    Scores,
    asymptotic_interval,
    coefficients,
    concatenate_scores,
    confidence_sequence,
    prepare_draws,
    score,
    shrunken_moments,
)
from onnxfi.statistics.intervals import Interval
from onnxfi.tasks.outcomes import unpacked
from onnxfi.tasks.task import Metric


@dataclass(frozen=True)
class Drawn:
    """A complete round: the probability of each stratum, and the stratum of each draw.

    `aim` is the half width that it was drawn for, `weight` as in `RoundDraws`.
    """

    probability: Floats
    stratum: Numbers
    aim: float
    weight: float


@dataclass(frozen=True)
class AdaptiveRecord:
    """The complete rounds of a store; `layers` and `fields` name its strata.

    `trials` and `values` are in the order of the draws ([T], [T, rates]): what each adds to each of `metrics`.
    """

    method: str
    layout: Layout
    layers: tuple[str, ...]
    fields: tuple[str, ...]
    rounds: tuple[Drawn, ...]
    trials: tuple[int, ...]
    metrics: tuple[Metric, ...]
    headline: str
    values: Floats
    _rounds: dict[int, tuple[tuple[Allocation, Floats], ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, store: Store) -> AdaptiveRecord:
        """Read the complete rounds of a store."""
        strata, rounds, trials = store.strata(), list[Drawn](), list[int]()
        for number, (draws, here) in enumerate(complete_rounds(store), 1):
            rounds.append(Drawn(stratum_probabilities(store, number), draws.stratum, draws.half_width, draws.weight))
            trials += here
        task = declared_task(store)
        metrics = tuple(metric for metric in task.reports if metric.bounds == (0, 1))
        found = {row.trial: [m.value(row.outcome, row.metrics) for m in metrics] for row in store.rows()}
        values = np.array([found[trial] for trial in trials], np.float64).reshape(-1, len(metrics))
        return cls(
            store.get("identity")["method"],
            Layout.of(strata),
            tuple(s["layer"] for s in strata),
            tuple(bit_field_label(s["label"], s["layer"]) for s in strata),
            tuple(rounds),
            tuple(trials),
            metrics,
            task.headline,
            values,
        )

    def within(self, strata: Numbers) -> NDArray[np.bool_]:
        """Return a mask of the draws that fell into some of the strata ([T])."""
        drawn = [one.stratum for one in self.rounds]
        return np.isin(np.concatenate(drawn), strata) if drawn else np.zeros(0, np.bool_)

    @cached_property
    def _columns(self) -> tuple[int, ...]:
        """The first of the rates that has the same value in every trial, for each of `metrics`."""
        columns = [column.tobytes() for column in self.values.T]
        return tuple(columns.index(column) for column in columns)

    def _played(self, column: int) -> tuple[tuple[Allocation, Floats], ...]:
        """Return the allocation of each round by the values of a metric, and its values; the same for all strata."""
        if column not in self._rounds:
            seen, first, played = Moments.empty(len(self.layers)), 0, list[tuple[Allocation, Floats]]()
            for one in self.rounds:
                x = self.values[first : first + len(one.stratum), column]
                known = Allocation(
                    self.layout.sizes - seen.n, one.probability, *shrunken_moments(self.layout.parents, seen)
                )
                played.append((known, x))
                seen, first = seen.add(one.stratum, x), first + len(one.stratum)
            self._rounds[column] = tuple(played)
        return self._rounds[column]

    def scores(self, rate: str, strata: Numbers) -> Scores | None:
        """Return the draws from the strata, scored for a rate; None if there are none, or they do not have it."""
        column = self._columns[[m.name for m in self.metrics].index(rate)]
        if np.isnan(self.values[:, column]).any():
            return None
        place = np.full(len(self.layers), -1)
        place[strata] = np.arange(len(strata))
        total, parts = 0.0, list[Scores]()
        for one, (known, x) in zip(self.rounds, self._played(column), strict=True):
            drawn = place[one.stratum]
            inside = drawn >= 0
            if inside.any():
                draws = prepare_draws(known.restricted_to(strata), drawn[inside], one.aim, one.weight)
                parts.append(score(draws, x[inside], total))
                total += float(x[inside].sum())
        return concatenate_scores(parts) if parts else None

    def with_values(self, values: Floats) -> AdaptiveRecord:
        """Return the record with other values of its headline rate ([T], in the order of the draws), and no other."""
        metric = next(m for m in self.metrics if m.name == self.headline)
        return replace(self, metrics=(metric,), values=values.reshape(-1, 1), _rounds={})

    def judged_by(self, counted: NDArray[np.bool_], confidence: float) -> Interval:
        """Return the headline rate over all faults from some of the draws ([T]), the others being known before."""
        scores = self.scores(self.headline, np.arange(len(self.layers)))
        assert scores is not None
        kept = counted.astype(np.float64)
        scores = replace(scores, weight=scores.weight * kept, bet=scores.bet * kept)
        return self._interval(scores, len(self.layers), confidence)

    def _interval(self, scores: Scores, strata: int, confidence: float) -> Interval:
        if self.method == "guaranteed":
            return confidence_sequence(scores, confidence)
        return asymptotic_interval(scores, strata, confidence)

    def intervals(self, strata: Numbers, confidence: float) -> dict[str, Interval]:
        """Every rate that the trials have, over the faults of some of the strata."""
        found: dict[str, Interval] = {}
        for rate, column in zip((m.name for m in self.metrics), self._columns, strict=True):
            if self.metrics[column].name in found:
                found[rate] = found[self.metrics[column].name]
            elif (scores := self.scores(rate, strata)) is not None:
                found[rate] = self._interval(scores, len(strata), confidence)
        return found

    def samples(self, store: Store, n: int) -> Floats | None:
        """Return the rate at which each of n samples changes its top-1 ([n]); None if there is no top-1.

        Without bias, but for what a rate cannot be: below 0 or above 1.
        """
        scores = self.scores(self.headline, np.arange(len(self.layers)))
        if scores is None or n < 2:
            return None
        counts = dict(zip(self.trials, coefficients(scores).tolist(), strict=True))
        found = np.zeros(n)
        for row in store.rows():
            if row.changed is not None and row.trial in counts:
                found += counts[row.trial] * unpacked(row.changed, n)
        return np.clip(found, 0, 1)
