"""Cost and memory of a campaign as one thing grows: parameters, layers, samples or trials.

    python scripts/bench/growth.py parameters|layers|samples|trials [--sizes N …] [--parameters 1e6] [--layers 4]
        [--samples 16]

Runs `onnxfi run` on single flips as whole processes, and looks every tenth of a second at what the command and its
workers hold (PSS). All times are of the processor.

`parameters`, `layers` and `samples` make a chain of MatMul and Relu with random weights, of one width (above 100 MB as
external data; the largest has 4 GB and takes 10 GB of memory), and run it with --workers 0 and two numbers of trials:
20, and that and as many as golden runs take 10 s, at least 100 and at most 2,000. The difference is the cost of a
trial; the rest is what a campaign does once. The golden run is that of all samples, in one thread.

`trials` runs the shipped CNN with --outcomes class and one worker. Target: at the largest number of trials neither
holds more than 1.3 times what it holds at the smallest; the exit status says whether that was met.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from memory import chain, held, tree

from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

ROOT = Path(__file__).resolve().parents[2]
PAUSE_S, FLAT = 0.1, 1.3
SIZES = {
    "parameters": (1e5, 1e6, 1e7, 1e8, 5e8, 1e9),
    "layers": (4, 16, 64, 256),
    "samples": (8, 64, 512, 4096),
    "trials": (20_000, 500_000),
}
#: Trials of the shorter campaign; seconds of golden runs, and bounds, for those that the longer one has beside.
FEW, GOLDEN_S, LEAST, MOST = 20, 10.0, 100, 2000
EXTERNAL_BYTES = 1e8
ROUNDS = 3


def measured(model: Path, data: Path, *options: object) -> tuple[float, float, float]:
    """Return the peak MB of a campaign's command, that of its workers together, and their processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "onnxfi", "run", model, "--data", data, "--single", *options]
        command += ["--out", Path(folder) / "s.db"]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        own = workers = 0
        while process.poll() is None:
            found = {pid: held(pid)[0] for pid in tree(process.pid)}
            own, workers = max(own, found.pop(process.pid, 0)), max(workers, sum(found.values()))
            time.sleep(PAUSE_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    return own / 1e6, workers / 1e6, used


def golden_s(model: Path, data: Path) -> float:
    """Return the processor seconds of one run of all samples in one thread."""
    session = OrtEngine(provider="cpu", threads=1).prepare(model)
    batches = list(open_data(data, session.inputs).batches(32))
    seconds = []
    for _ in range(ROUNDS + 1):
        begun = time.process_time()
        for batch in batches:
            session.run(batch.feeds)
        seconds.append(time.process_time() - begun)
    return statistics.median(seconds[1:])


def row(parameters: float, layers: int, samples: int) -> str:
    """Return what a campaign on a chain costs, as a row of the table."""
    width = round((parameters / layers) ** 0.5)
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder) / "chain.onnx", Path(folder) / "data.npz"
        chain(model, layers, width, external=4 * parameters > EXTERNAL_BYTES)
        np.savez(data, x=np.random.default_rng(1).standard_normal((samples, width), np.float32))
        size = sum(file.stat().st_size for file in Path(folder).glob("chain.onnx*"))
        golden = golden_s(model, data)
        more = int(np.clip(GOLDEN_S / golden, LEAST, MOST))
        took = [measured(model, data, "--workers", 0, "--trials", trials) for trials in (FEW, FEW + more)]
    (_, _, short), (held_mb, _, long) = took
    trial = (long - short) / more
    return (
        f"{width} | {size / 1e6:,.1f} MB | {1e3 * golden:,.2f} ms | {more:,} | {1e3 * trial:,.2f} ms | "
        f"{trial / golden:.2f} | {short - FEW * trial:.1f} s | {held_mb:,.0f} MB"
    )


def chains(given: argparse.Namespace) -> int:
    """Print a row for each size of a chain."""
    print(f"| {given.axis} | width | model | golden run | trials | a trial | of a golden run | once | memory |")
    print("|---" * 9 + "|")
    for size in given.sizes:
        shape = {name: getattr(given, name) for name in ("parameters", "layers", "samples")}
        shape[given.axis] = size if given.axis == "parameters" else int(size)
        print(f"| {size:,.0f} | {row(**shape)} |", flush=True)
    return 0


def trials(given: argparse.Namespace) -> int:
    """Print a row for each number of trials."""
    model, data = ROOT / "models" / "fashion_cnn.onnx", ROOT / "models" / "fashion_test.npz"
    rows = []
    print("| trials | command | workers | processor | a trial |\n|---|---|---|---|---|")
    for many in map(int, given.sizes):
        options = ["--samples", given.samples, "--trials", many, "--workers", 1, "--outcomes", "class"]
        own, workers, used = measured(model, data, *options)
        rows.append((own, workers))
        print(f"| {many:,} | {own:.0f} MB | {workers:.0f} MB | {used:.0f} s | {1e3 * used / many:.2f} ms |", flush=True)
    return int(any(last > FLAT * first for first, last in zip(rows[0], rows[-1], strict=True)))


def main() -> int:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axis", choices=SIZES)
    parser.add_argument("--sizes", type=float, nargs="+")
    parser.add_argument("--parameters", type=float, default=1e6)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--samples", type=int, default=16)
    given = parser.parse_args()
    given.sizes = given.sizes or SIZES[given.axis]
    return (trials if given.axis == "trials" else chains)(given)


if __name__ == "__main__":
    sys.exit(main())
