"""Sampling: the only module that draws random numbers.

Everything random comes from Philox raw 64-bit words keyed by (seed, stream) (Salmon et al., SC 2011), and from
our own integer and IEEE arithmetic: +, −, ×, ÷ and √ are exactly rounded on every machine, the library functions
behind `Generator.binomial`, `choice` or `log` are not, and their streams may change between numpy versions. So a seed
gives the same faults on every machine and with every version.

A draw without repetition walks a keyed permutation of the population: the first n of its values, computed on
demand and never stored. A longer draw therefore extends a shorter one, and costs as the draw, not as the population.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import InputError

Numbers = NDArray[np.uint64]
_64 = (1 << 64) - 1

#: Purpose of a stream: the top word of Philox's counter, so that no two uses share random words.
COUNT, PLACE, VALUE, DATA, CHOICE = 1, 2, 3, 4, 6


def raw_words(seed: int, stream: int, purpose: int, n: int, *, skip: int = 0) -> Numbers:
    """Return `n` raw 64-bit words of the Philox stream (seed, stream) for one purpose, from word `skip` on.

    >>> [hex(w) for w in raw_words(0, 1, PLACE, 2)]
    ['0xc535c8308af0cba5', '0xd4cf414c2c9077d9']
    """
    if not 0 <= seed <= _64:
        raise InputError(f"seed {seed} is out of range; give a whole number from 0 to 2**64 - 1")
    block, rest = divmod(skip, 4)
    state = np.random.Philox(
        key=np.array([seed, stream], np.uint64), counter=np.array([block, 0, 0, purpose], np.uint64)
    )
    return np.asarray(state.random_raw(n + rest), np.uint64)[rest:]


def uniform(raw: Numbers) -> NDArray[np.float64]:
    """Return raw words as numbers in the open interval (0, 1), on a grid of 2⁻⁵²."""
    return ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def logarithm(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm of positive normal numbers in exactly rounded steps; within 1e-15 of the true value."""
    m, e = np.frexp(x)
    low = m < 0.7071067811865476
    m, e = np.where(low, m * 2, m), np.where(low, e - 1, e)
    s = (m - 1) / (m + 1)
    z = s * s
    series = np.zeros_like(z)
    for k in range(21, 0, -2):
        series = series * z + 1.0 / k
    return np.asarray(e * 0.6931471805599453 + 2 * s * series)


_CENTRE = (
    (3.3871328727963665, 133.14166789178438, 1971.5909503065513, 13731.69376550946, 45921.95393154987,
     67265.7709270087, 33430.57558358813, 2509.0809287301227),
    (1.0, 42.31333070160091, 687.1870074920579, 5394.196021424751, 21213.794301586597, 39307.89580009271,
     28729.085735721943, 5226.495278852854),
)  # fmt: skip
_NEAR = (
    (1.4234371107496835, 4.630337846156546, 5.769497221460691, 3.6478483247632045, 1.2704582524523684,
     0.2417807251774506, 0.022723844989269184, 7.745450142783414e-4),
    (1.0, 2.053191626637759, 1.6763848301838038, 0.6897673349851, 0.14810397642748008, 0.015198666563616457,
     5.475938084995345e-4, 1.0507500716444169e-9),
)  # fmt: skip
_FAR = (
    (6.657904643501103, 5.463784911164114, 1.7848265399172913, 0.29656057182850487, 0.026532189526576124,
     0.0012426609473880784, 2.7115555687434876e-5, 2.0103343992922881e-7),
    (1.0, 0.599832206555888, 0.1369298809227358, 0.014875361290850615, 7.868691311456133e-4,
     1.8463183175100548e-5, 1.421511758316446e-7, 2.0442631033899397e-15),
)  # fmt: skip


def _ratio(pair: tuple[tuple[float, ...], tuple[float, ...]], x: NDArray[np.float64]) -> NDArray[np.float64]:
    top, bottom = np.zeros_like(x), np.zeros_like(x)
    for a, b in zip(reversed(pair[0]), reversed(pair[1]), strict=True):
        top, bottom = top * x + a, bottom * x + b
    return top / bottom


