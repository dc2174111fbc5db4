"""The notebooks run cell by cell and print what they are there to show; each is as the script beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "notebooks"
SHORT = {"SAMPLES": "50", "TRIALS": "4", "OMP_NUM_THREADS": "1"}
SHOWN = {
    "first_steps": [
        "twice the same flip gives the original: True",
        "bit 30 (exponent): SDC-1",
        "rate 0.0001: 342 flips",
    ],
    "campaign": [
        "20 trials were added to 16",
        "of single flips, those of bit",
        "rows and columns of the data frame: (20, ",
    ],
    "own_fault_and_metric": ["without the lowest 24 bits of every weight: top-1", "rate 0.0001: footwear lost"],
    "protection": [
        "fault-free outputs are the original's byte for byte",
        "protected    at 1e-05: top-1",
        "alone at 1e-05",
    ],
}
#: Files that each leaves in the folder that it is given.
LEFT = {
    "first_steps": set(),
    "campaign": {"sweep.db", "single.db", "single.html", "figures", "tables"},
    "own_fault_and_metric": {"own_metrics.py", "own.db"},
    "protection": {"protected.onnx", "one.onnx"},
}


def test_every_notebook_is_run_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {path.stem for path in FOLDER.glob("*.py")} == set(SHOWN)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHOWN))
def test_it_runs(name: str, tmp_path: Path) -> None:
    book = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], book["cells"][0]["cell_type"]) == (4, "markdown")
    code = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code")
    env = {**os.environ, **SHORT, "OUT": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, env=env, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert not [text for text in SHOWN[name] if text not in done.stdout], done.stdout
    kept = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert {name for name in kept if not name.startswith(("sweep.db.", "single.db.", "own.db."))} == LEFT[name]
