"""Content of fault maps: points in the order in which cells fail."""

from __future__ import annotations

from onnxfi.faults.hardware.fault_map_file import map_row, parse_map
from onnxfi.file_fields import Fields


def test_points_are_ordered_from_no_stress_to_the_most() -> None:
    rows = [{"at": at, "p01": p, "p10": 0} for at, p in ((25, 0.1), (85, 0.3), (50, 0.2))]
    row = {"version": 1, "axis": "temperature", "statistics": rows}
    assert [point.at for point in parse_map(Fields(row, "m")).points] == [25, 50, 85]
    falling = [{"at": -one["at"], "p01": one["p01"], "p10": 0} for one in rows]
    assert [p.at for p in parse_map(Fields(row | {"axis": "voltage", "statistics": falling}, "m")).points] == [
        -25,
        -50,
        -85,
    ]


def test_a_written_map_is_read_again() -> None:
    row = map_row("voltage", 100, (0.6, 0.9), {"chip": {"address": [7], "at": [0.7]}}, "here")
    found = parse_map(Fields(row, "m"))
    assert (found.low, found.high, found.instances[0].p01.tolist()) == (0.6, 0.9, [1.0])
