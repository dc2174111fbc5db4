"""Words against numpy, ml_dtypes, exact fractions and one big integer; masks against their own algebra."""

from __future__ import annotations

import math
import operator
import struct
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import U64, bit_selections, formats, masks, words_of
from word_oracle import decode

from onnxfi.errors import SelectorError
from onnxfi.faults.words import FIELDS, WORDS, Mask, Word, parse_bits, select_bits

every_format = pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
FLOATS = [w for w in WORDS.values() if w.is_float]
INTEGERS = [w for w in WORDS.values() if not w.is_float and w.name != "bool"]


def column(*words: int) -> np.ndarray:
    return np.array(words, np.uint64)


def exactly(word: Word, number: Any) -> str:
    """A number as `repr(decode(…))` writes it: NaN is NaN, -0 is not 0."""
    return repr(bool(number) if word.name == "bool" else float(number) if word.is_float else int(number))


# ------------------------------------------------------------------------------------------------ masks


@given(masks(), masks(), U64)
def test_two_masks_in_sequence_are_one(first: Mask, second: Mask, word: int) -> None:
    assert first.then(second)(word) == second(first(word))


@given(masks(), masks(), masks())
def test_sequences_of_masks_associate(a: Mask, b: Mask, c: Mask) -> None:
    left, right = a.then(b).then(c), a.then(b.then(c))
    for word in (0, 1, 2**64 - 1, 0x0123456789ABCDEF):
        assert left(word) == right(word)
    assert left == right


@given(U64, U64)
def test_a_flip_twice_is_no_flip(bits: int, word: int) -> None:
    flip = Mask(2**64 - 1, bits)
    assert flip(flip(word)) == word
    assert flip.then(flip) == Mask(2**64 - 1, 0)


@given(U64, st.integers(0, 63))
def test_one_form_says_flip_stuck_at_and_set(word: int, bit: int) -> None:
    full = 2**64 - 1
    assert Mask(full, 1 << bit)(word) == word ^ 1 << bit
    assert Mask(full & ~(1 << bit), 0)(word) == word & ~(1 << bit)
    assert Mask(full & ~(1 << bit), 1 << bit)(word) == word | 1 << bit
    assert Mask(0, 0x7F800000)(word) == 0x7F800000


# ------------------------------------------------------------------------------------------------ layouts


@every_format
def test_fields_part_the_word(word: Word) -> None:
    fields = [word.field(name) for name in ("mantissa", "exponent", "sign")]
    if word.is_float:
        assert [bit for field in fields for bit in field] == list(range(word.bits))
    else:
        assert [list(f) for f in fields] == [[], [], [word.bits - 1] if word.signed else []]
    assert word.full == 2**word.bits - 1


@every_format
def test_layouts_agree_with_numpy_and_ml_dtypes(word: Word) -> None:
    if word.name == "bool":
        assert (word.bits, word.storage, word.dtype) == (1, 8, np.dtype(bool))
    elif word.is_float:
        info = ml_dtypes.finfo(word.dtype)
        assert (info.bits, info.nexp, info.nmant) == (word.bits, word.exponent, word.mantissa)
    else:
        info = ml_dtypes.iinfo(word.dtype)
        assert info.bits == word.bits
        assert (info.min < 0) == word.signed
        assert [info.min, info.max] == sorted(
            decode(word, bits) for bits in (word.full >> word.signed, word.full ^ word.full >> word.signed)
        )


@given(formats, st.integers(0, 1000))
def test_sizes_pad_the_last_byte(word: Word, elements: int) -> None:
    assert word.size_bytes(elements) == math.ceil(elements * word.storage / 8)


# ------------------------------------------------------------------------------------------------ words and numbers


@pytest.mark.slow
@pytest.mark.parametrize("word", [w for w in WORDS.values() if w.bits <= 16], ids=lambda w: w.name)
def test_every_word_is_its_number_and_back(word: Word) -> None:
    every = np.arange(1 << word.bits, dtype=np.uint64)
    numbers = word.values(every)
    assert numbers.dtype == word.dtype
    assert [exactly(word, n) for n in numbers] == [repr(decode(word, bits)) for bits in range(1 << word.bits)]
    assert np.array_equal(word.words(numbers), every)  # NaN payloads too


@given(formats, st.data())
def test_words_are_their_numbers_and_back(word: Word, data: st.DataObject) -> None:
    rows = data.draw(st.lists(words_of(word), max_size=8))
    numbers = word.values(column(*rows))
    assert numbers.shape == (len(rows),)
    assert [exactly(word, n) for n in numbers] == [repr(decode(word, bits)) for bits in rows]
    assert word.words(numbers).tolist() == rows


@given(formats, st.data())
def test_shapes_are_kept(word: Word, data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(words_of(word), min_size=6, max_size=6)), np.uint64).reshape(2, 3)
    assert word.values(rows).shape == (2, 3)
    assert np.array_equal(word.words(word.values(rows)), rows)


