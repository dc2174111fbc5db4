"""`onnxfi report STORE`: what a campaign found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxfi.cli.options import JSON, PATH

if TYPE_CHECKING:
    from onnxfi.campaign.execute.adaptive_rounds import Look
    from onnxfi.campaign.report.report import Fold, Report
    from onnxfi.statistics.intervals import Interval
    from onnxfi.tasks.task import Metric, Task


@click.command("report", short_help="Print what a campaign found; as a page, figures or tables.")
@click.argument("stores", metavar="STORE…", nargs=-1, required=True, type=PATH)
@click.option(
    "--html",
    type=PATH,
    metavar="FILE",
    help="Write one page that works offline: figures, tables, the most harmful faults, the command that repeats it.",
)
@click.option("--figures", "figure_folder", type=PATH, metavar="DIR", help="Write the figures as SVG and PNG.")
@click.option(
    "--csv",
    "csv_folder",
    type=PATH,
    metavar="DIR",
    help="Write detail.csv (one line a trial), summary.csv, and rates.csv, layers.csv, bits.csv, classes.csv where there are such.",
)
@JSON
def command(
    stores: tuple[Path, ...], html: Path | None, figure_folder: Path | None, csv_folder: Path | None, as_json: bool
) -> None:
    """Print the rates of a campaign, overall and by rate, layer and bit, each with its interval.

    A campaign that is not finished, or still under way, is reported as far as it is. Several stores are put side by
    side. --html and --figures need the extra `report`.

    \b
    onnxfi report net.onnxfi.db --html net.html
    onnxfi report fp32.db int8.db --figures figures
    """
    from onnxfi.campaign.report.report import report
    from onnxfi.campaign.report.side_by_side import write_csv_of_all
    from onnxfi.campaign.report.tables import write_csv
    from onnxfi.cli.terminal import document, say
    from onnxfi.graph.write.output_file import check_folder

    for folder in (figure_folder, csv_folder):
        if folder is not None:
            check_folder(folder)
    if html is not None or figure_folder is not None:
        _drawable(html, stores)
    found = [report(store) for store in stores]
    written = []
    if csv_folder is not None:
        written += write_csv(found[0], csv_folder) if len(found) == 1 else write_csv_of_all(found, csv_folder)
    told = []
    if figure_folder is not None:
        from onnxfi.campaign.report.figures import figures, write_figures

        written += write_figures(found, figure_folder)
        told = [figure.caption for figure in figures(found) if figure.draw is None]
    if html is not None:
        from onnxfi.campaign.report.html_page import write_page

        written.append(write_page(found, html))
    if as_json:
        document(found[0].document() if len(found) == 1 else {"stores": [one.document() for one in found]})
        return
    if len(found) == 1:
        print_report(found[0])
    else:
        _print_sides(found)
    for line in dict.fromkeys(told):
        say(line)
    for path in written:
        say(f"wrote {path}")


def _drawable(html: Path | None, stores: tuple[Path, ...]) -> None:
    """Refuse a place for the page that cannot be, and extras that are not there, before anything is read."""
    from onnxfi.campaign.gate.ci_report import writer
    from onnxfi.campaign.report.figures import needs

    needs("matplotlib")
    if html is not None:
        needs("jinja2")
        writer(html, stores)


def _print_sides(found: Sequence[Report]) -> None:
    """Several reports, a line each."""
    from onnxfi.campaign.report.notes import of_trials
    from onnxfi.campaign.report.side_by_side import sides
    from onnxfi.cli.terminal import number, say, table

    lines, task = sides(found), found[0].task
    shown, accuracy = _columns(task, [side.fold for side in lines]), task.accuracy
    rows = [
        (
            side.label, side.ber or "-", f"{side.fold.trials:,}",
            number(side.report.golden["metrics"].get(accuracy.name) if accuracy else None, share=True),
            *(_cell(m, side.fold.rate(m.name)) for m in shown),
        )
        for side in lines
    ]  # fmt: skip
    levels = ", ".join(dict.fromkeys(f"{100 * one.confidence:.4g} %" for one in found))
    table(
        f"Side by side, intervals at {levels}",
        ("Campaign", ">Rate", ">Trials", f">Golden{f' {accuracy.label}' if accuracy else ''}", *(f">{m.label}" for m in shown)), rows,
    )  # fmt: skip
    if told := of_trials([one.judged for one in found], task):
        say(told)


def print_report(found: Report) -> None:
    """Print a report to the terminal."""
    from onnxfi.campaign.report.notes import notes
    from onnxfi.campaign.report.tables import classes, rate_name, swept_over
    from onnxfi.cli.terminal import count, note, number, say, table

    metrics, level = found.golden["metrics"], f"intervals at {100 * found.confidence:.4g} %"
    say(f"{found.store}: {found.everything.trials:,} of {found.planned:,} trials, {found.golden['data']}")
    task = found.task
    accuracy = [f"{name} {number(metrics[name], share=True)}" for name in task.golden_names if name in metrics]
    unlabelled = "no labels, so rates say how often answers change, not how often they are wrong"
    read = found.golden.get("reading", "")
    say(f"golden: {', '.join(accuracy) or (unlabelled if task.golden_names else 'compared as numbers')}")
    if read:
        say(read)
    if found.golden.get("synthetic"):
        say("synthetic inputs: how often real ones change may be something else")
    if found.look is not None:
        for line in _told(found, found.look):
            say(line)
    if len(found.by_rate) <= 1:
        rows = [
            (r.name, r.of, *_cells(task.metric(r.name), r.interval))
            for r in found.everything.rates
            if r.name not in task.classes
        ]
        table(f"All trials, {level}", ("Rate", "Share of", ">Value", ">Low", ">High"), rows)
    else:
        _table(f"By {swept_over(found)}, {level}", ">" + rate_name(found).partition(" (")[0], found.by_rate, task)
    if found.by_layer:
        _table(f"By layer, {level}", "Layer", found.by_layer, task)
    if shares := [[_share(v) if isinstance(v, float) else v for v in row.values()] for row in classes(found)]:
        table("Classes by layer, shares of the injections", _CLASSES[: len(shares[0])], shares)
    if found.by_bit:
        _table(f"By bit, {level}", ">Bit", [fold for fold in found.by_bit if fold.trials], task)
    for line in notes(found):
        say(line)
    if found.errors:
        note(
            f"{count(found.errors, 'trial')} ended in an error of the harness and count in no rate; run again to repeat"
        )


def seen(look: Look) -> str:
    """What an adaptive campaign knows of the rate that it measures."""
    i = look.interval
    if i.estimate != i.estimate:
        return f"{look.rate}: no round is complete yet"
    return f"{look.rate} {_share(i.estimate)} [{_share(i.low)}, {_share(i.high)}]"


def _told(found: Report, look: Look) -> Iterator[str]:
    """What it was asked for, what it took, and what its interval does not cover."""
    i, samples = look.interval, found.golden["samples"]
    headline = found.task.metric(found.task.headline).label.partition(" (")[0]
    strata = "drawn evenly" if look.strata == 1 else f"{look.strata:,} strata"
    yield f"adaptive, {look.method} ({i.method}), at {100 * found.confidence:.4g} %: {seen(look)}"
    yield f"  {look.trials:,} of {look.population:,} faults in {look.rounds:,} rounds, {strata}"
    if look.exhausted:
        yield "  the whole population was run, so the rate is exact; a sample cannot be as narrow as was asked for"
    else:
        wanted, have = 100 * look.wanted, 100 * i.half_width
        much = f", {100 * i.half_width / i.estimate:,.0f} % of the rate" if i.estimate > 0 else ""
        yield f"  half the width is {have:.3g} points{much}; asked for: {wanted:.3g}" + (
            "" if look.reached else ", so it goes on"
        )
    if i.low == 0 < i.high and i.estimate == 0:
        yield f"  no trial showed it: the rate is below {_share(i.high)}, and may be 0"
    if found.task.metric(look.rate).any_of:
        yield f"  {look.rate} depends on the number of samples: it is that of these {samples:,}, and grows with more"
    if found.samples is not None:
        yield (
            f"  the choice of these {samples:,} samples adds ±{100 * found.samples.half_width:.3g} points to {headline}, "
            f"however many trials run"
        )


_CLASSES = (
    *(
        "Layer",
        ">Faults",
        ">Injections",
        ">Fully masked",
        ">SDC-1 (silent)",
        ">0-5 %",
        ">5-10 %",
        ">10-20 %",
        ">from 20 %",
        ">DUE",
    ),
    *(">Faulty top-1", ">Golden top-1"),
)


def _columns(task: Task, folds: Sequence[Fold]) -> tuple[Metric, ...]:
    """Return the metrics that a table shows."""
    return task.table({rate.name for fold in folds for rate in fold.rates})


def _table(title: str, key: str, folds: Sequence[Fold], task: Task) -> None:
    from onnxfi.cli.terminal import table

    shown = _columns(task, folds)
    rows = [(fold.key, f"{fold.trials:,}", *(_cell(m, fold.rate(m.name)) for m in shown)) for fold in folds]
    table(title, (key, ">Trials", *(f">{m.label}" for m in shown)), rows)


def _share(value: float) -> str:
    return f"{100 * value:.3f} %"


def _cells(metric: Metric, i: Interval) -> tuple[str, ...]:
    ends = (i.estimate, i.low, i.high)
    return tuple("-" if math.isnan(end) else metric.text(end, digits=3) for end in ends)


def _cell(metric: Metric, i: Interval | None) -> str:
    return "-" if i is None else metric.interval(i)
