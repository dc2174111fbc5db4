"""Intervals against closed forms, pins and simulated campaigns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from onnxfi.errors import InputError
from onnxfi.statistics.intervals import (
    Interval,
    Stratum,
    clopper_pearson,
    design_effect,
    mean_interval,
    median_interval,
    sample_error,
    stratified_interval,
    t_interval,
    wilson,
)
from onnxfi.statistics.sample_size import Per, allocate, data_aware_p, margin_of_error, sample_size

Floats = NDArray[np.float64]
RUNS = 1000

# ------------------------------------------------------------------------------------- intervals for yes and no


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 100, 0, 0.0622206877),
        (1, 100, 0.0011751454, 0.0798011285),
        (12, 1000, 0.0058095416, 0.0246234353),
        (1778, 15103, 0.1111372725, 0.1246483651),
    ],
)
def test_wilson_pins(k: int, n: int, low: float, high: float) -> None:
    found = wilson(k, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-11)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 100, 0, 0.0516040296),
        (1, 100, 0.0000501242, 0.0719576824),
        (12, 1000, 0.0049581631, 0.0239984985),
        (1000, 1000, 0.9947156940, 1),
    ],
)
def test_clopper_pearson_pins(k: int, n: int, low: float, high: float) -> None:
    found = clopper_pearson(k, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-11)


def test_zero_events_reach_two_percent_at_263_trials() -> None:
    assert clopper_pearson(0, 262).high > 0.02 >= clopper_pearson(0, 263).high


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("k", "n"), [(0, 7), (1, 1), (3, 10), (250, 1000), (999, 1000)])
def test_both_agree_with_scipy(k: int, n: int, confidence: float) -> None:
    test = stats.binomtest(k, n)
    for ours, name in ((wilson(k, n, confidence), "wilson"), (clopper_pearson(k, n, confidence), "exact")):
        theirs = test.proportion_ci(confidence, name)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_design_effect_pin() -> None:
    deff = design_effect(12, 8.2)
    assert deff == pytest.approx(0.7076923077, abs=5e-11)
    assert 1000 / deff == pytest.approx(1413.0434783, abs=5e-8)
    found = wilson(12 / deff, 1000 / deff)
    assert (found.low, found.high) == pytest.approx((0.0064953871, 0.0220659693), abs=5e-11)


def exact_coverage(table: Sequence[Interval], truth: float, chances: Floats) -> float:
    """Chance that the interval holds the truth, summed over every possible count."""
    inside = [i.low <= truth + 1e-12 and truth - 1e-12 <= i.high for i in table]
    return float(chances[inside].sum())


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_clopper_pearson_covers_every_rate(n: int) -> None:
    table = [clopper_pearson(k, n) for k in range(n + 1)]
    for rate in (1e-5, 1e-4, 5e-4, 0.001, 0.003, 0.01, 0.1, 0.5, 0.9, 0.999):
        chances = stats.binom.pmf(np.arange(n + 1), n, rate)
        assert exact_coverage(table, rate, chances) >= 0.99


@pytest.mark.parametrize(("size", "n"), [(20, 10), (64, 58), (64, 61), (200, 60), (200, 196)])
def test_clopper_pearson_covers_every_finite_population(size: int, n: int) -> None:
    table = [clopper_pearson(k, n, population=size) for k in range(n + 1)]
    for faults in range(size + 1):
        chances = stats.hypergeom.pmf(np.arange(n + 1), size, faults, n)
        assert exact_coverage(table, faults / size, chances) >= 0.99


def test_wilson_is_the_one_that_misses_rare_rates() -> None:
    """The reason for Clopper-Pearson: one event in 1,000 trials already excludes a rate of 1.1e-4."""
    ours, theirs = ([method(k, 1000) for k in range(1001)] for method in (clopper_pearson, wilson))
    chances = stats.binom.pmf(np.arange(1001), 1000, 1.1e-4)
    assert exact_coverage(theirs, 1.1e-4, chances) < 0.92
    assert exact_coverage(ours, 1.1e-4, chances) > 0.99
    for rate in (0.01, 0.1, 0.5):
        assert exact_coverage(theirs, rate, stats.binom.pmf(np.arange(1001), 1000, rate)) > 0.985


@pytest.mark.parametrize("method", [wilson, clopper_pearson])
def test_a_used_up_population_leaves_no_doubt(method: Callable[..., Interval]) -> None:
    found = method(3, 40, population=40)
    assert (found.low, found.high, found.half_width) == (3 / 40, 3 / 40, 0)
    part = method(3, 30, population=40)
    assert 3 / 40 <= part.low < part.high <= 13 / 40
    assert part.half_width < method(3, 30).half_width


def test_wilson_counts_a_finite_population_as_more_trials() -> None:
    found, more = wilson(12, 1000, population=2000), wilson(0.012 * 1999, 1999)
    assert (found.low, found.high) == pytest.approx((more.low, more.high), rel=1e-12)


@pytest.mark.parametrize("method", [wilson, clopper_pearson])
def test_no_trials_say_nothing(method: Callable[..., Interval]) -> None:
    for found in (method(0, 0), method(0, 0, population=5)):
        assert (found.low, found.high) == (0, 1)
        assert math.isnan(found.estimate)


def test_large_populations_agree_with_the_endless_one() -> None:
    endless = clopper_pearson(12, 1000)
    below, above = (clopper_pearson(12, 1000, population=size) for size in (10**9, 10**12))
    assert (below.low, below.high) == pytest.approx((endless.low, endless.high), rel=1e-5)
    assert above == endless
    assert wilson(12, 1000, population=10**12).high == pytest.approx(wilson(12, 1000).high, rel=1e-8)


# ------------------------------------------------------------------------------- coverage in simulated campaigns


def draw(population: Floats, n: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Sums and sums of squares of RUNS samples of n without repetition."""
    values, counts = np.unique(population, return_counts=True)
    drawn = rng.multivariate_hypergeometric(counts, n, size=RUNS, method="marginals")
    return list(zip((drawn @ values).tolist(), (drawn @ values**2).tolist(), strict=True))


