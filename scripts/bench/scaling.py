"""Gain of more workers, and cost of Dask: one campaign, run with each, the stores compared.

    python scripts/bench/scaling.py [--samples 200] [--trials 1600] [--rounds 5] [--model M.onnx] [--data D.npz]

Prints each figure beside its target; the exit status says whether all were met. A trial's time is the slope of results
over time, without the first and the last eighth, when workers still start or have nothing left to do. Run it where
nothing else does: what two processes of plain inference bring over one, taken in the same rounds, is printed before,
and where that is less than 1.8 the machine was not free and the rest says little.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sqlite3
import statistics
import sys
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.workers.dask_executor import cluster
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for which plain inference is timed.
PLAIN_S = 1.0


def timed(campaign: Campaign, folder: Path, **how: Any) -> tuple[float, list[Any]]:
    """Seconds a trial, and the rows."""
    store = folder / f"{time.monotonic_ns()}.db"
    came = np.array([time.perf_counter() for _ in run(campaign, store, **how)])
    eighth = len(came) // 8
    seconds = np.polyfit(np.arange(eighth, len(came) - eighth), came[eighth:-eighth], 1)[0]
    with sqlite3.connect(store) as db:
        rows = db.execute("SELECT trial, outcome, cause, metrics, changed FROM results ORDER BY trial").fetchall()
    db.close()
    return float(seconds), rows


def plain(model: str, data: str) -> float:
    """Runs a second of the model on one thread, in a process of its own."""
    session = OrtEngine(provider="cpu").prepare(model)
    [batch] = open_data(data, session.inputs, limit=32).batches(32)
    begun, runs = time.perf_counter(), 0
    while time.perf_counter() - begun < PLAIN_S:
        session.run(batch.feeds)
        runs += 1
    return runs / (time.perf_counter() - begun)


def machine(processes: list[Executor], model: str, data: str) -> float:
    """Return the speed of all these processes together, as a multiple of one."""
    alone = processes[0].submit(plain, model, data).result()
    return sum(future.result() for future in [one.submit(plain, model, data) for one in processes]) / alone


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models" / "fashion_cnn.onnx"))
    parser.add_argument("--data", default=str(ROOT / "models" / "fashion_test.npz"))
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--trials", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    campaign = Campaign(
        given.model, given.data, samples=given.samples, single=True, trials=given.trials, provider="cpu"
    )
    seconds: dict[str, list[float]] = {"one": [], "two": [], "dask": []}
    found, free = [], []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        far = stack.enter_context(cluster(local=2))
        spawn = multiprocessing.get_context("spawn")
        processes: list[Executor] = [stack.enter_context(ProcessPoolExecutor(1, spawn)) for _ in range(2)]
        machine(processes, given.model, given.data)  # which starts them
        for _ in range(given.rounds):  # in turns, so that all meet the same neighbours
            free.append(machine(processes, given.model, given.data))
            for name, how in (("one", {"workers": 1}), ("two", {"workers": 2}), ("dask", {"executor": far})):
                took, rows = timed(campaign, Path(folder), **how)
                seconds[name].append(took)
                found.append(rows)
    one, two, dask = (statistics.median(seconds[name]) for name in ("one", "two", "dask"))
    bound = statistics.median(free)
    print(f"{given.trials} trials of {given.samples} samples, medians of {given.rounds} rounds")
    print(
        f"two processes of plain inference against one: {bound:.2f} x{'' if bound >= 1.8 else ' (not a free machine)'}"
    )
    print(f"a trial with 1 worker {1e3 * one:.2f} ms, with 2 {1e3 * two:.2f} ms, with 2 of Dask {1e3 * dask:.2f} ms")
    print(f"2 workers against 1: {one / two:.2f} x (target 1.7)")
    print(f"Dask against local, 2 workers each: {dask / two - 1:+.0%} (target at most +10%)")
    same = all(rows == found[0] for rows in found)
    print("all stores are equal" if same else "THE STORES DIFFER")
    return 0 if same and one / two >= 1.7 and dask / two <= 1.1 else 1


if __name__ == "__main__":
    sys.exit(main())
