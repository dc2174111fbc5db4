"""Figures of reports: the task's metric and the outcomes over rates, rates by layer and bit, maps, and elements.

They are written as SVG, PNG, PDF, or PGF for a paper's own fonts; a curve shows intervals, or the spread of its trials.

Drawn with matplotlib, the extra `report`. Colour-blind people can distinguish the colours (Okabe and Ito; cividis for
the map) and differ in grey; lines also differ in mark and dash. Text is drawn as outlines, so that a figure looks the
same everywhere, and no name in it is read as markup or mathematics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.report.curves import (
    COLOURS,
    MARKS,
    MOST_LAYERS,
    ROW_IN,
    WIDTH_IN,
    Figure,
    Kind,
    Spread,
    Table,
    accuracy_figure,
    level_text,
    needs,
    new_canvas,
    numbers_text,
    outcomes_figure,
    printable_name,
)
from onnxfi.campaign.report.rates import CampaignRates, Fold
from onnxfi.campaign.report.tables import layer_bit_cells, report_labels
from onnxfi.campaign.results.element_rates import element_rates, plane
from onnxfi.errors import InputError
from onnxfi.graph.write.output_file import atomic_files, make_folder
from onnxfi.statistics.intervals import Interval
from onnxfi.tasks.task import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

#: Letters of the name of a learning curve.
_LONGEST_CURVE = 48


def figures(found: Sequence[CampaignRates], elements: Sequence[str] = (), *, spread: str = "interval") -> list[Figure]:
    """Return the figures of one report, or of several side by side; where one cannot be drawn, its caption says why.

    `elements` are targets of which a map by element is added; `spread` is what curves show beside their line.
    Raises OutputError if matplotlib is not installed, and SelectorError for a target that no such map can be made of.
    """
    needs("matplotlib")
    maps = [
        _map(one, f"map-{k}" if len(found) > 1 else "map", f" of {label}" if len(found) > 1 else "")
        for k, (one, label) in enumerate(zip(found, report_labels(found), strict=True), 1)
    ]
    if spread not in get_args(Spread):
        raise InputError(f"there is no spread {spread!r}; give one of {', '.join(get_args(Spread))}")
    over_rates = (accuracy_figure(found, spread), outcomes_figure(found))
    return [*over_rates, _bars(found, "layers"), _bars(found, "bits"), *maps, *element_figures(found, elements)]


def element_figures(found: Sequence[CampaignRates], elements: Sequence[str]) -> list[Figure]:
    """Return a map by element of each of these targets; SelectorError for one that no such map can be made of."""
    if elements:
        needs("matplotlib")
    return [
        _elements(one, target, f"elements-{n}" + (f"-{k}" if len(found) > 1 else ""), label if len(found) > 1 else "")
        for n, target in enumerate(elements, 1)
        for k, (one, label) in enumerate(zip(found, report_labels(found), strict=True), 1)
    ]


def write_figures(
    found: Sequence[CampaignRates], folder: str | Path, elements: Sequence[str] = (), *,
    kinds: Sequence[str] = ("svg", "png"), spread: str = "interval",
) -> list[Path]:  # fmt: skip
    """Write the figures that can be drawn into a folder, each in every one of `kinds`; returns what was written."""
    for name in kinds:
        if name not in get_args(Kind):
            raise InputError(f"there is no figure format {name!r}; give some of {', '.join(get_args(Kind))}")
    drawn = [figure for figure in figures(found, elements, spread=spread) if figure.draw is not None]
    return write_drawn(drawn, Path(folder), kinds)


def write_drawn(drawn: Sequence[Figure], place: Path, kinds: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Write drawn figures into a folder, each in every one of `kinds`; returns what was written."""
    written = []
    make_folder(place)
    for figure in drawn:
        for kind in kinds:
            file = place / f"{figure.name}.{kind}"
            with atomic_files([file]) as (stream,):
                stream.write(figure.bytes(kind))
            written.append(file)
    return written


