"""Fault models: all that are registered by their examples, onnxfi's against an oracle, one's own by an entry point."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import U64, formats, models, words_of
from word_oracle import struck

from onnxfi.errors import FaultError
from onnxfi.faults import models as registry
from onnxfi.faults.faultlist import FaultList, Header, lines
from onnxfi.faults.models import (
    Add,
    Burst,
    FaultModel,
    Flip,
    Noise,
    RandomWord,
    Scale,
    Set,
    SetWord,
    SignFlip,
    Zero,
    fault_models,
    parse_fault,
)
from onnxfi.faults.sampling import normal, raw_words
from onnxfi.faults.space import Selector, Target
from onnxfi.faults.trials import Draw, draw, resolve
from onnxfi.faults.words import WORDS, Mask, Word

EXAMPLES = [(name, text) for name, model in fault_models().items() for text in model.examples]
every_example = pytest.mark.parametrize(("name", "text"), EXAMPLES, ids=[text for _, text in EXAMPLES])


def evaluated(model: FaultModel) -> Any:
    """`eval(repr(model))`, with the names that a reader of the text has."""
    kinds = {kind.__name__: kind for kind in fault_models().values()}
    return eval(repr(model), {"nan": math.nan, "inf": math.inf} | kinds)


def after(model: FaultModel, word: Word, before: int, bit: int) -> int:
    (new,) = model.strike(word, np.array([before], np.uint64), np.array([bit], np.int16))
    return int(new)


# ------------------------------------------------------------------------------------------------ all registered ones


@pytest.mark.parametrize("name", fault_models())
def test_models_are_frozen_named_and_explained(name: str) -> None:
    kind = fault_models()[name]
    assert kind.name == name
    assert kind.unit in ("bit", "word")
    assert kind.__doc__
    assert not kind.__doc__.startswith(kind.__name__ + "(")  # the text that dataclass makes up
    fields = [field.name for field in dataclasses.fields(kind)]
    assert kind.examples or "file" in fields, "the tests run over the examples; only what needs a file has none"
    for text in kind.examples:
        for field in fields:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(parse_fault(text), field, 1)


@every_example
def test_examples_are_values_and_texts(name: str, text: str) -> None:
    model = parse_fault(text)
    assert type(model) is fault_models()[name]
    assert parse_fault(str(model)) == model
    assert evaluated(model) == model
    assert hash(parse_fault(text)) == hash(model)
    for field in dataclasses.fields(model):  # also what was left out: a default may be another one some day
        assert f"{field.name}=" in str(model) or not field.init


@every_example
def test_examples_find_words_to_strike(name: str, text: str) -> None:
    model = parse_fault(text)
    struck_formats = []
    for word in WORDS.values():
        top = word.bits - model.width()
        bits = np.arange(top + 1, dtype=np.int16) if model.unit == "bit" else np.array([-1], np.int16)
        before = np.arange(len(bits), dtype=np.uint64) & np.uint64(word.full)
        try:
            new = model.spend(12345, word).strike(word, before, bits)
        except FaultError as refusal:
            assert word.name in str(refusal)
            continue
        assert new.dtype == np.uint64
        assert all(0 <= w <= word.full for w in new.tolist())
        struck_formats += [word.name] * bool(len(bits))
    assert struck_formats


@given(models, formats, st.data())
def test_texts_and_values_are_one(model: FaultModel, word: Word, data: st.DataObject) -> None:
    assert parse_fault(str(model)) == model
    assert evaluated(model) == model
    spent = model.spend(data.draw(U64), word)
    assert parse_fault(str(spent)) == spent


# ------------------------------------------------------------------------------------------------ what they do


@settings(max_examples=200)
@given(models, formats, U64, st.data())
def test_strike_does_what_the_oracle_does(model: FaultModel, word: Word, raw: int, data: st.DataObject) -> None:
    spent = model.spend(raw, word)
    top = word.bits - model.width()
    if model.unit == "bit" and top < 0:
        return
    place = st.integers(0, top) if model.unit == "bit" else st.just(-1)
    rows = data.draw(st.lists(st.tuples(words_of(word), place), min_size=1, max_size=6))
    wanted = [struck(spent, word, before, bit) for before, bit in rows]
    before, bits = np.array([w for w, _ in rows], np.uint64), np.array([b for _, b in rows], np.int16)
    given_ = before.copy()
    if None in wanted:
        with pytest.raises(FaultError, match=word.name):
            spent.strike(word, before, bits)
        return
    assert spent.strike(word, before, bits).tolist() == wanted
    assert np.array_equal(before, given_), "what is given is not changed"


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
def test_examples_do_what_the_oracle_does(word: Word) -> None:
    for text in (text for name, text in EXAMPLES if fault_models()[name] in registry._OWN):
        does_what_the_oracle_does(text, word)


def does_what_the_oracle_does(text: str, word: Word) -> None:
    # A new model of onnxfi's own fails here until the oracle says, one number at a time, what it does.
    raw = raw_words(7, 7, 7, 100).tolist()
    model = parse_fault(text).spend(raw.pop(), word)
    if model.width() > word.bits:
        return
    places = [r % (word.bits - model.width() + 1) if model.unit == "bit" else -1 for r in raw]
    words = [r >> 8 & word.full for r in raw]
    wanted = [struck(model, word, before, bit) for before, bit in zip(words, places, strict=True)]
    if None not in wanted:
        new = model.strike(word, np.array(words, np.uint64), np.array(places, np.int16))
        assert new.tolist() == wanted
    else:
        assert set(wanted) == {None}
        with pytest.raises(FaultError, match=word.name):
            model.strike(word, np.array(words, np.uint64), np.array(places, np.int16))


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
    spent = model.spend(raw, word)
    assert spent == model.spend(raw, word)
    assert not spent.draws
    assert (spent is model) == (not model.draws)
    assert spent.unit == model.unit
    assert spent.spend(raw ^ 1, word) is spent


@given(formats, U64)
def test_a_random_word_is_the_low_bits_of_the_raw_word(word: Word, raw: int) -> None:
    assert RandomWord().spend(raw, word) == SetWord(raw & (1 << word.bits) - 1)


@given(U64, st.floats(0, 1e6))
def test_noise_is_sigma_times_a_normal_number(raw: int, sigma: float) -> None:
    assert Noise(sigma).spend(raw, WORDS["float32"]) == Add(float(normal(np.array([raw], np.uint64))[0]) * sigma)


def test_an_unspent_model_does_not_strike() -> None:
    for model in (RandomWord(), Noise()):
        with pytest.raises(NotImplementedError, match=type(model).__name__):
            after(model, WORDS["float32"], 0, -1)


@every_example
def test_no_rows_are_no_work(name: str, text: str) -> None:
    none = parse_fault(text).strike(WORDS["uint8"], np.zeros(0, np.uint64), np.zeros(0, np.int16))
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
        ("burst:k=three", r"fault 'burst': k='three' is no whole number"),
        ("burst:k=2.5", r"k='2.5' is no whole number"),
        ("burst:k=", r"k='' is no whole number"),
        ("burst:k=0", r"fault 'burst': k=0 is out of range; give a whole number from 1"),
        ("burst:k=-1", r"k=-1 is out of range"),
        ("burst:k=" + "9" * 5000, r"is no number of a word; give fewer digits"),
        ("set-word:word=-1", r"word=-0x1 is out of range; give a word from 0x0 on"),
        ("set-word:word=0x10000000000000000", r"word=0x10000000000000000 is out of range"),
        ("set-word:word=1.0", r"word='1.0' is no whole number"),
        ("set:value=one", r"value='one' is no number"),
        ("set:value=0x10", r"value='0x10' is no number"),
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
        ("set:value=nan", "int8", r"set: int8 holds no nan; give another, or leave such tensors out"),
        ("set:value=-inf", "int64", r"int64 holds no -inf"),
        ("set:value=nan", "bool", r"bool holds no nan"),
        ("set:value=nan", "float4_e2m1fn", r"float4_e2m1fn holds no nan"),
        ("set:value=inf", "float8_e4m3fn", r"float8_e4m3fn holds no inf"),
        ("set:value=1e9", "float8_e4m3fn", r"float8_e4m3fn holds no 1000000000.0"),
        ("set", "float8_e8m0fnu", r"float8_e8m0fnu holds no 0.0"),
    ],
)
def test_formats_that_cannot_have_a_fault_are_named(text: str, dtype: str, message: str) -> None:
    with pytest.raises(FaultError, match=message):
        after(parse_fault(text), WORDS[dtype], 1, -1)


def test_blanks_around_the_parts_are_read_over() -> None:
    assert parse_fault(" burst: k = 3 ") == Burst(3)
    assert parse_fault("set-word:word=255") == parse_fault("set-word:word=0xff") == SetWord(255)
    assert parse_fault("set:value=010") == Set(10)


# ------------------------------------------------------------------------------------------------ a user's own

OWN = Path(__file__).parents[1] / "support" / "own_fault_model.py"


@pytest.fixture
def fresh() -> Iterator[None]:
    """The registry read anew, and again afterwards."""
    fault_models.cache_clear()
    yield
    fault_models.cache_clear()


@pytest.fixture
def installed(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's model, as an installed package offers it."""
    info = tmp_path / "lost_bits-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lost-bits\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[onnxfi.fault_models]\nlost-bits = own_fault_model:LostBits\n")
    (tmp_path / OWN.name).write_text(OWN.read_text())
    monkeypatch.syspath_prepend(tmp_path)


