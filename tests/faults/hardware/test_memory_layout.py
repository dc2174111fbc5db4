"""Memory layouts: coordinates of addresses against a memory that is filled beat by beat, and files that are refused."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxfi.errors import FaultError
from onnxfi.faults.hardware.memory_layout import MemoryLayout, read_layout
from onnxfi.faults.sites import Target
from onnxfi.faults.words import WORDS

EXAMPLES = Path(__file__).parents[3] / "examples" / "hardware"
SMALL: dict[str, Any] = {
    "memory_bytes": 512,
    "row_bytes": 32,
    "banks": 4,
    "lanes": 16,
    "chips": 2,
    "pages": {"size": 64},
}


def layout(folder: Path, **row: Any) -> MemoryLayout:
    file = folder / "layout.json"
    file.write_text(json.dumps({"version": 1} | SMALL | row))
    return read_layout(str(file))


@pytest.mark.parametrize("order", ["row-bank-column", "bank-row-column"])
def test_addresses_fill_the_memory_in_order(order: str, tmp_path: Path) -> None:
    rows, banks = range(4), range(4)
    outer = product(rows, banks) if order == "row-bank-column" else ((r, b) for b, r in product(banks, rows))
    wanted = [(row, bank, column, byte * 8) for row, bank in outer for column in range(16) for byte in range(2)]
    found = layout(tmp_path, order=order).coordinates(np.arange(512))
    columns = (found[name].tolist() for name in ("row", "bank", "column", "lane"))
    assert [*zip(*columns, strict=True)] == wanted


BITS: dict[str, Any] = {"row": "7-8", "column": "0-2,4-5", "bank": ["6,8", "3,5,7"]}


def hashed(folder: Path, **bits: Any) -> MemoryLayout:
    file = folder / "layout.json"
    file.write_text(
        json.dumps({"version": 1, "lanes": 16, "chips": 2, "address_bits": BITS | bits, "pages": {"size": 64}})
    )
    return read_layout(str(file))


def test_a_bank_may_be_the_exclusive_or_of_address_bits(tmp_path: Path) -> None:
    found = hashed(tmp_path)
    assert (found.memory_bytes, found.row_bytes, found.banks) == (512, 32, 4)
    wanted = []
    for address in range(512):
        bit = [address >> k & 1 for k in range(9)]
        byte = bit[0] + 2 * bit[1] + 4 * bit[2] + 8 * bit[4] + 16 * bit[5]
        bank = (bit[6] ^ bit[8]) + 2 * (bit[3] ^ bit[5] ^ bit[7])
        wanted.append((bit[7] + 2 * bit[8], bank, byte // 2, byte % 2 * 8))
    columns = (found.coordinates(np.arange(512))[name].tolist() for name in ("row", "bank", "column", "lane"))
    assert [*zip(*columns, strict=True)] == wanted and len(set(wanted)) == 512


@pytest.mark.parametrize(
    ("bits", "why"),
    [
        ({"bank": ["6,8", "3,5,9"]}, "the highest is 8"),
        ({"bank": ["6,8", "6,7,8"]}, "two addresses would have the same"),
        ({"bank": ["6,8", "6,8"]}, "two addresses would have the same"),
        ({"row": "7-x"}, "'7-x' are no bits"),
        ({"row": [7, 8]}, "are no bits"),
        ({"row": "7,7"}, "names a bit twice"),
        ({"row": "0-99"}, "at most 50"),
        ({"rank": "9"}, "unknown field 'rank'"),
    ],
)
def test_address_bits_that_map_no_memory_are_refused(bits: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(FaultError, match=why):
        hashed(tmp_path, **bits)


def test_what_address_bits_say_is_not_said_twice(tmp_path: Path) -> None:
    with pytest.raises(FaultError, match="leave memory_bytes out"):
        layout(tmp_path, address_bits=BITS)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.json")), ids=lambda file: file.stem)
def test_examples_say_where_their_numbers_come_from(file: Path) -> None:
    source = json.loads(file.read_text())["source"]
    assert "MADE UP" in source or "Measured" in source


def test_pages_lie_where_the_layout_puts_them(tmp_path: Path) -> None:
    frames = layout(tmp_path, pages={"size": 64, "frames": [7, 0, 3]})
    assert frames.physical(np.array([0, 63, 64, 130])).tolist() == [448, 511, 0, 194]
    shuffled = layout(tmp_path, pages={"size": 64, "seed": 5}).physical(np.arange(512))
    assert sorted(shuffled.tolist()) == [*range(512)] and shuffled.tolist() != [*range(512)]
    assert (shuffled.reshape(8, 64) - shuffled.reshape(8, 64)[:, :1] == np.arange(64)).all()
    assert layout(tmp_path).physical(np.arange(512)).tolist() == [*range(512)]
    for one, at in ((frames, 192), (layout(tmp_path), 512), (layout(tmp_path, pages={"size": 64, "seed": 5}), 512)):
        with pytest.raises(FaultError, match="another memory size"):
            one.physical(np.array([at]))


def test_what_has_no_address_is_refused(tmp_path: Path) -> None:
    one = layout(tmp_path)
    with pytest.raises(FaultError, match="does not lie in one run"):
        one.place(Target("w", WORDS["int8"], (4,)))
    with pytest.raises(FaultError, match="no base for file 1"):
        one.place(Target("w", WORDS["int8"], (4,), stored=(1, 0)))
    assert layout(tmp_path, bases={"1": 100}).place(Target("w", WORDS["int8"], (4,), stored=(1, 7))) == 107


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"lanes": 12}, "multiple of 8"),
        ({"chips": 3}, "multiple of 8 and of the chips"),
        ({"banks": 5}, "memory_bytes of row_bytes"),
        ({"memory_bytes": 0}, "a whole number"),
        ({"memory_bytes": 1 << 60}, "a whole number"),
        ({"order": "column"}, "unknown order 'column'; closest: 'row-bank-column'"),
        ({"bases": {"x": 0}}, "bases maps"),
        ({"bases": {"0": 512}}, "a whole number from 0 to 511"),
        ({"pages": {"size": 60}}, "divides memory_bytes"),
        ({"pages": {"size": 64, "seed": 1, "frames": [0]}}, "either frames or a seed"),
        ({"pages": {"size": 64, "frames": [0, 0]}}, "different pages"),
        ({"pages": {"size": 64, "frames": [8]}}, "from 0 to 7"),
        ({"pages": {"size": 64, "frames": [True]}}, "whole numbers"),
        ({"pages": []}, "pages holds no fields"),
        ({"ranks": 2}, "unknown field 'ranks'"),
    ],
)
def test_layouts_of_no_memory_are_refused(row: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(FaultError, match=why):
        layout(tmp_path, **row)
