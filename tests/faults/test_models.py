"""Built-in fault models: their effect against an oracle, and the parameters and formats that they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fault_examples import EXAMPLES, after, every_example
from hypothesis import given
from hypothesis import strategies as st
from strategies import U64, formats, models, words_of
from word_oracle import faulty

from onnxfi.errors import FaultError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.fault_registry import fault_models, parse_fault
from onnxfi.faults.models import BUILT_IN, Add, Burst, Noise, RandomWord, Scale, Set, SetWord, SignFlip, Zero
from onnxfi.faults.sampling import normal, raw_words
from onnxfi.faults.words import WORDS, Word

# ------------------------------------------------------------------------------------------------ what they do


@given(models, formats, U64, st.data())
def test_strike_does_what_the_oracle_does(model: FaultModel, word: Word, raw: int, data: st.DataObject) -> None:
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


@given(models, formats, U64, st.data())
def test_only_the_named_bits_change(model: FaultModel, word: Word, before: int, data: st.DataObject) -> None:
    if model.unit == "word" or model.width() > word.bits:
        return
    bit = data.draw(st.integers(0, word.bits - model.width()))
    field = ((1 << model.width()) - 1) << bit
    assert (after(model, word, before & word.full, bit) ^ before & word.full) & ~field == 0


@given(models.filter(lambda m: m.self_inverse), formats, st.data())
def test_what_calls_itself_self_inverse_is(model: FaultModel, word: Word, data: st.DataObject) -> None:
    if model.width() > word.bits or (isinstance(model, SignFlip) and not word.signed):
        return
    before = data.draw(words_of(word))
    bit = data.draw(st.integers(0, word.bits - model.width())) if model.unit == "bit" else -1
    assert after(model, word, after(model, word, before, bit), bit) == before


@given(models, formats, U64)
def test_spending_is_a_pure_function_and_leaves_no_chance(model: FaultModel, word: Word, raw: int) -> None:
    spent = model.draw_parameters(raw, word)
    assert spent == model.draw_parameters(raw, word)
    assert not spent.is_random
    assert (spent is model) == (not model.is_random)
    assert spent.unit == model.unit
    assert spent.draw_parameters(raw ^ 1, word) is spent


@given(formats, U64)
def test_a_random_word_is_the_low_bits_of_the_raw_word(word: Word, raw: int) -> None:
    assert RandomWord().draw_parameters(raw, word) == SetWord(raw & (1 << word.bits) - 1)


@given(U64, st.floats(0, 1e6))
def test_noise_is_sigma_times_a_normal_number(raw: int, sigma: float) -> None:
    assert Noise(sigma).draw_parameters(raw, WORDS["float32"]) == Add(
        float(normal(np.array([raw], np.uint64))[0]) * sigma
    )


def test_an_unspent_model_does_not_strike() -> None:
    for model in (RandomWord(), Noise()):
        with pytest.raises(NotImplementedError, match=type(model).__name__):
            after(model, WORDS["float32"], 0, -1)


@every_example
def test_no_rows_are_no_work(name: str, text: str) -> None:
    none = parse_fault(text).apply(WORDS["uint8"], np.zeros(0, np.uint64), np.zeros(0, np.int16))
    assert none.dtype == np.uint64
    assert len(none) == 0


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


def test_minus_zero_is_not_zero_and_nan_is_nan() -> None:
    assert str(Set(-0.0)) == "set:value=-0.0"
    assert str(Set(0)) == str(Set(0.0)) == str(parse_fault("set:value=0")) == "set:value=0.0"
    assert Set(-0.0) != Set(0.0)
    assert Set(math.nan) == Set(float("nan"))
    assert len({Set(math.nan), Set(float("nan")), parse_fault("set:value=NaN")}) == 1
    assert Set(1) != Zero()


def test_numpy_numbers_are_written_plainly() -> None:
    assert str(Scale(np.float64(0.5))) == "scale:factor=0.5"
    assert str(Burst(np.int64(3))) == "burst:k=3"


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filp", r"unknown fault 'filp'; closest: 'flip'"),
        ("", r"unknown fault ''; known: 'flip', 'burst'"),
        ("Flip", r"unknown fault 'Flip'; closest: 'flip'"),
        ("flip:", r"fault 'flip' takes no parameters; given ''"),
        ("flip:bit=3", r"fault 'flip' takes no parameters; given 'bit=3'"),
        ("burst:n=3", r"fault 'burst' takes k as key=value; given 'n=3'"),
        ("burst:3", r"fault 'burst' takes k as key=value; given '3'"),
        ("burst:k=3,", r"fault 'burst' takes k as key=value; given ''"),
        ("burst:k=3,k=4", r"fault 'burst': k is given twice"),
        ("burst:k=three", r"fault 'burst': k='three' is not a whole number"),
        ("burst:k=2.5", r"k='2.5' is not a whole number"),
        ("burst:k=", r"k='' is not a whole number"),
        ("burst:k=0", r"fault 'burst': k=0 is out of range; give a whole number from 1"),
        ("burst:k=-1", r"k=-1 is out of range"),
        ("burst:k=" + "9" * 5000, r"is too long for the number of a word; give fewer digits"),
        ("set-word:word=-1", r"word=-0x1 is out of range; give a word from 0x0 on"),
        ("set-word:word=0x10000000000000000", r"word=0x10000000000000000 is out of range"),
        ("set-word:word=1.0", r"word='1.0' is not a whole number"),
        ("set:value=one", r"value='one' is not a number"),
        ("set:value=0x10", r"value='0x10' is not a number"),
        ("scale:factor=nan", r"fault 'scale': factor=nan is out of range; give a number; set:value=nan sets NaN"),
        ("add:value=nan", r"fault 'add': value=nan is out of range"),
        ("noise:sigma=-1", r"fault 'noise': sigma=-1 is out of range; give a finite number from 0 on"),
        ("noise:sigma=nan", r"sigma=nan is out of range"),
        ("noise:sigma=inf", r"sigma=inf is out of range"),
    ],
)
def test_bad_parameters_are_refused(text: str, message: str) -> None:
    with pytest.raises(FaultError, match=message):
        parse_fault(text)


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


def test_blanks_around_the_parts_are_read_over() -> None:
    assert parse_fault(" burst: k = 3 ") == Burst(3)
    assert parse_fault("set-word:word=255") == parse_fault("set-word:word=0xff") == SetWord(255)
    assert parse_fault("set:value=010") == Set(10)


def test_arithmetic_on_whole_numbers_of_64_bits_is_exact() -> None:
    word, numbers = WORDS["int64"], np.array([2**53 + 1, -(2**53) - 1, 2**62 + 1], np.int64)
    bits = np.full(3, -1, np.int16)
    for text, wanted in (
        ("scale:factor=-1", [-(2**53) - 1, 2**53 + 1, -(2**62) - 1]),
        ("scale:factor=2", [2**54 + 2, -(2**54) - 2, 2**63 - 1]),
        ("add:value=0.25", numbers.tolist()),
    ):
        assert word.values(parse_fault(text).apply(word, word.words(numbers), bits)).tolist() == wanted
