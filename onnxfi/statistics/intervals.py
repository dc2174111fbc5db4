"""Confidence intervals of rates and means.

The unit is the trial: one set of faults, run on all samples. Its outcome is a yes or no (`clopper_pearson`),
a share of the samples or an accuracy (`mean_interval`, `stratified_interval`), or a number without bounds
(`t_interval`); the choice of samples adds a second interval (`sample_error`). A population is the number of
faults that can be drawn, each at most once. Intervals are for a number of trials fixed beforehand; for campaigns
whose results decide when they stop, use `adaptive.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxfi.errors import InputError
from onnxfi.statistics.hypergeometric import first_true, upper_tail

Bounds = tuple[float, float]
_ENDLESS = 2**62  # larger than any number of trials
_DEFF = "clopper-pearson with design effect"


@dataclass(frozen=True)
class Interval:
    """Estimate with its confidence interval, in the unit of what was measured; NaN estimate without trials.

    Attributes
    ----------
    low, high : float
        Ends of the interval, inclusive; rates and accuracies are shares of 1.
    estimate : float
        The point estimate.
    method : str
        Name of the method.
    confidence : float
        Nominal coverage, such as 0.99.
    """

    low: float
    high: float
    estimate: float
    method: str
    confidence: float

    @property
    def half_width(self) -> float:
        """Half the distance between the ends, in the unit of the estimate."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Stratum:
    """Sums over the trials of one stratum: a layer, a bit of a layer, or the whole fault space.

    `population` is its number of faults (None: endless, for a stratum that stands alone), `n` the number of
    trials, `total` the sum of their values in [0, 1], `squares` of their squares (yes/no: both the yes).

    >>> Stratum.of([0, 0.5, 1], population=640)
    Stratum(population=640, n=3, total=1.5, squares=1.25)
    """

    population: int | None
    n: int
    total: float
    squares: float

    def __post_init__(self) -> None:
        """Check the sums."""
        require_population(require_count("n", self.n, 0), self.population)
        slack = 1e-9 * (self.n + 1)
        fine = 0 <= self.squares <= self.total + slack <= self.n + 2 * slack
        require(fine, f"{self}", "0 <= squares <= total <= n; scale the values to [0, 1] first")

    @classmethod
    def of(cls, values: ArrayLike, population: int | None = None) -> Stratum:
        """Return the sums over the values of a stratum's trials, each in [0, 1]."""
        x = _inside(values, 0.0, 1.0)
        return cls(population, len(x), float(x.sum()), float(x @ x))


def require(fine: bool, given: str, allowed: str) -> None:
    """Raise InputError unless `fine`."""
    if not fine:
        raise InputError(f"{given}; allowed: {allowed}")


def alpha_and_quantile(confidence: float) -> tuple[float, float]:
    """Return alpha, the probability of both tails together, and the exact two-sided normal quantile."""
    require_share("confidence", confidence, "write 99 % as 0.99; for certainty run every fault")
    return 1 - confidence, -NormalDist().inv_cdf((1 - confidence) / 2)


def require_count(name: str, value: int, least: int) -> int:
    """Return a whole number of at least `least`; InputError for anything else."""
    require(isinstance(value, int | np.integer), f"{name} is {value!r}", "whole numbers; round it first")
    require(value >= least, f"{name} is {value}", f"{least} or more; leave out what is empty")
    return int(value)


def require_population(n: float, population: int | None) -> None:
    """Raise InputError for more trials than faults in the population."""
    if population is not None and n > require_count("population", population, 1):
        raise InputError(f"n is {n}; allowed: up to the population, {population}; count no fault twice")


def _inside(values: ArrayLike, low: float, high: float) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    require(x.ndim == 1, f"values have shape {x.shape}", "one dimension; give one value per trial")
    for i in np.flatnonzero(~((x >= low) & (x <= high)))[:1]:
        hint = "widen the bounds, or count a trial without a value as DUE and leave it out"
        raise InputError(f"values[{i}] is {x[i]}; allowed: {low:g} to {high:g}; {hint}")
    return x


def _beta_ends(p: float, n: float, alpha: float) -> tuple[float, float]:
    """Return the Clopper-Pearson ends of a share p of n trials; neither n nor p · n need be whole."""
    from scipy.special import betaincinv

    k = p * n
    low = float(betaincinv(k, n - k + 1, alpha / 2)) if k > 0 else 0.0
    return low, float(betaincinv(k + 1, n - k, 1 - alpha / 2)) if k < n else 1.0


