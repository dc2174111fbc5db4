"""Memory and time of a campaign as its trials grow: the command that drives it, and its workers.

    python scripts/bench/growth.py [--trials 20000 500000] [--samples 16] [--workers 1] [--outcomes class]

Runs `onnxfi run` on single flips in the shipped CNN as whole processes, and looks every half second at what the command
and its workers hold (PSS). Target: at the largest number of trials neither holds more than 1.3 times what it holds at
the smallest. The exit status says whether that was met.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory import held, tree

ROOT = Path(__file__).resolve().parents[2]
PAUSE_S, FLAT = 0.5, 1.3


def measured(command: list[str]) -> tuple[float, float, float]:
    """Return the peak MB of a command, that of its workers together, and their processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    own = workers = 0
    while process.poll() is None:
        found = {pid: held(pid)[0] for pid in tree(process.pid)}
        own, workers = max(own, found.pop(process.pid, 0)), max(workers, sum(found.values()))
        time.sleep(PAUSE_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    return own / 1e6, workers / 1e6, used


def main() -> None:
    """Print a row for each number of trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[20_000, 500_000])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--outcomes", default="class")
    given = parser.parse_args()
    rows = []
    print("| trials | command | workers | processor | a trial |\n|---|---|---|---|---|")
    for trials in given.trials:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "onnxfi", "run", str(ROOT / "models/fashion_cnn.onnx")]
            command += ["--data", str(ROOT / "models/fashion_test.npz"), "--samples", str(given.samples), "--single"]
            command += ["--trials", str(trials), "--workers", str(given.workers), "--outcomes", given.outcomes]
            own, workers, used = measured([*command, "-o", str(Path(folder) / "s.db")])
        rows.append((own, workers))
        print(
            f"| {trials:,} | {own:.0f} MB | {workers:.0f} MB | {used:.0f} s | {1e3 * used / trials:.2f} ms |",
            flush=True,
        )
    sys.exit(int(any(last > FLAT * first for first, last in zip(rows[0], rows[-1], strict=True))))


if __name__ == "__main__":
    main()
