"""Effects of bit flips, held against the definition of each format, one word and one bit at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import formats, words_of
from word_oracle import effect as expected

from onnxfi.analysis.bit_effects import (
    EFFECT_MEANINGS,
    EFFECTS,
    bin_counts,
    count_effects,
    count_effects_of_words,
    effect_bins,
    effect_classes,
)
from onnxfi.faults.words import WORDS, Word


def counted(word: Word, words: list[int], zero_point: int = 0) -> np.ndarray:
    """Flips by bit and class, one at a time."""
    table = np.zeros((word.bits, len(EFFECTS)), np.int64)
    for bits in words:
        for bit in range(word.bits):
            table[bit, EFFECTS.index(expected(word, bits, bit, zero_point))] += 1
    return table


def stored(word: Word, words: list[int]) -> np.ndarray:
    """The words as a file holds them."""
    data = bytearray(word.size_bytes(len(words)))
    for k, bits in enumerate(words):
        word.write(data, k, bits)
    if word.storage < 8 and len(words) * word.storage % 8:  # padding need not be 0
        data[-1] |= 0xFF << (len(words) * word.storage % 8) & 0xFF
    return np.frombuffer(bytes(data), word.carrier)


@given(st.data())
def test_classes_are_those_of_the_definition(data: st.DataObject) -> None:
    word = data.draw(formats)
    words = data.draw(st.lists(words_of(word), min_size=1, max_size=4))
    zero_point = 0 if word.is_float or word.bits > 16 else data.draw(st.integers(-3, 8))
    found = effect_classes(word, np.array(words, np.uint64), float(zero_point))
    names = [[EFFECTS[k] for k in row] for row in found]
    assert names == [[expected(word, bits, bit, zero_point) for bit in range(word.bits)] for bits in words]


@given(st.data())
def test_counts_by_bin_are_those_of_every_bit(data: st.DataObject) -> None:
    word = data.draw(formats)
    words = data.draw(st.lists(words_of(word), min_size=1, max_size=9))
    zero_point = 0 if word.is_float or word.bits > 16 else data.draw(st.integers(-3, 8))
    brute = counted(word, words, zero_point)
    assert np.array_equal(count_effects_of_words(word, np.array(words, np.uint64), zero_point), brute)
    if effect_bins(word):
        bins = bin_counts(word, stored(word, words), len(words))
        assert bins.sum() == len(words) and bins.min() >= 0
        assert np.array_equal(count_effects(word, bins, zero_point), brute)


@pytest.mark.parametrize("name", [name for name, word in WORDS.items() if word.bits <= 8])
def test_every_pattern_of_the_narrow_formats(name: str) -> None:
    word = WORDS[name]
    words = list(range(1 << word.bits))
    assert np.array_equal(count_effects(word, bin_counts(word, stored(word, words), len(words))), counted(word, words))


@pytest.mark.parametrize("name", ["float32", "float64", "complex64"])
def test_the_mantissa_decides_no_class_but_that_of_infinities(name: str) -> None:
    word = WORDS[name]
    ends = (0, 1, (1 << word.mantissa) - 1, 1 << (word.mantissa - 1), 3)
    exponents = [
        0,
        1,
        2,
        3,
        *(1 << k for k in range(2, word.exponent)),
        (1 << word.exponent) - 2,
        (1 << word.exponent) - 1,
    ]
    words = [e << word.mantissa | m | s << (word.bits - 1) for e in exponents for m in ends for s in (0, 1)]
    assert np.array_equal(count_effects(word, bin_counts(word, stored(word, words), len(words))), counted(word, words))


def test_bfloat16_below_two_as_published() -> None:
    """The census of a bfloat16 language model (6.25 % sign, 43.75 % negligible, 25 % in amplification and attenuation)
    follows from the format for any weights below 2 whose bits 11 to 13 are set: one catastrophic bit of 16."""
    word = WORDS["bfloat16"]
    words = word.words(np.linspace(0.002, 0.9, 1000, dtype=np.float32))
    counts = count_effects(word, np.bincount(words.astype(np.int64), minlength=1 << 16)).sum(axis=0)
    share = dict(zip(EFFECTS, (counts / counts.sum()).tolist(), strict=True))
    assert share["sign"] == 0.0625 and share["negligible"] == 0.4375
    assert share["catastrophic"] == 0.0625 and share["collapse"] == 0.1875
    assert share["amplification"] + share["attenuation"] == 0.25


def test_each_class_has_a_meaning() -> None:
    assert len(EFFECTS) == len(EFFECT_MEANINGS) == len(set(EFFECT_MEANINGS))
