"""Cost of a large store: writing it, the report, the page, and the memory that they take, by the number of trials.

    python scripts/bench/large_store.py [--trials 20000 500000] [--layers N] [--keep FOLDER]

Runs 200 trials of single faults in the shipped CNN (or in a chain of N layers) on 64 images, then lets the store's own
writer add so many more, each a result of one of these with a distance of its own, and times `onnxfi report` as text and
as a page, in processes of their own. Prints the seconds of the processor, the peak memory (the largest resident size)
and the size of the page. Targets: the text in 10 s, the page in 20 s and of 3 MB, no more than twice the memory of the
smallest store. The exit status says whether they were met.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from onnxfi.campaign.results.rows import Result
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.faults.trials import json_value

ROOT = Path(__file__).resolve().parents[2]
REAL, BATCH, TEXT_S, PAGE_S, PAGE_MB = 200, 5000, 10.0, 20.0, 3.0
#: `onnxfi` in a process that says its own peak: that of wait4 has the memory of the process that started it in it.
MEASURED = """
import atexit, sys
from onnxfi.cli import main
atexit.register(lambda: sys.stderr.write([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0]))
main()
"""


def chain(file: Path, layers: int, width: int = 16) -> Path:
    """Write a network of so many dense layers for the shipped images, with random weights."""
    rng, nodes, weights, last = np.random.default_rng(1), [make_node("Flatten", ["image"], ["flat"])], [], "flat"
    for k in range(layers):
        rows, columns = 784 if k == 0 else width, 10 if k == layers - 1 else width
        name, out = f"layer{k // 10}.block{k % 10}.dense.weight", "scores" if k == layers - 1 else f"sum{k}"
        weights.append(from_array(rng.normal(0, rows**-0.5, (rows, columns)).astype(np.float32), name))
        nodes.append(make_node("MatMul", [last, name], [out], f"layer{k // 10}/block{k % 10}/dense"))
        if k < layers - 1:
            nodes.append(make_node("Tanh", [out], [f"bent{k}"]))
        last = f"bent{k}"
    graph = make_graph(
        nodes, "chain", [make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])], weights,
    )  # fmt: skip
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), file)
    return file


def made(file: Path, model: Path, trials: int) -> tuple[float, float]:
    """Make a store of so many trials; return the seconds of the processor for its plan, and for its results."""
    campaign = Campaign(model, ROOT / "models/fashion_test.npz", samples=64, single=True, trials=trials)
    begun = time.process_time()
    with closing(run(campaign, file, workers=0)) as trials_run:
        real = list(islice(trials_run, REAL))
    planned = time.process_time()
    rng = np.random.default_rng(0)
    with Store.open(file, create=True) as store:
        left = (trial for trial, _ in list(store.pending()))
        while batch := list(islice(left, BATCH)):
            drawn = rng.integers(0, len(real), len(batch)).tolist()
            store.add(_like(real[k], trial) for trial, k in zip(batch, drawn, strict=True))
    return planned - begun, time.process_time() - planned


def _like(result: Result, trial: int) -> Result:
    """Return a result as one of another trial; no two of a campaign have all numbers in common."""
    distance = float(result.metrics["rel_l2"]) * (1 + trial / 1e9)
    return replace(result, trial=trial, metrics=result.metrics | {"rel_l2": json_value(distance)})


def measured(command: list[str]) -> tuple[float, float]:
    """Return the processor seconds and the peak memory in MB of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {ran.stderr}")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, int(ran.stderr.split("VmHWM:")[1].split()[0]) / 1e3


def rows(folder: Path, sizes: list[int], model: Path) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield the measurements of each size."""
    for trials in sizes:
        store, page = folder / f"{trials}.db", folder / f"{trials}.html"
        plan_s, add_s = made(store, model, trials)
        text, html = measured(["report", str(store)]), measured(["report", str(store), "--html", str(page)])
        yield trials, (plan_s, add_s, store.stat().st_size / 1e6, *text, *html, page.stat().st_size / 1e6)


def main() -> None:
    """Measure each size, and print it beside the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[20_000, 500_000])
    parser.add_argument("--layers", type=int, default=0, help="of a chain; by default the shipped CNN")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    met, least = True, 0.0
    print(
        "| trials | plan and 200 trials | results written | store | text | its memory | page | its memory | page size |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with nullcontext(str(given.keep)) if given.keep else tempfile.TemporaryDirectory() as folder:
        shipped = ROOT / "models/fashion_cnn.onnx"
        model = chain(Path(folder, "chain.onnx"), given.layers) if given.layers else shipped
        for trials, found in rows(Path(folder), given.trials, model):
            plan_s, add_s, store_mb, text_s, text_mb, page_s, page_mb, size_mb = found
            least = least or text_mb
            met &= text_s <= TEXT_S and page_s <= PAGE_S and size_mb <= PAGE_MB and text_mb <= 2 * least
            made_s = f"{plan_s:.1f} s | {add_s:.1f} s | {store_mb:.0f} MB"
            reported = f"{text_s:.1f} s | {text_mb:.0f} MB | {page_s:.1f} s | {page_mb:.0f} MB | {size_mb:.2f} MB"
            print(f"| {trials:,} | {made_s} | {reported} |", flush=True)
    print(f"this process, which wrote them: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
