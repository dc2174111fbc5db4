"""Built-in fault models: their effect against an oracle, and the parameters and formats that they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from fault_examples import EXAMPLES, after
from hypothesis import given
from hypothesis import strategies as st
from strategies import U64, formats, models, words_of
from word_oracle import faulty

from onnxfi.errors import FaultError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.models import BUILT_IN, Add, Noise, RandomScale, RandomWord, SetWord
from onnxfi.faults.registry import fault_models, parse_fault
from onnxfi.faults.sampling import VALUE, normal, raw_words
from onnxfi.faults.words import WORDS, Word


@given(models, formats, U64, st.data())
def test_a_fault_model_does_what_the_oracle_does(model: FaultModel, word: Word, raw: int, data: st.DataObject) -> None:
    spent = model.draw_parameters(raw, word)
    top = word.bits - model.width()
    if model.unit == "bit" and top < 0:
        return
    place = st.integers(0, top) if model.unit == "bit" else st.just(-1)
    rows = data.draw(st.lists(st.tuples(words_of(word), place), min_size=1, max_size=6))
    wanted = [faulty(spent, word, before, bit) for before, bit in rows]
    before, bits = np.array([w for w, _ in rows], np.uint64), np.array([b for _, b in rows], np.int16)
    given_ = before.copy()
    if None in wanted:
        with pytest.raises(FaultError, match=word.name):
            spent.apply(word, before, bits)
        return
    assert spent.apply(word, before, bits).tolist() == wanted
    assert np.array_equal(before, given_), "what is given is not changed"


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
def test_examples_do_what_the_oracle_does(word: Word) -> None:
    for text in (text for name, text in EXAMPLES if fault_models()[name] in BUILT_IN):
        does_what_the_oracle_does(text, word)


def does_what_the_oracle_does(text: str, word: Word) -> None:
    # A new model of onnxfi's own fails here until the oracle says, one number at a time, what it does.
    raw = raw_words(7, 7, 7, 100).tolist()
    model = parse_fault(text).draw_parameters(raw.pop(), word)
    if model.width() > word.bits:
        return
    places = [r % (word.bits - model.width() + 1) if model.unit == "bit" else -1 for r in raw]
    words = [r >> 8 & word.full for r in raw]
    wanted = [faulty(model, word, before, bit) for before, bit in zip(words, places, strict=True)]
    if None not in wanted:
        new = model.apply(word, np.array(words, np.uint64), np.array(places, np.int16))
        assert new.tolist() == wanted
    else:
        assert set(wanted) == {None}
        with pytest.raises(FaultError, match=word.name):
            model.apply(word, np.array(words, np.uint64), np.array(places, np.int16))


@given(formats, U64)
def test_a_random_word_is_the_low_bits_of_the_raw_word(word: Word, raw: int) -> None:
    assert RandomWord().draw_parameters(raw, word) == SetWord(raw & (1 << word.bits) - 1)


@given(U64, st.floats(0, 1e6))
def test_noise_is_sigma_times_a_normal_number(raw: int, sigma: float) -> None:
    assert Noise(sigma).draw_parameters(raw, WORDS["float32"]) == Add(
        float(normal(np.array([raw], np.uint64))[0]) * sigma
    )


@given(U64, st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_a_random_factor_lies_in_its_range(raw: int, low: float, width: float) -> None:
    factor = RandomScale(low, low + width).draw_parameters(raw, WORDS["float32"]).factor
    assert low <= factor <= low + width


def test_random_factors_are_uniform() -> None:
    raws = raw_words(1, 1, VALUE, 2000).tolist()
    drawn = np.array([RandomScale(0.5, 2.5).draw_parameters(raw, WORDS["float32"]).factor for raw in raws])
    counts = np.histogram(drawn, 4, (0.5, 2.5))[0]
    assert (abs(counts - 500) < 5 * np.sqrt(375)).all()


def test_a_random_model_without_parameters_is_not_applied() -> None:
    for model in (RandomWord(), Noise()):
        with pytest.raises(NotImplementedError, match=type(model).__name__):
            after(model, WORDS["float32"], 0, -1)


@pytest.mark.parametrize(
    ("text", "dtype", "before", "wanted"),
    [
        ("scale", "float32", 0x7F800001, 0x7FC00000),  # a signalling NaN: quiet, without payload
        ("scale:factor=0", "float32", 0xFF800000, 0x7FC00000),  # inf × 0: the same NaN on every machine
        ("scale", "float64", 0x7FE0000000000000, 0x7FF0000000000000),  # overflow
        ("add:value=inf", "float16", 0xFC00, 0x7E00),  # -inf + inf
        ("scale:factor=0.1", "float32", 0x00000005, 0x00000000),  # underflow, half a step: to even
        ("add:value=1", "int64", 2**60 + 1, 2**60 + 2),  # no detour over float64
        ("scale:factor=3", "uint64", 2**62 + 1, 3 * 2**62 + 3),
        ("scale:factor=4", "uint64", 2**62 + 1, 2**64 - 1),
        ("scale:factor=-1", "int64", 2**63, 2**63 - 1),
        ("sign-flip", "int8", 0x80, 0x80),  # -128 has no opposite in two's complement
        ("sign-flip", "float32", 0x7FC00001, 0xFFC00001),
        ("set:value=-0", "float32", 1, 0x80000000),
        ("set:value=18446744073709551615", "uint64", 0, 2**64 - 1),
        ("set:value=9007199254740993", "int64", 0, 2**53 + 1),
        ("set:value=100000000000000000000", "bfloat16", 0, 0x60AD),
        ("set:value=-nan", "float32", 0, 0x7FC00000),
        ("set:value=1e300", "float32", 0, 0x7F800000),
        ("set:value=1e300", "float4_e2m1fn", 0, 7),
        ("set:value=2", "bool", 0, 1),
        ("zero", "float8_e4m3fnuz", 0x80, 0),
        ("scale", "bool", 1, 1),
    ],
)
def test_words_at_the_edges(text: str, dtype: str, before: int, wanted: int) -> None:
    assert after(parse_fault(text), WORDS[dtype], before, -1) == wanted


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("text", "dtype", "message"),
    [
        ("sign-flip", "uint8", r"sign-flip: uint8 has no sign; leave such tensors out with --dtype"),
        ("sign-flip", "bool", r"bool has no sign"),
        ("sign-flip", "float8_e8m0fnu", r"float8_e8m0fnu has no sign"),
        ("set-word:word=0x1ff", "uint8", r"set-word: 0x1ff has more than the 8 bits of uint8"),
        ("set:value=nan", "int8", r"set: int8 cannot hold nan; give another, or leave such tensors out"),
        ("set:value=-inf", "int64", r"int64 cannot hold -inf"),
        ("set:value=nan", "bool", r"bool cannot hold nan"),
        ("set:value=nan", "float4_e2m1fn", r"float4_e2m1fn cannot hold nan"),
        ("set:value=inf", "float8_e4m3fn", r"float8_e4m3fn cannot hold inf"),
        ("set:value=1e9", "float8_e4m3fn", r"float8_e4m3fn cannot hold 1000000000.0"),
        ("set", "float8_e8m0fnu", r"float8_e8m0fnu cannot hold 0.0"),
    ],
)
def test_formats_that_cannot_have_a_fault_are_named(text: str, dtype: str, message: str) -> None:
    with pytest.raises(FaultError, match=message):
        after(parse_fault(text), WORDS[dtype], 1, -1)


def test_arithmetic_on_whole_numbers_of_64_bits_is_exact() -> None:
    word, numbers = WORDS["int64"], np.array([2**53 + 1, -(2**53) - 1, 2**62 + 1], np.int64)
    bits = np.full(3, -1, np.int16)
    for text, wanted in (
        ("scale:factor=-1", [-(2**53) - 1, 2**53 + 1, -(2**62) - 1]),
        ("scale:factor=2", [2**54 + 2, -(2**54) - 2, 2**63 - 1]),
        ("add:value=0.25", numbers.tolist()),
    ):
        assert word.values(parse_fault(text).apply(word, word.words(numbers), bits)).tolist() == wanted
