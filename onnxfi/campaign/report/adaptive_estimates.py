"""An adaptive campaign's results, scored: every rate, over all its faults, a layer, or a field of bits.

Draws went where they told most of one rate. With the probabilities that they were drawn by, the same draws score any
other rate without bias; and of those that fell into some of the strata, the rate there, as they were drawn by the same
probabilities divided by their sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.execute.adaptive_rounds import Layout, complete_rounds
from onnxfi.campaign.plan.strata import field_of
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.rates import RATES, value
from onnxfi.statistics.adaptive import (
    Floats,
    Moments,
    Numbers,
    Round,
    Scores,
    asymptotic_interval,
    coefficients,
    confidence_sequence,
    expect,
    join,
    lay,
    score,
)
from onnxfi.statistics.intervals import Interval
from onnxfi.tasks.outcomes import unpacked


@dataclass(frozen=True)
class Drawn:
    """A complete round: the chance of each stratum, and the stratum of each draw; `aim` and `weight` as in `Draws`."""

    probability: Floats
    stratum: Numbers
    aim: float
    weight: float


@dataclass(frozen=True)
class Record:
    """The complete rounds of a store; `layers` and `fields` name its strata.

    `trials` and `values` are in the order of the draws ([T], [T, rates]): what each adds to each of `RATES`.
    """

    method: str
    layout: Layout
    layers: tuple[str, ...]
    fields: tuple[str, ...]
    rounds: tuple[Drawn, ...]
    trials: tuple[int, ...]
    values: Floats

    @classmethod
    def of(cls, store: Store) -> Record:
        """What a store holds."""
        strata, rounds, trials = store.strata(), list[Drawn](), list[int]()
        for number, (draws, here) in enumerate(complete_rounds(store), 1):
            asked = "SELECT probability FROM allocations WHERE round = ? ORDER BY stratum"
            chances = np.array([chance for (chance,) in store.db.execute(asked, (number,))])
            rounds.append(Drawn(chances, draws.stratum, draws.aim, draws.weight))
            trials += here
        found = {row.trial: [value(row, name) for name in RATES] for row in store.rows()}
        values = np.array([found[trial] for trial in trials], np.float64).reshape(-1, len(RATES))
        return cls(
            store.get("identity")["method"],
            Layout.of(strata),
            tuple(s["layer"] for s in strata),
            tuple(field_of(s["label"], s["layer"]) for s in strata),
            tuple(rounds),
            tuple(trials),
            values,
        )

    def within(self, strata: Numbers) -> NDArray[np.bool_]:
        """Which draws fell into some of the strata ([T])."""
        drawn = [one.stratum for one in self.rounds]
        return np.isin(np.concatenate(drawn), strata) if drawn else np.zeros(0, np.bool_)

    def scores(self, rate: str, strata: Numbers) -> Scores | None:
        """The draws that fell into the strata, scored for a rate; None where there are none, or they do not have it."""
        values = self.values[:, RATES.index(rate)]
        if np.isnan(values).any() or not self.within(strata).any():
            return None
        place = np.full(len(self.layers), -1)
        place[strata] = np.arange(len(strata))
        seen, first, total, parts = Moments.none(len(self.layers)), 0, 0.0, list[Scores]()
        for one in self.rounds:
            x = values[first : first + len(one.stratum)]
            inside = place[one.stratum] >= 0
            if inside.any():
                left = self.layout.sizes - seen.n
                played = Round(left, one.probability, *expect(self.layout.parents, seen)).part(strata)
                draws = lay(played, place[one.stratum[inside]], one.aim, one.weight)
                parts.append(score(draws, x[inside], total))
                total += float(x[inside].sum())
            seen, first = seen.plus(one.stratum, x), first + len(one.stratum)
        return join(parts)

    def intervals(self, strata: Numbers, confidence: float) -> dict[str, Interval]:
        """Every rate that the trials have, over the faults of some of the strata."""
        found = {}
        for rate in RATES:
            scores = self.scores(rate, strata)
            if scores is None:
                continue
            if self.method == "guaranteed":
                found[rate] = confidence_sequence(scores, confidence)
            else:
                found[rate] = asymptotic_interval(scores, len(strata), confidence)
        return found

    def samples(self, store: Store, n: int) -> Floats | None:
        """The rate at which each of n samples changes its top-1 ([n]); None where there is no top-1.

        Without bias, but for what a rate cannot be: below 0 or above 1.
        """
        scores = self.scores("sdc1", np.arange(len(self.layers)))
        if scores is None or n < 2:
            return None
        counts = dict(zip(self.trials, coefficients(scores).tolist(), strict=True))
        found = np.zeros(n)
        for row in store.rows():
            if row.changed is not None and row.trial in counts:
                found += counts[row.trial] * unpacked(row.changed, n)
        return np.clip(found, 0, 1)
