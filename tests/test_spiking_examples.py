"""The spiking examples run, as scripts and cell by cell as notebooks, and both say the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "spiking"
SHORT = {"SAMPLES": "30", "TRIALS": "12", "EPOCHS": "1", "OMP_NUM_THREADS": "1"}
SHOWN = {
    "basic": "output neuron 3 is dead: top-1",
    "bit_flips": "bit 31",
    "optimisations": "all four ways find the same: True",
    "parametric": "leak: lif1: 0.1 ",
    "train_golden": "spike counts as in torch for 100.0% of them",
    "train_faulty": "trained with them dead: ",
}
TORCH = {name for name in SHOWN if name.startswith("train")}


def ran(command: list[str], folder: Path, out: Path) -> str:
    env = {**os.environ, **SHORT, "OUT": str(out), "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {file.stem for file in FOLDER.glob("*.py")} == set(SHOWN) == {file.stem for file in FOLDER.glob("*.ipynb")}


def test_the_notebooks_are_as_their_scripts() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "notebooks.py", "--check"], capture_output=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout!r}: run python scripts/notebooks.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("bit_flips", "optimisations", "parametric") else ())
        for name in sorted(set(SHOWN) - TORCH)
    ],
)
def test_it_runs(name: str, tmp_path: Path) -> None:
    book = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], book["cells"][0]["cell_type"]) == (4, "markdown")
    code = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code")
    # As a notebook runs: from its own folder, without a file of its own.
    assert SHOWN[name] in ran([sys.executable, "-c", code], FOLDER, tmp_path)
    drawn = {f"parametric-{role}.{kind}" for role in ("threshold", "leak") for kind in ("svg", "png")}
    assert {file.name for file in tmp_path.iterdir()} == (drawn if name == "parametric" else set())


@pytest.mark.frameworks("torch", "onnx_ir")
@pytest.mark.parametrize("name", sorted(TORCH))
def test_it_trains(name: str, tmp_path: Path) -> None:
    assert SHOWN[name] in ran([sys.executable, "-W", "ignore", str(FOLDER / f"{name}.py")], FOLDER, tmp_path)
