"""Memory codes against their definitions: every single flip, every double one, and rates of what is left."""

from __future__ import annotations

from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pass_contract import external

from onnxfi import load, parse_fault
from onnxfi.errors import InputError, ModelError
from onnxfi.faults.space import Selector, Target
from onnxfi.faults.trials import Sampler, draw_faults
from onnxfi.faults.words import WORDS
from onnxfi.protection.coded_memory import CodedMemory, with_check_bits
from onnxfi.protection.hsiao import columns, syndrome_of
from onnxfi.protection.memory_codes import MemoryCode, memory_codes, parse_memory_code

ROOT = Path(__file__).parents[2]
FLOAT = WORDS["float32"]


def encode(bits: int, data: int) -> int:
    """The block of a Hsiao code that holds these data bits."""
    return data | syndrome_of(bits, data) << bits


@given(st.sampled_from([8, 16, 32, 64]), st.data())
def test_secded_corrects_one_flip_and_detects_two(bits: int, data: st.DataObject) -> None:
    code, held = parse_memory_code(f"secded:bits={bits}"), len(columns(bits))
    word = WORDS["uint8"]
    stored = data.draw(st.integers(0, 2**bits - 1))
    assert syndrome_of(bits, encode(bits, stored)) == 0
    one, two = data.draw(st.lists(st.integers(0, held - 1), min_size=2, max_size=2, unique=True))
    assert code.decode(word, stored, 1 << one) == (stored, "corrected")
    assert code.decode(word, stored, 1 << one | 1 << two)[1] == "detected"
    assert code.decode(word, stored, 0) == (stored, "clean")


def test_secded_72_64_on_every_single_and_every_double_flip() -> None:
    code, stored = parse_memory_code("secded"), 0x0123456789ABCDEF
    block = encode(64, stored)
    for one in range(72):
        assert code.decode(FLOAT, stored, 1 << one) == (stored, "corrected")
        assert columns(64)[one] == syndrome_of(64, block ^ 1 << one), "the syndrome is the column of the flipped bit"
    statuses = {code.decode(FLOAT, stored, 1 << a | 1 << b)[1] for a, b in combinations(range(72), 2)}
    assert statuses == {"detected"}


def test_parity_tmr_mset_and_cep_by_hand() -> None:
    parity, tmr, mset, cep = (parse_memory_code(name) for name in ("parity", "tmr", "mset", "cep"))
    assert parity.decode(FLOAT, 5, 1 << 64)[1] == "detected" and parity.decode(FLOAT, 5, 3) == (6, "missed")
    assert tmr.decode(FLOAT, 9, 1 << 30) == (9, "corrected")
    assert tmr.decode(FLOAT, 9, 1 << 30 | 1 << 62) == (9 ^ 1 << 30, "missed")
    one = 0x3F800000  # 1.0: its top exponent bit is 0
    assert mset.decode(FLOAT, one, 1 << 30) == (one, "corrected")
    assert mset.decode(FLOAT, one, 3) == (one ^ 1 << 30, "missed"), "both copies are wrong"
    assert mset.decode(FLOAT, one, 1 << 29) == (one ^ 1 << 29, "missed")
    assert cep.cleared(FLOAT) == 63, "six chunks of four bits, 31 to 8"
    assert cep.decode(FLOAT, one, 1 << 30) == (one & 0x0FFFFFFF, "detected"), "a wrong chunk reads 0"
    assert cep.decode(FLOAT, one, 3 << 29) == (one ^ 3 << 29, "missed"), "two flips keep the parity"
    assert cep.decode(FLOAT, one, 1 << 6) == (one ^ 1 << 6, "missed"), "bits 7 and 6 are in no chunk"
    assert cep.decode(FLOAT, 0x3F800000, 1 << 5)[1] in ("corrected", "detected")


@pytest.mark.parametrize("name", memory_codes())
def test_every_code_is_its_text_form_and_changes_nothing_without_errors(name: str) -> None:
    code = parse_memory_code(name)
    assert parse_memory_code(str(code)) == code and code.__doc__
    assert code.decode(FLOAT, 0x3F000000, 0) == (0x3F000000, "clean")


