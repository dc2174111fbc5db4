"""Memory codes by tensor: the text form, what each covers, and single faults in a memory that is protected in parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.campaign.report.report import report
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError
from onnxfi.faults.space import Target
from onnxfi.faults.words import WORDS
from onnxfi.protection.code_assignment import CodeAssignment, parse_code_assignment
from onnxfi.protection.memory_codes import parse_memory_code

ROOT = Path(__file__).parents[2]
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