def normal(raw: Numbers) -> NDArray[np.float64]:
    """Return raw words as standard normal numbers, by the inverse distribution function (Wichura 1988, AS 241).

    >>> bool(abs(normal(np.array([1 << 63], np.uint64))[0]) < 1e-12)
    True
    """
    p = uniform(raw)
    q = p - 0.5
    tail = np.sqrt(-logarithm(np.minimum(p, 1 - p)))
    far = np.where(tail <= 5, _ratio(_NEAR, tail - 1.6), _ratio(_FAR, tail - 5))
    return np.where(np.abs(q) <= 0.425, q * _ratio(_CENTRE, 0.180625 - q * q), np.where(q < 0, -far, far))


def _log_factorial(n: int) -> Decimal:
    if n < 64:
        return Decimal(math.factorial(n)).ln()
    x = Decimal(n)
    two_pi = Decimal("6.283185307179586476925286766559005768394338798750")
    series = 1 / (12 * x) - 1 / (360 * x**3) + 1 / (1260 * x**5) - 1 / (1680 * x**7) + 1 / (1188 * x**9)
    return x * x.ln() - x + (two_pi * x).ln() / 2 + series


@lru_cache(maxsize=256)
def likeliest_count(n: int, rate: float) -> tuple[int, float]:
    """Return the likeliest count of Binomial(n, rate) and its probability, by correctly rounded decimal logarithms."""
    with localcontext(Context(prec=40)):  # not the caller's context, which may round differently
        p = Decimal(rate)
        mode = min(n, int((n + 1) * p))
        log = _log_factorial(n) - _log_factorial(mode) - _log_factorial(n - mode)
        log += mode * p.ln() + (n - mode) * (1 - p).ln()
        return mode, float(log.exp())


def binomial(n: int, rate: float, seed: int, stream: int) -> int:
    """Return one draw of Binomial(n, rate): the number of n sites that are faulty at this rate.

    Inversion, summed outwards from the likeliest count, so the cost is that of a few standard deviations.

    >>> binomial(240_000_000_000, 1e-6, seed=0, stream=1)
    240084
    """
    check_rate(rate)
    if n == 0 or rate in (0.0, 1.0):
        return n if rate == 1.0 else 0
    left = float(uniform(raw_words(seed, stream, COUNT, 1))[0])
    mode, peak = likeliest_count(n, rate)
    odds = rate / (1 - rate)
    up = down = peak
    high = low = mode
    left -= peak
    while left > 0 and up + down >= 1e-18 * peak:  # what is left then is rounding of the sum
        up *= (n - high) / (high + 1) * odds  # 0 from n on
        high += 1
        left -= up
        if left <= 0:
            return high
        down *= low / ((n - low + 1) * odds)  # 0 below 0
        low -= 1
        left -= down
        if left <= 0:
            return low
    return mode


def mix(x: Numbers, key: np.uint64) -> Numbers:
    """Return words in which each bit depends on all bits of `x` and of the key: the round function of `permute`."""
    x = (x ^ key) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(29))


def derive(raw: Numbers, number: int) -> Numbers:
    """Return the random word of this number (from 0) that follows from each raw word: as many as an event needs.

    >>> [hex(w) for w in derive(np.array([1, 2], np.uint64), 0)]
    ['0xf0563efe4a5c2f98', '0xade38f372809c4b']
    """
    with np.errstate(over="ignore"):
        key = np.uint64((number + 1) * 0xA0761D6478BD642F & _64)
        return mix(mix(np.asarray(raw, np.uint64), key), np.uint64(0x8EBC6AF09C88C6E3))


_ROUNDS = 10


