"""Adaptive sampling: which stratum the next fault comes from, and what the trials so far say of the mean.

Faults lie in strata. A round fixes for each stratum h what the rounds before it suggest: the mean mu_h and the variance
v_h of its faults, and the probability q_h with which a draw takes it. Each draw takes a stratum by q, then one of its
R_h faults that were not drawn yet, each as likely as the others. With R = sum R_h, the score of a fault of value x,

    Y = (sum_g R_g mu_g + (R_h / q_h) (x - mu_h)) / R,

has the mean of the R faults that are left as its expectation, whatever mu and q were guessed. So the estimate is not
biased by an allocation that looked at earlier outcomes, as means of strata put together are: a stratum whose first
faults happened to do nothing would not be asked again. Nor does what a draw weighs in the estimate look at outcomes:
it grows with the trials before its round, as rounds that know more scatter less. A round ends with the draw that takes
the last fault of a stratum, so that q is positive exactly where a fault is left.

`confidence_sequence` bets against each candidate mean (Waudby-Smith and Ramdas, Journal of the Royal Statistical
Society B 86, 2024): it holds at every moment at once, however one decides to stop, and presumes nothing but values in
[0, 1]. `asymptotic_interval` and `simple_interval` are narrower, and right as far as they were measured
(docs/explanation/statistics.md). Everything here is a pure function; chance is spent in `sampling.choose`.
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

#: The share of draws that go by the number of faults left, whatever was seen: it bounds R_h / q_h by R / 0.5.
EVEN = 0.5
#: Trials of the first round, and how much of all trials so far a later one has at least.
FIRST, GROWTH = 64, 0.05
#: The largest share of its capital that a bet may lose.
_CAP = 0.9
#: The share of alpha that intervals get which a campaign looks at again and again until they are narrow enough.
_SPENT = 0.6
#: Before so many trials, nor so many a stratum, an asymptotic or simple interval says nothing.
_FEWEST, _FEWEST_A_STRATUM, _FEWEST_SIMPLE = 200, 4, 100
NAMES: dict[Method, str] = {
    "guaranteed": "betting confidence sequence",
    "asymptotic": "t in Wilson's form",
    "simple": "Wilson with design effect",
}


@dataclass(frozen=True)
class Moments:
    """What was seen in each stratum: number, sum and sum of squares of the values of its faults ([strata] each)."""

    n: Floats
    total: Floats
    squares: Floats

    @classmethod
    def none(cls, strata: int) -> Moments:
        """Nothing yet."""
        return cls(np.zeros(strata), np.zeros(strata), np.zeros(strata))

    def plus(self, drawn: Numbers, values: Floats) -> Moments:
        """With further faults, each of a stratum and with a value in [0, 1]."""
        strata = len(self.n)
        return Moments(
            self.n + np.bincount(drawn, minlength=strata),
            self.total + np.bincount(drawn, values, strata),
            self.squares + np.bincount(drawn, values * values, strata),
        )


@dataclass(frozen=True)
class Round:
    """What is fixed before a round, of each stratum ([strata] each).

    `left` are its faults that were not drawn yet, `probability` the chance of a draw to take it (0 where none is left),
    `expected` the mean and `variance` the variance of its values, as far as earlier rounds tell.
    """

    left: Floats
    probability: Floats
    expected: Floats
    variance: Floats

    def part(self, strata: Numbers) -> Round:
        """The same for draws that fall into some of the strata."""
        chance = self.probability[strata]
        return Round(
            self.left[strata], chance / max(math.fsum(chance), 1e-300), self.expected[strata], self.variance[strata]
        )


def expect(parents: Numbers, seen: Moments) -> tuple[Floats, Floats]:
    """Mean and variance of each stratum ([strata] each), drawn towards those of all strata of the same parent.

    `parents` ([strata]) numbers them: strata of the same bits in different layers have the same one.
    """
    n, total, squares = (np.bincount(parents, each) for each in (seen.n, seen.total, seen.squares))
    mean = total / (n + 1)
    variance = (np.maximum(squares - 2 * mean * total + n * mean * mean, 0) + 0.1) / (n + 1)
    expected = (seen.total + 2 * mean[parents]) / (seen.n + 2)
    spread = seen.squares - 2 * expected * seen.total + seen.n * expected * expected
    return expected, (np.maximum(spread, 0) + 2 * variance[parents]) / (seen.n + 2)


def next_round(sizes: ArrayLike, parents: Numbers, seen: Moments) -> Round:
    """Allocate a round: half of the draws by R_h · sqrt(v_h), after Neyman, the others by R_h.

    `sizes` [strata] are the faults of each stratum.

    >>> first = next_round([900, 100], np.array([0, 1]), Moments.none(2))
    >>> first.probability.tolist(), first.expected.tolist()
    ([0.9, 0.1], [0.0, 0.0])
    >>> seen = Moments(np.array([9.0, 1.0]), np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    >>> next_round([900, 100], np.array([0, 1]), seen).probability.round(2).tolist()
    [0.7, 0.3]
    """
    left = np.asarray(sizes, np.float64) - seen.n
    expected, variance = expect(parents, seen)
    uneven = left * np.sqrt(variance)
    probability = (1 - EVEN) * uneven / math.fsum(uneven) + EVEN * left / math.fsum(left)
    return Round(left, probability / math.fsum(probability), expected, variance)


def round_size(trials: int, *, first: int = FIRST) -> int:
    """How many draws the round after so many trials has.

    >>> round_size(0), round_size(10_000)
    (64, 500)
    """
    return max(first, int(GROWTH * trials))


def until_empty(drawn: Numbers, left: Floats) -> Numbers:
    """The draws of a round up to that which takes the last fault of a stratum.

    >>> until_empty(np.array([0, 1, 0, 1, 0]), np.array([5.0, 2.0])).tolist()
    [0, 1, 0, 1]
    """
    last = np.flatnonzero(_rank(drawn, len(left)) + 1 == left[drawn])
    return drawn[: last[0] + 1] if len(last) else drawn


def _rank(drawn: Numbers, strata: int) -> Numbers:
    """How many draws before each took the same stratum."""
    order = np.argsort(drawn, kind="stable")
    count = np.bincount(drawn, minlength=strata)
    rank = np.empty(len(drawn), np.int64)
    rank[order] = np.arange(len(drawn)) - np.repeat(np.cumsum(count) - count, count)
    return rank


@dataclass(frozen=True)
class Draws:
    """The draws of a round in order ([draws] each), as they are known before a fault is run.

    `stratum` is h, `here` R_h, `left` R and `base` the sum of R_g mu_g, all before the draw; `probability` is q_h,
    `expected` mu_h. Y lies between (base - below) / R and (base + above) / R for all of them; `variance` is what the
    round expects of Y, `aim` half the width that is wanted, and `weight` what a draw weighs in the estimate.
    """

    stratum: Numbers
    here: Floats
    left: Floats
    base: Floats
    probability: Floats
    expected: Floats
    below: float
    above: float
    variance: float
    aim: float
    weight: float

    @property
    def stake(self) -> float:
        """The share of the capital that is bet, before it is cut: d / (v + d²)."""
        return self.aim / (self.variance + self.aim**2)


def weight_after(trials: int) -> float:
    """What a draw weighs whose round has so many trials before it."""
    return math.sqrt(trials + FIRST / 2)


def lay(played: Round, drawn: Numbers, aim: float, weight: float = 1.0) -> Draws:
    """What is known of a round's draws beforehand; `aim` is half the width that is wanted."""
    before = np.arange(len(drawn))
    mu = played.expected[drawn]
    whole = math.fsum(played.left)
    some = played.left > 0
    places = played.left[some] / played.probability[some]
    return Draws(
        drawn,
        played.left[drawn] - _rank(drawn, len(played.left)),
        np.asarray(whole - before, np.float64),
        math.fsum(played.left * played.expected) - (np.cumsum(mu) - mu),
        played.probability[drawn],
        mu,
        float((places * played.expected[some]).max()),
        float((places * (1 - played.expected[some])).max()),
        math.fsum(played.left[some] * places * played.variance[some]) / whole**2,
        aim,
        weight,
    )


@dataclass(frozen=True)
class Scores:
    """The draws of complete rounds in order ([draws] each), scored.

    `value` is x, `score` Y, `low` and `high` bound Y whatever x is; `left` is R, `total` the sum of x, both before the
    draw; `weight`, `stake` and `variance` as in `Draws`, `place` is R_h / q_h.
    """

    value: Floats
    score: Floats
    low: Floats
    high: Floats
    left: Floats
    total: Floats
    weight: Floats
    stake: Floats
    variance: Floats
    place: Floats

    @property
    def population(self) -> float:
        """All faults, drawn or not."""
        return float(self.left[0])

    @property
    def ends(self) -> tuple[float, float]:
        """The rates if none, or all, of the faults that are left were fatal."""
        total, left = float(self.total[-1] + self.value[-1]), float(self.left[-1] - 1)
        return total / self.population, (total + left) / self.population

    @property
    def overall(self) -> Floats:
        """Each draw's unbiased estimate of the mean over all faults."""
        return (self.total + self.left * self.score) / self.population


def score(draws: Draws, values: Floats, total: float = 0.0) -> Scores:
    """Score the draws of a round; `total` is the sum of x over all rounds before it.

    >>> played = Round(np.array([900.0, 100.0]), np.array([0.7, 0.3]), np.array([0.01, 0.8]), np.array([0.1, 0.1]))
    >>> score(lay(played, np.array([1]), 0.01), np.array([1.0])).score.round(10).tolist()
    [0.1556666667]
    """
    place, rows = draws.here / draws.probability, len(values)
    return Scores(
        values,
        (draws.base + place * (values - draws.expected)) / draws.left,
        (draws.base - draws.below) / draws.left,
        (draws.base + draws.above) / draws.left,
        draws.left,
        total + (np.cumsum(values) - values),
        np.full(rows, draws.weight),
        np.full(rows, draws.stake),
        np.full(rows, draws.variance),
        place,
    )


def join(parts: Sequence[Scores]) -> Scores:
    """The scores of several rounds, one after the other."""
    return Scores(*(np.concatenate([getattr(p, name) for p in parts]) for name in Scores.__dataclass_fields__))


def estimate(scores: Scores) -> float:
    """The weighted mean of the draws' unbiased estimates."""
    return math.fsum(scores.weight * scores.overall) / math.fsum(scores.weight)


def coefficients(scores: Scores) -> Floats:
    """What each value counts in `estimate` ([draws]); the rest of it does not depend on the values."""
    later = math.fsum(scores.weight) - np.cumsum(scores.weight)
    return (scores.weight * scores.place + later) / (math.fsum(scores.weight) * scores.population)


def confidence_sequence(scores: Scores, confidence: float = 0.99) -> Interval:
    """Return an interval that holds the mean at every moment at once, with no more chance to fail than stated.

    Against a candidate m two capitals start from 1, one bets that scores come higher than m has it, one lower:
    K± = Π (1 ± λ± (Y - m_t)), with m_t = (N m - Σ x so far) / R, λ the stake, cut so that no bet loses more than 0.9.
    If m is the mean they gain nothing on average, so either ever reaches 2/alpha with a chance of alpha/2 at most
    (Ville). The interval is what neither has refuted so far: it never gets wider. A rate that was never seen to happen
    has a low end of 0.

    >>> played = next_round([10_000], np.array([0]), Moments.none(1))
    >>> quiet = score(lay(played, np.zeros(600, np.int64), 0.01), np.zeros(600))
    >>> found = confidence_sequence(quiet)
    >>> found.low, found.estimate, round(found.high, 4)
    (0.0, 0.0, 0.0861)
    """
    least, most = scores.ends
    limit = math.log(2 / (1 - confidence))

    def refuted(m: float, side: int) -> float:
        null = (scores.population * m - scores.total) / scores.left
        room = null - scores.low if side > 0 else scores.high - null
        bet = side * np.minimum(scores.stake, _CAP / np.maximum(room, 1e-12))
        gains = np.log1p(np.maximum(bet * (scores.score - null), -0.999999))
        return float(np.cumsum(gains).max()) - limit

    low = _root(lambda m: refuted(m, 1), least, most)
    high = least + most - _root(lambda m: refuted(least + most - m, -1), least, most)
    return _interval(min(low, high), max(low, high), estimate(scores), "guaranteed", confidence)


def _root(refuted: Callable[[float], float], least: float, most: float) -> float:
    """Where a falling function crosses zero, or the end that it does not come to."""
    from scipy.optimize import brentq

    if least >= most or refuted(least) <= 0:
        return least
    return most if refuted(most) > 0 else float(brentq(refuted, least, most, xtol=1e-12, rtol=1e-9))


def asymptotic_interval(scores: Scores, strata: int, confidence: float = 0.99) -> Interval:
    """Return the interval of the estimate by the spread of the scores: t in Wilson's form, at 0.6 alpha.

    V = max(Σ w² (Ỹ - p)² / (Σ w)², v / T) is the variance of the estimate p, never below what the last round expects;
    Wilson's interval is taken for p (1 - p) / V trials with the t quantile of (Σ w)² / Σ w² - 1 degrees of freedom. It
    says nothing before max(200, 4 strata) trials, or a quarter of the population. Like all that estimate a variance it
    is fooled by a rare killer that was not met yet.
    """
    from scipy.special import stdtrit

    alpha = _SPENT * (1 - confidence)
    least, most = scores.ends
    trials, p, w = len(scores.value), estimate(scores), scores.weight
    if trials < min(max(_FEWEST, _FEWEST_A_STRATUM * strata), scores.population // 4) or least == most:
        return _interval(least, most, p, "asymptotic", confidence)
    whole = math.fsum(w)
    expected = float(scores.variance[-1]) / trials
    variance = max(math.fsum((w * (scores.overall - p)) ** 2) / whole**2, expected, 1e-300)
    p = min(max(p, 0.0), 1.0)
    n = max(p * (1 - p) / variance, 1.0) if 0 < p < 1 else float(trials)
    t = -float(stdtrit(max(whole**2 / math.fsum(w * w) - 1, 2.0), alpha / 2))
    middle, reach = p + t * t / n / 2, t * math.sqrt(p * (1 - p) / n + (t / n) ** 2 / 4)
    low, high = ((middle + side * reach) / (1 + t * t / n) for side in (-1, 1))
    low = low if p > 0 else 0.0  # and not what rounding leaves of it
    return _interval(max(low, least), min(high, most), p, "asymptotic", confidence)


def simple_interval(n: int, total: float, squares: float, population: int, confidence: float = 0.99) -> Interval:
    """Return the interval of the mean of a random sample: Wilson's at 0.6 alpha, for n / design effect trials.

    It says nothing before 100 trials.

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
    found = wilson(p * trials, trials, 1 - _SPENT * (1 - confidence))
    return _interval(max(found.low, least), min(found.high, most), p, "simple", confidence)


def _interval(low: float, high: float, middle: float, method: Method, confidence: float) -> Interval:
    low, high = min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)
    if not math.isnan(middle):
        middle = min(max(middle, low), high)
    return replace(Interval(low, high, middle, "", confidence), method=NAMES[method])


def fewest_trials(margin: float, confidence: float = 0.99, method: Method = "guaranteed") -> int:
    """How many trials it takes at least, where no fault does anything at all.

    >>> fewest_trials(0.01), fewest_trials(0.01, method="simple")
    (297, 370)
    """
    if method == "guaranteed":
        return math.ceil(math.log(2 / (1 - confidence)) / math.log1p(2 * _CAP * margin))
    z = NormalDist().inv_cdf(1 - _SPENT * (1 - confidence) / 2)
    fewest = _FEWEST_SIMPLE if method == "simple" else _FEWEST
    return max(fewest, math.ceil(z * z * (1 / (2 * margin) - 1)))
