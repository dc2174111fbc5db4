"""Rates of rare outcomes where most faults are proved to have none: the others are sampled, with a guarantee.

A rate near 1e-6 takes millions of trials if all faults are drawn alike. Where a proof or a census says which faults
cannot have the outcome, only the others are drawn, each at most once, and the rate is theirs times their share. The
interval holds at whatever time a campaign stops (a confidence sequence).
"""

from __future__ import annotations

import math

from onnxfi.errors import InputError
from onnxfi.statistics.hypergeometric import first_true
from onnxfi.statistics.intervals import Interval


def rate_beside_proofs(population: int, proved: int, drawn: int, hits: int, confidence: float = 0.99) -> Interval:
    """Return the rate of an outcome in a population of faults, of which `proved` certainly do not have it.

    The others are drawn without replacement, in an order that does not depend on outcomes; a campaign may look after
    every trial, and stop when it likes. Once all of them were drawn, the rate is known.

    Parameters
    ----------
    population, proved : int
        Number of faults, and of those among them that are proved not to have the outcome.
    drawn, hits : int
        Trials of the others, and how many of them had it.
    confidence : float
        Probability that the interval holds the rate at every time, such as 0.99.

    Raises
    ------
    InputError
        For numbers that do not fit together.

    References
    ----------
    Waudby-Smith and Ramdas, Confidence sequences for sampling without replacement, NeurIPS 2020: the ratio of prior and
    posterior for a uniform prior.

    Examples
    --------
    >>> found = rate_beside_proofs(10_000_000, 9_999_000, 200, 2)
    >>> f"{found.low:.1e} {found.high:.1e}"
    '2.0e-07 6.4e-06'
    >>> rate_beside_proofs(10_000_000, 9_999_990, 10, 3).high
    3e-07
    """
    left = population - proved
    if not (0 <= proved <= population and 0 <= hits <= drawn <= left and population):
        raise InputError(f"{hits} of {drawn} trials among {left} faults of {population} do not fit together")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, got {confidence:g}")
    low, high = _marked(left, drawn, hits, 1 - confidence)
    estimate = hits / drawn * left / population if drawn else (0.0 if not left else math.nan)
    return Interval(low / population, high / population, estimate, "prior-posterior ratio", confidence)


def _marked(size: int, drawn: int, hits: int, alpha: float) -> tuple[int, int]:
    """Return the ends of the numbers of marked items that are not refuted: their likelihood is above α times the mean.

    The mean is that of a uniform prior: B(hits + 1, drawn − hits + 1). By Ville's inequality the true number is ever
    refuted with probability α at most.
    """
    floor = math.log(alpha) - _log_count(drawn, hits)
    first, last = hits, size - (drawn - hits)  # others are refuted by what was seen
    peak = min(max(round(hits / drawn * size) if drawn else first, first), last)

    def kept(marked: int) -> bool:
        return _log_likelihood(size, marked, drawn, hits) > floor

    low = first + first_true(lambda k: kept(first + k), peak - first, peak - first)
    high = peak - 1 + first_true(lambda k: not kept(peak + k), 0, last - peak + 1)
    return low, high


def _log_count(drawn: int, hits: int) -> float:
    """Return log((drawn + 1) · C(drawn, hits)), the inverse of B(hits + 1, drawn − hits + 1)."""
    return math.lgamma(drawn + 2) - math.lgamma(hits + 1) - math.lgamma(drawn - hits + 1)


def _log_likelihood(size: int, marked: int, drawn: int, hits: int) -> float:
    """Return the log of the probability of one order of so many hits and misses, where so many items are marked."""
    misses, clear = drawn - hits, size - marked
    if hits > marked or misses > clear:
        return -math.inf
    return _log_falling(marked, hits) + _log_falling(clear, misses) - _log_falling(size, drawn)


def _log_falling(n: int, k: int) -> float:
    """Return log(n (n − 1) … (n − k + 1))."""
    return math.lgamma(n + 1) - math.lgamma(n - k + 1)