def coverage(found: Sequence[Interval], truth: float) -> float:
    return sum(i.low <= truth + 1e-12 and truth - 1e-12 <= i.high for i in found) / len(found)


def faults(size: int, rate: float, kind: str, rng: np.random.Generator) -> Floats:
    """The outcomes of all faults: 0 but for a share, which fails on all samples, on 30 %, or on a mixture."""
    x = np.zeros(size)
    hit = rng.choice(size, round(size * rate), replace=False)
    if kind == "skewed":  # most failures are small, one in ten is total
        x[hit] = np.where(rng.random(len(hit)) < 0.1, 1, rng.integers(1, 60, len(hit)) / 200)
    else:
        x[hit] = {"yes/no": 1.0, "0.3": 0.3}[kind]
    return x


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize(("size", "n"), [(5000, 100), (5000, 1000), (5000, 4700), (1_000_000, 1000)])
def test_clopper_pearson_coverage(rate: float, size: int, n: int) -> None:
    counts = np.random.default_rng(1).hypergeometric(round(size * rate), size - round(size * rate), n, RUNS)
    table = {k: clopper_pearson(k, n, population=size) for k in set(counts.tolist())}
    assert coverage([table[k] for k in counts.tolist()], rate) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["yes/no", "0.3", "skewed"])
@pytest.mark.parametrize(("size", "n"), [(5000, 100), (5000, 1000), (5000, 4700), (100_000, 1000)])
def test_mean_coverage(rate: float, kind: str, size: int, n: int) -> None:
    rng = np.random.default_rng(2)
    x = faults(size, rate, kind, rng)
    found = [stratified_interval([Stratum(size, n, s, q)]) for s, q in draw(x, n, rng)]
    assert coverage(found, x.mean()) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 100, 1000])
