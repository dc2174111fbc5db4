"""Chance: pinned streams, Philox written out, permutations that are bijections, distributions against scipy."""

from __future__ import annotations

import decimal
import math
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import U64

from onnxfi.errors import InputError
from onnxfi.faults import sampling
from onnxfi.faults.sampling import (
    COUNT,
    PLACE,
    VALUE,
    ber,
    binomial,
    check_rate,
    count,
    exhaustive,
    likeliest_count,
    logarithm,
    normal,
    per_tensor,
    permute,
    raw_words,
    uniform,
)

ALL = (1 << 64) - 1
#: A failure of a uniform stream once in ten thousand changes of the code; seeds are fixed, so never by luck.
UNLIKELY = 1e-4


def first(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint64)


def fits(observed: list[int], expected: list[float]) -> float:
    """The p-value of a chi-square test, rare classes taken together."""
    kept = [(o, e) for o, e in zip(observed, expected, strict=True) if e >= 5]
    rest = sum(observed) - sum(o for o, _ in kept), sum(expected) - sum(e for _, e in kept)
    kept += [rest] if rest[1] >= 5 else []
    chi = sum((o - e) ** 2 / e for o, e in kept)
    return float(stats.chi2.sf(chi, len(kept) - 1))


# ------------------------------------------------------------------------------------------------ pins


def test_raw_words_are_pinned() -> None:
    assert [hex(w) for w in raw_words(0, 1, PLACE, 6)] == [
        "0xc535c8308af0cba5",
        "0xd4cf414c2c9077d9",
        "0x751d4a482229e4d4",
        "0x2044842a9a014de9",
        "0x21d3e2e8b9945236",
        "0xcfc551ac730a9a7d",
    ]
    assert [hex(w) for w in raw_words(ALL, ALL, VALUE, 3)] == [
        "0xc667ee0dd6249a5b",
        "0x9b7db433cdc85665",
        "0xf53bf603e01c11fb",
    ]


def test_permutations_are_pinned() -> None:
    assert permute(10, 0, 0, first(10)).tolist() == [4, 7, 2, 8, 9, 0, 5, 6, 3, 1]
    assert permute(240_000_000_000, 3, 1, first(3)).tolist() == [109731993158, 238534742581, 159179061671]
    assert permute(1 << 63, 3, 1, first(2)).tolist() == [7388014587138987130, 624013817119930479]


def test_binomial_counts_are_pinned() -> None:
    cases = ((10, 0.5), (3_000_000, 1e-5), (10**12, 1e-7), (100, 0.99), (1, 0.5))
    drawn = [[binomial(n, rate, 0, trial) for trial in (1, 2, 3)] for n, rate in cases]
    assert drawn == [[5, 4, 3], [31, 35, 37], [99946, 100267, 100399], [99, 100, 98], [1, 0, 0]]


def test_normal_numbers_are_pinned_to_the_last_bit() -> None:
    raw = np.array([0, 1 << 63, ALL, 0x123456789ABCDEF0, 0xFEDCBA9876543210, 1 << 40], np.uint64)
    assert [x.hex() for x in normal(raw).tolist()] == [
        "-0x1.06b48528cea51p+3",
        "0x1.40d931ff62707p-52",
        "0x1.06b48528cea51p+3",
        "-0x1.77b26344b88f4p+0",
        "0x1.4ee2dc0a9e007p+1",
        "-0x1.52dc6e853f1cap+2",
    ]


def test_samples_are_pinned() -> None:
    assert count(1000, 5, 0, 1).tolist() == [66, 428, 561, 788, 909]
    assert per_tensor([10, 1000, 7], 2, 5, 3).tolist() == [7, 8, 172, 536, 1011, 1014]
    assert ber(1000, 0.01, 9, 4).tolist() == [74, 172, 196, 269, 277, 293, 380, 392, 589, 637, 692, 765]


# ------------------------------------------------------------------------------------------------ raw words


def philox(seed: int, stream: int, purpose: int) -> Iterator[int]:
    """Philox 4×64 with ten rounds, from the paper (Salmon et al., SC 2011); numpy counts up before it draws."""
    block = 0
    while True:
        block += 1
        a, b, c, d, k, m = block, 0, 0, purpose, seed, stream
        for _ in range(10):
            x, y = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
            a, b, c, d = y >> 64 ^ b ^ k, y & ALL, x >> 64 ^ d ^ m, x & ALL
            k, m = k + 0x9E3779B97F4A7C15 & ALL, m + 0xBB67AE8584CAA73B & ALL
        yield from (a, b, c, d)


