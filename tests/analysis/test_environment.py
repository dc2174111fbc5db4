"""Environments: quantities by hand, units that are asked for, and bad files."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxfi.analysis.environment import Environment, load_environment, upset_rate
from onnxfi.errors import SpecError

WHOLE = """version: 1
memories:
  - {name: a, holds: [weights], size: 1 MiB, upsets: 500 to 1000 FIT/Mbit, mbit: 10^6, coverage: 90 %, scrubbing: 2 h}
  - {name: b, holds: ["fc*", "=out"], size: 64 kB, upsets: 2.4e-8 /bit/day}
altitude_factor: 2
mission: 1 years
inference: {rate: 50 /s, latency: 10 ms}
"""


def read(tmp_path: Path, text: str) -> Environment:
    file = tmp_path / "env.yaml"
    file.write_text(text)
    return load_environment(file)


def test_the_worked_example_by_hand() -> None:
    bits = 8 * 2**20 * 8
    assert bits * upset_rate("1000 FIT/Mbit", 10**6)[0] * 0.01 == pytest.approx(671.08864)
    assert bits * upset_rate("1000 FIT/Mbit", 2**20)[0] * 0.01 == pytest.approx(640)
    assert upset_rate("1000 FIT/Mibit")[0] == pytest.approx(1000 / 1048576)
    assert upset_rate("1 /bit/day")[0] == pytest.approx(1e9 / 24)


def test_a_whole_environment(tmp_path: Path) -> None:
    found = read(tmp_path, WHOLE)
    a, b = found.memories
    assert a.upsets == pytest.approx((0.001, 0.0015, 0.002)) and a.unit == "FIT/Mbit of 10^6 bits"
    assert (a.size_bytes, a.coverage, a.scrubbing_h) == (1 << 20, pytest.approx(0.9), pytest.approx(2))
    assert b.upsets == pytest.approx((2.0, 2.0, 2.0)) and b.size_bytes == 64_000 and b.coverage == 0
    assert found.mission_h == pytest.approx(8766) and found.busy == pytest.approx(0.5)
    assert found.memory_of("conv1", "weights") is a and found.memory_of("fc1", "activations") is b
    assert found.memory_of("conv1", "activations") is None


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("size: 1 MiB", "size: 1048576", "memories[0]: size 1048576 has no unit; write 8 MiB or 512 kB"),
        ("mbit: 10^6, ", "", "is a Mbit 2^20 or 10^6 bits? They differ by 4.9 %; add mbit"),
        ("mbit: 10^6", "mbit: 1024", "mbit is 1024; it takes 2^20 or 10^6"),
        ("2.4e-8 /bit/day", "2.4e-8", "memories[1]: upsets 2.4e-08 has no unit; write 1000 FIT/Mbit"),
        ("2.4e-8 /bit/day", "2.4e-8 /bit/dya", "unknown unit '/bit/dya'; closest: '/bit/day'"),
        ("500 to 1000", "1000 to 500", "is not a rate above 0, the lower one first"),
        ("500 to 1000", "0", "is not a rate above 0"),
        ("90 %", "190 %", "coverage is out of range; give 0 % to 100 %"),
        ("90 %", "0.9", "coverage 0.9 has no unit; write 90 %"),
        ("2 h", "0 h", "scrubbing is out of range; give a time above 0"),
        ("2 h", "soon", "scrubbing 'soon' is not a number with a unit"),
        ("version: 1", "version: 2", "version 2; this onnxfi reads version 1"),
        ("version: 1\n", "", "version is missing; add version: 1"),
        ("name: b", "name: a", "two memories have the name 'a'"),
        ("mission:", "missions:", "unknown field 'missions'; closest: 'mission'"),
        ("altitude_factor: 2", "altitude_factor: high", "altitude_factor is 'high'; it takes a number above 0"),
        ("altitude_factor: 2", "altitude_factor: .nan", "altitude_factor is nan; it takes a number above 0"),
        ('["fc*", "=out"]', "[]", "holds is []; it takes weights, activations, or patterns of layer names"),
        ("rate: 50 /s", "rate: 50", "inference: rate 50 has no unit; write 30 /s"),
        ("1 years", "1e999 years", "mission '1e999 years' is out of range"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in WHOLE
    with pytest.raises(SpecError) as caught:
        read(tmp_path, WHOLE.replace(old, new, 1))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"environment {str(tmp_path / 'env.yaml')!r}: ")


@pytest.mark.parametrize("text", ["", "[]", "version: 1", "version: 1\nmemories: {}", "a: !!python/object:os.system x"])
def test_files_that_are_no_environment(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError):
        read(tmp_path, text)
