"""`onnxfi report STORE`: what a campaign found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxfi.cli.options import JSON

if TYPE_CHECKING:
    from onnxfi.campaign.report import Fold, Report
    from onnxfi.faults.statistics import Interval

STORE = click.argument("store", metavar="STORE", type=click.Path(path_type=Path))


@click.command("report")
@STORE
@click.option(
    "--csv",
    "csv_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write detail.csv (one line a trial), summary.csv, and rates.csv, layers.csv, bits.csv where there are such.",
)
@JSON
def command(store: Path, csv_folder: Path | None, as_json: bool) -> None:
    """Print the rates of a campaign, overall and by rate, layer and bit, each with its interval."""
    from onnxfi.campaign.report import report, write_csv
    from onnxfi.cli.show import document, say

    found = report(store)
    written = write_csv(found, csv_folder) if csv_folder is not None else []
    if as_json:
        document(found.document())
        return
    print_report(found)
    for path in written:
        say(f"wrote {path}")


def print_report(found: Report) -> None:
    """Print a report to the terminal."""
    from onnxfi.cli.show import note, number, say, table
    from onnxfi.runtime.metrics import METRICS

    golden = "  ".join(
        f"{name} {number(float(found.golden['metrics'][name]), share=METRICS[name].share)}"
        for name in ("top1", "top5")
        if name in found.golden["metrics"]
    )
    say(f"{found.store}: {found.everything.trials:,} of {found.planned:,} trials, {found.golden['data']}")
    say(f"golden: {golden}" if golden else "golden: no labels, so rates say how often outputs change")
    level = f"{found.confidence:.4g}"
    if len(found.by_rate) <= 1:
        rows = [(r.name, r.of, *_cells(r.interval)) for r in found.everything.rates if not r.name.startswith("class_")]
        table(f"All trials, intervals at {level}", ("Rate", "Of", ">Value", ">Low", ">High"), rows)
    for title, key, folds in (
        ("By bit error rate", ">BER", found.by_rate),
        ("By layer", "Layer", found.by_layer),
        ("By bit", ">Bit", found.by_bit),
    ):
        if folds:
            _table(f"{title}, intervals at {level}", key, folds)
    if found.samples is not None and found.by_rate == ():
        i = found.samples
        say(f"the choice of {found.golden['samples']:,} samples alone moves SDC-1 between {i.low:.3%} and {i.high:.3%}")
    if found.errors:
        note(f"{found.errors} trials ended in an error of the harness and are in no rate; run again to repeat them")


_COLUMNS = (("top1", "top-1"), ("sdc1", "SDC-1"), ("any_sdc1", "any SDC-1"), ("sdc", "SDC"), ("due", "DUE"))


def _table(title: str, key: str, folds: Sequence[Fold]) -> None:
    from onnxfi.cli.show import table

    shown = [(name, label) for name, label in _COLUMNS if any(fold.rate(name) for fold in folds)]
    rows = [(fold.key, f"{fold.trials:,}", *(_cell(fold.rate(name)) for name, _ in shown)) for fold in folds]
    table(title, (key, ">Trials", *(f">{label}" for _, label in shown)), rows)


def _cells(i: Interval) -> tuple[str, str, str]:
    return f"{i.estimate:.3%}", f"{i.low:.3%}", f"{i.high:.3%}"


def _cell(i: Interval | None) -> str:
    return "-" if i is None or i.estimate != i.estimate else f"{i.estimate:.2%} [{i.low:.2%}, {i.high:.2%}]"