@given(U64, U64, st.sampled_from([COUNT, PLACE, VALUE]), st.integers(0, 9))
def test_raw_words_are_philox(seed: int, stream: int, purpose: int, n: int) -> None:
    wanted = philox(seed, stream, purpose)
    assert raw_words(seed, stream, purpose, n).tolist() == [next(wanted) for _ in range(n)]


@given(U64, U64, st.integers(0, 40), st.integers(0, 20))
def test_a_stream_can_be_entered_anywhere(seed: int, stream: int, skip: int, n: int) -> None:
    whole = raw_words(seed, stream, VALUE, skip + n)
    assert np.array_equal(raw_words(seed, stream, VALUE, n, skip=skip), whole[skip:])


@pytest.mark.parametrize("seed", [-1, 1 << 64, 10**30])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(InputError, match=r"is out of range; give a whole number from 0 to 2\*\*64 - 1"):
        raw_words(seed, 1, COUNT, 1)
    with pytest.raises(InputError, match="seed"):
        count(100, 3, seed)


def test_uniform_numbers_lie_inside_and_mirror() -> None:
    ends = uniform(np.array([0, ALL, 1 << 63], np.uint64))
    assert ends.tolist() == [2.0**-53, 1 - 2.0**-53, 0.5 + 2.0**-53]
    raw = raw_words(1, 1, VALUE, 1000)
    assert np.array_equal(uniform(~raw), 1 - uniform(raw))
    assert fits(np.bincount((uniform(raw) * 20).astype(int), minlength=20).tolist(), [50.0] * 20) > UNLIKELY


# ------------------------------------------------------------------------------------------------ permutations


@given(st.integers(1, 5000), U64, U64)
def test_a_permutation_reaches_every_number_once(population: int, seed: int, stream: int) -> None:
    assert np.array_equal(np.sort(permute(population, seed, stream, first(population))), first(population))


@pytest.mark.parametrize("population", [2**31, 2**32 + 1, 240_000_000_000, 2**40 + 7, 2**53 - 1, 2**62 + 1, 2**63])
def test_prefixes_of_huge_permutations_do_not_repeat(population: int) -> None:
    drawn = permute(population, 11, 5, first(20_000))
    assert len(np.unique(drawn)) == 20_000
    assert int(drawn.max()) < population
    assert (
        fits(np.bincount((drawn.astype(float) / population * 50).astype(int), minlength=50).tolist(), [400.0] * 50)
        > UNLIKELY
    )
    assert fits(np.bincount((drawn & np.uint64(63)).astype(int), minlength=64).tolist(), [312.5] * 64) > UNLIKELY


@given(st.integers(1, 10**12), st.lists(st.integers(0, 10**12), max_size=20), U64)
def test_a_permutation_maps_each_number_by_itself(population: int, numbers: list[int], seed: int) -> None:
    some = np.array([n % population for n in numbers], np.uint64)
    given_ = some.copy()
    together = permute(population, seed, 1, some)
    assert together.tolist() == [int(permute(population, seed, 1, some[k : k + 1])[0]) for k in range(len(some))]
    assert np.array_equal(some, given_), "what is given is not changed"


@pytest.mark.slow
def test_every_order_of_four_is_as_likely() -> None:
    orders = Counter(tuple(permute(4, seed, 1, first(4)).tolist()) for seed in range(240))
    assert fits([orders[p] for p in permutations(range(4))], [10.0] * 24) > UNLIKELY


