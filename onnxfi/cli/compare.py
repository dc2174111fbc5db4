"""`onnxfi compare A.onnx B.onnx …`: compare versions of a network at the same bit error rates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.options import CODE, JSON, LINKS, MEMORY, RUN, SELECT, STAGE, refuse_flags, verb
from onnxfi.cli.streams import OUTPUT, InputFile
from onnxfi.cli.terminal import count, print_json, print_line, print_note, table

if TYPE_CHECKING:
    from onnxfi.campaign.report.compare import Comparison
    from onnxfi.campaign.report.paired_comparison import PairedComparison, PairedRow
    from onnxfi.campaign.report.report import Report
    from onnxfi.campaign.run.runner import Running
    from onnxfi.campaign.spec.campaign import Campaign
    from onnxfi.statistics.intervals import Interval
    from onnxfi.tasks.task import Metric


_OPTIONS = (
    click.argument("models", metavar="MODEL…", nargs=-1, required=True, type=InputFile()),
    click.option("--ber", metavar="RATES", help="Bit error rates: 1e-6, a list 1e-6,1e-5, or decades 1e-7:1e-3."),
    click.option("--paired", is_flag=True, help="Run the same faults on two models, and compare them trial by trial."),
    click.option("--trials", type=click.IntRange(1), metavar="N", help="With --paired: N single faults in place of a sweep."),
    click.option("--target", default="weights", show_default=True, metavar="TARGETS", help="Inject into weights, activations, inputs or kv-cache; a list with commas."),
    click.option("--all", is_flag=True, help="Inject into all activations (default: the outputs of layers)."),
    click.option("--allow-calibration-data", is_flag=True, help="With --paired: score also on samples on which a model was calibrated."),
    click.option("--repeat", type=int, default=10, show_default=True, help="Trials at each rate for each model."),
    click.option("--confidence", type=float, default=0.99, show_default=True, help="Confidence level of every interval."),
    click.option("--fault", default="flip", show_default=True, metavar="FAULT", help="Fault model, as in onnxfi inject."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of every draw."),
    *MEMORY,
    *SELECT,
    *RUN,
    STAGE,
    LINKS,
    CODE,
    click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Folder of the stores, to resume and report on them (default: they are removed)."),
    click.option("--html", type=OUTPUT, metavar="FILE", help="Write one offline HTML page of all of them side by side, with their differences; needs the extra `report`."),
    click.option("--figures", "figure_folder", type=click.Path(path_type=Path), metavar="DIR", help="Write accuracy over bit error rate as SVG and PNG; needs the extra `report`."),
    click.option("--workers", type=click.IntRange(0), metavar="N", help="Worker processes; 0 runs trials in this process (default: one per core)."),
)  # fmt: skip


@verb("compare", "Compare versions of a network at the same bit error rates.", *_OPTIONS, JSON)
def command(
    models: tuple[Path, ...], out: Path | None, html: Path | None, figure_folder: Path | None, workers: int | None, as_json: bool,
    **flags: Any,
) -> None:  # fmt: skip
    """Compare versions of a network under faults: the same sweep on several, or with --paired the same faults on two.

    A sweep prints accuracy over bit error rate for all of them. The rate is per stored bit, so a version with fewer bits gets fewer faults, as its memory would. Intervals are those
    of onnxfi report. Without labels the rate of changed answers is compared.

    --paired maps the fault list of the first model onto the second, tensor by tensor and word by word, as of a model
    and its protected version. Differences have paired intervals; faults in what the second alone has are counted too.

    \b
    onnxfi compare cnn.onnx cnn_fp16.onnx cnn_int8.onnx --data images.npz --ber 1e-6:1e-3
    onnxfi compare cnn.onnx cnn_int8.onnx --data images.npz --ber 1e-6:1e-3 --figures figures --html both.html
    onnxfi compare cnn.onnx protected.onnx --data images.npz --paired --trials 1000
    """
    from onnxfi.campaign.report.compare import compare
    from onnxfi.campaign.workers.scheduling import default_workers
    from onnxfi.cli.report import check_extras
    from onnxfi.graph.write.output_file import check_folder
    from onnxfi.graph.write.scratch_folder import scratch_folder

    if len(models) < 2:
        raise click.UsageError("compare needs two models or more; for one use onnxfi run")
    _check_design(models, flags, figures=figure_folder is not None)
    check_extras(html, models, figures=figure_folder is not None)
    for path in (out, figure_folder):
        if path is not None:
            check_folder(path)

    def on_start(running: Running) -> None:
        if not as_json:
            print_note(
                f"{running.plan.campaign.model}: {(running.total or 0) - running.outcomes.total():,} trials, golden run {running.golden_s:.2f} s"
            )

    with ExitStack() as stack:
        folder = out or stack.enter_context(scratch_folder())
        base = _campaign(models[0], flags)
        threads = default_workers(base) if workers is None else workers
        if flags["paired"]:
            _compare_paired(
                models, base, folder, threads, flags["allow_calibration_data"], on_start, as_json, out, html
            )
            return
        found = compare(
            [str(m) for m in models], base, folder,
            workers=default_workers(base) if workers is None else workers, on_start=on_start,
        )  # fmt: skip
        reports = [version.found for version in found.versions]
        written = _write(reports, figure_folder, html)
    if as_json:
        values = found.document()
        for row in values["models"] if out is None else ():
            row["store"] = None
        print_json(values)
    else:
        _print(found)
        for file in written:
            print_line(f"wrote {file}")


def _write(reports: list[Report], figure_folder: Path | None, html: Path | None) -> list[Path]:
    """Write the figures and the page that were asked for."""
    from onnxfi.campaign.report.figures import write_figures
    from onnxfi.campaign.report.html_page import write_page

    written = [] if figure_folder is None else write_figures(reports, figure_folder)
    return written + ([] if html is None else [write_page(reports, html)])


def _compare_paired(
    models: tuple[Path, ...], base: Campaign, folder: Path, workers: int, allowed: bool,
    tell: Callable[[Running], None], as_json: bool, out: Path | None, html: Path | None,
) -> None:  # fmt: skip
    """Run the same faults on two models, and print the comparison."""
    from onnxfi.campaign.report.paired_comparison import compare_paired, write_paired_page

    first, second = map(str, models)
    found = compare_paired(first, second, base, folder, workers=workers, allow_calibration_data=allowed, tell=tell)
    if html is not None:
        write_paired_page(found, html)
    _print_paired(found, as_json=as_json, kept=out is not None)
    if html is not None and not as_json:
        print_line(f"wrote {html}")


def _check_design(models: tuple[Path, ...], flags: dict[str, Any], *, figures: bool) -> None:
    """Refuse flags that do not go together."""
    if not flags["paired"]:
        refuse_flags(("trials", "allow_calibration_data"), "without --paired")
        if not flags["ber"]:
            raise click.UsageError("give the rates of the sweep with --ber, as 1e-6:1e-3")
        return
    if len(models) != 2:
        raise click.UsageError(f"--paired compares two models, given {len(models)}")
    if (flags["ber"] is None) == (flags["trials"] is None):
        raise click.UsageError("--paired takes either --ber RATES or --trials N")
    if figures:
        raise click.UsageError("--figures has no effect with --paired; leave it out")
    if flags["trials"]:
        refuse_flags(("repeat",), "with --trials")


def _campaign(model: Path, flags: dict[str, Any]) -> Campaign:
    """Return the campaign of the flags for the first model."""
    from onnxfi.campaign.spec.campaign import Campaign
    from onnxfi.campaign.spec.flat_fields import flat_fields

    values = {name: flags[name] for name in flat_fields(Campaign) if name in flags}
    values["target"] = tuple(one.strip() for one in flags["target"].split(",") if one.strip())
    if flags["trials"] is not None:
        del values["ber"], values["repeat"]
        return Campaign(**{"model": model, **values, "single": True})
    return Campaign(**{"model": model, **values})


def _print(found: Comparison) -> None:

    names = [Path(v.model).stem for v in found.versions]
    rows: list[tuple[str, ...]] = [
        ("size, bytes", *(f"{v.size_bytes:,}" for v in found.versions)),
        (f"population, {found.versions[0].unit}s", *(f"{v.population:,}" for v in found.versions)),
    ]
    metric = found.versions[0].found.task.metric(found.measure)
    if metric.unchanged is None:
        golden = map(found.golden, found.versions)
        rows.append(("golden run", *("-" if value is None else metric.text(value) for value in golden)))
    for rate in found.rates:
        cells = [found.cell(v, rate) for v in found.versions]
        texts = ["-" if i is None else _text(metric, i) for i in cells]
        rows.append((f"{rate:g}", *texts))
    title = f"{metric.label} over rate per {found.versions[0].unit}, intervals at {found.confidence:.4g}"
    table(title, ("Rate", *(f">{name}" for name in names)), rows)
    first = found.versions[0].found
    fewest = min((f.trials for v in found.versions for f in v.found.by_rate), default=0)
    print_line(f"{first.golden['data']}; {fewest} trials or more at each rate")


def _text(metric: Metric, i: Interval) -> str:
    return f"{i.estimate:.2%} [{i.low:.2%}, {i.high:.2%}]" if metric.share else metric.interval(i)


def _print_paired(found: PairedComparison, *, as_json: bool, kept: bool) -> None:
    """Print a paired comparison as tables, or as one JSON document; without `kept` its stores are gone."""
    if as_json:
        values = found.document()
        for row in values["models"] if not kept else ():
            row["store"] = None
        print_json(values)
        return
    names = [Path(side.model).stem for side in (found.first, found.second)]
    title = f"The same faults on both, paired differences at {found.confidence:.4g}"
    versions = [f">{name}" for name in names]
    heads = ("Metric", "Rate", ">Trials", *versions, ">Difference", ">Only first", ">Only second", ">p", ">Times rarer")
    table(title, heads, [_paired_row(row) for row in found.rows])
    costs = [
        (f"{metric.label}, no fault", metric.text(one), metric.text(two), metric.text(two - one))
        for metric, one, two in found.golden()
    ]
    one, two = found.first, found.second
    costs += [
        ("time of a batch, ms", f"{1e3 * one.batch_s:.2f}", f"{1e3 * two.batch_s:.2f}", f"× {two.batch_s / one.batch_s:.2f}"),
        ("size, bytes", f"{one.size_bytes:,}", f"{two.size_bytes:,}", f"{two.size_bytes - one.size_bytes:+,}"),
        ("nodes", f"{one.nodes:,}", f"{two.nodes:,}", f"{two.nodes - one.nodes:+,}"),
    ]  # fmt: skip
    table("Without faults", ("Cost", *versions, ">Change"), costs)
    print_line(_own(found))
    if found.detection is not None:
        d = found.detection
        share = found.task.metric("sdc").interval
        print_line(
            f"detectors: {share(d.coverage)} of the trials with silent changes are DUE, {share(d.critical)} of those with "
            f"{found.task.metric(found.task.headline).label}; false alarms on {share(d.false_alarms)} of fault-free samples"
        )
    print_line(found.first.found.golden["data"])


def _paired_row(row: PairedRow) -> tuple[str, ...]:
    metric, f = row.metric, row.found
    ratio = (
        ""
        if row.ratio is None
        else "not known"
        if isnan(row.ratio.estimate)
        else f"{row.ratio.estimate:.3g} [{row.ratio.low:.3g}, {row.ratio.high:.3g}]"
    )
    rate = "" if row.ber is None else f"{row.ber:g}"
    numbers = (metric.text(f.first), metric.text(f.second), metric.interval(f.difference))
    return (metric.label, rate, f"{f.n:,}", *numbers, f"{f.only_first:,}", f"{f.only_second:,}", f"{f.p_value:.2g}", ratio)  # fmt: skip


def _own(found: PairedComparison) -> str:
    """Return what is said of the sites that the second model alone has."""
    own = found.own
    if not own.sites:
        return "the second model has no sites of its own under this selection"
    share = f"{own.sites:,} of {own.population:,} sites ({own.sites / own.population:.2%}) in {count(own.targets, 'tensor')}"
    if own.without_effect:
        return (
            f"of its own the second model has {share}: all exponent bits of each of them, set together, changed no answer, "
            f"so no single faults were drawn there"
        )
    if own.rate is None or own.together is None:
        return f"of its own the second model has {share}; they had faults at the same rate"
    headline = found.task.metric(found.task.headline)
    return (
        f"of its own the second model has {share}: {count(own.trials, 'single fault')} there gave {headline.label} "
        f"{headline.interval(own.rate)}; one fault anywhere in it gives {headline.interval(own.together)}"
    )
