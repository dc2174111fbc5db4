"""Faults of parts of a memory: every bit of two tensors against the memory written out, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxfi.errors import FaultError, SelectorError
from onnxfi.faults.hardware.memory_faults import PARTS, MemoryPart
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.sites import Target
from onnxfi.faults.space import FaultSpace
from onnxfi.faults.trials import faults_of_event
from onnxfi.faults.words import WORDS

#: 2 banks of 4 rows of 16 bytes; 16 lanes in 2 chips; pages of 32 bytes in another order.
MEMORY = {
    "memory_bytes": 128,
    "row_bytes": 16,
    "banks": 2,
    "lanes": 16,
    "chips": 2,
    "pages": {"size": 32, "frames": [2, 0, 3]},
}
ONE = Target("a", WORDS["float32"], (7,), stored=(0, 5))
TWO = Target("b", WORDS["int4"], (3, 11), stored=(0, 40))


def where(address: int) -> dict[str, int]:
    """The coordinates of a bit, by arithmetic on its own."""
    byte, bit = divmod(address, 8)
    byte = [2, 0, 3][byte // 32] * 32 + byte % 32
    chunk, inside = divmod(byte, 16)
    lane = byte % 2 * 8 + bit
    return {
        "page": byte // 32,
        "bank": chunk % 2,
        "row": chunk // 2,
        "column": inside // 2,
        "lane": lane,
        "chip": lane // 8,
    }


def bits() -> dict[tuple[str, int, int], dict[str, int]]:
    """Every bit of both tensors with its coordinates."""
    one = {("a", k // 32, k % 32): where(5 * 8 + k) for k in range(7 * 32)}
    return one | {("b", k // 4, k % 4): where(40 * 8 + k) for k in range(33 * 4)}


def memory(folder: Path, text: str) -> MemoryPart:
    (folder / "m.json").write_text(json.dumps({"version": 1} | MEMORY))
    model = parse_fault(f"memory:file={folder / 'm.json'},{text}")
    assert isinstance(model, MemoryPart)
    return model


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_every_bit_that_lies_there(part: str, tmp_path: Path) -> None:
    model, every = memory(tmp_path, f"part={part},size=3,effect=stuck-at-1"), bits()
    same = {
        "page": ("page",), "row": ("bank", "row"), "column": ("bank", "column"), "bank": ("bank",), "chip": ("chip",),
        "lane": ("lane",), "word-line": ("bank", "row", "lane"),
    }[part]  # fmt: skip
    space = FaultSpace.over((ONE, TWO), model)
    for site, at in [*every.items()][::17]:
        wanted = {
            one for one, there in every.items()
            if all(there[name] == at[name] for name in same)
            and (part != "word-line" or at["column"] <= there["column"] < at["column"] + 3)
        }  # fmt: skip
        faults = faults_of_event(f"{site[0]}[{site[1]}]:{site[2]}", space, model, 0, 1)
        assert {(f.target, f.index, *f.bits) for f in faults if f.bits} == wanted
        assert {f.fault for f in faults} == {"stuck-at-1"}


def test_a_share_of_a_part_holds_its_site(tmp_path: Path) -> None:
    model = memory(tmp_path, "part=bank,share=0.25")
    target = Target("w", WORDS["int8"], (90,), stored=(0, 3))
    sizes = []
    for trial in range(1, 9):
        faults = faults_of_event("w[5]:3", FaultSpace.over((target,), model), model, 0, trial)
        assert (5, (3,)) in {(fault.index, fault.bits) for fault in faults}
        sizes.append(len(faults))
    assert 50 < np.mean(sizes) < 130  # of about 360 bits in the bank


def test_what_is_not_in_memory_is_refused(tmp_path: Path) -> None:
    model = memory(tmp_path, "part=row")
    with pytest.raises(SelectorError, match="is of weights"):
        FaultSpace.over((Target("y", WORDS["int8"], (4,), "activation"),), model)
    for text, why in (
        ("part=rank", "give page, row"),
        ("share=2", "out of range"),
        ("effect=x", "unknown"),
        ("size=0", "out of range"),
    ):
        with pytest.raises(FaultError, match=why):
            memory(tmp_path, text)
    (tmp_path / "m.json").write_text(json.dumps({"version": 1} | MEMORY | {"order": "bank-row-column"}))
    with pytest.raises(FaultError, match="it was changed"):
        parse_fault(str(model))
