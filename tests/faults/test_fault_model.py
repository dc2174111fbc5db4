"""Interface of fault models: texts, parameters that are refused, and laws that every model keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fault_examples import after, evaluated, every_example
from hypothesis import given
from hypothesis import strategies as st
from strategies import U64, formats, models, words_of

from onnxfi.errors import FaultError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.models import Burst, Scale, Set, SetWord, SignFlip, Zero
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.words import WORDS, Word


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


@every_example
def test_no_rows_are_no_work(name: str, text: str) -> None:
    none = parse_fault(text).apply(WORDS["uint8"], np.zeros(0, np.uint64), np.zeros(0, np.int16))
    assert none.dtype == np.uint64
    assert len(none) == 0


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
        ("random-scale:low=2,high=1", r"fault 'random-scale': low=2 is out of range; give a number up to high=1"),
        ("random-scale:high=inf", r"high=inf is out of range; give a finite number"),
        ("random-scale:low=-1e308,high=1e308", r"give a narrower range"),
        ("add:value=nan", r"fault 'add': value=nan is out of range"),
        ("noise:sigma=-1", r"fault 'noise': sigma=-1 is out of range; give a finite number from 0 on"),
        ("noise:sigma=1e-400", r"fault 'noise': sigma: '1e-400' is so small that it would be taken as 0"),
        ("noise:sigma=nan", r"sigma=nan is out of range"),
        ("noise:sigma=inf", r"sigma=inf is out of range"),
    ],
)
def test_bad_parameters_are_refused(text: str, message: str) -> None:
    with pytest.raises(FaultError, match=message):
        parse_fault(text)


def test_blanks_around_the_parts_are_read_over() -> None:
    assert parse_fault(" burst: k = 3 ") == Burst(3)
    assert parse_fault("set-word:word=255") == parse_fault("set-word:word=0xff") == SetWord(255)
    assert parse_fault("set:value=010") == Set(10)


@given(models, formats, st.data())
def test_texts_and_values_are_one(model: FaultModel, word: Word, data: st.DataObject) -> None:
    assert parse_fault(str(model)) == model
    assert evaluated(model) == model
    spent = model.draw_parameters(data.draw(U64), word)
    assert parse_fault(str(spent)) == spent
