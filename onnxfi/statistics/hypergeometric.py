"""Hypergeometric tail probabilities: sampling without replacement, at most one trial of each fault."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable

import numpy as np

#: Terms that are summed at a time.
_BLOCK = 1024


def upper_tail(k: int, n: int, marked: int, size: int) -> float:
    """Return P(X >= k) for X hypergeometric: n draws without replacement from `size` items, `marked` of them marked.

    For k above the mean; for other k the result is 1/2, which the probability exceeds there, since the median is the
    mean rounded up or down (Siegel, Journal of Algorithms 38, 2001).

    >>> upper_tail(2, 3, 4, 10), (4 * 3 / 2 * 6 + 4) / (10 * 9 * 8 / 6)
    (0.33333333..., 0.33333333...)
    """
    if k <= n * marked // size:
        return 0.5
    most = min(n, marked)
    if k > most:
        return 0.0
    # From k on each term is the previous one times a falling ratio: the sum ends with a negligible term.
    term, total = math.exp(_log_choose(marked, k) + _log_choose(size - marked, n - k) - _log_choose(size, n)), 0.0
    for begin in range(k, most + 1, _BLOCK):
        j = np.arange(begin, min(begin + _BLOCK, most + 1), dtype=np.float64)
        ratios = (marked - j) * (n - j) / ((j + 1) * (size - marked - n + j + 1))
        terms = term * np.concatenate(([1.0], np.cumprod(ratios)))
        total += float(terms[:-1].sum())
        term = float(terms[-1])
        if term <= total * 1e-17:
            break
    return min(total, 1.0)


def first_true(holds: Callable[[int], bool], near: int, count: int) -> int:
    """Return the first of 0 … `count` − 1 for which a monotone predicate holds; `count` if there is none.

    The search starts at `near` in steps that double: the nearer that is, the fewer numbers are tried.

    >>> first_true(lambda x: x * x > 50, 7, 1000), first_true(lambda x: x > 9, 3, 5)
    (8, 5)
    """
    low = high = min(max(near, 0), count)
    step = 1
    while low > 0 and holds(low - 1):
        low, high, step = max(low - step, 0), low - 1, 2 * step
    step = 1
    while high < count and not holds(high):
        low, high, step = high + 1, min(high + step, count), 2 * step
    return bisect_left(range(count), True, low, high, key=holds)


def _log_choose(n: int, k: int) -> float:
    from scipy.special import betaln

    return float(-betaln(n - k + 1, k + 1) - math.log1p(n))