def permute(population: int, seed: int, stream: int, numbers: Numbers) -> Numbers:
    """Return π(seed, stream) of each number below `population`: a keyed permutation of 0 … population − 1.

    A Feistel network of ten rounds on the next power of two (at least 2⁸), walked until the value falls inside
    (Black and Rogaway, CT-RSA 2002). Vectorised; a population of up to 2⁶³.

    >>> sorted(permute(10, 0, 0, np.arange(10, dtype=np.uint64)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if population > 1 << 63:
        raise InputError(f"a population of {population} sites is more than 2**63; narrow the selection")
    bits = max(8, (population - 1).bit_length())
    right = np.uint64(bits // 2)
    left = np.uint64(bits - bits // 2)
    masks = np.uint64((1 << int(left)) - 1), np.uint64((1 << int(right)) - 1)
    keys = raw_words(seed, stream, PLACE, _ROUNDS)
    out = np.array(numbers, np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        x = out[todo]
        a, b = x >> right, x & masks[1]
        with np.errstate(over="ignore"):
            for i in range(0, _ROUNDS, 2):
                a ^= (mix(b, keys[i]) >> np.uint64(7)) & masks[0]
                b ^= (mix(a, keys[i + 1]) >> np.uint64(7)) & masks[1]
        out[todo] = (a << right) | b
        todo = todo[out[todo] >= population]
    return out


def count(population: int, n: int, seed: int, trial: int = 1) -> Numbers:
    """Return `n` different sites out of `population`, ascending. A larger n keeps the sites of a smaller one.

    >>> count(1000, 3, seed=0).tolist()
    [66, 428, 561]
    """
    if not 0 <= n <= population:
        raise InputError(f"--count {n} is out of range: the selection has {population:,} sites")
    return np.sort(permute(population, seed, trial, np.arange(n, dtype=np.uint64)))


def ber(population: int, rate: float, seed: int, trial: int = 1) -> Numbers:
    """Return the faulty sites if each is faulty with probability `rate`: a Binomial number of sites, ascending.

    >>> len(ber(3_000_000, 1e-5, seed=0))
    31
    """
    return count(population, binomial(population, rate, seed, trial), seed, trial)


def per_tensor(sizes: Sequence[int], n: int, seed: int, trial: int = 1) -> Numbers:
    """Return `n` different sites in each of several tensors that lie one after another with `sizes` sites each.

    >>> per_tensor([10, 1000], 2, seed=0).tolist()
    [3, 7, 766, 831]
    """
    smallest = min(sizes, default=0)
    if not 0 <= n <= smallest:
        raise InputError(f"--count {n} per tensor is out of range: the smallest tensor has {smallest:,} sites")
    start, parts = 0, [np.zeros(0, np.uint64)]
    for ordinal, size in enumerate(sizes):
        # Each tensor is a stratum of its own: its stream is the trial's number with the tensor's above it.
        stream = (ordinal + 1) << 40 | trial
        parts.append(np.sort(permute(size, seed, stream, np.arange(n, dtype=np.uint64))) + np.uint64(start))
        start += size
    return np.concatenate(parts)


def per_sample(sizes: Sequence[int], samples: int, rate: float, seed: int, trial: int = 1) -> Numbers:
    """Return one site in each of `samples` samples with probability `rate`; ascending.

    Several tensors lie one after another with `sizes` sites each; in each of them sample after sample, all alike.

    >>> per_sample([30, 300], 3, 1.0, seed=0).tolist()
    [39, 169, 242]
    """
    check_rate(rate)
    each = [size // samples if samples else 0 for size in sizes]
    ends, starts = np.cumsum(np.array(each, np.uint64)), np.cumsum(np.array([0, *sizes], np.uint64))
    hit = np.flatnonzero(uniform(raw_words(seed, trial, COUNT, samples)) < rate)
    # One site is likelier than another by at most 2⁻⁶⁴ of the population, below what any campaign can measure.
    inside = raw_words(seed, trial, PLACE, samples)[hit] % np.uint64(max(1, sum(each)))
    tensor = np.searchsorted(ends, inside, side="right")
    width = np.array(each, np.uint64)[tensor]
    return np.sort(starts[tensor] + hit.astype(np.uint64) * width + inside - (ends[tensor] - width))


def choose(chances: NDArray[np.float64], n: int, seed: int, stream: int) -> NDArray[np.int64]:
    """Return `n` draws with repetition among things with these probabilities, which sum to 1.

    >>> choose(np.array([0.5, 0.0, 0.5]), 8, seed=0, stream=1).tolist()
    [0, 2, 2, 2, 0, 2, 0, 2]
    """
    ends = np.cumsum(chances)
    drawn = np.searchsorted(ends / ends[-1], uniform(raw_words(seed, stream, CHOICE, n)), side="right")
    return np.asarray(drawn, np.int64)


def exhaustive(population: int, start: int = 0, stop: int | None = None) -> Numbers:
    """Return every site, or those from `start` up to `stop`, so that a long list is read in ranges.

    >>> exhaustive(1 << 40, 5, 8).tolist()
    [5, 6, 7]
    """
    return np.arange(start, population if stop is None else min(stop, population), dtype=np.uint64)


def check_rate(rate: float) -> None:
    """Raise InputError unless `rate` is a probability."""
    if not 0 <= rate <= 1:
        raise InputError(f"rate must be in [0, 1], got {rate}; give a probability such as 1e-6")
