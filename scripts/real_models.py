"""Run campaigns on real models, most of them stages of pipelines, and print the tables of docs/how-to/pipelines.md.

    python scripts/fetch_models.py
    python scripts/real_models.py [--only NAME]... [--singles N] [--stores FOLDER] [--workers N]

A table has a row for each stage: the golden metric, the metric over the bit error rate with its interval, and the
layers where one flipped exponent bit most often changes an answer silently. Models are looked for in fetched/
(ONNXFI_MODELS), recordings in /usr/share/sounds/alsa (ONNXFI_SOUNDS). An interrupted run goes on from its stores.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import onnxfi
from onnxfi.campaign.report.report import Fold, Report
from onnxfi.campaign.run.runner import run

ROOT = Path(__file__).resolve().parents[1]
REPEAT = 10
#: Layers that are listed, and the trials that one must have.
LISTED, LEAST = 3, 5


class Case(NamedTuple):
    """A pipeline with its data, the stages that faults go into, and the metric of its table."""

    name: str
    title: str
    data: str
    stages: tuple[str, ...]
    metric: str
    task: str = "auto"
    samples: int | None = None
    rates: tuple[float, ...] = (1e-7, 1e-6, 1e-5)


CASES = (
    Case(
        "ocr", "Reading lines (PP-OCR)", "pages", ("detector", "recogniser"), "exact",
        task="sequence", samples=4,
    ),
    Case(
        "faces", "Finding faces (MTCNN)", "views", ("propose", "refine", "decide"), "ivmod_sdc",
        task="detection:format=rows", rates=(1e-5, 1e-4, 1e-3),
    ),
    Case("speech", "Hearing speech (silero-vad)", "recordings", ("vad",), "top1", rates=(1e-6, 1e-5, 1e-4)),
    Case("file_types", "Telling file types (magika)", "files", ("magika",), "top1"),
    Case("sentences", "Comparing sentences (MiniLM, int8)", "sentences", ("encoder",), "recall", task="embedding"),
)  # fmt: skip


def report_of(case: Case, stage: str, singles: int, folder: Path, workers: int) -> Report:
    """Run a sweep, or so many single faults, or what is left of them, and return the report."""
    design: dict[str, Any] = {"ber": case.rates, "repeat": REPEAT}
    if singles:
        bits = "" if case.name == "sentences" else "exponent"  # stored integers have none
        design = {"single": True, "trials": singles, "bits": bits}
    module = f"examples.pipelines.{case.name}"
    campaign = onnxfi.Campaign(
        f"{module}:pipeline", f"{module}:{case.data}", stage=stage, task=case.task, samples=case.samples,
        provider="cpu", **design,
    )  # fmt: skip
    store = folder / f"{case.name}.{stage}.{'single' if singles else 'sweep'}.db"
    for _ in run(campaign, store, workers=workers):
        pass
    return onnxfi.report(store)


def value(found: Report, fold: Fold, metric: str) -> str:
    """Return a metric over the trials of a fold, with its interval."""
    rate = next(rate for rate in fold.rates if rate.name == metric)
    return found.task.metric(metric).interval(rate.interval)


def layers(found: Report) -> str:
    """Return the layers with the largest share of changed samples, of those with enough trials."""
    metric = found.task.metric(found.task.headline)
    shares = []
    for fold in found.by_layer:
        for rate in fold.rates:
            if rate.name == metric.name and fold.trials >= LEAST and rate.interval.estimate > 0:
                shares.append((-rate.interval.estimate, str(fold.key), fold.trials))
    listed = [f"`{key}` {-share:.0%} of {trials}" for share, key, trials in sorted(shares)[:LISTED]]
    return ", ".join(listed) or "none"


def table(case: Case, singles: int, folder: Path, workers: int) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    rates = " | ".join(f"{rate:g}" for rate in case.rates)
    yield f"| {case.title}: stage | golden | {rates} | layers |"
    yield "|---|---|" + "---|" * len(case.rates) + "---|"
    for stage in case.stages:
        sweep = report_of(case, stage, 0, folder, workers)
        harmful = layers(report_of(case, stage, singles, folder, workers)) if singles else "-"
        metric = sweep.task.metric(case.metric)
        golden = metric.text(float(sweep.golden["metrics"][case.metric]))
        cells = [value(sweep, fold, case.metric) for fold in sweep.by_rate]
        yield f"| `{stage}` | {metric.label} {golden} | {' | '.join(cells)} | {harmful} |"


def main() -> int:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", choices=names, help=f"one of {', '.join(names)}")
    parser.add_argument(
        "--stores", type=Path, default=Path("real-models"), metavar="FOLDER", help="folder of the stores"
    )
    parser.add_argument("--singles", type=int, default=120, metavar="N", help="single faults for each stage; 0: none")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="worker processes")
    given = parser.parse_args()
    given.stores.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    for case in CASES:
        if given.only is None or case.name in given.only:
            for line in table(case, given.singles, given.stores, given.workers):
                print(line, flush=True)
            print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
