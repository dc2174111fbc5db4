"""scripts/gpu_checklist.py as a program, on simulated devices: it holds where all is well, and finds what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulated_cuda import Simulation, environment

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_checklist.py"
QUICK = "device,tf32,placement,memory,fp16"


def checked(*words: str, simulation: Simulation | None = None) -> tuple[int, dict[str, str]]:
    """Run the program; return its exit code and what stands in the lines that it prints, by check."""
    given = {} if simulation is None else environment(simulation)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False, env={**os.environ, **given}
    )
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return done.returncode, {name: f"{held} {said}" for held, name, said in lines}


@pytest.mark.slow
def test_what_holds_is_reported_and_ends_with_0(tmp_path: Path) -> None:
    code, found = checked("--simulate", "--only", QUICK, "--json", str(tmp_path / "found.json"))
    assert code == 0, found
    assert list(found) == QUICK.split(",")
    assert all(one["holds"] for one in json.loads((tmp_path / "found.json").read_text()).values())


@pytest.mark.slow
def test_every_check_holds_on_a_device_as_it_should_be() -> None:
    code, found = checked("--simulate", "--without", "speed")
    assert code == 0, found
    assert len(found) == 11


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "simulation", "says"),
    [
        ("device", Simulation(dead=(0,)), "can no longer use its device"),
        ("placement", Simulation(cpu_ops=("Conv", "Relu", "MaxPool", "Reshape", "Gemm")), "no node runs on the device"),
        ("second-device", Simulation(), "there is one device; leave second-device out"),
        ("memory", Simulation(loads=0), "out of memory"),
    ],
)
def test_what_does_not_hold_is_found(check: str, simulation: Simulation, says: str) -> None:
    code, found = checked("--only", check, simulation=simulation)
    assert code == 1
    assert found[check].startswith("FAILS") and says in found[check]


@pytest.mark.slow
def test_speed_is_measured_in_golden_runs() -> None:
    """On the simulated device the figure means nothing, so whether it holds is not asked."""
    _, found = checked("--simulate", "--only", "speed")
    assert "golden run" in found["speed"]


def test_a_machine_without_a_device_fails_and_says_why() -> None:
    from onnxfi.runtime.engine.cuda import no_cuda

    if not no_cuda():
        pytest.skip("there is a CUDA device")
    code, found = checked("--only", "device")
    assert code == 1 and "no NVIDIA driver found" in found["device"]