@pytest.mark.parametrize("hit", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("drop", [0.736, 0.1, "uniform"])
def test_accuracy_coverage(n: int, hit: float, drop: float | str) -> None:
    """An accuracy of 0.836 that a share of the trials brings down, to chance or by less."""
    rng = np.random.default_rng(3)
    size = rng.random((RUNS, n)) * 0.7 if drop == "uniform" else float(drop)
    x = 0.836 - size * (rng.random((RUNS, n)) < hit)
    truth = 0.836 - hit * (0.35 if drop == "uniform" else float(drop))
    assert coverage([mean_interval(row) for row in x], truth) >= 0.98


LAYERS = [72, 864, 1728, 2560]
BITS = {7: (0.6, 1), 6: (0.03, 2), 5: (0.005, 2), 4: (0.001, 2), 3: (0, 1), 2: (0, 1), 1: (0, 1), 0: (0.02, 1)}


def plan(name: str, sizes: list[int]) -> tuple[int, ...]:
    if name == "one each":
        return (1,) * len(sizes)
    if name == "data-aware":  # bit 0 fails too, and is thought harmless
        p = [{7: 0.5, 6: 0.03, 5: 0.005}.get(bit, 1e-3) for _ in LAYERS for bit in BITS]
        return allocate(sizes, 0.01, per="data-aware", p=p)
    per: Per = "layer-bit" if name == "layer-bit" else "network"
    return allocate(sizes, {"layer-bit": 0.05, "network": 0.01, "network ±5 %": 0.05}[name], per=per)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["yes/no", "0.3", "skewed"])
@pytest.mark.parametrize("name", ["network", "network ±5 %", "layer-bit", "data-aware", "one each"])
def test_stratified_coverage(name: str, kind: str) -> None:
    """Four layers of eight bits, one of them almost always fatal, half of them harmless."""
    rng = np.random.default_rng(4)
    space = [
        faults(w, min(1.0, rate * scale), kind, rng)
        for w, scale in zip(LAYERS, (1.5, 1, 0.5, 0.2), strict=True)
        for rate, _ in BITS.values()
    ]
    sizes = [len(x) for x in space]
    truth = float(np.concatenate(space).mean())
    ns = plan(name, sizes)
    drawn = [draw(x, n, rng) for x, n in zip(space, ns, strict=True)]
    found = [
        stratified_interval([Stratum(*row[:2], *row[2]) for row in zip(sizes, ns, sums, strict=True)])
        for sums in zip(*drawn, strict=True)
    ]
    assert coverage(found, truth) >= 0.98
    assert np.mean([i.estimate for i in found]) == pytest.approx(truth, abs=4 * found[0].half_width / 30)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_other_confidences_hold_too(confidence: float) -> None:
    rng = np.random.default_rng(5)
    for kind in ("yes/no", "skewed"):
        x = faults(20_000, 0.05, kind, rng)
        found = [stratified_interval([Stratum(20_000, 600, *sums)], confidence) for sums in draw(x, 600, rng)]
        assert coverage(found, x.mean()) >= confidence - 2.6 * math.sqrt(confidence * (1 - confidence) / RUNS)


# ------------------------------------------------------------------------------------- intervals for a number


def test_a_rate_never_seen_is_clopper_pearsons() -> None:
    for n in (2, 30, 1000):
        found, exact = mean_interval(np.zeros(n)), clopper_pearson(0, n)
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), rel=1e-9)
        turned = mean_interval(np.ones(n))
        assert (turned.low, turned.high) == pytest.approx((1 - exact.high, 1), rel=1e-9)
    assert mean_interval([0.0]).high == pytest.approx(clopper_pearson(0, 1).high)


def test_strata_never_seen_are_bounded_by_the_heaviest_trial() -> None:
    """No event in either: the most that a rate can be is one that hides in the thinly sampled half."""
    found = stratified_interval([Stratum(10**9, 50, 0, 0), Stratum(10**9, 5000, 0, 0)])
    assert found.high == pytest.approx(clopper_pearson(0, 100).high, rel=1e-6)


def test_large_samples_reach_the_normal_width() -> None:
    x = np.random.default_rng(6).beta(2, 5, 200_000)
    found = mean_interval(x)
    assert found.half_width == pytest.approx(2.5758293 * x.std(ddof=1) / math.sqrt(len(x)), rel=2e-3)
    stratified = stratified_interval([Stratum.of(x[:50_000], 10**7), Stratum.of(x[50_000:], 3 * 10**7)])
    assert stratified.half_width == pytest.approx(found.half_width, rel=0.02)


def test_values_all_alike_still_leave_room_for_the_unseen() -> None:
    """1,000 trials at 0.836 do not rule out a fault that 0.53 % of trials would meet: ln(200) / 1000."""
    found = mean_interval(np.full(1000, 0.836))
    assert found.half_width == pytest.approx(math.log(200) / 1000, rel=0.02)


