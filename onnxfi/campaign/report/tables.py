"""Tables of reports: published classes by layer, CSV and LaTeX, means by layer and bit, several reports in one."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.report.rates import CampaignRates, Fold
from onnxfi.campaign.results.store import Store, declared_task
from onnxfi.campaign.results.trial_columns import trial_columns
from onnxfi.faults.trials import CONDITION_SAMPLERS
from onnxfi.graph.model.byte_source import printable
from onnxfi.graph.write.output_file import atomic_files, make_folder
from onnxfi.tasks.task import Metric

#: First characters of a formula, also as wide letters.
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def classes(found: CampaignRates) -> list[dict[str, Any]]:
    """Return the table of Gogebakan et al. (SpikingJET, 2024): a row a layer; shares from masked to DUE sum to 1.

    `faults` counts the trials, `injections` the samples that were run under them, `batch_runs` the batches, which are
    the injections of SpikingJET. Empty where nothing is classified, trials put faults into many layers at once, or an
    adaptive campaign estimates each class by itself, so that their sum is 1 only approximately.
    """
    accuracy, names = found.task.accuracy, found.task.classes
    rows: list[dict[str, Any]] = []
    if found.look is not None or not names:
        return rows
    for fold in found.by_layer:
        shares = [fold.rate(name) for name in names]
        if all(shares) and fold.trials:
            row: dict[str, Any] = {
                "layer": fold.key, "faults": fold.trials,
                "injections": fold.trials * found.judged,
                "batch_runs": fold.trials * -(-found.judged // int(found.campaign["batch"])),
            }  # fmt: skip
            row |= {name.removeprefix("class_"): i.estimate for name, i in zip(names, shares, strict=True) if i}
            if accuracy is not None and (faulty := fold.rate(accuracy.name)):
                golden = found.golden["metrics"].get(accuracy.name)
                row |= {"faulty_accuracy": faulty.estimate, "golden_accuracy": golden}
            rows.append(row)
    return rows


def by_harm(folds: Sequence[Fold], metric: Metric) -> list[Fold]:
    """Return folds with the most harmful first, by the estimate of a metric; those without an estimate come last.

    Of two with the same estimate the one whose interval begins and ends higher comes first, then the model's order.
    """
    sign = -1.0 if metric.better == "lower" else 1.0

    def key(fold: Fold) -> tuple[float, ...]:
        found = fold.estimated(metric.name)
        return (1.0,) if found is None else (0.0, *(sign * end for end in (found.estimate, found.low, found.high)))

    return sorted(folds, key=key)


def swept_over(found: CampaignRates) -> str:
    """Return what a sweep goes over, in words: bit error rates, rates per word, or probabilities per sample."""
    kind = found.header.sampler.kind
    if found.campaign["design"] == "per_sample":
        return "fault probability per sample"
    if kind in CONDITION_SAMPLERS:
        return kind
    return "bit error rate" if found.header.unit == "bit" else "fault rate per word"


def rate_name(found: CampaignRates) -> str:
    """Return the name of a sweep's rates with their unit, as the head of a column or an axis."""
    heads = {"bit error rate": "Bit error rate (faults per bit)", "fault rate per word": "Rate (faults per word)"}
    heads |= {"voltage": "Voltage (V)", "temperature": "Temperature (°C)"}
    return heads.get(swept_over(found), "Probability of a fault per sample")


def write_csv(found: CampaignRates, folder: str | Path, *, by_model: bool = False) -> list[Path]:
    """Write the report as CSV files into a folder; returns what was written.

    `detail.csv` has a line per trial, `summary.csv` the rates of all trials with their intervals; the same by
    rate, layer and bit stands in `rates.csv`, `layers.csv` and `bits.csv`, where there are such, and what `classes`
    says in `classes.csv`. With `by_model` the model's name is in theirs: `MODEL.csv` has the rates (without a sweep the
    summary), each other table is `detail-MODEL.csv` and the like.
    """
    make_folder(Path(folder))
    return [write_table(Path(folder, name), lines()) for name, lines in _csv_tables(found, by_model=by_model).items()]


def _csv_tables(found: CampaignRates, *, by_model: bool) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """Return by the name of each CSV file what yields its lines."""
    over = swept_over(found)
    rates = "per_sample" if found.campaign["design"] == "per_sample" else over if over in CONDITION_SAMPLERS else "ber"
    tables: dict[str, Sequence[dict[str, Any]]] = {
        "summary": [_flat("", found.everything, found)],
        "rates": [_flat(rates, fold, found) for fold in found.by_rate],
        "layers": [_flat("layer", fold, found) for fold in found.by_layer],
        "bits": [_flat("bit", fold, found) for fold in found.by_bit],
        "classes": classes(found),
    }
    kept: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {"detail": found.details}
    kept |= {name: partial(iter, rows) for name, rows in tables.items() if rows}
    model, main = Path(found.header.file).stem or "model", "rates" if "rates" in kept else "summary"
    names = {name: f"{name}-{model}" if name != main else model for name in kept} if by_model else {}
    return {f"{names.get(name, name)}.csv": rows for name, rows in kept.items()}


