"""Comparison of two versions of a network: under the same faults, trial by trial, or each under faults of its own.

Each trial is run on both, so that what the draw of faults adds to both cancels in the difference. A yes or no of a
trial is tested by McNemar's exact test; a bounded number has the interval of the mean of its differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxfi.statistics.intervals import Bounds, Interval, clopper_pearson, mean_interval, require, t_interval


@dataclass(frozen=True)
class Paired:
    """Results of the same trials on two versions.

    Attributes
    ----------
    n
        Trials.
    first, second
        The mean of each version.
    difference
        Second minus first, with the interval of the paired differences.
    only_first, only_second
        Trials in which the first, or the second, alone has the larger value.
    p_value
        Of McNemar's exact test that both are alike, for a yes or no; else of the sign test on the same two numbers.
    """

    n: int
    first: float
    second: float
    difference: Interval
    only_first: int
    only_second: int
    p_value: float


def paired(first: ArrayLike, second: ArrayLike, confidence: float = 0.99, *, bounds: Bounds = (0.0, 1.0)) -> Paired:
    """Compare two versions trial by trial.

    Parameters
    ----------
    first, second : array_like of float, shape (n,)
        A number for each trial: 0 or 1 for a yes or no.
    confidence : float
        The confidence of the interval.
    bounds : tuple of float
        The least and the largest value; without finite ones Student's interval of the differences is taken.

    Returns
    -------
    Paired
        Means, difference and test.

    Raises
    ------
    InputError
        For different numbers of trials, or values out of bounds.

    Notes
    -----
    With b trials in which the first alone has the event and c the second alone, b of b + c is binomial with 1/2 where
    both are alike; p is the probability of a split at least as uneven. The interval is that of `mean_interval` for n
    differences in [low - high, high - low], which also holds where no difference was seen.

    References
    ----------
    .. [1] Q. McNemar, Psychometrika 12, 1947.

    Examples
    --------
    >>> found = paired([1] * 12 + [0] * 88, [1] * 2 + [0] * 98)
    >>> found.only_first, found.only_second, round(found.p_value, 4), round(found.difference.estimate, 2)
    (10, 0, 0.002, -0.1)
    """
    one, two = _numbers(first), _numbers(second)
    require(len(one) == len(two), f"there are {len(one)} and {len(two)} trials", "the same trials on both")
    low, high = bounds
    width = high - low
    apart = two - one
    if math.isfinite(width):
        fine = all(bool(((x >= low) & (x <= high)).all()) for x in (one, two))
        require(fine, f"values lie outside {low:g} to {high:g}", "values in their bounds")
        difference = mean_interval(np.clip(apart, -width, width), confidence, bounds=(-width, width))
    else:
        difference = t_interval(apart, confidence)
    fewer, more = int((apart < 0).sum()), int((apart > 0).sum())
    before, after = (float(x.mean()) if len(x) else math.nan for x in (one, two))
    return Paired(len(one), before, after, difference, fewer, more, exact_test(fewer, more))


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, np.float64)
    require(x.ndim == 1 and not np.isnan(x).any(), f"values have shape {x.shape} or are NaN", "one number per trial")
    return x


def exact_test(fewer: int, more: int) -> float:
    """Return the probability of a split at least as uneven where both sides are equally likely.

    >>> exact_test(0, 10) == 2 * 0.5**10, exact_test(3, 3), exact_test(0, 0)
    (True, 1.0, 1.0)
    """
    from scipy.stats import binom

    return min(1.0, 2.0 * float(binom.cdf(min(fewer, more), fewer + more, 0.5))) if fewer + more else 1.0


def rate_ratio(events: int, others: int, n: int, confidence: float = 0.99) -> Interval:
    """Return how many times rarer an event is among n trials of the second version than among n of the first.

    Parameters
    ----------
    events, others : int
        Trials of the first and of the second version with the event.
    n : int
        Trials of each.
    confidence : float
        The confidence of the interval.

    Returns
    -------
    Interval
        The ratio of the rates. Its ends come from Clopper-Pearson's of both rates, each with half of what the
        confidence leaves, so it holds however the two depend on each other. Infinite where the second has none.

    Examples
    --------
    >>> found = rate_ratio(400, 20, 2000)
    >>> round(found.low, 1), found.estimate, round(found.high, 1)
    (9.7, 20.0, 46.5)
    """
    each = 1 - (1 - confidence) / 2
    one, two = clopper_pearson(events, n, each), clopper_pearson(others, n, each)
    low = one.low / two.high if two.high else 0.0
    high = one.high / two.low if two.low else math.inf
    estimate = events / others if others else (math.inf if events else math.nan)
    return Interval(low, high, estimate, "ratio of clopper-pearson", confidence)


def difference_interval(first: Interval, second: Interval) -> Interval:
    """Return the interval of second minus first, of two rates that were measured apart.

    Parameters
    ----------
    first, second : Interval
        The intervals of both, at the same confidence.

    Returns
    -------
    Interval
        d - sqrt((p2 - l2)² + (u1 - p1)²) to d + sqrt((u2 - p2)² + (p1 - l1)²), with d = p2 - p1: the recovery of the
        variance of each side from its own interval. With trials on the same faults, whose results go together, it is
        wider than need be; `paired` is for those.

    References
    ----------
    .. [1] R. G. Newcombe, Statistics in Medicine 17, 1998, method 10; G. Y. Zou and A. Donner, Statistics in Medicine
       27, 2008, for intervals of any kind.

    Examples
    --------
    >>> from onnxfi.statistics.intervals import wilson
    >>> found = difference_interval(wilson(48, 80, 0.95), wilson(56, 70, 0.95))
    >>> round(found.low, 4), round(found.estimate, 4), round(found.high, 4)
    (0.0524, 0.2, 0.3339)
    """
    apart = second.estimate - first.estimate
    below = math.hypot(second.estimate - second.low, first.high - first.estimate)
    above = math.hypot(second.high - second.estimate, first.estimate - first.low)
    return Interval(apart - below, apart + above, apart, "newcombe", min(first.confidence, second.confidence))
