"""Files that describe faults: numbers within their ends, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxfi.errors import FaultError
from onnxfi.faults.hardware.fault_description import Description, objects, real, whole


@pytest.mark.parametrize("value", [True, "1", None, 1.5, [1], -1, 9, float("nan")])
def test_whole_numbers_are_whole_and_within_their_ends(value: Any) -> None:
    with pytest.raises(FaultError, match=r"x: .* is no whole number from 0 to 8"):
        whole(value, "x", 0, 8)
    assert whole(8, "x", 0, 8) == 8


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf"), -0.1])
def test_numbers_are_finite_and_within_their_ends(value: Any) -> None:
    with pytest.raises(FaultError, match="is no number from 0 to 1"):
        real(value, "x", 0, 1)
    with pytest.raises(FaultError, match="no list of 1 to 2"):
        objects([{}] * 3, "x", 2)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    kind, file = Description("map", "docs/map.md", ("version",), max_bytes=20), tmp_path / "m.json"
    file.write_bytes(b'{"version": 1}')
    text = kind.read(str(file))
    assert kind.parse(text, "m") == {"version": 1}
    with pytest.raises(FaultError, match="map 'm': '1e-400' is so small that it would be taken as 0"):
        kind.parse(b'{"version": 1e-400}', "m")
    file.write_bytes(b" " * 21)
    with pytest.raises(FaultError, match="larger than 20 bytes"):
        kind.read(str(file))
    with pytest.raises(FaultError, match="cannot read the map"):
        kind.read("\0")