def _flat(key: str, fold: Fold, found: CampaignRates) -> dict[str, Any]:
    """Return a fold as one line: what it is, its counts, the golden accuracy, then value and ends of each rate."""
    row: dict[str, Any] = {key: fold.key} if key else {}
    row |= {"trials": fold.trials, "population": fold.population}
    row |= {f"trials_{name}": n for name, n in fold.outcomes.items()}
    row |= {f"golden_{name}": found.golden["metrics"].get(name) for name in found.task.golden_names}
    shares = [m.name for m in found.task.reports if m.fold != "count"]
    for name in (*shares, *(m.name for m in found.task.reports if m.fold == "count")):
        i, mean = fold.rate(name), fold.estimated(name)
        row |= {name: mean and mean.estimate, f"{name}_low": i and i.low, f"{name}_high": i and i.high}
    return row


def values_by_rate(campaign: CampaignRates, metric: Metric) -> dict[str, NDArray[np.float64]]:
    """Return the values of a metric in the trials at each rate of a sweep, as rates are printed."""
    rates = {s["stratum"]: s["ber"] for s in campaign.strata if s["ber"] is not None}
    with Store.open(campaign.store, checked=True) as opened:
        trials = trial_columns(opened, [metric])
    values = trials.by_stratum(trials.of(metric.name))
    found: dict[str, list[NDArray[np.float64]]] = {}
    for stratum, rate in rates.items():
        if stratum in values:
            found.setdefault(f"{rate:g}", []).append(values[stratum])
    return {key: np.concatenate(parts) for key, parts in found.items()}


#: Characters that TeX reads as commands, each as it is written as itself.
_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "−": "-", "…": r"\ldots{}", "×": r"\texttimes{}",
}  # fmt: skip


def tex(text: str) -> str:
    r"""Return a text as TeX prints it: no character of it is a command, and other letters than Latin ones are `?`.

    >>> tex("a_b\\input{x} 5 %")
    'a\\_b\\textbackslash{}input\\{x\\} 5 \\%'
    """
    kept = "".join(_TEX.get(c, c if c.isascii() or "\xa0" <= c <= "\u017f" else "?") for c in text)
    return " ".join(kept.split("\n"))


def write_latex(found: CampaignRates, folder: str | Path) -> list[Path]:
    """Write the report as LaTeX tables into a folder, for the package booktabs; returns what was written.

    `summary.tex` or `rates.tex` has all trials, by rate in a sweep with the standard deviation over the trials;
    `layers.tex` and `bits.tex` where there are such. An estimate stands with the ends of its interval.
    """
    folds = {"rates" if found.by_rate else "summary": found.by_rate or (found.everything,)}
    folds |= {"layers": found.by_layer, "bits": found.by_bit}
    make_folder(Path(folder))
    written = []
    for name, rows in folds.items():
        kept = [fold for fold in rows if fold.trials]
        if kept:
            file = Path(folder, f"{name}.tex")
            with atomic_files([file]) as (stream,):
                stream.write(_latex(found, name, kept).encode())
            written.append(file)
    return written


