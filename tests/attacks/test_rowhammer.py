"""Rowhammer templates against the bytes of the file, and lists that replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxfi.attacks.rowhammer import rowhammer
from onnxfi.errors import FaultError, InputError
from onnxfi.faults.faultlist import FaultList
from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.weights import inject, replay

MODEL = Path("models/fashion_cnn.onnx")


def templates(folder: Path, *rows: dict[str, Any], **more: Any) -> Path:
    file = folder / "templates.json"
    file.write_text(json.dumps({"version": 1, "templates": rows} | more))
    return file


def test_each_flip_is_a_byte_of_the_file_under_a_template(tmp_path: Path) -> None:
    rows = [(411, 6, "0to1"), (1023, 7, "1to0"), (2514, 0, "1to0")]
    file = templates(tmp_path, *({"offset": o, "bit": b, "direction": d} for o, b, d in rows))
    found = rowhammer(MODEL, file)
    data, model = MODEL.read_bytes(), load(MODEL)
    wanted = set()
    for number, (offset, bit, direction) in enumerate(rows):
        for at in range(offset, len(data), 4096):
            holds = data[at] >> bit & 1
            for target in model.targets:
                start = target.stored[1]
                inside = start <= at < start + 4 * target.size
                if inside and holds == (direction == "1to0"):
                    wanted.add((number, at // 4096, target.id, (at - start) // 4, (at - start) % 4 * 8 + bit))
    assert wanted
    assert {
        (int(found.template[k]), int(found.page[k]), f.target, f.index, *f.bits) for k, f in enumerate(found.faults) if f.bits
    } == wanted  # fmt: skip
    assert found.candidates > len(found) == len(wanted)


def test_the_list_is_one_that_replays_and_changes_those_bytes(tmp_path: Path) -> None:
    found = rowhammer(MODEL, templates(tmp_path, {"offset": 411, "bit": 6, "direction": "0to1"}))
    opened = FaultList.open(found.write(tmp_path / "flips.jsonl"))
    assert [len(faults) for _, faults in opened.trials(load(MODEL).targets)] == [1] * len(found)
    inject(MODEL, replay(MODEL, opened), tmp_path / "hammered.onnx")
    old, new = (np.frombuffer(file.read_bytes(), np.uint8) for file in (MODEL, tmp_path / "hammered.onnx"))
    changed = np.flatnonzero(old != new)
    assert (changed % 4096 == 411).all() and ((old ^ new)[changed] == 1 << 6).all() and len(changed) == len(found)


def test_with_a_layout_a_template_acts_on_the_page_in_its_frame(tmp_path: Path) -> None:
    pages = [*range(200, 400)]  # page p of the file lies in frame 200 + p
    layout = tmp_path / "layout.json"
    layout.write_text(json.dumps({"version": 1, "memory_bytes": 1 << 22, "pages": {"size": 4096, "frames": pages}}))
    row = {"offset": 411, "bit": 6, "direction": "0to1"}
    every = rowhammer(MODEL, templates(tmp_path, row))
    page = int(every.page[3])
    one = rowhammer(MODEL, templates(tmp_path, row | {"frame": 200 + page}), layout)
    assert one.page.tolist() == [page] and one.faults[0] == every.faults[3]
    assert len(rowhammer(MODEL, templates(tmp_path, row | {"frame": 100}), layout)) == 0
    with pytest.raises(FaultError, match="needs frame"):
        rowhammer(MODEL, templates(tmp_path, row), layout)
    with pytest.raises(FaultError, match="pages of 64 bytes"):
        rowhammer(MODEL, templates(tmp_path, row | {"offset": 3, "frame": 1}, page_size=64), layout)


def test_without_a_flip_there_is_no_list(tmp_path: Path) -> None:
    page = len(MODEL.read_bytes()) + 4096
    found = rowhammer(MODEL, templates(tmp_path, {"offset": page - 1, "bit": 0, "direction": "0to1"}, page_size=page))
    assert (len(found), found.candidates, [*found.rows()], found.largest()) == (0, 0, [], [])
    with pytest.raises(InputError, match="no template flips"):
        found.write(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"offset": 4096, "bit": 0, "direction": "0to1"}, "offset"),
        ({"offset": 1, "bit": 8, "direction": "0to1"}, "bit"),
        ({"offset": 1, "bit": 0, "direction": "up"}, "unknown direction 'up'"),
        ({"offset": 1, "bit": 0, "direction": "0to1", "row": 3}, "unknown field 'row'"),
        ({"bit": 0, "direction": "0to1"}, "offset"),
    ],
)
def test_templates_of_no_page_are_refused(row: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(FaultError, match=why):
        rowhammer(MODEL, templates(tmp_path, row))
