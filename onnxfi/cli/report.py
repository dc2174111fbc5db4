"""`onnxfi report STORE`: the rates of a campaign, with tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxfi.cli.options import CODE, JSON, PATH, verb
from onnxfi.cli.streams import OUTPUT, STORE
from onnxfi.cli.terminal import count, number, print_json, print_line, print_note, table

if TYPE_CHECKING:
    from onnxfi.campaign.report.rates import CampaignRates, Fold
    from onnxfi.campaign.report.report import Report
    from onnxfi.campaign.run.adaptive_rounds import Look, Ranking
    from onnxfi.statistics.intervals import Interval
    from onnxfi.tasks.task import Metric, Task


#: Rows of a table by layer.
_TOP = 20


_OPTIONS = (
    click.argument("stores", metavar="STORE…", nargs=-1, required=True, type=STORE),
    click.option("--html", type=OUTPUT, metavar="FILE", help="Write one offline HTML page: the verdict, the network layer by layer down to one fault, charts, tables, the command that repeats the campaign."),
    click.option("--answers", type=click.IntRange(0), default=0, metavar="N", help="With --html: run the N trials that changed most once more, on the model and the data, and show their answers before and after."),
    click.option("--figures", "figure_folder", type=PATH, metavar="DIR", help="Write the figures as SVG and PNG."),
    click.option("--figure-format", "kinds", default="svg,png", show_default=True, metavar="KINDS", help="With --figures: a list of svg, png, pdf and pgf; pgf takes the fonts of a paper, and needs TeX."),
    click.option("--spread", type=click.Choice(["interval", "sd", "quantiles", "violin"]), default="interval", show_default=True, help="With --figures: what curves show beside their line: intervals of the means, or the standard deviation, the quantiles or the density of the trials."),
    click.option("--latex", "latex_folder", type=PATH, metavar="DIR", help="Write the tables as LaTeX (booktabs): rates.tex or summary.tex, layers.tex, bits.tex."),
    click.option("--csv", "csv_folder", type=PATH, metavar="DIR", help="Write detail.csv (one line per trial), summary.csv, and rates.csv, layers.csv, bits.csv, classes.csv where they apply."),
    click.option("--csv-by-model", is_flag=True, help="With --csv: name the files by the model: MODEL.csv (rates, else the summary), detail-MODEL.csv, layers-MODEL.csv, …"),
    click.option("--outputs", "output_folder", type=PATH, metavar="DIR", help="Run all trials once more, and write the outputs of each on each batch into a file of its own (trial-N/batch-K.npz), beside those of the golden run with the labels."),
    click.option("--evidence", type=PATH, metavar="DIR", help="Write evidence for a safety case, of single faults: fmeda.csv (a line per layer) and evidence.md."),
    click.option("--environment", type=PATH, metavar="FILE", help="With --evidence: add FIT, by the memories of this environment (YAML)."),
    click.option("--detectors", is_flag=True, help="Score detectors on the trials: self tests of chosen inputs, alarms, a hash of the tensors; with the time of a check, and with --figures coverage over time."),
    click.option("--elements", multiple=True, metavar="TARGET", help="With --figures or --html, of single faults: also draw a map of the rates by element (weight, synapse, neuron) of this target. Repeatable."),
    click.option("--sort", metavar="METRIC", default="", help="Sort the layers by this rate, the most harmful first (default: in the order of the model while they fit --top)."),
    click.option("--top", type=click.IntRange(0), default=_TOP, show_default=True, metavar="N", help="Rows of the tables by layer; 0: all."),
)  # fmt: skip


@verb("report", "Print the rates of a campaign; write a page, figures or tables.", *_OPTIONS, CODE, JSON)
def command(
    stores: tuple[Path, ...], html: Path | None, answers: int, figure_folder: Path | None, kinds: str, spread: str, latex_folder: Path | None, csv_folder: Path | None, csv_by_model: bool, output_folder: Path | None,
    evidence: Path | None, environment: Path | None, detectors: bool, elements: tuple[str, ...], sort: str, top: int, allow_code: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print the rates of a campaign, overall and by bit error rate, layer and bit, each with its interval.

    A campaign that is not finished is reported so far. Several stores are printed side by side, with --html also their differences. --html and --figures need the extra `report`.

    \b
    onnxfi report net.onnxfi.db --html net.html --answers 10
    onnxfi report fp32.db int8.db --html both.html
    onnxfi report fp32.db int8.db --figures figures --figure-format pdf --spread violin
    onnxfi report net.onnxfi.db --latex tables
    onnxfi report net.onnxfi.db --detectors
    """
    from onnxfi.campaign.report.report import report
    from onnxfi.graph.write.output_file import check_folder

    drawn, looks = figure_folder is not None, (kinds, spread) != ("svg,png", "interval")
    _check_companions(
        (csv_by_model, csv_folder is not None, "--csv-by-model requires --csv DIR"),
        (looks, drawn, "--figure-format and --spread require --figures DIR"),
        (answers, html is not None, "--answers requires --html FILE"),
        (elements, drawn or html is not None, "--elements requires --figures DIR or --html FILE"),
        (environment, evidence is not None, "--environment requires --evidence DIR; onnxfi fit prints FIT alone"),
        (output_folder, len(stores) == 1, "--outputs takes one store"),
        (allow_code, answers > 0, "--allow-code requires --answers N"),
    )
    for folder in (figure_folder, csv_folder, latex_folder, evidence, output_folder):
        if folder is not None:
            check_folder(folder)
    if html is not None or drawn:
        check_extras(html, stores, figures=drawn or bool(elements))
    if detectors:
        _report_detectors(stores, figure_folder, as_json=as_json)
        return
    found = [report(store) for store in stores]
    written = _write_tables(found, csv_folder, latex_folder, by_model=csv_by_model)
    if output_folder is not None:
        from onnxfi.campaign.execute.trial_answers import write_outputs

        write_outputs(stores[0], output_folder)
        written.append(output_folder)
    if evidence is not None:
        written += _write_evidence(stores, evidence, environment)
    captions = []
    if figure_folder is not None:
        from onnxfi.campaign.report.figures import figures, write_figures

        written += write_figures(found, figure_folder, elements, kinds=kinds.replace(" ", "").split(","), spread=spread)
        captions = [figure.caption for figure in figures(found) if figure.draw is None]
    if html is not None:
        from onnxfi.campaign.report.html_page import write_page

        written.append(write_page(found, html, elements, answers=answers, allow_code=allow_code))
    if as_json:
        print_json(found[0].document() if len(found) == 1 else {"stores": [one.document() for one in found]})
        return
    if len(found) == 1:
        print_report(found[0], sort=sort, top=top)
    else:
        _print_side_by_side(found)
    for line in dict.fromkeys(captions):
        print_line(line)
    for path in written:
        print_line(f"wrote {path}")