@every_format
def test_words_are_numpys_own_views(word: Word) -> None:
    rng = np.random.default_rng(5)
    if word.storage < 8:
        # ml_dtypes keeps one narrow number a byte, in the low bits.
        cells = rng.integers(0, 1 << word.bits, 50).astype(np.uint8)
        assert word.values(cells.astype(np.uint64)).tobytes() == cells.view(word.dtype).astype(word.dtype).tobytes()
        assert word.words(cells.view(word.dtype)).tolist() == cells.tolist()
        return
    raw = rng.bytes(50 * word.storage // 8)
    if word.name == "bool":
        raw = bytes(b & 1 for b in raw)
    rows = word.unpack(raw, 0, 50)
    assert rows.tolist() == np.frombuffer(raw, f"<u{word.storage // 8}").tolist()
    assert word.values(rows).tobytes() == np.frombuffer(raw, word.dtype).tobytes()


@pytest.mark.parametrize("name", ["complex64", "complex128"])
def test_complex_numbers_are_two_words_real_part_first(name: str) -> None:
    numbers = np.array([1.5 - 2j, 0.25j], name)
    word = WORDS[name]
    assert word.parts == 2
    assert word.values(word.unpack(numbers.tobytes(), 0, 4)).tolist() == [1.5, -2.0, 0.0, 0.25]


# ------------------------------------------------------------------------------------------------ bytes


@given(formats, st.data())
def test_unpack_reads_one_big_number(word: Word, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 20))
    raw = data.draw(st.binary(min_size=word.size_bytes(count), max_size=word.size_bytes(count)))
    big = int.from_bytes(raw, "little")
    start = data.draw(st.integers(0, count))
    n = data.draw(st.integers(0, count - start))
    from_byte = start * word.storage // 8
    wanted = [big >> k * word.storage & (1 << word.storage) - 1 for k in range(start, start + n)]
    assert word.unpack(raw[from_byte:], start, n).tolist() == wanted


@given(formats, st.data())
def test_place_touches_only_its_own_part(word: Word, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 20))
    raw = data.draw(st.binary(min_size=word.size_bytes(count), max_size=word.size_bytes(count)))
    at, new = data.draw(st.integers(0, count - 1)), data.draw(words_of(word))
    cell = bytearray(raw)
    word.write(cell, at, new)
    field = (1 << word.storage) - 1 << at * word.storage
    big = int.from_bytes(raw, "little") & ~field | new << at * word.storage
    assert int.from_bytes(cell, "little") == big
    assert word.unpack(bytes(cell), 0, count)[at] == new


def test_place_writes_through_a_view_and_takes_numpy_words() -> None:
    data = bytearray(8)
    WORDS["float16"].write(memoryview(data)[4:], 1, np.uint64(0x3C00))
    assert data.hex() == "000000000000003c"


# ------------------------------------------------------------------------------------------------ conversion to words


@pytest.mark.parametrize("word", INTEGERS, ids=lambda w: w.name)
@given(number=st.floats() | st.integers(-(2**66), 2**66).map(float))
@example(number=math.nan)
@example(number=math.inf)
@example(number=-math.inf)
@example(number=-0.5)
@example(number=2.5)
@example(number=2.0**63)
@example(number=-(2.0**63))
@example(number=2.0**64)
@example(number=math.nextafter(2.0**63, 0))
def test_floats_become_integers_by_rounding_and_holding(word: Word, number: float) -> None:
    low, high = (decode(word, b) for b in (word.full ^ word.full >> 1 if word.signed else 0, word.full >> word.signed))
    if math.isnan(number):
        wanted = 0
    elif math.isinf(number):
        wanted = high if number > 0 else low
    else:
        wanted = min(max(round(number), low), high)
    (stored,) = word.words(np.array([number]))
    assert decode(word, int(stored)) == wanted


@pytest.mark.parametrize("word", INTEGERS, ids=lambda w: w.name)
def test_integers_of_one_format_are_held_in_another(word: Word) -> None:
    ends = sorted(decode(word, b) for b in (word.full ^ word.full >> 1 if word.signed else 0, word.full >> word.signed))
    for source in INTEGERS:
        top = source.full >> source.signed
        rows = column(0, 1, source.full, source.full - 1, top, source.full ^ top)
        wanted = [min(max(decode(source, int(b)), ends[0]), ends[1]) for b in rows]
        assert [decode(word, int(b)) for b in word.words(source.values(rows))] == wanted, source.name


@pytest.mark.parametrize("word", INTEGERS, ids=lambda w: w.name)
def test_whole_numbers_of_any_size_are_held(word: Word) -> None:
    given_ = np.array([10**30, -(10**30), 2**64 - 1, -(2**63)], object)
    ends = [decode(word, b) for b in (word.full ^ word.full >> 1 if word.signed else 0, word.full >> word.signed)]
    assert [decode(word, int(b)) for b in word.words(given_)] == [min(max(n, ends[0]), ends[1]) for n in given_]


