"""Tables of a paired comparison, for `onnxfi compare --paired`."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from onnxfi.cli.terminal import count, print_json, print_line, table

if TYPE_CHECKING:
    from onnxfi.campaign.report.paired_comparison import PairedComparison, PairedRow


def print_paired(found: PairedComparison, *, as_json: bool, kept: bool) -> None:
    """Print a paired comparison as tables, or as one JSON document; without `kept` its stores are gone."""
    if as_json:
        values = found.document()
        for row in values["models"] if not kept else ():
            row["store"] = None
        print_json(values)
        return
    names = [Path(side.model).stem for side in (found.first, found.second)]
    title = f"The same faults on both, paired differences at {found.confidence:.4g}"
    heads = (
        "Metric",
        "Rate",
        ">Trials",
        *(f">{name}" for name in names),
        ">Difference",
        ">Only first",
        ">Only second",
        ">p",
        ">Times rarer",
    )
    table(title, heads, [_row(row) for row in found.rows])  # fmt: skip
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
    table("Without faults", ("Cost", *(f">{name}" for name in names), ">Change"), costs)
    print_line(_own(found))
    if found.detection is not None:
        d = found.detection
        share = found.task.metric("sdc").interval
        print_line(
            f"detectors: {share(d.coverage)} of the trials with silent changes are DUE, {share(d.critical)} of those with "
            f"{found.task.metric(found.task.headline).label}; false alarms on {share(d.false_alarms)} of fault-free samples"
        )
    print_line(found.first.found.golden["data"])


def _row(row: PairedRow) -> tuple[str, ...]:
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