def _report_detectors(stores: tuple[Path, ...], folder: Path | None, *, as_json: bool) -> None:
    """Print detectors scored on the trials of one store."""
    from onnxfi.analysis.detectors import detectors
    from onnxfi.campaign.report.figures import write_drawn

    if len(stores) > 1:
        raise click.UsageError("--detectors takes one store")
    found = detectors(stores[0])
    if as_json:
        print_json(found.document())
        return
    print_line(f"{count(found.trials, 'trial')}, {found.harmful:,} harmful: an answer is silently another one")
    rows = [
        (
            one.name, f"{one.found:,} of {one.harmful:,}",
            *(number(value, share=True) for value in (one.coverage.estimate, one.coverage.low, one.coverage.high)),
            "" if one.check_s is None else f"{1e3 * one.check_s:.3g}",
        )
        for one in found.detectors
    ]  # fmt: skip
    table("Harmful faults found", ("Detector", ">Found", ">Coverage", ">Low", ">High", ">Check, ms"), rows)
    if found.untested:
        print_line(f"no self test: {found.untested}")
    else:
        print_line("inputs of a self test are chosen on one half of the trials, its coverage is of the other half")
        longest = max((one.inputs for one in found.detectors), key=len)
        print_line(f"inputs, in order: {', '.join(map(str, longest))}")
    if found.untimed:
        print_line(found.untimed)
    if folder is not None and found.figure.draw is not None:
        for path in write_drawn([found.figure], folder):
            print_line(f"wrote {path}")