def test_few_trials_a_stratum_keep_their_variance() -> None:
    """500 strata of two trials, one yes in each: s² = 1/2, V = 0.5 / 2 / 500; one trial each: x² for s²."""
    two = stratified_interval([Stratum(10**6, 2, 1, 1)] * 500)
    assert two.half_width == pytest.approx(2.5758293 * math.sqrt(0.25 / 500), rel=0.02)
    one = stratified_interval([Stratum(10**6, 1, x, x) for x in (0, 1)] * 500)
    assert one.half_width == pytest.approx(2.5758293 * math.sqrt(0.5 / 1000), rel=0.02)


def test_a_finite_population_narrows_the_interval() -> None:
    x = np.random.default_rng(11).random(75_000)
    ratio = mean_interval(x, population=100_000).half_width / mean_interval(x).half_width
    assert ratio == pytest.approx(math.sqrt(0.25), rel=0.01)
    for n in (10, 500, 750, 980):
        assert stratified_interval([Stratum(1000, n, 0, 0)]).high == pytest.approx(
            clopper_pearson(0, n, population=1000).high, abs=2 / 1000
        )


@pytest.mark.parametrize(("size", "n"), [(20, 16), (64, 58), (200, 60), (200, 196), (1000, 980)])
def test_the_interval_of_a_mean_covers_every_finite_population(size: int, n: int) -> None:
    table = [stratified_interval([Stratum(size, n, k, k)]) for k in range(n + 1)]
    for hit in range(size + 1):
        chances = stats.hypergeom.pmf(np.arange(n + 1), size, hit, n)
        assert exact_coverage(table, hit / size, chances) >= 0.99


def test_strata_are_weighted_by_their_faults() -> None:
    found = stratified_interval([Stratum(900, 10, 1, 1), Stratum(100, 50, 40, 36)])
    assert found.estimate == pytest.approx(0.9 * 0.1 + 0.1 * 0.8)
    assert found.low >= (1 + 40) / 1000
    assert found.high <= (1000 - 9 - 10) / 1000


def test_a_stratum_without_trials_adds_its_whole_width() -> None:
    ran = Stratum(300, 200, 20, 20)
    whole = stratified_interval([ran])
    part = stratified_interval([ran, Stratum(100, 0, 0, 0)])
    assert part.estimate == whole.estimate
    assert (part.low, part.high) == pytest.approx((0.75 * whole.low, 0.75 * whole.high + 0.25))
    nothing = stratified_interval([Stratum(100, 0, 0, 0)])
    assert (nothing.low, nothing.high) == (0, 1)
    assert math.isnan(nothing.estimate)


def test_used_up_strata_leave_no_doubt() -> None:
    found = stratified_interval([Stratum(40, 40, 3.5, 2.25), Stratum(10, 10, 0, 0)])
    assert found.low == pytest.approx(0.07)
    assert found.half_width == pytest.approx(0, abs=1e-15)
    assert mean_interval([0.25] * 8, population=8).half_width == pytest.approx(0, abs=1e-15)


def test_bounds_scale_the_interval() -> None:
    x = np.random.default_rng(7).random(50)
    unit, wide = mean_interval(x), mean_interval(20 * x - 10, bounds=(-10, 10))
    assert (wide.low, wide.high, wide.estimate) == pytest.approx(
        (20 * unit.low - 10, 20 * unit.high - 10, 20 * unit.estimate - 10)
    )
    empty = mean_interval([], bounds=(-10, 10))
    assert (empty.low, empty.high) == (-10, 10)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=60),
    st.sampled_from([0.5, 0.9, 0.99, 0.99999]),
    st.sampled_from([None, 60, 61, 200, 10**15]),
)
def test_the_estimate_lies_inside(values: list[float], confidence: float, population: int | None) -> None:
    found = mean_interval(values, confidence, population=population)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    wider = mean_interval(values, (1 + confidence) / 2, population=population)
    assert wider.half_width >= found.half_width - 1e-9


def test_t_interval_is_students() -> None:
    x = np.random.default_rng(8).normal(3, 2, 12)
    theirs = stats.ttest_1samp(x, 0).confidence_interval(0.99)
    found = t_interval(x)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.estimate == pytest.approx(x.mean())


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf], [math.inf, -math.inf]])
def test_t_interval_without_a_mean(values: list[float]) -> None:
    found = t_interval(values)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert math.isnan(found.estimate)


def test_t_interval_of_one_value() -> None:
    assert t_interval([4.0]) == Interval(-math.inf, math.inf, 4.0, "t", 0.99)


