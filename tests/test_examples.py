"""Every example runs, with arguments that keep it short, and prints what it is there to show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onnxfi

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "accuracy_over_ber.py": (["{models}/fashion_cnn.onnx", "{tmp}/few.npz"], "faulty top-1"),
    "armed_file.py": (["{tmp}/armed.onnx"], "largest change"),
    "lost_objects.py": (["activations", "12"], "bits 23 to 30 are the exponent"),
    "masks_over_ber.py": (["1"], "golden mIoU"),
    "fault_aware.py": (["--data", "{tmp}/few.npz", "--epochs", "2", "--repeat", "2"], "2 trials at each rate"),
    "quantisation_aware.py": (["--data", "{tmp}/few.npz", "--epochs", "1", "--repeat", "1"], "weights int8 16x1x3x3"),
}
#: Examples that run campaigns.
SLOW = ("lost_objects.py", "masks_over_ber.py")
#: Examples that train in PyTorch.
TRAINED = ("fault_aware.py", "quantisation_aware.py")
#: Examples that tests/tasks/ run, as a metric and a task of a campaign.
TESTED_IN_TASKS = {"own_boxes.py", "own_metric.py", "own_task.py"}
#: Examples that a guide runs, as the pipeline of its commands.
TESTED_IN_GUIDES = {"cascade.py"}
#: Files that an example is given.
GIVEN = {"few.npz", "armed.onnx"}


def test_every_example_is_run_here() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(
        EXAMPLES
    ) | TESTED_IN_TASKS | TESTED_IN_GUIDES


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=pytest.mark.frameworks("torch") if n in TRAINED else pytest.mark.slow if n in SLOW else ()
        )
        for n in EXAMPLES
    ],
)
def test_it_runs(name: str, tmp_path: Path) -> None:
    with np.load(ROOT / "models" / "fashion_test.npz") as images:
        np.savez(tmp_path / "few.npz", image=images["image"][:50], labels=images["labels"][:50])
    onnxfi.instrument(onnxfi.load(ROOT / "models" / "fashion_cnn.onnx"), out=tmp_path / "armed.onnx")
    arguments, shown = EXAMPLES[name]
    places = {"models": ROOT / "models", "tmp": tmp_path}
    command = [sys.executable, str(ROOT / "examples" / name), *(a.format(**places) for a in arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert shown in done.stdout
    assert {file.name for file in tmp_path.iterdir()} == GIVEN, "an example leaves files behind"