def coverage_figure(name: str, points: Sequence[tuple[str, float, Interval]], why_not: str) -> Figure:
    """Return the coverage of detectors over the time of one check; `why_not` says why there are no points."""
    title = "Coverage of detectors over the time of one check"
    if not points:
        return Figure(name, title, f"{title}: {why_not}")
    needs("matplotlib")
    text = "; ".join(f"{label}: {1e3 * cost:.3g} ms, {100 * c.estimate:.1f} %" for label, cost, c in points)

    def draw() -> Canvas:
        canvas = new_canvas(WIDTH_IN, 3.2)
        axes = canvas.subplots()
        for (label, cost, coverage), colour, mark in zip(points, cycle(COLOURS), cycle(MARKS), strict=False):
            at, low = 1e3 * cost, 100 * (coverage.estimate - coverage.low)
            axes.errorbar(
                [at], [100 * coverage.estimate], [[low], [100 * (coverage.high - coverage.estimate)]], color=colour,
                fmt=mark, label=printable_name(label), capsize=2,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(0, 103)
        axes.set_xlabel("Time of one check (ms)")
        axes.set_ylabel("Harmful faults found (%)")
        axes.legend(frameon=False, fontsize=7)
        return canvas

    return Figure(name, title, "", text, draw)


# By layer and bit


def _bars(found: Sequence[CampaignRates], by: str) -> Figure:
    what, title = ("layer", "Outcome rates by layer") if by == "layers" else ("bit", "Outcome rates by bit")
    keyed = [{f.key: f for f in (one.by_layer if by == "layers" else one.by_bit) if f.trials} for one in found]
    keys = list(dict.fromkeys(key for folds in keyed for key in folds))
    if not keys:
        hint = "a trial of many faults lies in no one " + what
        if any(one.by_layer for one in found):
            hint = "these faults change whole words"
        return Figure(by, title, f"No rates by {what} here: {hint}. Run single faults with --single.")
    if what == "bit" and all(key.isdecimal() for key in keys):  # else they are fields of bits
        keys = [str(bit) for bit in range(min(map(int, keys)), max(map(int, keys)) + 1)]
    task = found[0].task
    panels = [m for m in task.view(task.panels) if any(fold.rate(m.name) for folds in keyed for fold in folds.values())]
    shown, caption = keys, f"Bars are estimates, whiskers intervals at {level_text(found)}."
    if what == "layer" and len(keys) > MOST_LAYERS:
        rates = [{k: i.estimate for k, fold in f.items() if (i := fold.estimated(panels[0].name))} for f in keyed]
        worst = {k: max(each.get(k, 0) for each in rates) for k in keys}
        worst_keys = set(sorted(keys, key=lambda k: -worst[k])[:MOST_LAYERS])
        shown = [key for key in keys if key in worst_keys]
        caption += f" {MOST_LAYERS} of {len(keys):,} layers, those with the highest rates; the table has all."
    names = report_labels(found)
    kept = [(label, {k: folds[k] for k in shown if k in folds}) for label, folds in zip(names, keyed, strict=True)]
    text = " ".join(
        f"{label}, {m.name}: {numbers_text([(k, i) for k, f in one.items() if (i := f.estimated(m.name))])}."
        for label, one in kept
        for m in panels
    )
    draw = _by_layer if what == "layer" else _by_bit
    return Figure(by, title, caption, text, lambda: draw(keyed, names, shown, panels))


def _ends(intervals: Sequence[Interval]) -> Any:
    """Return the distances of the ends below and above the values, in percent ([2, n])."""
    return 100 * np.array(
        [[max(0, i.estimate - i.low) for i in intervals], [max(0, i.high - i.estimate) for i in intervals]]
    )


def _rows(keyed: Sequence[dict[str, Fold]], keys: Sequence[str], name: str) -> Iterator[Any]:
    """For each report its bars: where they stand beside the key's place, their values and whiskers."""
    width = 0.8 / len(keyed)
    for k, folds in enumerate(keyed):
        bars = [(at, i) for at, key in enumerate(keys) if key in folds and (i := folds[key].estimated(name))]
        offset = (k - (len(keyed) - 1) / 2) * width
        yield k, width, np.array([at + offset for at, _ in bars]), [i for _, i in bars]


def _by_layer(
    keyed: Sequence[dict[str, Fold]], names: Sequence[str], keys: Sequence[str], panels: Sequence[Metric]
) -> Canvas:
    row = max(ROW_IN, 0.1 * len(keyed))
    canvas = new_canvas(WIDTH_IN, 1.1 + row * len(keys) + 0.2 * (len(keyed) > 1))
    axes = np.atleast_1d(canvas.subplots(1, len(panels), sharey=True, gridspec_kw={"wspace": 0.22}))
    for ax, metric in zip(axes, panels, strict=True):
        for k, width, at, intervals in _rows(keyed, keys, metric.name):
            values = [100 * i.estimate for i in intervals]
            ax.barh(at, values, width, xerr=_ends(intervals), **_bar(k, names))
        ax.set(xlabel=metric.axis, xlim=(0, _top(keyed, keys, metric.name)))
        ax.tick_params(axis="x", labelsize=7)
        ax.grid(axis="x", alpha=0.25, linewidth=0.5)
    axes[0].set_yticks(range(len(keys)), [printable_name(key) for key in keys], fontsize=8)
    axes[0].set_ylim(len(keys) - 0.4, -0.6)
    axes[0].set_ylabel("Layer (name)")
    _legend(canvas, axes[0], names)
    return canvas


def _by_bit(
    keyed: Sequence[dict[str, Fold]], names: Sequence[str], keys: Sequence[str], panels: Sequence[Metric]
) -> Canvas:
    canvas = new_canvas(WIDTH_IN, 0.6 + 1.15 * len(panels))
    axes = np.atleast_1d(canvas.subplots(len(panels), 1, sharex=True, gridspec_kw={"hspace": 0.18}))
    for ax, metric in zip(axes, panels, strict=True):
        for k, width, at, intervals in _rows(keyed, keys, metric.name):
            values = [100 * i.estimate for i in intervals]
            ax.bar(at, values, width, yerr=_ends(intervals), **_bar(k, names))
        ax.set(ylim=(0, _top(keyed, keys, metric.name)))
        ax.set_ylabel(metric.axis, fontsize=8)
        ax.grid(axis="y", alpha=0.25, linewidth=0.5)
    step = 1 if len(keys) <= 12 else 2 if len(keys) <= 20 else 4
    marked = [k for k, bit in enumerate(keys) if not bit.isdecimal() or int(bit) % step == 0]
    fields = not all(key.isdecimal() for key in keys)
    axes[-1].set_xticks(marked, [printable_name(keys[k]) for k in marked], rotation=60 if fields else 0)
    named = "Bits (field of the word)" if fields else "Bit (position, 0 is the lowest)"
    axes[-1].set(xlabel=named, xlim=(-0.7, len(keys) - 0.3))
    canvas.align_ylabels()
    _legend(canvas, axes[-1], names)
    return canvas


def _bar(k: int, names: Sequence[str]) -> dict[str, Any]:
    hatches = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
    return {
        "color": COLOURS[k % len(COLOURS)], "hatch": hatches[k % len(hatches)], "edgecolor": "white", "linewidth": 0,
        "label": printable_name(names[k], 40), "error_kw": {"elinewidth": 0.8, "capsize": 1.5, "ecolor": "#222222"},
    }  # fmt: skip


def _top(keyed: Sequence[dict[str, Fold]], keys: Sequence[str], name: str) -> float:
    """Return the end of an axis: 100 %, or less where no whisker reaches that far."""
    highest = max((i.high for folds in keyed for k in keys if k in folds and (i := folds[k].rate(name))), default=1.0)
    return next(end for end in (2.0, 5.0, 10.0, 20.0, 50.0, 102.0) if 100 * highest <= end or end > 100)


def _legend(canvas: Canvas, axes: Axes, names: Sequence[str]) -> None:
    if len(names) > 1:
        handles, names = axes.get_legend_handles_labels()
        canvas.legend(handles, names, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)


# Layer × bit


def _map(one: CampaignRates, name: str, whose: str) -> Figure:
    title = f"Layer by bit{whose}"
    cells = layer_bit_cells(one.store)
    if not cells:
        hint = "these faults change whole words" if one.by_layer else "a trial of many faults lies in no one cell"
        return Figure(name, title, f"No map of layers and bits here: {hint}. Run single faults of bits with --single.")
    panels = one.task.view(one.task.panels)
    metric = next(m for m in panels if all(m.name in cell.means for cell in cells))
    rate = metric.name
    worst: dict[str, float] = {}
    for cell in cells:
        worst[cell.layer] = max(worst.get(cell.layer, 0.0), cell.means[rate])
    layers = [fold.key for fold in one.by_layer if fold.key in worst]
    caption = "Mean over the trials of a cell; hatched cells have none yet, or no sites."
    if len(layers) > MOST_LAYERS:
        kept = set(sorted(layers, key=lambda layer: -worst[layer])[:MOST_LAYERS])
        caption += f" {MOST_LAYERS} of {len(layers):,} layers, those with the highest rates."
        layers = [layer for layer in layers if layer in kept]
    highest = sorted((c for c in cells if c.layer in layers), key=lambda c: -c.means[rate])[:10]
    text = "Highest cells: " + "; ".join(f"{c.layer} bit {c.bit}: {100 * c.means[rate]:.2f} %" for c in highest) + "."
    values = {(c.layer, c.bit): 100 * c.means[rate] for c in cells}
    return Figure(name, title, caption, text, lambda: _cells(values, layers, metric))


def _cells(values: dict[tuple[str, int], float], layers: Sequence[str], metric: Metric) -> Canvas:
    last = max(bit for _, bit in values)
    shares = np.array([[values.get((layer, bit), np.nan) for bit in range(last + 1)] for layer in layers])
    ticks = {bit: str(bit) for bit in range(0, last + 1, 1 if last < 12 else 4)}
    named = ("Layer (name)", "Bit (position, 0 is the lowest)", metric.axis.replace("\n", " "))
    return _heat(shares, layers, ticks, named, _end(float(np.nanmax(shares))))


def heat_map(name: str, title: str, values: Table, named: tuple[str, str, str]) -> Figure:
    """Return a map of shares: `values` ({row: {column: share}}), `named` what rows, columns and shares are.

    Raises OutputError if matplotlib is not installed.

    >>> map_ = heat_map("leaks", "Leaks", {"lif1": {"0.5": 0.12, "2": 0.5}}, ("Layer", "Factor", "Top-1 (%)"))
    >>> map_.text, map_.bytes("png")[1:4]
    ('lif1: 0.5 12.0 %, 2 50.0 %.', b'PNG')
    """
    needs("matplotlib")
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    shares = np.array([[100 * row.get(column, np.nan) for column in columns] for row in values.values()])
    rows = (f"{row}: " + ", ".join(f"{c} {100 * x:.1f} %" for c, x in cells.items()) for row, cells in values.items())
    text, ticks = "; ".join(rows) + ".", dict(enumerate(map(printable_name, columns)))
    return Figure(name, title, title, text, lambda: _heat(shares, list(values), ticks, named, 100.0, numbers=True))


def learning_curves(name: str, title: str, curves: Mapping[str, Sequence[float]], label: str = "Top-1 (%)") -> Figure:
    """Return shares over the epochs of a training, a curve for each training or way to measure it.

    Raises OutputError if matplotlib is not installed.

    >>> figure = learning_curves("learning", "Training", {"plain": [0.61, 0.64], "with faults": [0.64, 0.77]})
    >>> figure.text, figure.bytes("png")[1:4]
    ('plain: 1 61.0 %, 2 64.0 %; with faults: 1 64.0 %, 2 77.0 %.', b'PNG')
    """
    needs("matplotlib")
    lines = (f"{one}: " + ", ".join(f"{k} {100 * x:.1f} %" for k, x in enumerate(c, 1)) for one, c in curves.items())
    text = "; ".join(lines) + "."

    def draw() -> Canvas:
        from matplotlib.ticker import MaxNLocator

        canvas = new_canvas(WIDTH_IN, 3.2)
        axes = canvas.subplots()
        for (one, shares), colour, mark in zip(curves.items(), cycle(COLOURS), cycle(MARKS), strict=False):
            epochs = range(1, len(shares) + 1)
            curve = printable_name(one, _LONGEST_CURVE)
            axes.plot(epochs, [100 * share for share in shares], color=colour, marker=mark, label=curve)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("Epoch")
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize=7)
        return canvas

    return Figure(name, title, title, text, draw)