def _latex(found: CampaignRates, name: str, folds: Sequence[Fold]) -> str:
    """Return one table."""
    shown = found.task.table({rate.name for fold in folds for rate in fold.rates})
    spread = values_by_rate(found, shown[0]) if name == "rates" else {}
    keys = {"rates": rate_name(found).partition(" (")[0], "layers": "Layer", "bits": "Bit", "summary": "Trials of"}
    heads = [keys[name], "Trials", *(m.label for m in shown)]
    if spread:
        heads.insert(3, f"s.d. of {shown[0].label}")
    lines = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(tex, heads)) + r" \\", r"\midrule"]
    for fold in folds:
        cells = [printable(fold.key), f"{fold.trials:,}"]
        cells += ["-" if (i := fold.rate(m.name)) is None else m.interval(i) for m in shown]
        if spread:
            values = spread.get(fold.key, np.zeros(0))
            cells.insert(3, shown[0].text(float(values.std(ddof=1))) if len(values) > 1 else "-")
        lines.append(" & ".join(map(tex, cells)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines.append(tex(f"Intervals at {100 * found.confidence:.4g} %.").join(("% ", "")))
    return "\n".join(lines) + "\n"


def cell(value: Any) -> Any:
    """Return a value as a cell; a text that a spreadsheet would take for a formula has an apostrophe before it.

    >>> cell("=HYPERLINK(1)"), cell("-conv"), cell(-3), cell(None), cell("a\\x1bb")
    ("'=HYPERLINK(1)", "'-conv", -3, '', 'a\\\\x1bb')
    """
    if isinstance(value, float):
        return f"{value:.12g}"
    if not isinstance(value, str):
        return "" if value is None else value
    mark = "'" if value.lstrip().startswith(_FORMULA) else ""
    return mark + "\n".join(map(printable, value.split("\n")))  # a break of lines is a cell's own matter


def write_table(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write lines as one CSV file, whose columns are the keys of the first; return its path."""
    with atomic_files([path]) as (stream,):
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        table = csv.writer(text)
        for number, row in enumerate(rows):
            if not number:
                table.writerow(row)
            table.writerow(map(cell, row.values()))
        text.detach()
    return path


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table for notebooks."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class LayerBitCell:
    """The trials in one bit position of one layer: how many, and means by name, of the panels of the task."""

    layer: str
    bit: int
    trials: int
    means: dict[str, float]


def layer_bit_cells(store: str | Path) -> tuple[LayerBitCell, ...]:
    """Return the cells of a store of single faults that have run; none where a trial has many faults.

    All sites of a cell are drawn alike, so its mean needs no weights.

    >>> import tempfile
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=50, single=True, trials=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = list(run(campaign, folder + "/store.db"))
    ...     [(cell.layer, cell.bit, cell.trials) for cell in layer_bit_cells(folder + "/store.db")]
    [('fc1', 9, 1), ('fc1', 26, 1)]
    """
    with Store.open(store) as opened:
        if not opened.get("cells"):
            return ()
        task = declared_task(opened)
        shown = task.view(task.panels)
        trials = trial_columns(opened, shown)
    known = ~np.isnan(trials.values)
    every = np.ones((1, len(trials.trial)))
    sums = trials.by_layer_and_bit(np.concatenate([every, known, np.where(known, trials.values, 0.0)]))
    cells = []
    for (layer, bit), (n, *parts) in sums.items():
        have, totals = parts[: len(shown)], parts[len(shown) :]
        means = {m.name: x / n for m, some, x in zip(shown, have, totals, strict=True) if some}
        cells.append(LayerBitCell(layer, bit, int(n), means))
    return tuple(cells)


@dataclass(frozen=True)
class ComparisonRow:
    """A line: the report that it is of and what to call it, the bit error rate (None: all trials), and its trials."""

    report: CampaignRates
    label: str
    ber: str | None
    fold: Fold


def report_labels(found: Sequence[CampaignRates]) -> list[str]:
    """Return a label for each report: the name of its file, with the folder where names are the same."""
    names = [one.store.name.removesuffix(".db").removesuffix(".onnxfi") for one in found]
    return names if len(set(names)) == len(names) else [str(one.store) for one in found]


def comparison_rows(found: Sequence[CampaignRates]) -> list[ComparisonRow]:
    """Return the lines of reports: by rate where there are several, since a mean over rates has no meaning."""
    lines = []
    for one, label in zip(found, report_labels(found), strict=True):
        if len(one.by_rate) > 1:
            lines += [ComparisonRow(one, label, fold.key, fold) for fold in one.by_rate]
        else:
            lines.append(ComparisonRow(one, label, one.by_rate[0].key if one.by_rate else None, one.everything))
    return lines


def write_csv_of_all(found: Sequence[CampaignRates], folder: str | Path, *, by_model: bool = False) -> list[Path]:
    """Write the CSV files of several reports as those of one, each line with its store in the first column.

    Columns that only some of them have are empty for the others; `by_model` as for `write_csv`, so that several models
    have files of their own. OutputError if the folder cannot be written.
    """
    tables: dict[str, list[tuple[str, Callable[[], Iterator[dict[str, Any]]]]]] = {}
    for one in found:
        for name, lines in _csv_tables(one, by_model=by_model).items():
            tables.setdefault(name, []).append((str(one.store), lines))
    make_folder(Path(folder))
    return [write_table(Path(folder, name), _joined(parts)) for name, parts in tables.items()]


def _joined(parts: Sequence[tuple[str, Callable[[], Iterator[dict[str, Any]]]]]) -> Iterator[dict[str, Any]]:
    """Yield the lines of several tables as those of one, with the store in the first column; one is open at a time."""
    columns = list(dict.fromkeys(name for _, lines in parts for name in next(lines(), {})))
    for store, lines in parts:
        for row in lines():
            yield {"store": store, **{name: row.get(name) for name in columns}}
