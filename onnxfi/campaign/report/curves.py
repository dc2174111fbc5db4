"""A figure as a value, and the figures over the rates of a sweep: the metric of the task, and the outcomes stacked.

A curve shows intervals, or the spread of its trials. One of silent errors has a second line, of the answers that are
lost to DUE as well.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.report.findings import lost_answers, shares, short, silent_metric, turned_into_due
from onnxfi.campaign.report.rates import CampaignRates, Fold
from onnxfi.campaign.report.tables import rate_name, report_labels, swept_over, tex, values_by_rate
from onnxfi.errors import OutputError
from onnxfi.faults.trials import CONDITION_SAMPLERS
from onnxfi.graph.model.byte_source import printable
from onnxfi.statistics.intervals import Interval
from onnxfi.tasks.task import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

#: Shown beside the line of a curve: the intervals of the means, or how the trials scatter.
Spread = Literal["interval", "sd", "quantiles", "violin"]
#: The file formats of a figure.
Kind = Literal["svg", "png", "pdf", "pgf"]
#: Shares by row and column.
Table = Mapping[str, Mapping[str, float]]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9")
MARKS, DASHES = "os^Dv*", ("-", "--", "-.", ":")
WIDTH_IN, ROW_IN = 4.8, 0.17
_MOST_BANDS, MOST_LAYERS, _LONGEST_NAME, _ANY = 2, 60, 24, 1 << 20
_STYLE: Any = {
    "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "svg.fonttype": "path", "svg.hashsalt": "onnxfi",
    "text.parse_math": False, "axes.formatter.use_mathtext": False, "text.usetex": False, "hatch.linewidth": 0.5,
    "pdf.fonttype": 42, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
}  # fmt: skip


#: Campaigns with their labels and the intervals of a metric by rate, and the values of its trials by rate.
Series = Sequence[tuple[CampaignRates, str, list[tuple[str, Interval]]]]
Scattered = Mapping[str, NDArray[np.float64]]
_SPREADS = {
    "sd": "Means; bands or whiskers are the standard deviation",
    "quantiles": "Medians; bands or whiskers reach from the 5 % to the 95 % quantile",
    "violin": "Violins are the density, lines the median",
}
#: Outcomes from the bottom up: what they are called, their share, colour and hatch.
_STACKED = (("SDC", "sdc", "#D55E00", ""), ("DUE", "due", "#0072B2", "////"), ("masked", "kept", "#c9d3dd", ""))
_NO_DATES: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None}, "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}  # fmt: skip
#: Programs that measure texts for PGF, the first of them that is there.
_TEX_SYSTEMS = ("xelatex", "lualatex", "pdflatex")


@dataclass(frozen=True)
class Figure:
    """A figure, or (`draw` None) why there is none, in `caption`. `text` says what it shows, number by number."""

    name: str
    title: str
    caption: str
    text: str = ""
    draw: Callable[[], Canvas] | None = None

    def drawn(self) -> Canvas:
        """Return the figure as one of matplotlib."""
        assert self.draw is not None
        with _style():
            return self.draw()

    def bytes(self, kind: str = "svg") -> bytes:
        """Return the drawn figure as SVG, PNG of 300 dots an inch, PDF or PGF; OutputError for PGF without TeX."""
        assert self.draw is not None
        if kind == "pgf":
            return self._pgf().encode()
        stream = io.BytesIO()
        with _style():
            canvas = self.draw()
            named = "Subject" if kind == "pdf" else "Description"
            title, text = (printable_name(one, _ANY) for one in (self.title, self.text))
            metadata: dict[str, Any] = {"Title": title, named: text}
            metadata |= _NO_DATES[kind]
            canvas.savefig(stream, format=kind, dpi=300, metadata=metadata, bbox_inches="tight", pad_inches=0.05)
        return stream.getvalue()

    def _pgf(self) -> str:
        """Return the figure as macros of TikZ; TeX measures its texts, in which no name is read as a command."""
        assert self.draw is not None
        system = next((name for name in _TEX_SYSTEMS if shutil.which(name)), None)
        if system is None:
            raise OutputError(f"PGF needs one of {', '.join(_TEX_SYSTEMS)}; install TeX Live, or give svg or pdf")
        from matplotlib import rc_context
        from matplotlib.text import Text
        from matplotlib.ticker import FixedFormatter

        stream = io.StringIO()
        with _style(), rc_context({"pgf.texsystem": system, "pgf.rcfonts": False}):
            canvas = self.draw()
            for axes in canvas.axes:
                for axis in (axes.xaxis, axes.yaxis):
                    formatter = axis.get_major_formatter()
                    if isinstance(formatter, FixedFormatter):
                        formatter.seq = [tex(name) for name in formatter.seq]
            for text in canvas.findobj(Text):
                text.set_text(tex(text.get_text()))
            canvas.savefig(stream, format="pgf", bbox_inches="tight", pad_inches=0.05)
        return re.sub(r"(?m)^%.*\n", "", stream.getvalue())


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks
        try:
            yield
        finally:
            log.setLevel(level)


def needs(package: str) -> None:
    """Raise OutputError if a package of the extra `report` is not installed."""
    if importlib.util.find_spec(package) is None:
        raise OutputError(f"{package} is not installed; pip install 'onnxfi[report]'")


def printable_name(text: str, most: int = _LONGEST_NAME) -> str:
    """Return a name on one line, without control characters, cut in its middle where it is long."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"