def test_trials_and_seeds_draw_independently() -> None:
    one, other, third = (permute(10**9, *key, first(3000)).tolist() for key in ((0, 1), (0, 2), (1, 1)))
    # Of 3,000 and 3,000 sites out of 10⁹ the expected overlap is 0.009.
    assert len({*one, *other, *third}) == 9000
    sixths = [int(permute(240, 0, trial, first(1))[0]) // 40 for trial in range(3601)]
    pairs = Counter(pairwise(sixths))
    assert fits([pairs[a, b] for a in range(6) for b in range(6)], [100.0] * 36) > UNLIKELY


def test_a_population_beyond_the_permutation_is_refused() -> None:
    with pytest.raises(InputError, match=r"a population of 9223372036854775809 sites is more than 2\*\*63; narrow"):
        permute((1 << 63) + 1, 0, 0, first(1))


# ------------------------------------------------------------------------------------------------ counts


@given(st.integers(0, 10**7), st.data())
def test_a_sample_is_so_many_different_sites(population: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, min(population, 300)))
    drawn = count(population, n, data.draw(U64), data.draw(st.integers(0, 1 << 30)))
    assert drawn.dtype == np.uint64
    assert len(drawn) == n
    assert (np.diff(drawn.astype(np.int64)) > 0).all()
    assert all(0 <= site < population for site in drawn.tolist())


@given(st.integers(1, 10**13), st.data())
def test_a_longer_sample_extends_a_shorter_one(population: int, data: st.DataObject) -> None:
    long = data.draw(st.integers(0, min(population, 200)))
    short = data.draw(st.integers(0, long))
    seed = data.draw(U64)
    assert set(count(population, short, seed).tolist()) <= set(count(population, long, seed).tolist())


@pytest.mark.slow
def test_every_site_is_as_likely() -> None:
    population, n, trials = 60, 7, 3000
    seen = np.bincount(np.concatenate([count(population, n, 4, t) for t in range(trials)]).astype(int))
    mean = trials * n / population
    # Drawn without repetition: the variance of a count is smaller by (1 - n/N) · N/(N - 1).
    chi = float(((seen - mean) ** 2).sum() / (mean * (1 - n / population) * population / (population - 1)))
    assert UNLIKELY < stats.chi2.sf(chi, population - 1) < 1 - UNLIKELY


def test_the_whole_population_can_be_drawn() -> None:
    assert count(257, 257, 3).tolist() == list(range(257))
    assert count(0, 0, 3).tolist() == []


@pytest.mark.parametrize("n", [-1, 101, 10**30])
def test_a_count_beyond_the_population_is_refused(n: int) -> None:
    with pytest.raises(InputError, match=rf"--count {n} is out of range: the selection has 100 sites"):
        count(100, n, 0)


