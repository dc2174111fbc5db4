"""Adaptive stratified sampling: allocation of trials to strata, and estimates that stay unbiased.

Faults are divided into strata. Before a round an `Allocation` fixes for each stratum h, from the earlier rounds: the
expected mean mu_h and variance v_h of the values of its faults, and the probability q_h with which a draw selects it.
Each draw selects a stratum by q, then one of its R_h remaining faults with equal probability. With R = sum R_h, the
score of a fault of value x,

    Y = (sum_g R_g mu_g + (R_h / q_h) (x - mu_h)) / R,

has the mean of the R remaining faults as its expectation, whatever mu and q are. So the estimate is unbiased although
the allocation depends on earlier outcomes; combined stratum means are not, because a stratum whose first faults happen
to be masked would be sampled less. The weight of a draw does not depend on outcomes either: it grows with the number of
trials before its round, as later rounds have less variance. A draw that selects a stratum which the round has used up
is left out: the others are then drawn by q divided by what is left of it.

`confidence_sequence` bets against each candidate mean (Waudby-Smith and Ramdas, Journal of the Royal Statistical
Society B 86, 2024): it is valid at every time simultaneously, under any stopping rule, and assumes only values in
[0, 1]. `asymptotic_interval` and `simple_interval` are narrower, and valid as far as they were simulated
(docs/explanation/statistics.md). All functions are pure; random numbers are drawn in `sampling.choose`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxfi.statistics.intervals import Interval, design_effect, wilson

Method = Literal["guaranteed", "asymptotic", "simple"]
Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

#: Share of draws allocated by the number of remaining faults alone: it bounds R_h / q_h by R / 0.5.
UNIFORM_SHARE = 0.5
#: Trials of the first round, and the minimum size of later ones as a share of all trials so far.
FIRST_ROUND, GROWTH = 64, 0.05
#: Largest share of the capital that a bet may lose.
_CAP = 0.9
#: Share of alpha used by intervals that a campaign evaluates repeatedly until they are narrow enough.
SPENT = 0.6
#: Minimum trials, also per stratum, of an asymptotic or simple interval; before that it is [0, 1].
_FEWEST, _FEWEST_A_STRATUM, _FEWEST_SIMPLE = 200, 4, 100
METHOD_NAMES: dict[Method, str] = {
    "guaranteed": "betting confidence sequence",
    "asymptotic": "t in Wilson's form",
    "simple": "Wilson with design effect",
}


@dataclass(frozen=True)
class Moments:
    """Number, sum and sum of squares of the values observed in each stratum ([strata] each)."""

    n: Floats
    total: Floats
    squares: Floats

    @classmethod
    def empty(cls, strata: int) -> Moments:
        """Return the moments before any trial."""
        return cls(np.zeros(strata), np.zeros(strata), np.zeros(strata))

    def add(self, drawn: Numbers, values: Floats) -> Moments:
        """Return the moments with further faults, each with its stratum and a value in [0, 1]."""
        strata = len(self.n)
        return Moments(
            self.n + np.bincount(drawn, minlength=strata),
            self.total + np.bincount(drawn, values, strata),
            self.squares + np.bincount(drawn, values * values, strata),
        )


@dataclass(frozen=True)
class Allocation:
    """Allocation of one round, fixed before it, for each stratum ([strata] each).

    `remaining` is the number of faults not drawn yet, `probability` that of a draw selecting the stratum (0 if none
    remains), `expected` the mean and `variance` the variance of its values, estimated from earlier rounds.
    """

    remaining: Floats
    probability: Floats
    expected: Floats
    variance: Floats

    def restricted_to(self, strata: Numbers) -> Allocation:
        """Return the allocation conditional on draws from some of the strata."""
        chance = self.probability[strata]
        return Allocation(
            self.remaining[strata],
            chance / max(math.fsum(chance), 1e-300),
            self.expected[strata],
            self.variance[strata],
        )


def shrunken_moments(parents: Numbers, seen: Moments) -> tuple[Floats, Floats]:
    """Return mean and variance of each stratum ([strata] each), shrunk towards those of its parent stratum.

    `parents` ([strata]) numbers the parents: strata of the same bits in different layers have the same one.
    """
    n, total, squares = (np.bincount(parents, each) for each in (seen.n, seen.total, seen.squares))
    mean = total / (n + 1)
    variance = (np.maximum(squares - 2 * mean * total + n * mean * mean, 0) + 0.1) / (n + 1)
    expected = (seen.total + 2 * mean[parents]) / (seen.n + 2)
    spread = seen.squares - 2 * expected * seen.total + seen.n * expected * expected
    return expected, (np.maximum(spread, 0) + 2 * variance[parents]) / (seen.n + 2)


def allocate_round(sizes: ArrayLike, parents: Numbers, seen: Moments) -> Allocation:
    """Return the next allocation: half of the draws by R_h · sqrt(v_h) (Neyman allocation), the others by R_h.

    `sizes` [strata] are the faults of each stratum.

    >>> first = allocate_round([900, 100], np.array([0, 1]), Moments.empty(2))
    >>> first.probability.tolist(), first.expected.tolist()
    ([0.9, 0.1], [0.0, 0.0])
    >>> seen = Moments(np.array([9.0, 1.0]), np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    >>> allocate_round([900, 100], np.array([0, 1]), seen).probability.round(2).tolist()
    [0.7, 0.3]
    """
    left = np.asarray(sizes, np.float64) - seen.n
    expected, variance = shrunken_moments(parents, seen)
    uneven = left * np.sqrt(variance)
    probability = (1 - UNIFORM_SHARE) * uneven / math.fsum(uneven) + UNIFORM_SHARE * left / math.fsum(left)
    return Allocation(left, probability / math.fsum(probability), expected, variance)


def round_size(trials: int, *, first: int = FIRST_ROUND) -> int:
    """Return the number of draws of the round that follows so many trials.

    >>> round_size(0), round_size(10_000)
    (64, 500)
    """
    return max(first, int(GROWTH * trials))


def without_exhausted(drawn: Numbers, remaining: Floats) -> Numbers:
    """Return the draws of a round without those from strata that its earlier draws have used up.

    >>> without_exhausted(np.array([0, 1, 0, 1, 1, 0]), np.array([5.0, 2.0])).tolist()
    [0, 1, 0, 1, 0]
    """
    return drawn[_rank(drawn, len(remaining)) < remaining[drawn]]


def _rank(drawn: Numbers, strata: int) -> Numbers:
    """Return for each draw the number of earlier draws from the same stratum."""
    order = np.argsort(drawn, kind="stable")
    count = np.bincount(drawn, minlength=strata)
    rank = np.empty(len(drawn), np.int64)
    rank[order] = np.arange(len(drawn)) - np.repeat(np.cumsum(count) - count, count)
    return rank


@dataclass(frozen=True)
class RoundDraws:
    """Draws of a round in order ([draws] each), as known before any of its faults is run.

    `stratum` is h, `stratum_remaining` R_h, `remaining` R and `baseline` the sum of R_g mu_g, all before the draw;
    `probability` is q_h, `expected` mu_h. Y lies between (baseline - below) / R and (baseline + above) / R;
    `variance` is the expected variance of Y, `half_width` that of the requested interval, and `weight` the weight of
    each draw in the estimate.
    """

    stratum: Numbers
    stratum_remaining: Floats
    remaining: Floats
    baseline: Floats
    probability: Floats
    expected: Floats
    below: float
    above: float
    variance: float
    half_width: float
    weight: float

    @property
    def bet(self) -> float:
        """Share of the capital that is bet, before truncation: d / (v + d²)."""
        return self.half_width / (self.variance + self.half_width**2)


def round_weight(trials: int) -> float:
    """Return the weight of the draws of a round that follows so many trials."""
    return math.sqrt(trials + FIRST_ROUND / 2)


def prepare_draws(allocation: Allocation, drawn: Numbers, half_width: float, weight: float = 1.0) -> RoundDraws:
    """Return the draws of a round with all that is known beforehand; `half_width` is that of the requested interval."""
    before, rank = np.arange(len(drawn)), _rank(drawn, len(allocation.remaining))
    mu = allocation.expected[drawn]
    last = rank + 1 == allocation.remaining[drawn]
    gone = np.cumsum(np.where(last, allocation.probability[drawn], 0.0))
    open_ = np.maximum(1 - np.concatenate([[0.0], gone[:-1]]), 1e-300) if len(drawn) else np.ones(0)
    whole = math.fsum(allocation.remaining)
    some = allocation.remaining > 0
    inverse_rates = allocation.remaining[some] / allocation.probability[some]
    return RoundDraws(
        drawn,
        allocation.remaining[drawn] - rank,
        np.asarray(whole - before, np.float64),
        math.fsum(allocation.remaining * allocation.expected) - (np.cumsum(mu) - mu),
        np.minimum(allocation.probability[drawn] / open_, 1.0),
        mu,
        float((inverse_rates * allocation.expected[some]).max()),
        float((inverse_rates * (1 - allocation.expected[some])).max()),
        math.fsum(allocation.remaining[some] * inverse_rates * allocation.variance[some]) / whole**2,
        half_width,
        weight,
    )


@dataclass(frozen=True)
class Scores:
    """Scores of the draws of complete rounds, in order ([draws] each).

    `value` is x, `score` Y, `low` and `high` bound Y whatever x is; `remaining` is R, `total` the sum of x, both before
    the draw; `weight`, `bet` and `variance` as in `RoundDraws`; `inverse_rate` is R_h / q_h.
    """

    value: Floats
    score: Floats
    low: Floats
    high: Floats
    remaining: Floats
    total: Floats
    weight: Floats
    bet: Floats
    variance: Floats
    inverse_rate: Floats

    @property
    def population(self) -> float:
        """Number of all faults, drawn or not."""
        return float(self.remaining[0])

    @property
    def bounds(self) -> tuple[float, float]:
        """Means if all remaining faults had the value 0, or 1."""
        total, left = float(self.total[-1] + self.value[-1]), float(self.remaining[-1] - 1)
        return total / self.population, (total + left) / self.population

    @property
    def estimates(self) -> Floats:
        """Unbiased estimate of the mean over all faults from each draw."""
        return (self.total + self.remaining * self.score) / self.population


def score(draws: RoundDraws, values: Floats, total: float = 0.0) -> Scores:
    """Return the scores of the draws of a round; `total` is the sum of x over all earlier rounds.

    >>> sizes, variance = np.array([900.0, 100.0]), np.array([0.1, 0.1])
    >>> allocation = Allocation(sizes, np.array([0.7, 0.3]), np.array([0.01, 0.8]), variance)
    >>> score(prepare_draws(allocation, np.array([1]), 0.01), np.array([1.0])).score.round(10).tolist()
    [0.1556666667]
    """
    inverse_rate, rows = draws.stratum_remaining / draws.probability, len(values)
    return Scores(
        values,
        (draws.baseline + inverse_rate * (values - draws.expected)) / draws.remaining,
        (draws.baseline - draws.below) / draws.remaining,
        (draws.baseline + draws.above) / draws.remaining,
        draws.remaining,
        total + (np.cumsum(values) - values),
        np.full(rows, draws.weight),
        np.full(rows, draws.bet),
        np.full(rows, draws.variance),
        inverse_rate,
    )


def concatenate_scores(parts: Sequence[Scores]) -> Scores:
    """Return the scores of several rounds, one after the other."""
    return Scores(*(np.concatenate([getattr(p, name) for p in parts]) for name in Scores.__dataclass_fields__))


def estimate(scores: Scores) -> float:
    """Return the weighted mean of the draws' unbiased estimates."""
    return math.fsum(scores.weight * scores.estimates) / math.fsum(scores.weight)


def coefficients(scores: Scores) -> Floats:
    """Return the coefficient of each value in `estimate` ([draws]); the rest does not depend on the values."""
    later = math.fsum(scores.weight) - np.cumsum(scores.weight)
    return (scores.weight * scores.inverse_rate + later) / (math.fsum(scores.weight) * scores.population)


def confidence_sequence(scores: Scores, confidence: float = 0.99, *, before: Interval | None = None) -> Interval:
    """Return an interval that is valid at every time simultaneously: a betting confidence sequence.

    Against a candidate m two capitals start from 1; one bets on scores above the mean that m implies, one below:
    K± = Π (1 ± λ± (Y - m_t)), with m_t = (N m - Σ x so far) / R, λ the bet, truncated so that none loses more than 0.9.
    If m is the mean, both capitals are martingales, so either ever reaches 2/alpha with a probability of at most
    alpha/2 (Ville's inequality). The interval holds the candidates that neither has rejected so far: it never gets
    wider: where `before` is the interval of the same draws up to an earlier round, the search starts from there. A rate
    without any event has a low end of 0.

    >>> allocation = allocate_round([10_000], np.array([0]), Moments.empty(1))
    >>> no_events = score(prepare_draws(allocation, np.zeros(600, np.int64), 0.01), np.zeros(600))
    >>> found = confidence_sequence(no_events)
    >>> found.low, found.estimate, round(found.high, 4)
    (0.0, 0.0, 0.0861)
    """
    least, most = scores.bounds
    limit = math.log(2 / (1 - confidence))

    def evidence(m: float, side: int) -> float:
        null = (scores.population * m - scores.total) / scores.remaining
        room = null - scores.low if side > 0 else scores.high - null
        bet = side * np.minimum(scores.bet, _CAP / np.maximum(room, 1e-12))
        gains = np.log1p(np.maximum(bet * (scores.score - null), -0.999999))
        return float(np.cumsum(gains).max()) - limit

    start, end = (least, most) if before is None else (max(least, before.low), min(most, before.high))
    low = _root(lambda m: evidence(m, 1), start, most, end)
    high = -_root(lambda m: evidence(-m, -1), -end, -least, -start)
    return _interval(min(low, high), max(low, high), estimate(scores), "guaranteed", confidence)


def _root(evidence: Callable[[float], float], least: float, most: float, near: float) -> float:
    """Return the root of a falling function, likely below `near`, or the end of the range that it does not cross."""
    from scipy.optimize import brentq

    if least >= most or evidence(least) <= 0:
        return least
    if least < near < most and evidence(near) <= 0:
        return float(brentq(evidence, least, near, xtol=1e-12, rtol=1e-9))
    return most if evidence(most) > 0 else float(brentq(evidence, least, most, xtol=1e-12, rtol=1e-9))


def asymptotic_interval(scores: Scores, strata: int, confidence: float = 0.99, *, fewest: int = _FEWEST) -> Interval:
    """Return the interval of the estimate from the variance of the scores: Student's t in Wilson's form, at 0.6 alpha.

    V = max(Σ w² (Ỹ - p)² / (Σ w)², v / T) is the variance of the estimate p, at least the
    variance that the last round expects; Wilson's interval is taken for p (1 - p) / V trials with the t quantile of
    (Σ w)² / Σ w² - 1 degrees of freedom. Before max(`fewest`, 4 strata) trials, or a quarter of the population, it is
    a confidence sequence with the rest of alpha. Like every interval from an estimated variance it is too narrow if a
    rare critical fault has not been drawn yet.
    """
    from scipy.special import stdtrit

    alpha = SPENT * (1 - confidence)
    least, most = scores.bounds
    trials, p, w = len(scores.value), estimate(scores), scores.weight
    if least == most:
        return _interval(least, most, p, "asymptotic", confidence)
    if trials < min(max(fewest, _FEWEST_A_STRATUM * strata), scores.population // 4):
        return early_interval(scores, confidence)
    whole = math.fsum(w)
    expected = float(scores.variance[-1]) / trials
    variance = max(math.fsum((w * (scores.estimates - p)) ** 2) / whole**2, expected, 1e-300)
    p = min(max(p, 0.0), 1.0)
    n = max(p * (1 - p) / variance, 1.0) if 0 < p < 1 else float(trials)
    t = -float(stdtrit(max(whole**2 / math.fsum(w * w) - 1, 2.0), alpha / 2))
    middle, spread = p + t * t / n / 2, t * math.sqrt(p * (1 - p) / n + (t / n) ** 2 / 4)
    low, high = ((middle + side * spread) / (1 + t * t / n) for side in (-1, 1))
    low = low if p > 0 else 0.0  # and not what rounding leaves of it
    return _interval(max(low, least), min(high, most), p, "asymptotic", confidence)


def early_interval(scores: Scores, confidence: float = 0.99) -> Interval:
    """Return a confidence sequence that has the part of alpha which asymptotic intervals do not spend.

    It aims at no width: the bets are those that suit the number of draws so far (Waudby-Smith and Ramdas, predictable
    plug-in), sqrt(2 log(2 / alpha) / (v t log(1 + t))) at draw t, of an expected variance v.
    """
    alpha, t = (1 - SPENT) * (1 - confidence), np.arange(1, len(scores.value) + 1)
    bet = np.sqrt(2 * math.log(2 / alpha) / (np.maximum(scores.variance, 1e-300) * t * np.log1p(t)))
    return replace(confidence_sequence(replace(scores, bet=bet), 1 - alpha), confidence=confidence)


def simple_interval(n: int, total: float, squares: float, population: int, confidence: float = 0.99) -> Interval:
    """Return the interval of the mean of a random sample: Wilson's at 0.6 alpha, for n / design effect trials.

    Before 100 trials it is as wide as the bounds.

    >>> found = simple_interval(1000, 12, 8.2, 10**9, 1 - 0.01 / 0.6)
    >>> round(found.low, 6), round(found.high, 6)
    (0.006495, 0.022066)
    """
    least, most = total / population, (total + population - n) / population
    p = total / n if n else math.nan
    if n == population:
        least = most = p
    if n < min(_FEWEST_SIMPLE, population) or n == population:
        return _interval(least, most, p, "simple", confidence)
    trials = n / design_effect(total, squares) * (population - 1) / (population - n)
    found = wilson(p * trials, trials, 1 - SPENT * (1 - confidence))
    return _interval(max(found.low, least), min(found.high, most), p, "simple", confidence)


def _interval(low: float, high: float, middle: float, method: Method, confidence: float) -> Interval:
    low, high = min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)
    if not math.isnan(middle):
        middle = min(max(middle, low), high)
    return replace(Interval(low, high, middle, "", confidence), method=METHOD_NAMES[method])


def min_trials(margin: float, confidence: float = 0.99, method: Method = "guaranteed") -> int:
    """Return the minimum number of trials, reached if every fault is masked.

    >>> min_trials(0.01), min_trials(0.01, method="simple")
    (297, 370)
    """
    if method == "guaranteed":
        return math.ceil(math.log(2 / (1 - confidence)) / math.log1p(2 * _CAP * margin))
    z = NormalDist().inv_cdf(1 - SPENT * (1 - confidence) / 2)
    fewest = _FEWEST_SIMPLE if method == "simple" else _FEWEST
    return max(fewest, math.ceil(z * z * (1 / (2 * margin) - 1)))