def wilson(k: float, n: float, confidence: float = 0.99, *, population: int | None = None) -> Interval:
    """Return the Wilson score interval of k yes among n trials, neither of which need be whole.

    (p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n), shares of 1; a population N puts n (N - 1) / (N - n) in the
    place of n and bounds the ends by the observed counts. Its coverage holds on average only: a 99 % interval misses a
    rate of 0.11 events in n trials 1 time in 10; `clopper_pearson` does not. Without trials the result is [0, 1] and
    NaN. Source: Wilson, JASA 22, 1927. InputError unless 0 <= k <= n <= population.

    >>> wilson(12, 1000)
    Interval(low=0.00580954..., high=0.0246234..., estimate=0.012, method='wilson', confidence=0.99)
    """
    _, z = alpha_and_quantile(confidence)
    require(0 <= k <= n < math.inf, f"k is {k} and n is {n}", "0 <= k <= n; k counts among the n trials")
    require_population(n, population)
    if n == 0:
        return Interval(0.0, 1.0, math.nan, "wilson", confidence)
    size, p = int(population or _ENDLESS), float(k / n)
    low = high = p
    if n < size:
        m = float(n * ((size - 1) / (size - n)))
        half_width = z * math.sqrt(p * (1 - p) / m + (z / m) ** 2 / 4)
        low, high = ((p + z * z / m / 2 + side * half_width) / (1 + z * z / m) for side in (-1, 1))
        low, high = max(low, k / size) if k else 0.0, min(high, (k + size - n) / size)
    return Interval(min(low, p), max(high, p), p, "wilson", confidence)


def clopper_pearson(k: int, n: int, confidence: float = 0.99, *, population: int | None = None) -> Interval:
    """Return the exact interval of k yes among n trials, whose coverage is at least the nominal one.

    Its ends, shares of 1, are the rates at which k or more, or k or fewer, yes have the probability alpha/2:
    binomial, or with a population N hypergeometric (ends are multiples of 1/N, and n = N leaves no width;
    above 10⁹ a population that is not exhausted counts as infinite). Without trials the result is
    [0, 1] and NaN. Source: Clopper and Pearson, Biometrika 26, 1934. InputError unless 0 <= k <= n <= population.

    >>> clopper_pearson(0, 100).high
    0.0516040...
    >>> clopper_pearson(3, 980, population=1000)
    Interval(low=0.003, high=0.004, estimate=0.00306..., method='clopper-pearson', confidence=0.99)
    """
    alpha, _ = alpha_and_quantile(confidence)
    k, n = require_count("k", k, 0), require_count("n", n, 0)
    require(k <= n, f"k is {k} and n is {n}", "0 <= k <= n; k counts among the n trials")
    require_population(n, population)
    if n == 0:
        return Interval(0.0, 1.0, math.nan, "clopper-pearson", confidence)
    low, high = _beta_ends(k / n, n, alpha)
    if population is None or (population > 10**9 and population > n):
        return Interval(low, high, k / n, "clopper-pearson", confidence)
    size = int(population)
    totals = range(k, size - n + k + 1)
    near = [round(size * (k / n + (end - k / n) * math.sqrt(1 - n / size))) - k for end in (low, high)]
    least = first_true(lambda i: upper_tail(k, n, totals[i], size) > alpha / 2, near[0], len(totals))
    beyond = first_true(lambda i: upper_tail(n - k, n, size - totals[i], size) <= alpha / 2, near[1], len(totals))
    return Interval(totals[least] / size, totals[beyond - 1] / size, k / n, "clopper-pearson", confidence)


def design_effect(total: float, squares: float) -> float:
    """Return (Σx² + 1) / (Σx + 1), at most 1: the variance of shares x in [0, 1] relative to a binomial variance.

    `wilson(total / deff, n / deff)` is the interval of their mean, with Wilson's weakness for rare events,
    which `mean_interval` does not have. InputError unless 0 <= squares <= total.

    >>> round(design_effect(12, 8.2), 10)
    0.7076923077
    """
    fine = 0 <= squares <= total < math.inf
    require(fine, f"total is {total}, squares {squares}", "0 <= squares <= total; scale values to [0, 1]")
    return (squares + 1) / (total + 1)


