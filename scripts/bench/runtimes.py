"""Compare runtimes on the shipped models under one fault list.

    python scripts/bench/runtimes.py                    # the table of docs/explanation/runtimes.md
    python scripts/bench/runtimes.py MODEL --trials 40

Each model runs one campaign of single bit flips in its weights in every engine: the same faults, samples and seed.
For each engine the script prints top-1 of the golden run, the largest difference of its golden scores to those of the
first engine as a share of their range, top-1 and SDC-1 over all trials, and how many trials have another outcome
(masked, SDC, DUE) or another SDC-1 than in the first engine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import fmean

import numpy as np

import onnxfi
from onnxfi.campaign.execute.trial_executor import TrialExecutor

ROOT = Path(__file__).parents[2]
DATA = str(ROOT / "models" / "fashion_test.npz")
ENGINES = ("onnxruntime", "openvino", "reference")
HEAD = ["model", "engine", "golden top-1", "largest difference", "faulty top-1", "SDC-1"]
HEAD += ["other outcome", "other SDC-1", "seconds"]
Measured = tuple[np.ndarray, list[onnxfi.Result], float]


def measure(model: Path, engine: str, trials: int, samples: int, folder: Path) -> Measured:
    """Return the golden scores, the results, and the seconds that the campaign took."""
    campaign = onnxfi.Campaign(str(model), DATA, engine=engine, single=True, trials=trials, samples=samples)
    scores = np.asarray(TrialExecutor.open(campaign).golden_runs.run()[0].scores, np.float64)
    begun = time.perf_counter()
    results: list[onnxfi.Result] = []
    onnxfi.run(campaign, store=folder / f"{model.stem}.{engine}.db", on_result=results.append)
    results.sort(key=lambda result: result.trial)
    return scores, results, time.perf_counter() - begun


def row(model: Path, engine: str, found: Measured, first: Measured, labels: np.ndarray) -> str:
    """Return a row of the table."""
    (scores, results, seconds), (known, others, _) = found, first
    difference = np.abs(scores - known).max() / np.abs(known).max()
    pairs = [*zip(results, others, strict=True)]
    cells = (
        f"{(scores.argmax(1) == labels).mean():.1%}", f"{difference:.1e}",
        f"{fmean(r.metrics['top1'] for r in results):.2%}", f"{fmean(r.metrics['sdc1'] for r in results):.3%}",
        f"{sum(one.outcome != other.outcome for one, other in pairs)}",
        f"{sum(one.metrics['sdc1'] != other.metrics['sdc1'] for one, other in pairs)}", f"{seconds:.1f}",
    )  # fmt: skip
    return f"| `{model.stem}` | {engine} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, default=sorted((ROOT / "models").glob("*.onnx")))
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--engines", nargs="+", default=ENGINES)
    given = parser.parse_args()
    print(f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|", sep="\n", flush=True)
    with np.load(DATA) as held:
        labels = held["labels"][: given.samples]
    with tempfile.TemporaryDirectory() as folder:
        for model in given.models:
            first = None
            for engine in given.engines:
                try:
                    found = measure(model, engine, given.trials, given.samples, Path(folder))
                except onnxfi.OnnxfiError as error:
                    print(f"| `{model.stem}` | {engine} | {str(error)[:100]} |" + " |" * 6, flush=True)
                    continue
                first = first or found
                print(row(model, engine, found, first, labels), flush=True)


if __name__ == "__main__":
    main()