def _check_companions(*rules: tuple[object, object, str]) -> None:
    """Refuse a flag that was given without what it belongs to; each rule is (flag, whether that is there, message)."""
    for flag, there, message in rules:
        if flag and not there:
            raise click.UsageError(message)


def _write_tables(found: list[Report], csv: Path | None, latex: Path | None, *, by_model: bool) -> list[Path]:
    """Write the tables of campaigns as CSV and LaTeX."""
    from onnxfi.campaign.report.tables import write_csv, write_csv_of_all, write_latex

    written = list[Path]()
    if csv is not None:
        alone = len(found) == 1
        written += (
            write_csv(found[0], csv, by_model=by_model) if alone else write_csv_of_all(found, csv, by_model=by_model)
        )
    if latex is not None:
        for number, one in enumerate(found, 1):
            written += write_latex(one, latex if len(found) == 1 else latex / str(number))
    return written


def _write_evidence(stores: tuple[Path, ...], folder: Path, environment: Path | None) -> list[Path]:
    """Write evidence of one store."""
    from onnxfi.analysis.environment import load_environment
    from onnxfi.analysis.evidence import write_evidence

    if len(stores) > 1:
        raise click.UsageError("--evidence takes one store")
    return write_evidence(stores[0], folder, None if environment is None else load_environment(environment))


def check_extras(html: Path | None, inputs: tuple[Path, ...], *, figures: bool) -> None:
    """Refuse a page that cannot be written, and missing extras, before anything is read."""
    from onnxfi.campaign.gate.ci_report import writer
    from onnxfi.campaign.report.curves import needs

    if figures:
        needs("matplotlib")
    if html is not None:
        needs("jinja2")
        writer(html, inputs)


def _print_side_by_side(found: Sequence[Report]) -> None:
    """Print several reports, a line each."""
    from onnxfi.campaign.report.findings import turned_into_due
    from onnxfi.campaign.report.tables import comparison_rows, report_labels
    from onnxfi.campaign.report.validity_notes import of_trials, too_few

    lines, task = comparison_rows(found), found[0].task
    shown, accuracy = _columns(task, [side.fold for side in lines]), task.accuracy
    rows = [
        (
            side.label, side.ber or "-", f"{side.fold.trials:,}",
            _golden(accuracy, side.report),
            *(_cell(m, side.fold.rate(m.name)) for m in shown),
        )
        for side in lines
    ]  # fmt: skip
    levels = ", ".join(dict.fromkeys(f"{100 * one.confidence:.4g} %" for one in found))
    table(
        f"Side by side, intervals at {levels}",
        ("Campaign", ">Rate", ">Trials", f">Golden{f' {accuracy.label}' if accuracy else ''}", *(f">{m.label}" for m in shown)), rows,
    )  # fmt: skip
    if text := of_trials([one.judged for one in found], task):
        print_line(text)
    for one, label in zip(found, report_labels(found), strict=True):
        for text in filter(None, (*turned_into_due(one), too_few(one))):
            print_line(f"{label}: {text}")


