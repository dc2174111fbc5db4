"""What more workers bring, and what the way over Dask costs: one campaign, run in each way, the stores compared.

    python scripts/bench/scaling.py [--samples 200] [--trials 400] [--rounds 3] [--model M.onnx] [--data D.npz]

Prints each figure beside its target; the exit status says whether all were met. Times are those of the trials: from the
first task to the last result, with the start of the workers taken off by a run of one trial for each worker. Run it
where nothing else does.
"""

from __future__ import annotations

import argparse
import logging
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from onnxfi.campaign.cluster import cluster
from onnxfi.campaign.runner import run
from onnxfi.campaign.spec import Campaign

ROOT = Path(__file__).resolve().parents[2]


def timed(campaign: Campaign, folder: Path, **how: Any) -> tuple[float, list[Any]]:
    """Seconds from the first result to the last, for each trial between them; and the rows."""
    store = folder / f"{time.monotonic_ns()}.db"
    running = run(campaign, store, **how)
    came = []
    for _ in running:
        came.append(time.perf_counter())
    quarter = len(came) // 8  # the first trials meet workers that are still starting, the last idle ones
    seconds = (came[-quarter] - came[quarter]) / (len(came) - 2 * quarter)
    with sqlite3.connect(store) as db:
        rows = db.execute("SELECT trial, outcome, cause, metrics, changed FROM results ORDER BY trial").fetchall()
    return seconds, rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models" / "fashion_cnn.onnx"))
    parser.add_argument("--data", default=str(ROOT / "models" / "fashion_test.npz"))
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    campaign = Campaign(
        given.model, given.data, samples=given.samples, single=True, trials=given.trials, provider="cpu"
    )
    seconds: dict[str, list[float]] = {"one": [], "two": [], "dask": []}
    found = []
    with tempfile.TemporaryDirectory() as folder, cluster(local=2) as far:
        for _ in range(given.rounds):  # in turns, so that all meet the same neighbours
            for name, how in (("one", {"workers": 1}), ("two", {"workers": 2}), ("dask", {"executor": far})):
                took, rows = timed(campaign, Path(folder), **how)
                seconds[name].append(took)
                found.append(rows)
    one, two, dask = (statistics.median(seconds[name]) for name in ("one", "two", "dask"))
    print(f"{given.trials} trials of {given.samples} samples, medians of {given.rounds}")
    print(f"a trial with 1 worker {1e3 * one:.2f} ms, with 2 {1e3 * two:.2f} ms, with 2 of Dask {1e3 * dask:.2f} ms")
    print(f"2 workers against 1: {one / two:.2f} x (target 1.7)")
    print(f"Dask against local, 2 workers each: {dask / two - 1:+.0%} (target at most +10%)")
    same = all(rows == found[0] for rows in found)
    print("all stores are equal" if same else "THE STORES DIFFER")
    return 0 if same and one / two >= 1.7 and dask / two <= 1.1 else 1


if __name__ == "__main__":
    sys.exit(main())
