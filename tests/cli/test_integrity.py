"""`onnxfi manifest`, `verify` and `diff`: exit codes, files, and names of tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

CNN = str(Path(__file__).parents[2] / "models" / "fashion_cnn.onnx")
Run = Callable[..., Any]


@pytest.fixture
def damaged(run: Run, here: Path) -> str:
    assert run("inject", CNN, "--site", "conv2.weight[9]:30", "-o", "damaged.onnx").code == 0
    return "damaged.onnx"


def test_damage_is_named_listed_and_repaired(run: Run, here: Path, damaged: str) -> None:
    assert run("manifest", CNN, "-o", "m.json").code == 0
    assert run("verify", CNN, "m.json").code == 0
    found = run("verify", damaged, "m.json")
    assert found.code == 1 and "conv2.weight" in found.out and "not whole, 9 tensors compared" in found.out
    listed = run("diff", CNN, damaged, "--save-faults", "d.jsonl", "--repair", "whole.onnx", "--json")
    assert listed.code == 1 and json.loads(listed.out)["tensors"][0]["by_bit"][30] == 1
    assert Path("whole.onnx").read_bytes() == Path(CNN).read_bytes()
    assert run("inject", CNN, "--faults", "d.jsonl", "-o", "again.onnx").code == 0
    assert Path("again.onnx").read_bytes() == Path(damaged).read_bytes()


def test_what_does_not_differ_writes_nothing(run: Run, here: Path) -> None:
    result = run("diff", CNN, CNN, "--save-faults", "d.jsonl", "--repair", "r.onnx")
    assert result.code == 0 and "no stored number differs, of 9 tensors that both have" in result.out
    assert not list(here.iterdir())


def test_damage_in_external_data_is_listed_and_repaired(run: Run, here: Path) -> None:
    for folder in ("release", "field"):
        Path(folder).mkdir()
        proto = onnx.load(CNN)
        onnx.save(proto, f"{folder}/m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024)
    whole, data = Path("release/m.data").read_bytes(), bytearray(Path("field/m.data").read_bytes())
    data[1003] ^= 0x40
    Path("field/m.data").write_bytes(data)
    damaged = ("diff", "release/m.onnx", "field/m.onnx")
    for taken in ("release/m.onnx", "field/m.onnx"):
        assert run(*damaged, "--repair", taken).err.endswith("is the input itself; give another name with -o\n")
    found = run(*damaged, "--save-faults", "d.jsonl", "--repair", "r.onnx")
    assert found.code == 1 and "1 word and 1 bit differ" in found.out, found.err
    assert Path("r.onnx.data").read_bytes() == whole
    # The list belongs to both, under the names that their files have.
    assert run("inject", "field/m.onnx", "--faults", "d.jsonl", "--undo", "-o", "u.onnx").code == 0
    assert Path("u.onnx.data").read_bytes() == whole
    assert run("inject", "release/m.onnx", "--faults", "d.jsonl", "-o", "b.onnx").code == 0
    assert Path("b.onnx.data").read_bytes() == data


def test_outputs_are_checked_before_anything_is_compared(run: Run, here: Path, damaged: str) -> None:
    before = {path.name for path in here.iterdir()}
    for words in (("--save-faults", "no/d.jsonl"), ("--repair", "no/r.onnx"), ("--repair", damaged)):
        result = run("diff", CNN, damaged, *words)
        assert result.code == 2 and result.err.count("\n") == 1, words
    assert run("manifest", CNN, "-o", "no/m.json").code == 2
    assert run("verify", CNN, "none.json").code == 2
    assert {path.name for path in here.iterdir()} == before