def print_report(found: Report, *, sort: str = "", top: int = _TOP) -> None:
    """Print a report to the terminal, of its layers the first `top` (0: all), by a metric where `sort` names one."""
    from onnxfi.campaign.report.findings import turned_into_due
    from onnxfi.campaign.report.tables import classes, rate_name, swept_over
    from onnxfi.campaign.report.validity_notes import notes, protection_notes

    layers, cut = _shown_layers(found, sort, top)
    metrics, level = found.golden["metrics"], f"intervals at {100 * found.confidence:.4g} %"
    print_line(f"{found.store}: {found.everything.trials:,} of {found.planned:,} trials, {found.golden['data']}")
    task = found.task
    accuracy = [
        f"{name} {task.metric(name).text(float(metrics[name]))}" for name in task.golden_names if name in metrics
    ]
    unlabelled = "no labels, so rates count changed answers, not wrong ones"
    read = found.golden.get("reading", "")
    print_line(f"golden run: {', '.join(accuracy) or (unlabelled if task.golden_names else 'compared as numbers')}")
    if read:
        print_line(read)
    if found.golden.get("synthetic"):
        print_line("synthetic inputs: rates on real inputs may differ")
    if found.look is not None:
        for line in _adaptive_lines(found, found.look):
            print_line(line)
        if found.look.ranking is not None:
            _print_ranking(found.look.ranking, found)
    if len(found.by_rate) <= 1:
        rows = [
            (r.name, r.of, *_cells(task.metric(r.name), r.interval))
            for r in found.everything.rates
            if r.name not in task.classes
        ]
        table(f"All trials, {level}", ("Rate", "Share of", ">Value", ">Low", ">High"), rows)
    else:
        _table(f"By {swept_over(found)}, {level}", ">" + rate_name(found).partition(" (")[0], found.by_rate, task)
    if any(fold.trials for fold in found.by_layer):
        _table(f"By layer, {level}", "Layer", layers, task)
        if cut:
            print_line(cut)
        names = {fold.key for fold in layers}
        lines = [{k: v for k, v in row.items() if k != "batch_runs"} for row in classes(found) if row["layer"] in names]
        if shares := [[_share(v) if isinstance(v, float) else v for v in row.values()] for row in lines]:
            table("Classes by layer, shares of the injections", _CLASSES[: len(shares[0])], shares)
    if any(fold.trials for fold in found.by_bit):
        _table(f"By bit, {level}", ">Bit", [fold for fold in found.by_bit if fold.trials], task)
    for line in (*turned_into_due(found), *protection_notes(found), *notes(found)):
        print_line(line)
    if found.errors:
        print_note(
            f"{count(found.errors, 'trial')} ended in an error of the harness and are excluded from all rates; run again to repeat them"
        )


def _shown_layers(found: Report, sort: str, top: int) -> tuple[Sequence[Fold], str]:
    """Return the layers that a table shows, and the line that says which were left out."""
    from onnxfi.campaign.report.tables import by_harm
    from onnxfi.errors import InputError, closest

    task, folds = found.task, found.by_layer
    names = {rate.name for rate in found.everything.rates}
    if sort and sort not in names:
        raise InputError(f"--sort: the store has no rate {sort!r}{closest(sort, names)}")
    many = bool(top) and len(folds) > top
    if not sort and not many:
        return folds, ""
    metric = task.metric(sort or (task.headline if task.headline in names else "sdc"))
    shown = by_harm(folds, metric)[: top or None]
    which = "highest" if metric.better == "lower" else "lowest"
    line = (
        f"the {len(shown)} of {len(folds):,} layers with the {which} {metric.label}; --top 0 shows all" if many else ""
    )
    return shown, line


