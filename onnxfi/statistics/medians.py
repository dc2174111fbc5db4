"""The median over trials, for numbers without bounds: one infinite deviation moves a mean beyond all use, no median."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from onnxfi.statistics.intervals import Bounds, Interval, Stratum, stratified_interval

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
        The ends where too few trials say anything.

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
