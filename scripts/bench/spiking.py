"""Gain of late start and early stop on the faults of neurons, on one core.

    python scripts/bench/spiking.py [--faults 1000] [--images 32]

Whole processes of `onnxfi run --expose` on models/fashion_snn.onnx, without worker processes: a bit of a membrane
potential flips in one step, one flips from a step on, a neuron is dead, a bit of a threshold flips, a bit of a synapse
flips; a fifth of the faults each, drawn over the network, there in every image. Each campaign is run with late start
and early stop both (`--route auto`), one of them (`late-start`, `early-stop`) and none (`full`); all must find the same
outcomes. Published for comparison: SpikingJET, about 0.9 faults per second (Gogebakan et al., 2024, another machine
and other networks).
"""

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ACTIVATIONS = ("--target", "activations", "--persistence")
KINDS = {
    "membrane bit, one step": (*ACTIVATIONS, "permanent", "--include", "/membrane/"),
    "membrane bit, from a step": (*ACTIVATIONS, "from", "--include", "*/membrane"),
    "dead neuron": ("--role", "spike", "--fault", "dead"),
    "threshold bit": ("--role", "threshold"),
    "synapse bit": ("--role", "weight"),
}
ROUTES = {"neither": "full", "late start": "late-start", "early stop": "early-stop", "both": "auto"}
#: A trial, its outcome and what was measured of it.
Row = tuple[int, str, str]


def campaign(kind: str, route: str, faults: int, images: int, store: Path) -> tuple[float, float, list[Row]]:
    """Run a campaign: the seconds of its trials and of the whole process, and what it found."""
    command = [
        sys.executable, "-c", "from onnxfi.cli import main; main()", "run", str(ROOT / "models" / "fashion_snn.onnx"),
        "--data", str(ROOT / "models" / "fashion_test.npz"), "--samples", str(images), "--provider", "cpu",
        "--optimization", "off", "--expose", "--single", "--trials", str(faults), "--workers", "0",
        "--route", route, "-o", str(store), *KINDS[kind],
    ]  # fmt: skip
    begun = time.perf_counter()
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    whole = time.perf_counter() - begun
    if ran.returncode:
        raise SystemExit(ran.stderr)
    with sqlite3.connect(store) as db:
        rows = db.execute("SELECT trial, outcome, metrics FROM results ORDER BY trial").fetchall()
        [[seconds]] = db.execute("SELECT sum(time_s) FROM results").fetchall()
    return seconds, whole, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--images", type=int, default=32)
    given = parser.parse_args()
    each = given.faults // len(KINDS)
    total = {name: [0.0, 0.0] for name in ROUTES}
    print(f"{each * len(KINDS):,} faults, {given.images} images, one core")
    print(f"{'faults per second':<28}" + "".join(f"{name:>12}" for name in ROUTES))
    unlike = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            rates, found = [], []
            for name, route in ROUTES.items():
                seconds, whole, rows = campaign(kind, route, each, given.images, Path(folder) / f"{kind}.{route}.db")
                total[name][0] += seconds
                total[name][1] += whole
                rates.append(each / seconds)
                found.append(rows)
            unlike += sum(any(row != other for other in others) for row, *others in zip(*found, strict=True))
            print(f"{kind:<28}" + "".join(f"{rate:>12.1f}" for rate in rates))
    for k, label in enumerate(("all", "all, with start and report")):
        print(f"{label:<28}" + "".join(f"{each * len(KINDS) / total[name][k]:>12.1f}" for name in ROUTES))
    print(f"faults that two ways judge otherwise: {unlike}")
    if unlike:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