def new_canvas(width: float, height: float) -> Canvas:
    """Return an empty figure of a width and a height in inches."""
    from matplotlib.figure import Figure as Drawn

    return Drawn(figsize=(width, height))


def numbers_text(rows: Sequence[tuple[str, Interval]]) -> str:
    """Return keys with their intervals in words."""
    return "; ".join(f"{key}: {100 * i.estimate:.2f} % [{100 * i.low:.2f}, {100 * i.high:.2f}]" for key, i in rows)


def level_text(found: Sequence[CampaignRates]) -> str:
    """Return the confidence of the intervals, in percent."""
    return ", ".join(dict.fromkeys(f"{100 * one.confidence:.4g} %" for one in found))


def _with(folds: Sequence[Fold], name: str) -> list[tuple[str, Interval]]:
    return [(fold.key, i) for fold in folds if (i := fold.rate(name)) is not None]


# Over the rates of a sweep


def accuracy_figure(found: Sequence[CampaignRates], spread: str = "interval") -> Figure:
    """Return the figure of the task's metric over the rates of a sweep."""
    swept = [(one, label) for one, label in zip(found, report_labels(found), strict=True) if one.by_rate]
    over = " or ".join(dict.fromkeys(swept_over(one) for one, _ in swept)) or "bit error rate"
    if not swept:
        missing = "No bit error rates here: run a sweep with --ber for accuracy over rates."
        return Figure("accuracy", f"Accuracy over {over}", missing)
    task = swept[0][0].task
    metric = task.first(
        task.curves, [n for n in task.curves if all(n in one.telling and _with(one.by_rate, n) for one, _ in swept)]
    )
    name = metric.name
    named = metric.axis.partition(" (")[0] if metric == task.accuracy else metric.label
    title = f"{named if named[1:2].isupper() else named[0].upper() + named[1:]} over {over}"  # mIoU stays
    series = [(one, label, _with(one.by_rate, name)) for one, label in swept]
    text = " ".join(f"{label}: {numbers_text(rows)}." for _, label, rows in series)
    drawn = "bands" if len(series) <= _MOST_BANDS else "whiskers"
    caption = f"Means over trials; {drawn} are intervals at {level_text(found)}, dashed lines golden."
    if metric != task.accuracy:
        caption = f"Means over trials; {drawn} are intervals at {level_text(found)}."
        unlabelled = task.accuracy is not None and task.accuracy.name not in swept[0][0].golden["metrics"]
        caption += " Without labels there is no accuracy." if unlabelled else ""
    if spread != "interval":
        caption = f"{_SPREADS[spread]} of the trials at each rate."
    if metric.silent and any(any(turned_into_due(one)) for one, _ in swept):
        caption += " Where the line falls, answers turn into DUE: the dotted line, of both together, does not improve."
    scattered = [] if spread == "interval" else [values_by_rate(one, metric) for one, _, _ in series]
    draw = _violins if spread == "violin" else partial(_curves, spread=spread)
    return Figure("accuracy", title, caption, text, lambda: draw(series, metric, scattered))


