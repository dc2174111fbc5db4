"""Sample sizes: the number of trials that a rate needs, and their allocation to strata."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxfi.errors import closest
from onnxfi.statistics.intervals import (
    Stratum,
    alpha_and_quantile,
    require,
    require_count,
    require_population,
    require_share,
    stratified_interval,
)

#: Sample size at which the search for what is needed ends.
_MOST_NEEDED = 10**9
#: Units in which the margin of a sample size holds.
Per = Literal["network", "layer", "layer-bit", "data-aware"]


def exact_sample_size(
    population: int, margin: float, confidence: float = 0.99, p: float = 0.5, *, t: float | None = None
) -> float:
    """Return the unrounded number of trials that measures a rate to plus or minus `margin`.

    n = N / (1 + e² (N - 1) / (t² p (1 - p))), the margin e and the expected rate p as shares of 1; p = 0.5
    needs the most. t is the exact normal quantile; give it only to reproduce a paper that rounds it (2.58,
    2.576). Source: Leveugle et al., DATE 2009, doi 10.1109/DATE.2009.5090716. InputError out of range.

    >>> round(exact_sample_size(168_640, 0.01, t=2.576), 4)
    15103.7452
    """
    size = require_count("population", population, 1)
    require_share("margin", margin, "0.01 is plus or minus one percentage point")
    require_share("p", p, "use 0.5 if nothing is known of the rate")
    z = alpha_and_quantile(confidence)[1] if t is None else t
    require(0 < z < math.inf, f"t is {t}", "a positive number; leave it out for the exact quantile")
    return size / (1 + margin**2 * (size - 1) / (z * z * p * (1 - p)))


def sample_size(
    population: int, margin: float, confidence: float = 0.99, p: float = 0.5, *, t: float | None = None
) -> int:
    """Return `exact_sample_size` rounded up, never more than the population.

    >>> sample_size(17_174_144, 0.01), sample_size(17_174_144, 0.01, t=2.58), sample_size(500, 0.01)
    (16572, 16625, 486)
    """
    return min(int(population), math.ceil(exact_sample_size(population, margin, confidence, p, t=t)))


def margin_of_error(n: int, population: int, confidence: float = 0.99, p: float = 0.5) -> float:
    """Return the margin of error of n trials, a share of 1: z sqrt(p (1 - p) / n · (N - n) / (N - 1)).

    The inverse of `exact_sample_size`; 0 when every fault was run. InputError out of range.

    >>> round(margin_of_error(16_572, 17_174_144), 6)
    0.01
    """
    require_population(require_count("n", n, 1), population)
    require_share("p", p, "use 0.5 if nothing is known of the rate")
    return alpha_and_quantile(confidence)[1] * math.sqrt(p * (1 - p) / n * (population - n) / max(population - 1, 1))


def trials_needed(strata: Sequence[Stratum], margin: float, confidence: float = 0.99) -> int:
    """Return the trials, all in all, after which a mean is known to ±`margin`, if they go on as they began.

    The sums of each stratum grow in proportion, up to its population, until `stratified_interval` is as narrow;
    counting ends at a thousand million. InputError without a trial, or for a margin out of range.

    >>> trials_needed([Stratum.of([0.9, 0.95, 0.9, 0.88, 0.92])], 0.05)
    89
    """
    require_share("margin", margin, "0.05 is plus or minus five percentage points")
    begun = sum(one.n for one in strata)
    require(begun > 0, "there are no trials", "at least one, to go on from")

    def grown(n: int) -> list[Stratum]:
        found = []
        for one in strata:
            more = min(-(-one.n * n // begun), one.population or n)
            share = more / one.n if one.n else 0.0
            found.append(Stratum(one.population, more, one.total * share, one.squares * share))
        return found

    low, high = begun - 1, begun
    while high < _MOST_NEEDED and stratified_interval(grown(high), confidence).half_width > margin:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        wide = stratified_interval(grown(middle), confidence).half_width > margin
        low, high = (middle, high) if wide else (low, middle)
    return high


def allocate(
    sizes: Sequence[int],
    margin: float,
    confidence: float = 0.99,
    *,
    per: Per = "network",
    p: float | Sequence[float] | NDArray[np.float64] = 0.5,
    t: float | None = None,
) -> tuple[int, ...]:
    """Return the number of trials of each stratum, given the number of faults in each.

    `per` is what the margin holds for. "network": for all strata together; one sample size, shared in
    proportion and rounded up in each, so that all are met for less than one trial more a stratum. "layer",
    "layer-bit": for each stratum by itself. "data-aware": the same with one p per stratum (`data_aware_p`).
    Source: Ruospo et al., DATE 2023, doi 10.23919/DATE56975.2023.10136998, who round to nearest where this
    rounds up. InputError for no strata, an empty one, or a p that does not fit.

    >>> allocate([27_648, 147_456, 40_960], 0.01, t=2.58)
    (1978, 10546, 2930)
    >>> allocate([27_648, 147_456, 40_960], 0.01, t=2.58, per="layer")
    (10389, 14954, 11834)
    >>> allocate([864, 864], 0.01, t=2.58, per="data-aware", p=[0.5, 1e-4])
    (822, 7)
    """
    kinds = get_args(Per)
    require(per in kinds, f"per is {per!r}", " | ".join(kinds) + closest(str(per), kinds))
    whole = [require_count(f"sizes[{i}]", size, 1) for i, size in enumerate(sizes)]
    require(bool(whole), "sizes is empty", "at least one stratum; widen the selection")
    rates = np.asarray(p, dtype=np.float64)
    fits = rates.shape == ((len(whole),) if per == "data-aware" else ())
    given = f"p has shape {rates.shape} for {len(whole)} strata with per={per!r}"
    require(fits, given, "one p per stratum with 'data-aware', else a single number; see data_aware_p")
    if per == "network":
        n = sample_size(everything := sum(whole), margin, confidence, float(rates), t=t)
        return tuple(-(-n * size // everything) for size in whole)
    each = np.broadcast_to(rates, len(whole))
    return tuple(sample_size(w, margin, confidence, float(q), t=t) for w, q in zip(whole, each, strict=True))


def data_aware_p(distances: ArrayLike) -> NDArray[np.float64]:
    """Return from the weights an expected rate of each bit position, for `allocate`.

    `distances` [n_bits] is the mean of |faulty - original value| over the weights for each position; the result
    [n_bits] is 0.5 · distance / (largest distance), at least 1e-4. Outliers get 0.5 and are not the largest,
    since one outlier would push the others towards 0 (bit 30 moves float32 weights by some 1e37): distances that are
    infinite or NaN, or whose logarithm lies over 1.5 interquartile ranges above the third quartile. All get
    0.5 where none is positive. After Ruospo et al., DATE 2023; the fence and the 1e-4 are choices made here.
    A p too small makes a sample small, not its interval wrong. InputError for negative distances.

    >>> data_aware_p([1, 2, 4, 8])
    array([0.0625, 0.125 , 0.25  , 0.5   ])
    >>> data_aware_p([0.0, 0.001, 0.002, 0.004, 0.008, 1e37, float("inf")]).tolist()
    [0.0001, 0.0625, 0.125, 0.25, 0.5, 0.5, 0.5]
    """
    d = np.asarray(distances, dtype=np.float64)
    require(d.ndim == 1 and d.size > 0, f"distances have shape {d.shape}", "one dimension, one value per bit")
    require(not bool((d < 0).any()), f"a distance is {d.min()}", "0 or more; take absolute values")
    result, positive = np.full(d.shape, 0.5), d[np.isfinite(d) & (d > 0)]
    if positive.size:
        logs = np.log(positive)
        low, high = np.quantile(logs, [0.25, 0.75])
        largest = positive[logs <= high + 1.5 * (high - low)].max()
        result[d <= largest] = np.maximum(0.5 * (d[d <= largest] / largest), 1e-4)
    return result