def stratified_interval(strata: Sequence[Stratum], confidence: float = 0.99) -> Interval:
    """Return the interval of the mean over strata of which different shares were run.

    The estimate is p = Σ W_h m_h, each stratum's mean weighted by its share W_h of the N faults. To its
    variance V = Σ W_h² (1 - n_h/N_h) s_h² / n_h (one trial: x² for s²) an imagined event is added where one
    event weighs most, so that "never seen" does not become "cannot be": the effective number of trials is
    (p (1 - p) + g a) / (V + g a²) with a = max 1 / (-N ln(1 - n_h/N_h)), or W_h/n_h where few faults ran, and
    g = (ln(2/alpha) / z)². The ends are Clopper-Pearson's for it, moved out by half a fault and bounded by
    what was seen; strata without trials add all their width. After Korn and Graubard, Survey Methodology 24,
    1998. Simulated coverage of 99 % intervals: 98.8 % or more, down to one trial a stratum. InputError for no
    strata, or one without population beside others.

    >>> found = stratified_interval([Stratum(27_648, 400, 12, 8.2), Stratum(147_456, 400, 0, 0)])
    >>> round(found.low, 4), round(found.estimate, 4), round(found.high, 4)
    (0.0006, 0.0047, 0.0165)
    """
    alpha, z = alpha_and_quantile(confidence)
    require(bool(strata), "strata is empty", "at least one; give the strata that were drawn from")
    fine = len(strata) == 1 or all(s.population for s in strata)
    require(fine, "a stratum without population stands beside others", "populations, as they are weights")
    drawn = [(s.population or _ENDLESS, s.n, s.total, s.squares) for s in strata if s.n]
    if not drawn:
        return Interval(0.0, 1.0, math.nan, _DEFF, confidence)
    size, n, total, squares = np.array(drawn, dtype=np.float64).T
    faults = float(size.sum())
    weight, ran = size / faults, n / size
    p = min(float((weight * total / n).sum()), 1.0)
    seen, unseen = float(total.sum()) / faults, float((size - n).sum()) / faults
    low = high = p
    if unseen > 0:
        spread = np.maximum(squares - total**2 / n, 0) / np.maximum(n - 1, 1)
        v = float((weight**2 * (1 - ran) / n * np.where(n > 1, spread, squares)).sum())
        a = 1 / (faults * float((-np.log1p(-ran[ran < 1])).min()))
        g = (math.log(2 / alpha) / z) ** 2
        low, high = _beta_ends(p, (p * (1 - p) + g * a) / (v + g * a * a), alpha)
        low, high = max(low - 0.5 / faults, seen), min(high + 0.5 / faults, seen + unseen)
    reached = faults / sum(s.population or _ENDLESS for s in strata)
    low, high = min(low, p) * reached, max(high, p) * reached + (1 - reached)
    return Interval(low, high, p, _DEFF, confidence)


def mean_interval(
    values: ArrayLike, confidence: float = 0.99, *, bounds: Bounds = (0.0, 1.0), population: int | None = None
) -> Interval:
    """Return the interval of the mean of a bounded metric: a share of samples, an accuracy.

    `values` [n_trials] is one number per trial, inside `bounds`. The interval comes from the spread between
    trials, as samples under one fault are no independent draws: `stratified_interval` with one stratum. At
    99 % it reaches 5.3 (high - low) / n to either side where all values are alike, z s / sqrt(n) once n is
    large. No trials give the bounds and NaN. InputError for NaN, values out of bounds, n above population.

    >>> found = mean_interval([0.0] * 990 + [0.5] * 10)
    >>> round(found.low, 4), round(found.estimate, 4), round(found.high, 4)
    (0.0014, 0.005, 0.0123)
    """
    low, high = bounds
    require(-math.inf < low < high < math.inf, f"bounds are {bounds}", "two finite numbers, the lower first")
    x = np.clip((_inside(values, low, high) - low) / (high - low), 0, 1)
    unit = stratified_interval([Stratum.of(x, population)], confidence)
    first, last, middle = (low + (high - low) * end for end in (unit.low, unit.high, unit.estimate))
    return Interval(first, last, middle, _DEFF, confidence)


def t_interval(values: ArrayLike, confidence: float = 0.99) -> Interval:
    """Return Student's t interval of the mean of an unbounded metric, such as a largest deviation.

    mean ± t s / sqrt(n), n - 1 degrees of freedom, in the metric's unit. It assumes roughly normal means and ignores
    rare events that were not observed: use `mean_interval` for rates and accuracies. A NaN or an infinity leaves no
    mean: a NaN estimate and infinite ends (count such trials as DUE). Fewer than two values have such ends too.

    >>> found = t_interval([1.0, 2.0, 3.0, 4.0], 0.95)
    >>> round(found.low, 3), found.estimate, round(found.high, 3)
    (0.446, 2.5, 4.554)
    """
    alpha, _ = alpha_and_quantile(confidence)
    x = np.asarray(values, dtype=np.float64)
    require(x.ndim == 1, f"values have shape {x.shape}", "one dimension; give one value per trial")
    mean = float(x.mean()) if x.size and np.isfinite(x).all() else math.nan
    if x.size < 2 or math.isnan(mean):
        return Interval(-math.inf, math.inf, mean, "t", confidence)
    from scipy.special import stdtrit

    half_width = -float(stdtrit(x.size - 1, alpha / 2)) * float(x.std(ddof=1)) / math.sqrt(x.size)
    return Interval(mean - half_width, mean + half_width, mean, "t", confidence)