def test_sample_error_is_the_spread_over_samples() -> None:
    rates = np.random.default_rng(9).beta(0.5, 30, 200)
    found = sample_error(rates)
    quantile = stats.t.isf(0.005, 199)
    assert found.half_width == pytest.approx(quantile * rates.std(ddof=1) / math.sqrt(200))
    assert found.estimate == pytest.approx(rates.mean())
    assert (sample_error([0.5]).low, sample_error([0.5]).high) == (0, 1)


def test_sample_error_covers_another_choice_of_samples() -> None:
    rng = np.random.default_rng(10)
    found = [sample_error(rng.beta(2, 20, 200)) for _ in range(RUNS)]
    assert coverage(found, 2 / 22) >= 0.98


@pytest.mark.parametrize("n", [5, 20, 200])
def test_another_choice_of_samples_lies_inside(n: int) -> None:
    """As many other samples, of rates that are mostly 0: the interval of their mean, not of all samples' mean."""
    rng, inside, narrow = np.random.default_rng(11), 0, 0
    for _ in range(RUNS):
        mine, others = rng.beta(2, 20, (2, n))
        again, once = sample_error(mine, again=True), sample_error(mine)
        inside += again.low <= others.mean() <= again.high
        narrow += once.low <= others.mean() <= once.high
        assert again.low <= once.low <= once.estimate == again.estimate <= once.high <= again.high
    assert inside >= 0.975 * RUNS > narrow


def test_equal_samples_leave_the_rate_on_others_open() -> None:
    found = sample_error([0.25] * 50, again=True)
    assert (found.low, found.estimate, found.high) == (0.0, 0.25, 1.0)


