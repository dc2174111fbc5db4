"""Fault maps: nested cells, the rates of the statistics, and the cells of a measured memory one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import FaultError, InputError, SelectorError
from onnxfi.faults.hardware.fault_map import FaultMap
from onnxfi.faults.sites import Target
from onnxfi.faults.space import FaultSpace
from onnxfi.faults.trials import Faults, Sampler, apply_faults, apply_separately, draw_faults
from onnxfi.faults.words import WORDS

BYTES = Target("w", WORDS["uint8"], (4000,))


def fault_map(folder: Path, text: str = "", **row: Any) -> FaultMap:
    file = folder / "map.json"
    file.write_text(json.dumps({"version": 1, "axis": "voltage"} | row))
    return FaultMap(str(file)) if not text else FaultMap(str(file), **eval(f"dict({text})"))


STATISTICS = [{"at": v, "p01": p, "p10": 2 * p} for v, p in ((0.8, 0.001), (0.7, 0.01), (0.6, 0.1))]


def drawn(model: FaultMap, at: float, trial: int = 1, memories: int = 0, seed: int = 0, *targets: Target) -> Faults:
    space = FaultSpace.over(targets or (BYTES,), model)
    return draw_faults(space, Sampler(model.condition, rate=at, n=memories, seed=seed), model, trial)


def cells(faults: Faults, direction: int) -> set[int]:
    """Bits that fail where they hold this value."""
    before = np.full(len(faults), 0xFF if direction else 0, np.uint64)
    applied = apply_separately(faults, before).after
    assert applied is not None
    places = faults.sites.index * 8 + faults.sites.bit
    return {int(p) for p, b, a in zip(places, before, applied, strict=True) if a != b}


def test_what_fails_at_one_voltage_fails_at_every_lower_one(tmp_path: Path) -> None:
    model = fault_map(tmp_path, statistics=STATISTICS)
    for first in (1, 4, 7):  # trials of a sweep over three voltages: one memory each
        sweep = [drawn(model, at, first + k, 3) for k, at in enumerate((0.8, 0.7, 0.6))]
        for value in (0, 1):
            high, middle, low = (cells(faults, value) for faults in sweep)
            assert high < middle < low
    assert drawn(model, 0.6, 1, 3) != drawn(model, 0.6, 4, 3)


def test_statistics_have_their_rates_by_direction(tmp_path: Path) -> None:
    model = fault_map(tmp_path, statistics=STATISTICS)
    for row in STATISTICS:
        faults = [drawn(model, row["at"], k + 1) for k in range(8)]
        for value, p in ((0, row["p01"]), (1, row["p10"])):
            n = sum(len(cells(one, value)) for one in faults)
            assert abs(n - 8 * 32000 * p) < 5 * (8 * 32000 * p) ** 0.5
        assert abs(np.mean([len(one) for one in faults]) / model.expected(32000, row["at"]) - 1) < 0.15


@given(st.data())
def test_a_measured_memory_gives_its_cells(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    size = 64
    address = data.draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True))
    at = [data.draw(st.sampled_from([0.6, 0.65, 0.7])) for _ in address]
    p01, p10 = ([float(data.draw(st.booleans())) for _ in address] for _ in range(2))
    base, fold = data.draw(st.integers(0, size - 1)), data.draw(st.booleans())
    row = {"address": address, "at": at, "p01": p01, "p10": p10}
    model = fault_map(
        tmp_path_factory.mktemp("map"), f"base={base}, fold={int(fold)}", size_bits=size, range=[0.6, 0.8],
        instances=[{"cells": row}],
    )  # fmt: skip
    target = Target("w", WORDS["uint8"], (20 if fold else 8,))
    faults = drawn(model, 0.65, 1, 0, 0, target)
    wanted = {
        bit: (up, down)
        for bit in range(target.size * 8)
        for a, v, up, down in zip(address, at, p01, p10, strict=True)
        if (bit + base) % size == a and v >= 0.65 and up + down
    }
    assert cells(faults, 0) == {bit for bit, (up, _) in wanted.items() if up}
    assert cells(faults, 1) == {bit for bit, (_, down) in wanted.items() if down}


def test_faults_change_what_cells_hold(tmp_path: Path) -> None:
    row = {"address": [0, 1, 2, 3], "at": [0.7] * 4, "p01": [1, 1, 0, 0], "p10": [0, 0, 1, 1]}
    model = fault_map(tmp_path, "base=0", size_bits=64, range=[0.7, 0.8], instances=[{"cells": row}])
    faults = drawn(model, 0.7, 1, 0, 0, Target("w", WORDS["uint8"], (8,)))
    done, _ = apply_faults(faults, np.full(4, 0b0101, np.uint64))
    assert done.after is not None and int(done.after[-1]) == 0b0011


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"statistics": [{"at": 0.8, "p01": 0.1, "p10": 0}, {"at": 0.7, "p01": 0.05, "p10": 0}]}, "do not fall there"),
        ({"statistics": [{"at": 0.8, "p01": 2, "p10": 0}]}, "a number from 0 to 1"),
        ({"statistics": [{"at": 0.8}]}, "p01 is missing"),
        ({"statistics": [], "instances": []}, "either statistics or instances"),
        ({"statistics": [{"at": 0.8, "p01": 0, "p10": 0}], "axis": "time"}, "unknown axis 'time'; known: 'voltage', 'temperature'"),
        ({"axis": None}, "unknown axis 'None'; known: 'voltage', 'temperature'"),
        ({"instances": [{"cells": {}}]}, "size_bits"),
        ({"size_bits": 8, "instances": [{"cells": {"address": [1], "at": [0.7]}}]}, "range"),
        ({"size_bits": 8, "range": [0.6, 0.8], "instances": [{"cells": {"address": [8], "at": [0.7]}}]}, "memory size"),
        ({"size_bits": 8, "range": [0.6, 0.8], "instances": [{"cells": {"address": [1, 1], "at": [0.7, 0.7]}}]}, "twice"),
        ({"size_bits": 8, "range": [0.6, 0.8], "instances": [{"cells": {"address": [1], "at": [0.9]}}]}, "beyond the range"),
        ({"size_bits": 8, "range": [0.6, 0.8], "instances": [{"cells": {"address": [1], "at": []}}]}, "equally long"),
        ({"size_bits": 8, "range": [0.6, 0.8], "instances": [{"cells": {"address": ["1"], "at": [0.7]}}]}, "list of up to .* numbers"),
        ({"size_bits": 8, "range": [0.6, 0.8], "instances": [{"cells": {"address": [10**40], "at": [0.7]}}]}, "too large"),
        ({"size_bits": 8, "range": [0.8, 0.6], "instances": [{"cells": {"address": [1], "at": [0.7]}}]}, "two numbers"),
    ],
)  # fmt: skip
def test_maps_that_say_nothing_sure_are_refused(row: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(FaultError, match=why):
        fault_map(tmp_path, **row)


def test_a_memory_of_another_size_is_refused(tmp_path: Path) -> None:
    cell = {"cells": {"address": [1], "at": [0.7]}}
    model = fault_map(tmp_path, size_bits=64, range=[0.6, 0.8], instances=[cell])
    with pytest.raises(FaultError, match="of another memory size"):
        drawn(model, 0.65)
    with pytest.raises(FaultError, match=r"measured from 0.6 to 0.8 V"):
        drawn(model, 0.5)
    with pytest.raises(FaultError, match=r"no statistics at 0.65 V"):
        drawn(fault_map(tmp_path, statistics=STATISTICS), 0.65)
    with pytest.raises(FaultError, match="there is no 1"):
        fault_map(tmp_path, "instance=1", size_bits=64, range=[0.6, 0.8], instances=[cell])


def test_a_map_goes_with_a_voltage_and_with_what_is_in_every_inference(tmp_path: Path) -> None:
    model = fault_map(tmp_path, statistics=STATISTICS)
    space = FaultSpace.over((BYTES,), model)
    for kind in ("ber", "count", "temperature"):
        with pytest.raises(InputError, match=f"give voltage, not {kind}"):
            draw_faults(space, Sampler(kind), model)
    for times in ({"samples": 3}, {"steps": 2}):
        with pytest.raises(SelectorError, match="use --persistence permanent"):
            FaultSpace.over((Target("a", WORDS["uint8"], (4,), "activation", **times),), model)
    assert FaultSpace.over((Target("a", WORDS["uint8"], (4,), "activation"),), model).size == 32