def _curves(series: Series, metric: Metric, scattered: Sequence[Scattered] = (), *, spread: str) -> Canvas:
    canvas = new_canvas(WIDTH_IN, 3.2)
    axes = canvas.add_subplot()
    styles = cycle(zip(COLOURS, MARKS, cycle(DASHES), strict=False))
    many = len(series) > _MOST_BANDS
    apart = many and not _over_conditions(series)  # on a logarithmic axis
    for k, ((one, label, rows), (colour, mark, dash)) in enumerate(zip(series, styles, strict=False)):
        beside = 10 ** (0.06 * (k - (len(series) - 1) / 2)) if apart else 1.0  # so that whiskers stand side by side
        x = [float(key) * beside for key, _ in rows]
        y, low, high = (100 * np.array([getattr(i, end) for _, i in rows]) for end in ("estimate", "low", "high"))
        if scattered:
            y, low, high = _ends_of([scattered[k][key] for key, _ in rows], spread)
        if metric.silent and (lost := lost_answers(one)):
            both = [(at, 100 * lost[key].estimate) for at, (key, _) in zip(x, rows, strict=True) if key in lost]
            axes.plot(*zip(*both, strict=True), ":", color=colour, linewidth=1.2, label="with DUE")
        axes.plot(x, y, dash, marker=mark, color=colour, markersize=4, linewidth=1.4, label=printable_name(label, 40))
        if not many:  # more of them run into one grey
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.errorbar(x, y, [y - low, high - y], fmt="none", ecolor=colour, elinewidth=0.7, capsize=2, alpha=0.8)
        golden = one.golden["metrics"].get(metric.name) if metric.needs_labels else None
        if golden is not None:
            axes.axhline(100 * golden, color=colour, linewidth=0.8, linestyle=(0, (6, 3)), zorder=0, label="golden")
    _scale(axes, series)
    rates = " or ".join(dict.fromkeys(rate_name(one) for one, _, _ in series))
    axes.set(xlabel=rates, ylabel=metric.axis, ylim=(-3, 103))
    axes.grid(alpha=0.25, linewidth=0.5)
    handles, names = axes.get_legend_handles_labels()
    order = sorted({name: k for k, name in enumerate(names)}.values(), key=lambda k: names[k] == "golden")
    if len(order) > 1:
        shown = [handles[k] for k in order], [names[k] if names[k] != "golden" else "golden, dashed" for k in order]
        axes.legend(*shown, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return canvas


def _over_conditions(series: Series) -> bool:
    """Return True if all go over the voltages or temperatures of fault maps."""
    return all(swept_over(one) in CONDITION_SAMPLERS for one, _, _ in series)


def _scale(axes: Any, series: Series) -> None:
    """Scale the axis of rates: logarithmic, of conditions linear from no stress to the most, so that voltages fall."""
    if _over_conditions(series):
        if all(swept_over(one) == "voltage" for one, _, _ in series):
            axes.invert_xaxis()
        return
    keys = [float(key) for _, _, rows in series for key, _ in rows]
    if 0 in keys:
        axes.set_xscale("symlog", linthresh=min((key for key in keys if key > 0), default=1e-9), linscale=0.5)
    else:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0e}".replace("e-0", "e-") if x else "0")
    axes.xaxis.set_minor_formatter(lambda x, _: "")


def _ends_of(values: Sequence[NDArray[np.float64]], spread: str) -> tuple[Any, Any, Any]:
    """Return the middle and the ends of each group in percent: mean and standard deviation, or quartiles."""
    if spread == "quantiles":
        low, middle, high = (100 * np.array([np.quantile(one, q) for one in values]) for q in (0.05, 0.5, 0.95))
        return middle, low, high
    mean, sd = (np.array([100 * f(one) for one in values]) for f in (np.mean, _deviation))
    return mean, np.maximum(mean - sd, 0), np.minimum(mean + sd, 100)