# ------------------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_size(1000, 0), r"margin is 0; allowed: above 0 and below 1; 0\.01 is plus"),
        (lambda: sample_size(1000, -0.1), "margin is -0.1"),
        (lambda: sample_size(1000, 1), "margin is 1;"),
        (lambda: sample_size(1000, math.nan), "margin is nan"),
        (lambda: sample_size(1000, 0.01, 1), r"confidence is 1; allowed: .* write 99 % as 0\.99"),
        (lambda: sample_size(1000, 0.01, 99), "confidence is 99"),
        (lambda: sample_size(1000, 0.01, 0), "confidence is 0"),
        (lambda: sample_size(0, 0.01), "population is 0; allowed: 1 or more"),
        (lambda: sample_size(10.5, 0.01), r"population is 10\.5; allowed: whole numbers"),  # type: ignore[arg-type]
        (lambda: sample_size(10, 0.01, p=1.0), "p is 1.0"),
        (lambda: sample_size(10, 0.01, t=0), "t is 0"),
        (lambda: margin_of_error(0, 10), "n is 0; allowed: 1 or more"),
        (lambda: margin_of_error(11, 10), "n is 11; allowed: up to the population, 10"),
        (lambda: margin_of_error(5, 10, p=0.0), "p is 0.0"),
        (lambda: allocate([], 0.01), "sizes is empty"),
        (lambda: allocate([3, 0], 0.01), r"sizes\[1\] is 0; allowed: 1 or more"),
        (lambda: allocate([3], 0.01, per="layers"), "per is 'layers'.*closest: 'layer'"),  # type: ignore[arg-type]
        (lambda: allocate([3, 4], 0.01, per="data-aware"), r"p has shape \(\) for 2 strata"),
        (lambda: allocate([3, 4], 0.01, per="data-aware", p=[0.5]), r"p has shape \(1,\)"),
        (lambda: allocate([3, 4], 0.01, p=[0.5, 0.5]), r"per='network'; allowed: .* else a single number"),
        (lambda: data_aware_p([]), r"distances have shape \(0,\)"),
        (lambda: data_aware_p([1, -2]), "a distance is -2.0; allowed: 0 or more"),
        (lambda: wilson(3, 2), "k is 3 and n is 2; allowed: 0 <= k <= n"),
        (lambda: wilson(-1, 2), "k is -1"),
        (lambda: wilson(math.nan, 2), "k is nan"),
        (lambda: wilson(1, 20, population=10), "n is 20; allowed: up to the population, 10"),
        (lambda: wilson(1, 20, 1.0), "confidence is 1.0"),
        (lambda: clopper_pearson(3, 2), "k is 3 and n is 2"),
        (lambda: clopper_pearson(-1, 2), "k is -1; allowed: 0 or more"),
        (lambda: clopper_pearson(0.5, 2), "k is 0.5; allowed: whole numbers"),  # type: ignore[arg-type]
        (lambda: clopper_pearson(1, 20, population=10), "n is 20; allowed"),
        (lambda: clopper_pearson(0, 0, population=0), "population is 0"),
        (lambda: design_effect(1, 2), "total is 1, squares 2"),
        (lambda: Stratum(10, 11, 0, 0), "n is 11; allowed: up to the population, 10"),
        (lambda: Stratum(10, -1, 0, 0), "n is -1; allowed: 0 or more"),
        (lambda: Stratum(10, 5, 6, 6), "n=5, total=6, squares=6.*; allowed: 0 <= squares <= total <= n"),
        (lambda: Stratum(10, 5, 2, 3), "squares=3"),
        (lambda: Stratum(10, 5, math.nan, 0), "total=nan"),
        (lambda: Stratum.of([0.5, 1.5]), r"values\[1\] is 1\.5; allowed: 0 to 1; widen the bounds"),
        (lambda: stratified_interval([]), "strata is empty"),
        (lambda: stratified_interval([Stratum(None, 1, 0, 0)] * 2), "without population stands beside others"),
        (lambda: mean_interval([0.1, math.nan]), r"values\[1\] is nan; allowed: .* count a trial without"),
        (lambda: mean_interval([[0.1]]), r"values have shape \(1, 1\)"),
        (lambda: mean_interval([0.1], bounds=(1, 0)), r"bounds are \(1, 0\)"),
        (lambda: mean_interval([0.1], bounds=(0, math.inf)), "bounds are"),
        (lambda: mean_interval([0.1, 0.2], population=1), "n is 2; allowed: up to the population, 1"),
        (lambda: t_interval([[1.0]]), "values have shape"),
        (lambda: sample_error([0.1, 1.1]), r"values\[1\] is 1\.1"),
    ],
)
def test_bad_requests_say_what_would_do(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_numpy_integers_count_as_integers() -> None:
    n, size, three = (cast(int, np.int64(number)) for number in (50, 640, 3))
    assert sample_size(size, 0.05) == sample_size(640, 0.05)
    assert clopper_pearson(three, n, population=size) == clopper_pearson(3, 50, population=640)
    assert allocate([640, 640], 0.05) == allocate([size, size], 0.05)
    assert type(sample_size(three, 0.001)) is int


@pytest.mark.parametrize("n", [5, 12, 61])
def test_the_interval_holds_the_median(n: int) -> None:
    rng, held = np.random.default_rng(n), 0
    for _ in range(1000):
        values = np.exp(rng.normal(size=n) * 30)
        values[rng.random(n) < 0.1] = np.inf
        found = median_interval([(values, None)], 0.9, bounds=(0.0, np.inf))
        assert found.low <= found.estimate <= found.high
        held += found.low <= np.exp(30 * 0.139710) <= found.high  # the quantile of 0.5 / 0.9
    assert held >= 880


def test_strata_weigh_as_their_faults_do() -> None:
    low, high = np.arange(100.0), 1000 + np.arange(100.0)
    assert median_interval([(low, 900), (high, 100)]).estimate < 100
    assert median_interval([(low, 100), (high, 900)]).estimate >= 1000
    found = median_interval([(low, 500_000), (high, 500_000)], 0.95)
    assert (found.method, found.estimate) == ("Woodruff", 99.0)
    assert 60 < found.low <= 99 and 1000 <= found.high < 1040


def test_too_few_trials_leave_the_bounds() -> None:
    found = median_interval([(np.array([1.0, 2.0]), None)], bounds=(0.0, np.inf))
    assert (found.low, found.estimate, found.high) == (0.0, 1.0, np.inf)
    nothing = median_interval([(np.array([]), 10)], bounds=(0.0, 5.0))
    assert (nothing.low, nothing.high) == (0.0, 5.0) and np.isnan(nothing.estimate)


def test_a_whole_population_is_exact() -> None:
    found = median_interval([(np.array([3.0, 1.0, 2.0]), 3)])
    assert (found.low, found.estimate, found.high, found.method) == (2.0, 2.0, 2.0, "exact")