def sample_error(rates: ArrayLike, confidence: float = 0.99, *, again: bool = False) -> Interval:
    """Return the interval of a rate over samples: the uncertainty from the choice of test samples.

    `rates` [n_samples] is one rate for each sample: the share of trials in which its answer failed. The interval
    mean ± t s / sqrt(n_samples), cut to [0, 1], is for the mean over *all* samples of this kind. With `again` it is
    for the mean over as many other samples: sqrt(2) wider, and [0, 1] if all rates are equal, as nothing is known
    then. The interval over trials holds for these samples alone. InputError for a rate outside [0, 1].

    >>> round(sample_error([0.01, 0.02, 0.01, 0.0, 0.03, 0.01], 0.95).half_width, 4)
    0.0108
    """
    found = t_interval(_inside(rates, 0.0, 1.0), confidence)
    more = (math.sqrt(2) - 1) * found.half_width or math.inf if again else 0.0
    return replace(found, low=max(found.low - more, 0.0), high=min(found.high + more, 1.0), method="t over samples")


def require_share(name: str, value: float, hint: str) -> None:
    """Raise InputError unless a value is above 0 and below 1."""
    require(0 < value < 1, f"{name} is {value}", f"above 0 and below 1; {hint}")


Floats = NDArray[np.float64]


def median_interval(
    parts: Sequence[tuple[Floats, int | None]], confidence: float = 0.99, *, bounds: Bounds = (-np.inf, np.inf)
) -> Interval:
    """Return the median over trials and its interval.

    Parameters
    ----------
    parts : sequence of (values, population)
        The values of the trials of each stratum ([n] each, infinities allowed) and the number of faults that it was
        drawn from (None: endless, for a stratum that stands alone).
    confidence : float
        The confidence of the interval.
    bounds : tuple of float
        The ends if there are too few trials.

    Returns
    -------
    Interval
        Of one stratum the exact interval between two order statistics, which holds for every distribution. Of more,
        the values at which the stratified interval of the share of trials up to the median ends.

    References
    ----------
    .. [1] W. J. Conover, Practical Nonparametric Statistics, 3rd ed., 1999, section 3.2.
    .. [2] R. S. Woodruff, Confidence intervals for medians and other position measures, JASA 47, 1952.

    Examples
    --------
    >>> found = median_interval([(np.arange(100.0), None)], 0.95)
    >>> found.low, found.estimate, found.high
    (39.0, 49.0, 60.0)
    """
    from scipy.stats import binom

    parts = [(np.sort(np.asarray(values, np.float64)), size) for values, size in parts]
    total = sum(len(values) for values, _ in parts)
    if not total:
        return Interval(*bounds, np.nan, "none", confidence)
    ran = [(values, size) for values, size in parts if len(values)]
    sizes = np.array([size or 1 for _, size in ran], np.float64)
    points = np.concatenate([values for values, _ in ran])
    weights = np.concatenate([np.full(len(v), w / len(v)) for (v, _), w in zip(ran, sizes / sizes.sum(), strict=True)])
    order = np.argsort(points, kind="stable")
    points, reached = points[order], np.cumsum(weights[order])
    estimate = _quantile(points, reached, 0.5, bounds)
    if all(size is not None and len(values) == size for values, size in parts):
        return Interval(estimate, estimate, estimate, "exact", confidence)
    if len(parts) == 1:
        first = int(binom.ppf((1 - confidence) / 2, total, 0.5))  # P(fewer than `first` below the median) < alpha / 2
        ends = (points[first - 1], points[total - first]) if first else bounds
        return Interval(float(ends[0]), float(ends[1]), estimate, "order statistics", confidence)
    below = [float((values <= estimate).sum()) for values, _ in parts]
    strata = [Stratum(size, len(values), n, n) for (values, size), n in zip(parts, below, strict=True)]
    share = stratified_interval(strata, confidence)
    low, high = (_quantile(points, reached, end, bounds) for end in (share.low, share.high))
    return Interval(min(low, estimate), max(high, estimate), estimate, "Woodruff", confidence)


def _quantile(points: Floats, reached: Floats, share: float, bounds: Bounds) -> float:
    """Return the least value up to which this share of the weights lies; a bound where the share is none or all."""
    if share <= 0:
        return bounds[0]
    if share >= 1:
        return bounds[1]
    return float(points[min(int(np.searchsorted(reached, share - 1e-12)), len(points) - 1)])