@pytest.mark.parametrize("word", FLOATS, ids=lambda w: w.name)
def test_floats_take_whole_numbers_of_any_size(word: Word) -> None:
    assert np.array_equal(word.words(np.array([10**20, 3], object)), word.words(np.array([1e20, 3.0])))


@pytest.mark.slow
@pytest.mark.parametrize("word", [w for w in FLOATS if w.bits <= 16], ids=lambda w: w.name)
def test_floats_round_to_the_nearest_ties_to_even(word: Word) -> None:
    finite = [(decode(word, b), b) for b in range(1 << word.bits)]
    ordered = sorted({n: b for n, b in finite if math.isfinite(n) and (n or b == 0)}.items())
    step = max(1, len(ordered) // 600)
    numbers, wanted = [], []
    # float8_e8m0fnu has no even mantissa: its ties go up; and ml_dtypes 0.6 takes all beyond its least number up.
    scale = word.name == "float8_e8m0fnu"
    for (low, a), (high, b) in list(pairwise(ordered))[scale::step]:
        # The middle is exact in float64; its two sides are as far as float32, by which narrow formats go, keeps apart.
        middle = (low + high) / 2
        aside = (high - low) / 64
        even = b if scale or a & 1 else a
        numbers += [middle - aside, middle, middle + aside]
        wanted += [a, even, b]
    stored = word.words(np.array(numbers)).tolist()
    assert [decode(word, b) for b in stored] == [decode(word, b) for b in wanted]


@given(st.floats())
def test_float32_rounds_as_the_machine_does(number: float) -> None:
    try:
        (wanted,) = struct.unpack("<I", struct.pack("<f", number))
    except OverflowError:  # struct refuses what IEEE 754 makes infinite
        wanted = 0x7F800000 if number > 0 else 0xFF800000
    (stored,) = WORDS["float32"].words(np.array([number])).tolist()
    assert stored == wanted or math.isnan(number)


@pytest.mark.parametrize(
    ("name", "number", "wanted"),
    [
        ("float16", 1e6, 0x7C00),
        ("bfloat16", -1e39, 0xFF80),
        ("float8_e5m2", 1e6, 0x7C),
        ("float8_e4m3fn", 1e6, 0x7F),  # has no infinity: NaN
        ("float8_e4m3fnuz", 1e6, 0x80),
        ("float8_e8m0fnu", 0.0, 0xFF),  # has no zero: NaN
        ("float4_e2m1fn", 1e6, 0x7),  # has neither: held at 6
        ("float32", math.nan, 0x7FC00000),
        ("bool", 0.3, 1),
        ("bool", -0.0, 0),
    ],
)
def test_what_no_format_holds(name: str, number: float, wanted: int) -> None:
    assert WORDS[name].words(np.array([number])).tolist() == [wanted]


# ------------------------------------------------------------------------------------------------ bit selections


@given(formats.flatmap(lambda word: st.tuples(st.just(word), bit_selections(word.bits))))
def test_bit_selections_are_unions(chosen: tuple[Word, str]) -> None:
    word, text = chosen
    wanted: set[int] = set()
    for part in filter(None, text.split(",")):
        ends = part.split("-")
        wanted |= set(word.field(part)) if part in FIELDS else set(range(int(ends[0]), int(ends[-1]) + 1))
    assert select_bits(parse_bits(text) if text else (), word) == tuple(sorted(wanted))


def test_bits_may_have_blanks_and_repeat() -> None:
    assert select_bits(parse_bits(" 3 , 1-2,2 ,3"), WORDS["int8"]) == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bits '' are neither a position"),
        ("1,,2", "bits '' are neither"),
        ("-1", "bits '-1' are neither"),
        ("5-", "bits '5-' are neither"),
        ("1-2-3", "bits '1-2-3' are neither"),
        ("1.5", "a range as 0-22"),
        ("²", "bits '²' are neither"),
        ("9" * 5000, "are neither"),
        ("exponnet", "closest: 'exponent'"),
        ("22-0", "runs backwards; write 0-22"),
    ],
)
def test_bits_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(SelectorError, match=message):
        parse_bits(text)


@pytest.mark.parametrize("text", ["16", "3-16", "99999999999"])
def test_a_bit_beyond_the_word_is_named(text: str) -> None:
    with pytest.raises(SelectorError, match=r"is beyond float16, whose bits are 0 to 15; .*--dtype"):
        select_bits(parse_bits(text), WORDS["float16"])


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(SelectorError, match="unknown bit field 'exponents'; closest: 'exponent'"):
        WORDS["float32"].field("exponents")


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        operator.setitem(WORDS, "float32", WORDS["int8"])  # type: ignore[call-overload]