def _deviation(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _violins(series: Series, metric: Metric, scattered: Sequence[Scattered]) -> Canvas:
    """Draw how the trials at each rate scatter, with their medians; rates stand side by side."""
    canvas = new_canvas(WIDTH_IN, 3.2)
    axes = canvas.add_subplot()
    keys = sorted({key for _, _, rows in series for key, _ in rows}, key=float)
    width = 0.8 / len(series)
    for k, (values, (_, label, rows)) in enumerate(zip(scattered, series, strict=True)):
        at = [keys.index(key) + (k - (len(series) - 1) / 2) * width for key, _ in rows]
        groups = [100 * values[key] for key, _ in rows]
        drawn = axes.violinplot(groups, at, widths=0.9 * width, showextrema=False, showmedians=True)
        bodies: Any = drawn["bodies"]
        for body in bodies:
            body.set(facecolor=COLOURS[k % len(COLOURS)], alpha=0.5)
        drawn["cmedians"].set(color=COLOURS[k % len(COLOURS)])
        axes.plot([], [], color=COLOURS[k % len(COLOURS)], linewidth=6, alpha=0.5, label=printable_name(label, 40))
    axes.set_xticks(range(len(keys)), keys)
    rates = " or ".join(dict.fromkeys(rate_name(one) for one, _, _ in series))
    axes.set(xlabel=rates, ylabel=metric.axis, ylim=(-3, 103))
    axes.grid(axis="y", alpha=0.25, linewidth=0.5)
    if len(series) > 1:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return canvas


def outcomes_figure(found: Sequence[CampaignRates]) -> Figure:
    """Return the figure of masked, SDC and DUE answers over the rates of a sweep, stacked."""
    swept = [(one, label) for one, label in zip(found, report_labels(found), strict=True) if one.by_rate]
    over = " or ".join(dict.fromkeys(swept_over(one) for one, _ in swept)) or "bit error rate"
    title = f"Masked, SDC and DUE over {over}"
    if not swept:
        return Figure("outcomes", title, "No bit error rates here: run a sweep with --ber for outcomes over rates.")
    parts = [
        (label, [(f.key, s) for f in one.by_rate if f.trials and (s := shares(one.task, f))]) for one, label in swept
    ]
    silent = short(silent_metric(swept[0][0].task))
    text = " ".join(
        f"{label}: " + "; ".join(f"{key}: masked {100 * s.kept:.1f} %, SDC {100 * s.sdc:.1f} %, DUE {100 * s.due:.1f} %"
                                 for key, s in rows) + "." for label, rows in parts
    )  # fmt: skip
    caption = f"What becomes of the answers; SDC is {silent}. The top of DUE is what is lost to either."
    return Figure("outcomes", title, caption, text, lambda: _stacks(parts, rate_name(swept[0][0])))


def _stacks(parts: Sequence[tuple[str, list[tuple[str, Any]]]], rate: str) -> Canvas:
    canvas = new_canvas(WIDTH_IN, 0.6 + 2.3 * len(parts))
    panels = np.atleast_1d(canvas.subplots(len(parts), 1, gridspec_kw={"hspace": 0.5}))
    for axes, (label, rows) in zip(panels, parts, strict=True):
        bottom = np.zeros(len(rows))
        for name, part, colour, hatch in _STACKED:
            heights = np.array([100 * getattr(one, part) for _, one in rows])
            look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
            axes.bar(range(len(rows)), heights, 0.7, bottom=bottom, label=name, **look)
            bottom += heights
        axes.set_xticks(range(len(rows)), [key for key, _ in rows])
        axes.set(ylabel="Answers (%)", ylim=(0, 100), title=printable_name(label, 40) if len(parts) > 1 else "")
    panels[-1].set_xlabel(rate)
    handles, names = panels[-1].get_legend_handles_labels()
    panels[-1].legend(handles, names, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3)
    return canvas