@given(st.lists(st.integers(1, 400), max_size=6), st.data())
def test_each_tensor_gets_its_own_share(sizes: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(0, min([*sizes, 20]) if sizes else 0))
    seed = data.draw(U64)
    drawn = per_tensor(sizes, n, seed).tolist()
    assert drawn == sorted(set(drawn))
    start = 0
    for size in sizes:
        assert sum(start <= site < start + size for site in drawn) == n
        start += size
    fewer = per_tensor(sizes, n // 2, seed).tolist()
    assert set(fewer) <= set(drawn)


def test_tensors_of_one_size_get_different_sites() -> None:
    drawn = per_tensor([10**6] * 4, 50, 0)
    inside = [set((drawn[k * 50 : k * 50 + 50] - np.uint64(k * 10**6)).tolist()) for k in range(4)]
    assert len(set.union(*inside)) > 190


@pytest.mark.parametrize(
    ("sizes", "n", "smallest"), [([10, 3], 4, "3"), ([5], -1, "5"), ([], 1, "0"), ([2000], 2001, "2,000")]
)
def test_a_share_beyond_the_smallest_tensor_is_refused(sizes: list[int], n: int, smallest: str) -> None:
    with pytest.raises(
        InputError, match=rf"--count {n} per tensor is out of range: the smallest tensor has {smallest} sites"
    ):
        per_tensor(sizes, n, 0)


@given(st.integers(0, 500), st.integers(0, 500), st.none() | st.integers(0, 700))
def test_exhaustive_ranges_are_parts_of_the_whole_range(population: int, start: int, stop: int | None) -> None:
    assert exhaustive(population, start, stop).tolist() == list(range(population))[start:stop]
    assert exhaustive(1 << 62, 10**15, 10**15 + 2).tolist() == [10**15, 10**15 + 1]


# ------------------------------------------------------------------------------------------------ binomial


@pytest.mark.parametrize(
    ("n", "rate"),
    [(1, 0.5), (1, 0.01), (10, 0.3), (40, 0.97), (1000, 0.002), (1000, 0.5), (10**6, 1e-6), (240_000_000_000, 1e-9)],
)
def test_counts_are_binomial(n: int, rate: float) -> None:
    drawn = Counter(binomial(n, rate, 12, trial) for trial in range(3000))
    support = range(int(stats.binom.ppf(1e-12, n, rate)), int(stats.binom.ppf(1 - 1e-12, n, rate)) + 2)
    assert set(drawn) <= set(support)
    assert fits([drawn[k] for k in support], [3000 * float(stats.binom.pmf(k, n, rate)) for k in support]) > UNLIKELY


def test_wide_counts_are_binomial_too() -> None:
    n, rate = 240_000_000_000, 1e-7
    drawn = np.array([binomial(n, rate, 2, trial) for trial in range(800)])
    quantiles = stats.binom.cdf(drawn, n, rate) - stats.binom.pmf(drawn, n, rate) / 2
    assert stats.kstest(quantiles, "uniform").pvalue > UNLIKELY


@pytest.mark.parametrize(("n", "rate"), [(7, 0.3), (1, 0.9), (30, 0.02), (12, 0.999), (100, 0.5)])
def test_each_count_takes_its_share_of_the_unit_interval(n: int, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 4000
    found: Counter[int] = Counter()
    for k in range(steps):
        monkeypatch.setattr(sampling, "uniform", lambda _, k=k: np.array([(k + 0.5) / steps]))
        found[binomial(n, rate, 0, 0)] += 1
    for k in range(n + 1):
        assert abs(found[k] - steps * float(stats.binom.pmf(k, n, rate))) <= 1


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 127, 128, 1000, 3000])
@pytest.mark.parametrize("rate", [1e-300, 1e-9, 0.01, 0.3, 0.5, 0.75, 1 - 2.0**-53])
def test_the_likeliest_count_has_its_exact_probability(n: int, rate: float) -> None:
    mode, peak = likeliest_count(n, rate)
    p = Fraction(rate)
    exact = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(max(0, mode - 1), min(n, mode + 1) + 1)]
    assert peak == pytest.approx(float(max(exact)), rel=1e-14, abs=0)
    assert peak == pytest.approx(float(math.comb(n, mode) * p**mode * (1 - p) ** (n - mode)), rel=1e-14, abs=0)


@pytest.mark.parametrize("n", [0, 1, 5, 10**12, 2**63])
def test_certain_counts(n: int) -> None:
    assert binomial(n, 0.0, 1, 1) == 0
    assert binomial(n, 1.0, 1, 1) == n
    assert binomial(n, 5e-324, 1, 1) == 0
    assert binomial(n, 1e-300, 1, 1) == 0


@given(st.integers(0, 10**12), st.floats(0, 1), U64)
def test_any_rate_gives_a_count(n: int, rate: float, seed: int) -> None:
    n = n if n * rate * (1 - rate) < 1e9 else n % 10**6
    drawn = binomial(n, rate, seed, 1)
    assert 0 <= drawn <= n
    assert abs(drawn - n * rate) <= 12 * math.sqrt(n * rate * (1 - rate)) + 12
    assert binomial(n, rate, seed, 1) == drawn


