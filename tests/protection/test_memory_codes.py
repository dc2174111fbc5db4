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
from onnxfi.campaign.report.report import report
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError, ModelError
from onnxfi.faults.space import Selector, Target
from onnxfi.faults.trials import Sampler, draw_faults
from onnxfi.faults.words import WORDS
from onnxfi.protection.coded_memory import CodedMemory, with_check_bits
from onnxfi.protection.memory_codes import (
    CodeAssignment,
    MemoryCode,
    hsiao_check_bits,
    hsiao_columns,
    hsiao_places,
    memory_codes,
    parse_code_assignment,
    parse_memory_code,
    syndrome_of,
)

ROOT = Path(__file__).parents[2]
FLOAT = WORDS["float32"]


def encode(bits: int, data: int) -> int:
    """The block of a Hsiao code that holds these data bits."""
    return data | syndrome_of(bits, data) << bits


@given(st.sampled_from([8, 16, 32, 64]), st.data())
def test_secded_corrects_one_flip_and_detects_two(bits: int, data: st.DataObject) -> None:
    code, held = parse_memory_code(f"secded:bits={bits}"), len(hsiao_columns(bits))
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
        assert hsiao_columns(64)[one] == syndrome_of(64, block ^ 1 << one), (
            "the syndrome is the column of the flipped bit"
        )
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


@pytest.mark.parametrize(("bits", "checks"), [(8, 5), (16, 6), (32, 7), (64, 8)])
def test_hsiao_columns_make_a_code_of_distance_four(bits: int, checks: int) -> None:
    found = hsiao_columns(bits)
    assert len(found) == bits + checks and len(set(found)) == len(found)
    assert all(column.bit_count() % 2 for column in found), "the sum of two columns is even, so it is none of them"
    assert hsiao_check_bits(bits) == checks and [hsiao_places(bits)[column] for column in found] == [
        *range(bits + checks)
    ]


def test_the_syndrome_is_the_sum_of_the_columns_of_flipped_bits() -> None:
    found = hsiao_columns(32)
    assert syndrome_of(32, 1 << 5 | 1 << 17 | 1 << 38) == found[5] ^ found[17] ^ found[38] and syndrome_of(32, 0) == 0


CNN, TEST = str(ROOT / "models/fashion_cnn.onnx"), str(ROOT / "models/fashion_test.npz")

names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).map(lambda name: "=" + name)


@given(st.lists(st.lists(names, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3))
def test_any_name_survives_the_text_form(patterns: list[tuple[str, ...]]) -> None:
    made = CodeAssignment(tuple((parse_memory_code("tmr:top=2"), one) for one in patterns))
    assert parse_code_assignment(str(made)) == made


def test_the_first_pattern_that_matches_decides() -> None:
    found = parse_code_assignment("secded@fc1;tmr@fc*")
    covered = [found.code_of(Target(name, WORDS["float32"], (4,))) for name in ("fc1.weight", "fc2.weight", "conv1")]
    assert [code and str(code) for code in covered] == ["secded", "tmr", None]


def test_what_is_no_assignment() -> None:
    for text, message in (("secded@", "empty pattern"), ("secded@a;", "unknown memory code ''"), ("a@b", "unknown")):
        with pytest.raises(InputError, match=message):
            parse_code_assignment(text)


def test_a_copy_of_the_top_bits_protects_these_alone() -> None:
    code, word = parse_memory_code("tmr:top=2"), WORDS["float32"]
    assert code.check_bits(word) == 4 and code.overhead_bits(Target("w", word, (10,))) == 40
    for bit in range(36):
        seen, status = code.decode(word, 0x3F800000, 1 << bit)
        left = 1 << bit if bit < 30 else 0
        assert seen == 0x3F800000 ^ left and status == ("missed" if left else "corrected"), bit
    both = 1 << 31 | 1 << 33  # the sign, and one copy of it
    assert code.decode(word, 0, both)[0] == 1 << 31
    with pytest.raises(InputError, match="give top=8 at most"):
        parse_memory_code("tmr:top=9").check(Target("w", WORDS["int8"], (4,)))


def test_single_faults_outside_the_code_stay_and_inside_are_gone(tmp_path: Path) -> None:
    how = {
        "samples": 20,
        "single": True,
        "trials": 40,
        "bits": "30",
        "seed": 5,
        "include": ("fc1.weight", "fc2.weight"),
    }
    found = {}
    for code in (None, "secded@fc1.weight", "tmr:top=2"):
        store = tmp_path / f"{len(found)}.db"
        list(run(Campaign(CNN, TEST, memory_code=code, **how), store))
        found[code] = {fold.key: fold for fold in report(store).by_layer}
    bare, parts, top = found.values()
    assert bare["fc1"].outcomes["sdc"] > 0 and bare["fc1"].trials == parts["fc1"].trials
    assert parts["fc1"].outcomes["masked"] == parts["fc1"].trials and top["fc1"].outcomes == parts["fc1"].outcomes
    assert parts.get("fc2", bare.get("fc2")) == bare.get("fc2")


def test_patterns_that_match_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'nowhere' matches no weight"):
        list(run(Campaign(CNN, TEST, samples=5, ber=1e-6, repeat=1, memory_code="tmr@nowhere"), tmp_path / "s.db"))