def _print_ranking(ranking: Ranking, found: Report) -> None:
    """Print the parts of a ranking, highest rate first, and how far their order is settled."""
    from onnxfi.campaign.report.ranking_text import ranking_sentences

    assert found.look is not None
    metric = found.task.metric(found.look.rate)
    shown = list(ranking.rows())[: max(2 * ranking.standing.top, _FEWEST_RANKED)]
    rows = [(row.rank, row.name, f"{row.trials:,}", metric.interval(row.interval)) for row in shown]
    rest = f", {len(shown)} of {len(ranking.names):,}" if len(shown) < len(ranking.names) else ""
    title = f"By {ranking.by}, intervals that hold together at {100 * found.confidence:.4g} %{rest}"
    table(title, (">Rank", ranking.by.capitalize(), ">Trials", f">{metric.label}"), rows)
    for line in ranking_sentences(ranking):
        print_line(line)


def estimate_text(look: Look) -> str:
    """Return the estimate of an adaptive campaign so far."""
    i = look.interval
    if i.estimate != i.estimate:
        return f"{look.rate}: no round is complete yet"
    return f"{look.rate} {_share(i.estimate)} [{_share(i.low)}, {_share(i.high)}]"


def _adaptive_lines(found: Report, look: Look) -> Iterator[str]:
    """Yield the margin, the trials and the limits of an adaptive estimate."""
    i, samples = look.interval, found.golden["samples"]
    headline = found.task.metric(found.task.headline).label.partition(" (")[0]
    strata = "drawn evenly" if look.strata == 1 else f"{look.strata:,} strata"
    yield f"adaptive, {look.method} ({i.method}), at {100 * found.confidence:.4g} %: {estimate_text(look)}"
    yield f"  {look.trials:,} of {look.population:,} faults in {look.rounds:,} rounds, {strata}"
    if look.exhausted:
        yield "  the whole population was run, so the rate is exact; no sample reaches the margin"
    elif look.ranking is None:
        wanted, have = 100 * look.wanted, 100 * i.half_width
        much = f", {100 * i.half_width / i.estimate:,.0f} % of the rate" if i.estimate > 0 else ""
        yield f"  the half width is {have:.3g} points{much}; the margin is {wanted:.3g}" + (
            "" if look.reached else ", so more trials are needed"
        )
    if i.low == 0 < i.high and i.estimate == 0:
        yield f"  no trial had this outcome: the rate is below {_share(i.high)}, and may be 0"
    if found.task.metric(look.rate).any_of:
        yield f"  {look.rate} depends on the number of samples, {samples:,} here, and grows with it"
    if found.samples is not None:
        yield (
            f"  the choice of these {samples:,} samples adds ±{100 * found.samples.half_width:.3g} points to {headline}, "
            f"however many trials run"
        )


#: Lines of a ranking, at least.
_FEWEST_RANKED = 10
_CLASSES = (
    "Layer", ">Faults", ">Injections", ">Fully masked", ">SDC-1 (silent)", ">0-5 %", ">5-10 %", ">10-20 %", ">from 20 %",
    ">DUE", ">Faulty top-1", ">Golden top-1",
)  # fmt: skip


def _columns(task: Task, folds: Sequence[Fold]) -> tuple[Metric, ...]:
    """Return the metrics that a table shows."""
    return task.table({rate.name for fold in folds for rate in fold.rates})


def _table(title: str, key: str, folds: Sequence[Fold], task: Task) -> None:

    shown = _columns(task, folds)
    rows = [(fold.key, f"{fold.trials:,}", *(_cell(m, fold.rate(m.name)) for m in shown)) for fold in folds]
    table(title, (key, ">Trials", *(f">{m.label}" for m in shown)), rows)


def _share(value: float) -> str:
    return f"{100 * value:.3f} %"


def _golden(metric: Metric | None, found: CampaignRates) -> str:
    value = None if metric is None else found.golden["metrics"].get(metric.name)
    return "-" if metric is None or value is None else metric.text(float(value))


def _cells(metric: Metric, i: Interval) -> tuple[str, ...]:
    ends = (i.estimate, i.low, i.high)
    return tuple("-" if math.isnan(end) else metric.text(end, digits=3) for end in ends)


def _cell(metric: Metric, i: Interval | None) -> str:
    return "-" if i is None else metric.interval(i)