@pytest.mark.parametrize(("n", "rate"), [(10**9, 1 - 1e-9), (10**9, 1e-9), (10**12, 0.5 * 2**-40), (3, 0.5)])
@pytest.mark.parametrize("left", [1 - 2.0**-53, 2.0**-53])
def test_the_ends_of_the_unit_interval_are_reached_in_few_steps(
    n: int, rate: float, left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the rounding of the sum leaves over must not be looked for through all 10⁹ counts.
    monkeypatch.setattr(sampling, "uniform", lambda _: np.array([left]))
    drawn = binomial(n, rate, 0, 0)
    assert abs(drawn - n * rate) < 20 * math.sqrt(n * rate * (1 - rate)) + 20


def test_the_callers_decimal_context_changes_nothing() -> None:
    cases = [(10**6, 0.3), (10**12, 1e-7), (77, 0.99)]
    wanted = [binomial(n, rate, 5, 1) for n, rate in cases]
    likeliest_count.cache_clear()
    with decimal.localcontext() as context:
        context.prec, context.rounding = 3, decimal.ROUND_UP
        context.traps[decimal.Inexact] = True
        assert [binomial(n, rate, 5, 1) for n, rate in cases] == wanted


@pytest.mark.parametrize("rate", [-1e-9, 1.0000001, math.nan, math.inf, -math.inf])
def test_rates_that_are_no_probability_are_refused(rate: float) -> None:
    for refused in (lambda: check_rate(rate), lambda: binomial(10, rate, 0, 0), lambda: ber(10, rate, 0)):
        with pytest.raises(InputError, match=rf"rate must be in \[0, 1\], got {rate}; give a probability such as 1e-6"):
            refused()


# ------------------------------------------------------------------------------------------------ rates


@pytest.mark.slow
def test_each_site_has_a_fault_with_the_probability_of_the_rate() -> None:
    population, rate, trials = 40, 0.1, 2500
    drawn = [ber(population, rate, 6, t) for t in range(trials)]
    assert stats.kstest([len(d) for d in drawn], stats.binom(population, rate).cdf).statistic < 0.5
    seen = np.bincount(np.concatenate(drawn).astype(int), minlength=population)
    chi = float(((seen - trials * rate) ** 2).sum() / (trials * rate * (1 - rate)))
    assert UNLIKELY < stats.chi2.sf(chi, population) < 1 - UNLIKELY


@pytest.mark.parametrize(("rate", "wanted"), [(0.0, 0), (1.0, 500)])
def test_rates_at_the_ends(rate: float, wanted: int) -> None:
    assert len(ber(500, rate, 0)) == wanted


def test_a_trial_costs_as_its_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.4·10¹¹ sites at 1e-6: work and memory go with the 240,000 flips, not with the sites."""
    numbers = mixed = 0
    raw, mix = sampling.raw_words, sampling.mix

    def counted_raw(seed: int, stream: int, purpose: int, n: int, **more: Any) -> Any:
        nonlocal numbers
        numbers += n
        return raw(seed, stream, purpose, n, **more)

    def counted_mix(x: Any, key: Any) -> Any:
        nonlocal mixed
        mixed += len(x)
        return mix(x, key)

    monkeypatch.setattr(sampling, "raw_words", counted_raw)
    monkeypatch.setattr(sampling, "mix", counted_mix)
    tracemalloc.start()
    try:
        drawn = ber(240_000_000_000, 1e-6, seed=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(drawn) == 240_084
    assert numbers <= 11, "one number for the count, ten keys"
    # Ten rounds a walk; 2³⁸ / 2.4·10¹¹ = 1.15 walks a flip.
    assert mixed <= 1.2 * 10 * len(drawn)
    assert peak < 100e6


# ------------------------------------------------------------------------------------------------ normal numbers


def test_normal_numbers_invert_the_distribution() -> None:
    raw = np.concatenate([raw_words(8, 1, VALUE, 20_000), np.array([0, ALL, 1 << 12, ALL - (1 << 12)], np.uint64)])
    deep = np.uint64(1) << np.arange(12, 64, dtype=np.uint64)  # far into the lower tail
    for part in (raw, deep, ~deep):
        # Near 1 a distribution function cannot distinguish numbers: the upper half is compared by its mirror.
        p = uniform(part)
        wanted = np.where(p < 0.5, stats.norm.ppf(np.minimum(p, 1 - p)), -stats.norm.ppf(np.minimum(p, 1 - p)))
        np.testing.assert_allclose(normal(part), wanted, rtol=2e-15 * 50, atol=1e-15)


@given(U64)
def test_normal_numbers_mirror_and_keep_their_order(word: int) -> None:
    raw = np.array([word], np.uint64)
    assert normal(~raw)[0] == -normal(raw)[0]
    assert abs(float(normal(raw)[0])) < 8.3
    if word < ALL - (1 << 20):
        assert normal(np.array([word + (1 << 20)], np.uint64))[0] >= normal(raw)[0]


def test_normal_numbers_are_normal() -> None:
    assert stats.kstest(normal(raw_words(3, 3, VALUE, 20_000)), "norm").pvalue > UNLIKELY


@given(st.floats(min_value=2.0**-54, max_value=1.0, exclude_min=True))
def test_the_logarithm_is_the_logarithm(x: float) -> None:
    assert float(logarithm(np.array([x]))[0]) == pytest.approx(math.log(x), rel=2e-15, abs=1e-15)