@pytest.mark.parametrize(
    ("text", "dtype", "message"),
    [
        ("secded:bits=32", "float64", "a block of 32 bits holds no word of 'w' .float64.; give bits=64"),
        ("mset", "int8", "'w' is int8: leave it out with --exclude, or take secded"),
        ("cep:chunk=20", "float16", "memory code cep:chunk=20 is wider than the words of 'w'"),
        ("cep", "uint8", "memory code cep is wider than the words"),
    ],
)
def test_codes_that_do_not_fit_the_words_are_refused(text: str, dtype: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CodedMemory.over(parse_memory_code(text), (Target("w", WORDS[dtype], (10,)),))


@pytest.mark.parametrize("text", ["secded:bits=48", "secded:detected=maybe", "cep:chunk=0", "hamming", "parity:bit=8"])
def test_unknown_codes_and_parameters_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_memory_code(text)


def read(code: MemoryCode, rate: float, trials: int, interval: float = 1.0) -> dict[str, int]:
    """Blocks of the largest tensor of the CNN by what became of them, over some trials."""
    model = load(ROOT / "models/fashion_cnn.onnx")
    (target,) = [t for t in model.targets if t.id == "fc1.weight"]
    event, total = parse_fault("flip"), dict.fromkeys(("corrected", "detected", "missed"), 0)
    space = Selector(include=("=fc1.weight",)).space(model.targets, event)
    memory = CodedMemory.over(code, (target,), interval)
    for trial in range(1, trials + 1):
        faults = draw_faults(space, Sampler("ber", rate=rate, seed=4), event, trial)
        _, counts = memory.read(model, faults, rate, 4, trial)
        total = {name: n + counts[name] for name, n in total.items()}
    return total


def test_the_residual_of_secded_is_that_of_the_formula() -> None:
    """C(72,2) p² a word: about 2.5e-5 · 50,176 words · 40 trials at p = 1e-4."""
    words, p, trials = 100352 // 2, 1e-4, 40
    expected = trials * words * comb(72, 2) * p**2
    found = read(parse_memory_code("secded"), p, trials)
    assert abs(found["detected"] + found["missed"] - expected) < 4 * np.sqrt(expected)
    assert abs(found["corrected"] - trials * words * 72 * p) < 5 * np.sqrt(trials * words * 72 * p)


def test_scrubbing_divides_the_residual_by_the_number_of_intervals() -> None:
    seldom = read(parse_memory_code("secded"), 2e-4, 20)
    often = read(parse_memory_code("secded"), 2e-4, 20, 0.05)
    expected = 20 * 50176 * comb(72, 2) * (2e-4) ** 2
    assert abs(seldom["detected"] + seldom["missed"] - expected) < 5 * np.sqrt(expected)
    assert abs(often["detected"] + often["missed"] - expected / 20) < 5 * np.sqrt(expected / 20) + 2


def test_what_is_read_is_what_the_words_decode_to() -> None:
    """One flip a word of 64 bits is corrected; two stay where they are kept; the rest of the tensor is untouched."""
    model = load(ROOT / "models/fashion_cnn.onnx")
    event = parse_fault("flip")
    (target,) = [t for t in model.targets if t.id == "conv1.weight"]
    space = Selector(include=("=conv1.weight",)).space(model.targets, event)
    faults = draw_faults(space, Sampler("count", n=12, seed=9), event)
    keep, due = (CodedMemory.over(parse_memory_code(f"secded:detected={d}"), (target,)) for d in ("keep", "due"))
    read_, counts = keep.read(model, faults, 0.0, 0, 1)
    blocks: dict[int, int] = {}
    for index in faults.sites.index.tolist():
        blocks[index // 2] = blocks.get(index // 2, 0) + 1
    assert counts["corrected"] == sum(n == 1 for n in blocks.values())
    assert {int(i) // 2 for i in read_.sites.index} == {b for b, n in blocks.items() if n > 1}
    assert due.read(model, faults, 0.0, 0, 1)[1] == counts
    assert keep.overhead_bits == 72 * 8


def test_words_that_hold_their_check_bits_are_read_with_those_cleared(tmp_path: Path) -> None:
    model = load(ROOT / "models/fashion_cnn.onnx")
    coded = with_check_bits(model, parse_memory_code("cep"))
    assert coded.digest == model.digest and with_check_bits(model, parse_memory_code("secded")) is model
    apart = external(tmp_path, onnx.load(ROOT / "models/fashion_cnn.onnx"))
    inside = with_check_bits(apart, parse_memory_code("cep"))
    assert inside.digest == apart.digest and not inside.external
    for target in model.targets:
        if target.word.is_float:
            index = np.arange(target.size)
            assert np.array_equal(coded.words(target, index), model.words(target, index) & np.uint64(0xFFFFFFC0))
            assert np.array_equal(coded.words(target, index), inside.words(target, index))


def test_words_that_two_tensors_share_in_external_data_take_no_check_bits(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[2,4] x) => (float[2,4] y) <float[4] a = {1, 2, 3, 4}, '
        "float[4] b = {1, 2, 3, 4}> { s = Add(x, a)  y = Mul(s, b) }"
    )
    apart = external(tmp_path, proto)
    proto = onnx.load(str(apart.path), load_external_data=False)
    for tensor in proto.graph.initializer:
        next(e for e in tensor.external_data if e.key == "offset").value = "0"
    onnx.save(proto, tmp_path / "tied.onnx")
    with pytest.raises(ModelError, match=r"tensors share their external data; take secded"):
        with_check_bits(load(tmp_path / "tied.onnx"), parse_memory_code("mset"))