def test_an_own_model_takes_at_most_fifteen_lines() -> None:
    (model,) = (node for node in ast.parse(OWN.read_text()).body if isinstance(node, ast.ClassDef))
    first = min(d.lineno for d in model.decorator_list)
    assert model.end_lineno is not None
    assert model.end_lineno - first + 1 <= 15


@pytest.mark.usefixtures("installed")
def test_an_own_model_is_a_model_like_the_others(tmp_path: Path) -> None:
    assert "lost-bits" in fault_models()
    model = parse_fault("lost-bits:k=3")
    assert (str(model), evaluated(model)) == ("lost-bits:k=3", model)
    assert str(parse_fault("lost-bits")) == "lost-bits:k=4"
    assert after(model, WORDS["uint8"], 0xFF, -1) == 0xF8
    with pytest.raises(FaultError, match="unknown fault 'lost-bit'; closest: 'lost-bits'"):
        parse_fault("lost-bit")

    targets = [Target("w", WORDS["float32"], (3, 4))]
    space, how = Selector().space(targets, model), Draw("count", n=5, seed=1)
    assert (space.unit, len(space)) == ("word", 12)
    drawn, final = resolve(draw(space, how, model), np.arange(5, dtype=np.uint64) + np.uint64(0xFFFF))
    assert final.tolist() == [w & ~7 for w in range(0xFFFF, 0xFFFF + 5)]
    path = tmp_path / "faults.jsonl"
    header = Header("digest", str(model), draw=how, population=12, unit="word")
    path.write_text("\n".join([header.line(), *lines(1, drawn, how, [0])]) + "\n")
    assert FaultList.open(path).header == header
    assert dict(FaultList.open(path).trials(targets)) == {1: drawn}


