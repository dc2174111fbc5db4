"""Run campaigns on real models, most of them stages of pipelines, and print the tables of docs/how-to/pipelines.md.

    python scripts/fetch_models.py
    python scripts/real_models.py [--only NAME]... [--repeat N] [--stores FOLDER] [--workers N]

A table has a row for each stage: the golden metric, and the metric over the bit error rate with its interval. A second
one has the layers where a flip of the highest exponent bit of one weight (of stored integers: of the sign bit) most
often changes an answer silently: of layers that multiply matrices or convolve, with as many trials in each. Models are
looked for in fetched/ (ONNXFI_MODELS), recordings in /usr/share/sounds/alsa (ONNXFI_SOUNDS). An interrupted run goes on
from its stores.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import onnxfi
from onnxfi.campaign.report.report import Fold, Report
from onnxfi.campaign.run.runner import run

ROOT = Path(__file__).resolve().parents[1]
#: Layers of a stage that are listed, and the half width of the interval of each that decides its number of trials.
LISTED, MARGIN = 3, 0.25
#: Operators whose weights are most of a network.
PRODUCTS = "re:^(Conv|ConvTranspose|Gemm|MatMul|LSTM)$"


class Case(NamedTuple):
    """A pipeline with its data, the stages that faults go into, and the metric of its table."""

    name: str
    title: str
    data: str
    stages: tuple[str, ...]
    metric: str
    task: str = "auto"
    samples: int | None = None
    #: Samples in the trials of the layers, which are many.
    layer_samples: int | None = None
    rates: tuple[float, ...] = (1e-7, 1e-6, 1e-5)
    #: The weights whose layers are compared, and the bit of them that is flipped.
    weights: Mapping[str, Any] = MappingProxyType({"op": (PRODUCTS,), "role": ("weight",), "bits": "30"})


CASES = (
    Case(
        "ocr", "Reading lines (PP-OCR)", "pages", ("detector", "recogniser"), "exact", task="sequence", samples=4,
        layer_samples=1,
    ),
    Case(
        "faces", "Finding faces (MTCNN)", "views", ("propose", "refine", "decide"), "ap50",
        task="detection:format=rows", rates=(1e-5, 1e-4, 1e-3),
    ),
    Case("speech", "Hearing speech (silero-vad)", "recordings", ("vad",), "top1", rates=(1e-6, 1e-5, 1e-4)),
    Case("file_types", "Telling file types (magika)", "files", ("magika",), "top1"),
    Case(
        "sentences", "Comparing sentences (MiniLM, int8)", "sentences", ("encoder",), "recall", task="embedding",
        weights=MappingProxyType({"dtype": ("int8",), "bits": "7"}),
    ),
)  # fmt: skip


def report_of(case: Case, stage: str, name: str, design: Mapping[str, Any], folder: Path, workers: int) -> Report:
    """Run a campaign on a stage, or what is left of it, and return its report."""
    module = f"examples.pipelines.{case.name}"
    campaign = onnxfi.Campaign(
        f"{module}:pipeline", f"{module}:{case.data}", stage=stage, task=case.task, provider="cpu",
        **{"samples": case.samples, **design},
    )  # fmt: skip
    store = folder / f"{case.name}.{stage}.{name}.db"
    for _ in run(campaign, store, workers=workers):
        pass
    return onnxfi.report(store)


def rate_of(found: Report, fold: Fold, name: str) -> str:
    """Return a metric over the trials of a fold, with its interval."""
    rate = next(rate for rate in fold.rates if rate.name == name)
    return found.task.metric(name).interval(rate.interval)


def sweep_table(case: Case, repeat: int, folder: Path, workers: int) -> Iterator[str]:
    """Yield the lines of the table over bit error rates in Markdown."""
    rates = " | ".join(f"{rate:g}" for rate in case.rates)
    yield f"| {case.title}: stage | golden | {rates} |"
    yield "|---|---|" + "---|" * len(case.rates)
    for stage in case.stages:
        sweep = report_of(case, stage, "sweep", {"ber": case.rates, "repeat": repeat}, folder, workers)
        metric = sweep.task.metric(case.metric)
        golden = metric.text(float(sweep.golden["metrics"][case.metric]))
        cells = [rate_of(sweep, fold, case.metric) for fold in sweep.by_rate]
        yield f"| `{stage}` | {metric.label} {golden} | {' | '.join(cells)} |"


def layer_table(case: Case, folder: Path, workers: int) -> Iterator[str]:
    """Yield the lines of the table of layers in Markdown."""
    samples = case.layer_samples or case.samples
    design = {"single": True, "per": "layer", "margin": MARGIN, "samples": samples, **case.weights}
    for stage in case.stages:
        found = report_of(case, stage, "layers", design, folder, workers)
        name = found.task.metric(found.task.headline).name
        if stage == case.stages[0]:
            yield f"| {case.title}: stage | all of it | layers of the highest {found.task.metric(name).label} |"
            yield "|---|---|---|"
        rated = [(fold, fold.rate(name)) for fold in found.by_layer]
        ordered = sorted(((-rate.estimate, -rate.low, fold) for fold, rate in rated if rate), key=lambda row: row[:2])
        worst = [f"`{fold.key}` {rate_of(found, fold, name)}" for _, _, fold in ordered[:LISTED]]
        trials = f"{found.everything.trials:,} trials in {len(found.by_layer)} layers"
        yield f"| `{stage}` | {rate_of(found, found.everything, name)}; {trials} | {'<br>'.join(worst)} |"


def main() -> int:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", choices=names, help=f"one of {', '.join(names)}")
    parser.add_argument(
        "--stores", type=Path, default=Path("real-models"), metavar="FOLDER", help="folder of the stores"
    )
    parser.add_argument("--repeat", type=int, default=100, metavar="N", help="trials at each bit error rate")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="worker processes")
    given = parser.parse_args()
    given.stores.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    for case in CASES:
        if given.only is None or case.name in given.only:
            for table in (
                sweep_table(case, given.repeat, given.stores, given.workers),
                layer_table(case, given.stores, given.workers),
            ):
                print(*table, sep="\n", end="\n\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
