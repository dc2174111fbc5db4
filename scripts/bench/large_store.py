"""Cost of a large store: writing it, the report, the page, and the memory that they take, by the number of trials.

    python scripts/bench/large_store.py [--trials 20000 500000] [--keep FOLDER]

Runs 200 trials of single faults in the shipped CNN on 64 images, then lets the store's own writer add so many more,
each a result of one of these, and times `onnxfi report` as text and as a page, in processes of their own. Prints the
seconds of the processor, the peak memory (the largest resident size) and the size of the page. Targets: the text in
10 s, a page of 3 MB, no more than twice the memory of the smallest store. The exit status says whether they were met.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from onnxfi.campaign.results.rows import Result
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign

ROOT = Path(__file__).resolve().parents[2]
REAL, BATCH, TEXT_S, PAGE_MB = 200, 5000, 10.0, 3.0


def made(file: Path, trials: int) -> tuple[float, float]:
    """Make a store of so many trials; return the seconds of the processor for its plan, and for its results."""
    campaign = Campaign(
        ROOT / "models/fashion_cnn.onnx", ROOT / "models/fashion_test.npz", samples=64, single=True, trials=trials
    )
    begun = time.process_time()
    real = list(islice(run(campaign, file, workers=0), REAL))
    planned = time.process_time()
    rng = np.random.default_rng(0)
    with Store.open(file, create=True) as store:
        left = (trial for trial, _ in list(store.pending()))
        while batch := list(islice(left, BATCH)):
            drawn = rng.integers(0, len(real), len(batch)).tolist()
            store.add(_like(real[k], trial) for trial, k in zip(batch, drawn, strict=True))
    return planned - begun, time.process_time() - planned


def _like(result: Result, trial: int) -> Result:
    return replace(result, trial=trial)


def measured(command: list[str]) -> tuple[float, float]:
    """Return the processor seconds and the peak memory in MB of a process."""
    process = subprocess.Popen([sys.executable, "-m", "onnxfi", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


def rows(folder: Path, sizes: list[int]) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield the measurements of each size."""
    for trials in sizes:
        store, page = folder / f"{trials}.db", folder / f"{trials}.html"
        plan_s, add_s = made(store, trials)
        text, html = measured(["report", str(store)]), measured(["report", str(store), "--html", str(page)])
        yield trials, (plan_s, add_s, store.stat().st_size / 1e6, *text, *html, page.stat().st_size / 1e6)


def main() -> None:
    """Measure each size, and print it beside the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[20_000, 500_000])
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    met, least = True, 0.0
    print(
        "| trials | plan and 200 trials | results written | store | text | its memory | page | its memory | page size |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with nullcontext(str(given.keep)) if given.keep else tempfile.TemporaryDirectory() as folder:
        for trials, found in rows(Path(folder), given.trials):
            plan_s, add_s, store_mb, text_s, text_mb, page_s, page_mb, size_mb = found
            least = least or text_mb
            met &= text_s <= TEXT_S and size_mb <= PAGE_MB and text_mb <= 2 * least
            made_s = f"{plan_s:.1f} s | {add_s:.1f} s | {store_mb:.0f} MB"
            reported = f"{text_s:.1f} s | {text_mb:.0f} MB | {page_s:.1f} s | {page_mb:.0f} MB | {size_mb:.2f} MB"
            print(f"| {trials:,} | {made_s} | {reported} |", flush=True)
    print(f"this process, which wrote them: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
