"""Cost of starting: `import onnxfi`, `onnxfi --help`, and a campaign of one trial with one worker and with two.

    python scripts/bench/startup.py [--rounds 7]

Prints the least processor time (of the process and of its workers) and the least wall time of the rounds, beside the
target. Each figure's wall time stands for itself only on a machine where nothing else runs; processor time does not
depend on that much, and no wall time is less than that of the first process. The exit status says whether all targets
were met by wall time: 0 yes, 1 no.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from onnxfi.cli import main\nif __name__ == '__main__':\n    main()\n"


def commands(folder: Path) -> dict[str, tuple[list[str], float]]:
    """Return the command of each figure, and its target in seconds."""
    (folder / "program.py").write_text(PROGRAM)
    program = [sys.executable, str(folder / "program.py")]
    model, data = ROOT / "models/fashion_cnn.onnx", ROOT / "models/fashion_test.npz"
    one = ["run", str(model), "--data", str(data), "--samples", "64", "--single", "--trials", "1", "--fresh"]
    return {
        "python -c pass": ([sys.executable, "-c", "pass"], 0.1),
        "import onnxfi": ([sys.executable, "-c", "import onnxfi"], 0.1),
        "onnxfi --help": ([*program, "--help"], 0.15),
        "one trial, one worker": ([*program, *one, "--workers", "1", "-o", str(folder / "1.db")], 0.8),
        "one trial, two workers": ([*program, *one, "--workers", "2", "-o", str(folder / "2.db")], 1.2),
    }


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    """Return the processor seconds of a process with its workers, and its wall time."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Measure, and print each figure beside its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds, met = parser.parse_args().rounds, True
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| figure | processor | wall | target (wall) |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for figure, (command, target) in commands(Path(name)).items():
            cpu, wall = (
                min(taken) for taken in zip(*(measured(command, Path(name)) for _ in range(rounds)), strict=True)
            )
            met &= wall <= target
            print(f"| {figure} | {cpu:.2f} s | {wall:.2f} s | {target} s |", flush=True)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