def _heat(
    shares: NDArray[np.float64], rows: Sequence[str], ticks: Mapping[int, str], named: tuple[str, str, str], end: float,
    *, numbers: bool = False,
) -> Canvas:  # fmt: skip
    """Return a map of shares in percent ([rows, columns]) from 0 to `end`; with `numbers` each cell shows its own."""
    canvas = new_canvas(WIDTH_IN, 1.3 + max(ROW_IN, 1.2 / len(rows)) * len(rows))
    axes = canvas.add_subplot()
    axes.set_facecolor("white")
    axes.patch.set(hatch="//////", edgecolor="#bbbbbb")
    down, across = shares.shape
    image = axes.pcolormesh(
        np.arange(across + 1) - 0.5, np.arange(down + 1) - 0.5, np.ma.masked_invalid(shares), cmap="cividis",
        vmin=0, vmax=end, edgecolors="white", linewidth=0.3,
    )  # fmt: skip
    for (y, x), share in np.ndenumerate(shares) if numbers else ():
        if np.isfinite(share):
            axes.text(x, y, f"{share:.0f}", ha="center", va="center", color="black" if share > end / 2 else "white")
    axes.set_yticks(range(down), [printable_name(row) for row in rows], fontsize=8)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set(xlabel=named[1], ylabel=named[0], ylim=(down - 0.5, -0.5))
    pad = 0.62 / canvas.get_figheight()
    bar = canvas.colorbar(image, ax=axes, orientation="horizontal", pad=pad, fraction=0.05, aspect=40)
    bar.set_label(named[2])
    return canvas


