"""`onnxfi report STORE`: what a campaign found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxfi.cli.campaign_options import STORE
from onnxfi.cli.options import JSON, PATH

if TYPE_CHECKING:
    from onnxfi.campaign.report import Fold, Report
    from onnxfi.faults.statistics import Interval


@click.command("report", short_help="Print what a campaign found.")
@STORE
@click.option(
    "--csv",
    "csv_folder",
    type=PATH,
    metavar="DIR",
    help="Write detail.csv (one line a trial), summary.csv, and rates.csv, layers.csv, bits.csv, classes.csv where there are such.",
)
@JSON
def command(store: Path, csv_folder: Path | None, as_json: bool) -> None:  # fmt: skip
    """Print the rates of a campaign, overall and by rate, layer and bit, each with its interval.

    A campaign that is not finished, or still under way, is reported as far as it is.
    """
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
    from onnxfi.campaign.report import classes
    from onnxfi.cli.show import count, note, number, say, table

    metrics, level = found.golden["metrics"], f"intervals at {100 * found.confidence:.4g} %"
    say(f"{found.store}: {found.everything.trials:,} of {found.planned:,} trials, {found.golden['data']}")
    accuracy = [f"{name} {number(metrics[name], share=True)}" for name in ("top1", "top5") if name in metrics]
    say(
        f"golden: {', '.join(accuracy) or 'no labels, so rates say how often answers change, not how often they are wrong'}"
    )
    if found.golden.get("synthetic"):
        say("synthetic inputs: how often real ones change may be something else")
    if len(found.by_rate) <= 1:
        rows = [(r.name, r.of, *_cells(r.interval)) for r in found.everything.rates if not r.name.startswith("class_")]
        table(f"All trials, {level}", ("Rate", "Share of", ">Value", ">Low", ">High"), rows)
    else:
        _table(f"By bit error rate, {level}", ">BER", found.by_rate)
    if found.by_layer:
        _table(f"By layer, {level}", "Layer", found.by_layer)
    if shares := [[_share(v) if isinstance(v, float) else v for v in row.values()] for row in classes(found)]:
        table("Classes by layer, shares of the injections", _CLASSES[: len(shares[0])], shares)
    if found.by_bit:
        _table(f"By bit, {level}", ">Bit", [fold for fold in found.by_bit if fold.trials])
    if found.samples is not None:
        low, high = _share(found.samples.low), _share(found.samples.high)
        say(f"other samples of this kind, {found.golden['samples']:,} again, would put SDC-1 between {low} and {high}")
    if found.errors:
        note(
            f"{count(found.errors, 'trial')} ended in an error of the harness and count in no rate; run again to repeat"
        )


_COLUMNS = (("top1", "top-1"), ("sdc1", "SDC-1"), ("any_sdc1", "any SDC-1"), ("sdc", "SDC"), ("due", "DUE"))
_CLASSES = (
    *(
        "Layer",
        ">Faults",
        ">Injections",
        ">Fully masked",
        ">SDC-1",
        ">0-5 %",
        ">5-10 %",
        ">10-20 %",
        ">from 20 %",
        ">DUE",
    ),
    *(">Faulty top-1", ">Golden top-1"),
)


def _table(title: str, key: str, folds: Sequence[Fold]) -> None:
    from onnxfi.cli.show import table

    shown = [(name, label) for name, label in _COLUMNS if any(fold.rate(name) for fold in folds)]
    rows = [(fold.key, f"{fold.trials:,}", *(_cell(fold.rate(name)) for name, _ in shown)) for fold in folds]
    table(title, (key, ">Trials", *(f">{label}" for _, label in shown)), rows)


def _share(value: float) -> str:
    return f"{100 * value:.3f} %"


def _cells(i: Interval) -> tuple[str, str, str]:
    return _share(i.estimate), _share(i.low), _share(i.high)


def _cell(i: Interval | None) -> str:
    return "-" if i is None else f"{100 * i.estimate:.2f} % [{100 * i.low:.2f}, {100 * i.high:.2f}]"
