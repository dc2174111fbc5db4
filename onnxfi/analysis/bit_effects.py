"""Effects of single bit flips on the number that a word holds, in classes, without running anything.

The class of a flip follows from the number before it and the number after it. Of formats up to 16 bits it is looked up
for every pattern; of longer floats it depends on the exponent alone, since a flip in the mantissa never changes a
number by a factor of 2, and one in the exponent changes it by a power of 2; longer integers are looked at one by one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.faults.words import Word, Words

#: Classes of a flip, the gravest first; each flip is in exactly one.
EFFECTS = ("catastrophic", "amplification", "attenuation", "collapse", "sign", "negligible")
#: Meaning of each class, for readers.
EFFECT_MEANINGS = (
    "grows by 2^16 or more, or becomes NaN or infinite",
    "grows by 2 to 2^16",
    "shrinks by 2 to 2^16",
    "shrinks by 2^16 or more",
    "changes its sign, or a bool its truth",
    "changes by less than a factor of 2",
)
CATASTROPHIC, AMPLIFICATION, ATTENUATION, COLLAPSE, SIGN, NEGLIGIBLE = range(6)
#: Words up to this width have a row for each pattern.
MOST_PATTERN_BITS = 16
_FACTOR = 2.0**16

Counts = NDArray[np.int64]
Classes = NDArray[np.uint8]


def effect_classes(word: Word, words: Words, zero_points: NDArray[np.float64] | float = 0.0) -> Classes:
    """Return the class of the flip of each bit of each word ([n, bits], indices into `EFFECTS`).

    Parameters
    ----------
    word : Word
        The number format.
    words : ndarray of uint64, shape (n,)
        The stored words.
    zero_points : ndarray of float64, shape (n,), or float
        The zero point of each word, of a quantised tensor.

    Returns
    -------
    ndarray of uint8, shape (n, bits)

    Notes
    -----
    A number below the smallest normal one counts as that, and an integer that is less than a step from its zero point
    as one step: a zero has no ratio, and what becomes of it is compared with the least that the format tells from it.
    A NaN that becomes finite has collapsed, and one that does not has changed in nothing; an infinity that becomes NaN
    is catastrophic.

    Examples
    --------
    >>> from onnxfi.faults.words import WORDS
    >>> half = WORDS["float16"].words(np.array([0.5]))
    >>> [EFFECTS[k] for k in effect_classes(WORDS["float16"], half)[0, [14, 13, 10, 15, 0]]]
    ['catastrophic', 'attenuation', 'amplification', 'sign', 'negligible']
    """
    flips = np.uint64(1) << np.arange(word.bits, dtype=np.uint64)
    with np.errstate(all="ignore"):
        before = _numbers(word, words)[:, None] - np.reshape(zero_points, (-1, 1))
        after = _numbers(word, (words[:, None] ^ flips).ravel()).reshape(len(words), word.bits)
        after = after - np.reshape(zero_points, (-1, 1))
        return _classes(word, before, after)


def _numbers(word: Word, words: Words) -> NDArray[np.float64]:
    """Return numbers as float64, of which integers of 64 bits lose what decides no class."""
    return np.asarray(word.values(words), np.float64)


def _classes(word: Word, before: NDArray[np.float64], after: NDArray[np.float64]) -> Classes:
    least = least_magnitude(word)
    old, new = np.maximum(np.abs(before), least), np.maximum(np.abs(after), least)
    found = np.full(after.shape, NEGLIGIBLE, np.uint8)
    found[new >= 2 * old] = AMPLIFICATION
    found[2 * new <= old] = ATTENUATION
    found[_FACTOR * new <= old] = COLLAPSE
    turned = np.signbit(before) != np.signbit(after) if word.is_float else before * after < 0
    found[turned | np.array(word.name == "bool")] = SIGN
    found[new >= _FACTOR * old] = CATASTROPHIC
    found[~np.isfinite(after)] = CATASTROPHIC
    found[~np.isfinite(before) & np.isfinite(after)] = COLLAPSE
    found[np.isinf(before) & np.isinf(after)] = SIGN
    found[np.isnan(before) & ~np.isfinite(after)] = NEGLIGIBLE
    return found


def least_magnitude(word: Word) -> float:
    """Return the magnitude below which numbers count as this one: the smallest normal number, or one step.

    >>> from onnxfi.faults.words import WORDS
    >>> least_magnitude(WORDS["float16"]) == 2.0**-14, least_magnitude(WORDS["int8"])
    (True, 1.0)
    """
    if not word.is_float:
        return 1.0
    if not word.mantissa:  # no subnormal numbers
        return float(word.values(np.zeros(1, np.uint64))[0])
    return float(word.values(np.array([1 << word.mantissa], np.uint64))[0])


def by_pattern(word: Word) -> bool:
    """Return True if effects are counted by pattern."""
    return word.bits <= MOST_PATTERN_BITS


def effect_bins(word: Word) -> int:
    """Return the number of bins in which words have the same effects; 0 if they are looked at one by one.

    >>> from onnxfi.faults.words import WORDS
    >>> effect_bins(WORDS["bfloat16"]), effect_bins(WORDS["float32"]), effect_bins(WORDS["int32"])
    (65536, 257, 0)
    """
    if by_pattern(word):
        return 1 << word.bits
    return (1 << word.exponent) + 1 if word.is_float else 0


@cache
def _table(word: Word, zero_point: float) -> Classes:
    """Return the classes of each bin ([bins, bits])."""
    if by_pattern(word):
        return effect_classes(word, np.arange(1 << word.bits, dtype=np.uint64), zero_point)
    exponents = np.arange(1 << word.exponent, dtype=np.uint64) << np.uint64(word.mantissa)
    nan = exponents[-1] | np.uint64(3)  # of two bits, so that none of them alone makes it an infinity
    return effect_classes(word, np.append(exponents, nan))


def count_effects(word: Word, bins: Counts, zero_point: float = 0.0) -> Counts:
    """Return how many flips of each bit are in each class ([bits, classes]), from the words in each bin ([bins]).

    >>> from onnxfi.faults.words import WORDS
    >>> words = WORDS["int4"].words(np.array([3, 0, -8]))
    >>> count_effects(WORDS["int4"], np.bincount(words.astype(int), minlength=16))[3].tolist()
    [0, 1, 1, 0, 1, 0]
    """
    held = np.flatnonzero(bins)
    return _summed(_table(word, zero_point)[held], bins[held])


def count_effects_of_words(word: Word, words: Words, zero_points: NDArray[np.float64] | float = 0.0) -> Counts:
    """Return how many flips of each bit of these words are in each class ([bits, classes])."""
    return _summed(effect_classes(word, words, zero_points), np.ones(len(words), np.int64))


def _summed(classes: Classes, weights: Counts) -> Counts:
    """Sum whole weights over rows by bit and class, exactly."""
    out = [[int(weights[column == effect].sum()) for effect in range(len(EFFECTS))] for column in classes.T]
    return np.array(out, np.int64).reshape(classes.shape[1], len(EFFECTS))


def bin_counts(word: Word, stored: NDArray[Any], words: int) -> Counts:
    """Count words by bin ([bins]).

    Parameters
    ----------
    word : Word
        A format that has bins.
    stored : ndarray of word.carrier, shape (n,)
        Words as they are stored, several in each byte of a packed format.
    words : int
        Their number; what is beyond in a last packed byte is not counted.

    Returns
    -------
    ndarray of int64, shape (bins,)
    """
    if by_pattern(word):
        return _pattern_counts(word, stored, words)
    top = stored.view(f"<u{stored.itemsize // 2}")[1::2] if stored.itemsize == 4 else stored
    shift = word.mantissa - (16 if stored.itemsize == 4 else 0)
    ones = (1 << word.exponent) - 1
    if stored.itemsize == 4:  # by the upper half, whose patterns are few
        halves = np.bincount(top, minlength=1 << 16)
        exponents = halves.reshape(2, ones + 1, 1 << shift).sum(axis=(0, 2)).astype(np.int64)
    else:
        exponents = np.bincount((top >> np.uint64(shift)).astype(np.intp) & ones, minlength=ones + 1).astype(np.int64)
    nans = 0
    if exponents[ones]:
        mantissa = stored.dtype.type((1 << word.mantissa) - 1)
        full = stored.dtype.type(ones << word.mantissa)
        nans = int(np.count_nonzero(((stored & full) == full) & ((stored & mantissa) != 0)))
    exponents[ones] -= nans
    return np.append(exponents, nans)


def _pattern_counts(word: Word, stored: NDArray[Any], words: int) -> Counts:
    if word.storage >= 8:
        counts = np.bincount(stored, minlength=1 << word.storage).astype(np.int64)
        return counts if word.bits == word.storage else np.array([counts[::2].sum(), counts[1::2].sum()])
    places, size = 8 // word.storage, 1 << word.storage
    inside = np.bincount(stored, minlength=256).astype(np.int64).reshape((size,) * places)
    counts = np.zeros(size, np.int64)
    for axis in range(places):
        counts += inside.sum(axis=tuple(other for other in range(places) if other != axis))
    for place in range(words % places or places, places):  # padding of the last byte
        counts[(int(stored[-1]) >> (place * word.storage)) & (size - 1)] -= 1
    return counts