# Elements of a target


def _elements(one: CampaignRates, target: str, name: str, whose: str) -> Figure:
    rates = element_rates(one.store, target)
    title = f"Elements of {target}" + (f", {whose}" if whose else "")
    with_trials = np.flatnonzero(rates.trials)
    few, many = int(rates.trials[with_trials].min()), int(rates.trials.max())
    each = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    caption = (
        f"{rates.metric.label[0].upper()}{rates.metric.label[1:]} by element, the mean of its trials: {each} in each "
        f"of {len(with_trials):,} of {rates.trials.size:,} elements; the others, hatched, have none."
    )
    worst = sorted(with_trials.tolist(), key=lambda k: -rates.means[k])[:10]
    places = (", ".join(map(str, np.unravel_index(k, rates.shape or (1,)))) for k in worst)
    said = (f"[{place}]: {100 * rates.means[k]:.2f} %" for k, place in zip(worst, places, strict=True))
    text = "Highest elements: " + "; ".join(said) + "."
    sheet, rows, columns = plane(100 * rates.means, rates.shape)
    return Figure(name, title, caption, text, lambda: _sheet(sheet, (rows, columns, rates.metric.axis)))


def _sheet(shares: NDArray[np.float64], named: tuple[str, str, str]) -> Canvas:
    """Return a plane of shares in percent as an image, each element a cell."""
    down, across = shares.shape
    canvas = new_canvas(WIDTH_IN, 1.3 + min(6.0, max(0.3, (WIDTH_IN - 0.8) * down / across)))
    axes = canvas.add_subplot()
    axes.set_facecolor("white")
    axes.patch.set(hatch="//////", edgecolor="#bbbbbb")
    import matplotlib

    end, colours = _end(float(shares[np.isfinite(shares)].max())), matplotlib.colormaps["cividis"]
    shown = np.ma.masked_where(np.isnan(shares), np.where(np.isinf(shares), 2 * end, shares))
    white = colours.with_extremes(over="white")
    image = axes.imshow(shown, cmap=white, vmin=0, vmax=end, aspect="auto", interpolation="none")
    axes.set(xlabel=named[1], ylabel=named[0])
    axes.locator_params(integer=True)
    if not named[0]:
        axes.set_yticks([])
    if not named[0] and down > 1:
        axes.set_xticks([])
    bar = canvas.colorbar(
        image, ax=axes, orientation="horizontal", pad=0.62 / canvas.get_figheight(), fraction=0.05, aspect=40
    )
    bar.set_label(named[2].replace("\n", " "))
    return canvas


def _end(highest: float) -> float:
    return next((end for end in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0) if highest <= end), 100.0)