@dataclasses.dataclass(frozen=True)
class _Nameless(FaultModel):
    """A model whose author forgot its name."""


@dataclasses.dataclass(frozen=True)
class _Taken(FaultModel):
    """A model with the name of another."""

    name = "flip"


@dataclasses.dataclass(frozen=True)
class _Derived(FaultModel):
    """A model that keeps what it worked out from its parameters."""

    k: int = 4
    name = "derived"
    twice: int = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.k)


@pytest.mark.usefixtures("fresh")
def test_what_a_model_works_out_is_no_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(value="pack:Derived", load=lambda: _Derived)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert str(_Derived(5)) == "derived:k=5"
    assert parse_fault(str(_Derived(5))) == _Derived(5)
    with pytest.raises(FaultError, match="fault 'derived' takes k as key=value; given 'twice=3'"):
        parse_fault("derived:twice=3")


def _broken() -> None:
    raise ImportError("No module named 'gone'")


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda: _Nameless, r"entry point 'pack:Own' has no name; give the class a `name`"),
        (lambda: _Taken, r"entry point 'pack:Own' calls itself 'flip', a name already taken"),
        (lambda: dict, r"is no frozen dataclass derived from onnxfi.FaultModel"),
        (Flip, r"is no frozen dataclass derived from onnxfi.FaultModel"),
        (lambda: Mask, r"is no frozen dataclass derived from onnxfi.FaultModel"),
        (_broken, r"entry point 'pack:Own' does not load: No module named 'gone'; mend or remove its package"),
    ],
)
def test_bad_entry_points_are_named(load: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(value="pack:Own", load=load)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "onnxfi.fault_models" else [])
    with pytest.raises(FaultError, match=message):
        parse_fault("flip")


def test_the_group_of_entry_points_is_the_documented_one() -> None:
    assert registry.ENTRY_POINTS == "onnxfi.fault_models"
    assert EntryPoint("lost-bits", "own_fault_model:LostBits", registry.ENTRY_POINTS).load().name == "lost-bits"


# ------------------------------------------------------------------------------------------------ neurons and synapses


def test_saturation_goes_to_a_percentile_of_the_tensor() -> None:
    numbers = np.arange(101, dtype=np.float64) / 8 - 3
    assert parse_fault("saturated").bind(numbers) == Set(9.5)
    assert parse_fault("saturated:percentile=90").bind(numbers) == Set(8.25)
    assert parse_fault("saturated:percentile=90,side=negative").bind(numbers) == Set(-1.75)
    assert parse_fault("saturated").bind(np.array([np.nan, np.inf, 0.5])) == Set(0.5)
    assert parse_fault("saturated").bind(np.full(3, np.nan)) == Set(1.0)  # what neurons compute: a spike
    assert parse_fault("saturated").bind(np.array([-3, 9], np.int8)) == Set(9)
    odd = np.array([2**62 + 1, 2**62 + 3, -(2**53) - 1], np.int64)
    assert parse_fault("saturated").bind(odd) == Set(2**62 + 3)
    assert parse_fault("saturated:side=negative").bind(odd) == Set(-(2**53) - 1)
    assert parse_fault("saturated:percentile=75").bind(odd) == Set(2**62 + 2)
    assert parse_fault("saturated").bind(np.array([1, 2**64 - 1], np.uint64)) == Set(2**64 - 1)
    assert parse_fault("saturated").bind(np.array([False, True])) == Set(1)


@pytest.mark.parametrize("word", [w for w in WORDS.values() if w.bits <= 16], ids=lambda w: w.name)
def test_saturation_takes_the_largest_number_of_every_format(word: Word) -> None:
    numbers = word.values(np.arange(1 << word.bits, dtype=np.uint64))
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide = numbers.astype(np.float64)
    ends = [f(wide[np.isfinite(wide)]).item() for f in (np.max, np.min)]
    high, low = ends if word.is_float else map(int, ends)
    assert parse_fault("saturated").bind(numbers) == Set(high)
    assert parse_fault("saturated:side=negative").bind(numbers) == Set(low)


def test_arithmetic_on_whole_numbers_of_64_bits_is_exact() -> None:
    word, numbers = WORDS["int64"], np.array([2**53 + 1, -(2**53) - 1, 2**62 + 1], np.int64)
    bits = np.full(3, -1, np.int16)
    for text, wanted in (
        ("scale:factor=-1", [-(2**53) - 1, 2**53 + 1, -(2**62) - 1]),
        ("scale:factor=2", [2**54 + 2, -(2**54) - 2, 2**63 - 1]),
        ("add:value=0.25", numbers.tolist()),
    ):
        assert word.values(parse_fault(text).strike(word, word.words(numbers), bits)).tolist() == wanted


@given(st.integers(2, 16), st.data())
def test_a_flip_in_a_quantised_view_moves_by_a_power_of_two_steps(bits: int, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, bits - 1))
    numbers = np.array(data.draw(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=20)))
    model = parse_fault(f"flip-quantised:bits={bits},bit={bit}").bind(numbers)
    largest = np.abs(numbers).max()
    assert model.scale == (largest / ((1 << (bits - 1)) - 1) or 1.0)  # type: ignore[attr-defined]
    stored = np.rint(numbers / model.scale)  # type: ignore[attr-defined]
    moved = np.rint((model.rule(numbers)) / model.scale) - stored  # type: ignore[attr-defined]
    assert (np.abs(moved) == 1 << bit).all()
    sign = -1 if bit == bits - 1 else 1  # the highest bit of two's complement counts negative
    up = ((stored.astype(np.int64) >> bit) & 1) == 0
    assert (np.sign(moved) == np.where(up, sign, -sign)).all()


@pytest.mark.parametrize(
    "text",
    [
        "saturated:percentile=101", "saturated:side=left", "flip-quantised:bits=1", "flip-quantised:bits=17",
        "flip-quantised:bits=8,bit=8", "flip-quantised:scale=-1", "dead:value=1",
    ],
)  # fmt: skip
def test_neuron_faults_that_cannot_be(text: str) -> None:
    with pytest.raises(FaultError, match=text.partition(":")[0]):
        parse_fault(text)
