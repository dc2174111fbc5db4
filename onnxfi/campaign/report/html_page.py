"""A report as one HTML page that works offline: verdict, network, bits, trials and faults, and the command.

Made with jinja2, the extra `report`; its charts are drawn by Observable Plot, which the page carries: SVG that takes
the colours of the reader's theme, fits every width and prints as lines. Everything that comes from a store is escaped,
and the page forbids itself to load or run anything but its own style and scripts.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.campaign.execute.trial_answers import changed_answers
from onnxfi.campaign.report.curves import Figure, needs, printable_name
from onnxfi.campaign.report.differences import NOTHING_SHARED, difference_sentences, differences
from onnxfi.campaign.report.figures import element_figures
from onnxfi.campaign.report.findings import WIDEST, any_bit, design, findings, listed, measured, silent_metric
from onnxfi.campaign.report.page_data import (
    MOST_TRIALS,
    HarmfulTrial,
    campaign_data,
    does_harm,
    harm_metrics,
    largest_faults,
    layer_rows,
    model_name,
    order_of_harm,
    packed,
    painted_metric,
)
from onnxfi.campaign.report.rates import CampaignRates, Fold
from onnxfi.campaign.report.tables import comparison_rows, rate_name, report_labels, swept_over
from onnxfi.campaign.report.validity_notes import notes, protection_notes, too_few
from onnxfi.campaign.results.store import Store, digest_of
from onnxfi.campaign.results.trial_columns import trial_faults
from onnxfi.campaign.spec.spec_file import command_line, parse_spec
from onnxfi.errors import InputError
from onnxfi.faults.faultlist import MAX_LINES
from onnxfi.faults.trials import CONDITION_SAMPLERS
from onnxfi.graph.write.output_file import atomic_files
from onnxfi.statistics.intervals import Interval
from onnxfi.tasks.task import OUTCOMES, Metric, Task

#: Bytes that a page may have; it lists fewer trials where it would have more.
MOST_BYTES = 3_000_000
#: Minified and unchanged, as scripts/page_libraries.py takes them from npm.
LIBRARIES = ("d3.min.js", "plot.umd.min.js")
_MOST_HARMFUL, _MOST_TITLES, _PAINTS = 20, 3, 7
#: Layers from which on their column scrolls by itself, beside what is chosen.
_MANY = 20


#: An option of the command line in a text, with a number behind it.
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]{0,30}(?: [\d,]{1,12}(?![\w.:-]))?")


@dataclass(frozen=True)
class PageTable:
    """A table above the campaigns of a page: a title, the heads of its columns, and its cells as texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PageHead:
    """Head of a page, above its campaigns: a title, sentences, commands and tables."""

    title: str
    sentences: tuple[str, ...]
    commands: tuple[str, ...]
    tables: tuple[PageTable, ...]
    #: Names of the campaigns; by default those of their stores.
    labels: tuple[str, ...] = ()


def harmful(found: CampaignRates, most: int = _MOST_HARMFUL) -> list[HarmfulTrial]:
    """Return the trials that changed most answers, worst first; of each the faults that moved their number most.

    Trials without harm are left out, and those of so many faults that they are kept as a recipe, which names none.

    >>> import tempfile
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=50, ber=1e-4, repeat=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = list(run(campaign, folder + "/store.db"))
    ...     found = harmful(CampaignRates.read(folder + "/store.db"))
    >>> [(harm.outcome, harm.rows[0]["bits"]) for harm in found]
    [('sdc', [30]), ('sdc', [30])]
    """
    trials, rates = found.trials, {s["stratum"]: s["ber"] for s in found.strata}
    order = order_of_harm(found)
    counts = does_harm(found) & (trials.faults > 0) & (trials.faults <= MAX_LINES)
    worst = order[counts[order]][:most]
    numbers = trials.trial[worst].tolist()
    values = [trials.of(metric.name)[worst].tolist() for metric in harm_metrics(found.task)]
    with Store.open(found.store, checked=True) as opened:
        details = list(trial_faults(opened, numbers, set(numbers)))
    rows = (
        HarmfulTrial(
            trial, rates.get(stratum), OUTCOMES[outcome], one.cause,
            tuple(None if math.isnan(value) else value for value in measured), faults,
            largest_faults(one.lines, one.words),
        )
        for trial, stratum, outcome, faults, measured, one in zip(
            numbers, *(part[worst].tolist() for part in (trials.stratum, trials.outcome, trials.faults)),
            zip(*values, strict=True), details, strict=True,
        )
    )  # fmt: skip
    return [harm for harm in rows if harm.rows]


def worst_trials(found: CampaignRates, most: int) -> list[int]:
    """Return the trials that changed most answers silently, the worst first."""
    order = order_of_harm(found)
    silent = found.trials.outcome[order] == OUTCOMES.index("sdc")
    return list(map(int, found.trials.trial[order[silent][:most]]))


def recipes(found: CampaignRates) -> int:
    """Return how many trials that changed an answer have so many faults that they are kept as a recipe."""
    return int(np.count_nonzero(does_harm(found) & (found.trials.faults > MAX_LINES)))


def write_page(
    found: Sequence[CampaignRates],
    file: str | Path,
    elements: Sequence[str] = (),
    *,
    head: PageHead | None = None,
    answers: int = 0,
    allow_code: bool = False,
) -> Path:
    """Write the page of one report, or of several row by row, below a `head` where one is given.

    It has maps of the `elements` of these targets. Of so many trials that changed most (`answers`) the model runs
    again, and the page shows the answers before and after; `allow_code` lets a pipeline or campaign name code for that.

    Raises OutputError if jinja2 or matplotlib is not installed, or the file cannot be written.
    """
    needs("jinja2")
    text = page(found, elements, head, answers, allow_code)
    with atomic_files([Path(file)]) as (stream,):
        stream.write(text.encode())
    return Path(file)


def page(
    found: Sequence[CampaignRates],
    elements: Sequence[str] = (),
    head: PageHead | None = None,
    answers: int = 0,
    allow_code: bool = False,
) -> str:
    """Return the page as text, of three million bytes at most."""
    from jinja2 import Environment, StrictUndefined

    style, body = _part("page.css"), _part("page.html")
    scripts = [_part(f"libraries/{name}") for name in LIBRARIES] + [_part("page.js")]
    frame = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    frame.filters |= {"value": _value, "plain": _plain, "prose": _prose, "image": _image}
    labels, shown = (head and head.labels) or report_labels(found), _main_columns(found[0].task)
    beside = len(found) > 1 and head is None
    rows = differences(found) if beside else []
    values: dict[str, Any] = {
        "style": style, "scripts": scripts, "many": _MANY, "title": _title(found, head), "head_of_page": head,
        "digests": {"style": _digest(style), "scripts": [_digest(one) for one in scripts]},
        "shows": [_shown(one, label, elements) for one, label in zip(found, labels, strict=True)],
        "columns": [m.label for m in shown], "accuracy": found[0].task.accuracy,
        "apart": {"sentences": list(difference_sentences(rows)) or [NOTHING_SHARED], "rows": rows} if beside else None,
        "compared": [(row, _line(row.fold, shown)) for row in comparison_rows(found)] if beside else [],
    }  # fmt: skip
    asked = [(one.store, worst_trials(one, answers)) for one in found if answers]
    again = [changed_answers(store, trials, allow_code=allow_code) for store, trials in asked]
    most = MOST_TRIALS
    while True:
        data = [
            campaign_data(one, labels[k], most // len(found), again[k] if again else None)
            for k, one in enumerate(found)
        ]
        held = base64.b64encode(packed(data)).decode()
        text = frame.from_string(body).render(**values, data=held)
        if (above := len(text.encode()) - MOST_BYTES) <= 0 or most < len(found):
            return text
        listed = max(len(one["trials"]["columns"]["trial"]) for one in data) * len(found)
        most = min(int(listed * max(0.95 * (len(held) - above) / len(held), 0.0)), most // 2 + most // 4)


def _part(name: str) -> str:
    return (files("onnxfi.campaign.report") / name).read_text("utf-8")


def _title(found: Sequence[CampaignRates], head: PageHead | None) -> str:
    """Return the title: the names of the models, each once."""
    if head is not None:
        return head.title
    names = list(dict.fromkeys(model_name(one) for one in found))
    return listed(names) if len(names) <= _MOST_TITLES else f"{names[0]} and {len(names) - 1} other networks"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _image(figure: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(figure.bytes("svg")).decode()


def _plain(text: object) -> str:
    return printable_name(str(text), 1 << 20)


def _prose(text: object) -> str:
    """Return a line of text as markup in which an option and its number stay on one line."""
    from markupsafe import Markup, escape

    return Markup(_OPTION.sub(r'<span class="option">\g<0></span>', str(escape(_plain(text)))))


def _value(metric: Metric, value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else metric.text(value)


def _main_columns(task: Task) -> tuple[Metric, ...]:
    """Return the metrics of the tables; how often any bit of an output differs stands at the bottom of the page."""
    silent = silent_metric(task).name
    return tuple(m for m in task.view(task.page_columns) if m.name not in ("sdc", "masked") or silent == m.name)


def _shown(one: CampaignRates, label: str, elements: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values that the page shows of one report."""
    with Store.open(one.store, checked=True) as opened:
        spec, canary = opened.get("spec"), opened.get("canary")
        limits = {name: opened.get(name) for name in ("timeout_s", "memory_bytes")}
    tables: list[tuple[str, str, Sequence[Fold]]] = [
        (f"By {swept_over(one)}", rate_name(one), one.by_rate),
        ("By layer", "Layer", [fold for fold in one.by_layer if fold.trials]),
        ("By bit", "Bit", [fold for fold in one.by_bit if fold.trials]),
    ]
    task = one.task
    shown = _main_columns(task)
    tiles = [m for m in task.view(task.tiles) if m.name != "due" and one.everything.rate(m.name)]
    return {
        "columns": [m.label for m in shown], "golden": task.view(task.golden_names), "harms": harm_metrics(task),
        "tiles": [(m, one.everything.rate(m.name)) for m in tiles] if len(one.by_rate) < 2 else [],
        "label": label, "report": one, "model": model_name(one), "design": design(one),
        "verdict": list(findings(one)), "cautions": list(filter(None, (too_few(one),))),
        "harmful": harmful(one), "recipes": recipes(one),
        "command": command_of(spec, one.store.name), "over": swept_over(one), "measured": measured(one)[0],
        "silent": silent_metric(task), "any_bit": any_bit(one), **_network(one),
        "figures": element_figures([one], elements),
        "tables": [(title, key, [_line(fold, shown) for fold in folds]) for title, key, folds in tables if folds],
        "settings": _settings(one, canary, limits),
        "notes": [
            *filter(None, (one.golden.get("reading"), *protection_notes(one))),
            *(note for note in notes(one) if note != too_few(one)),
        ],
    }  # fmt: skip


def _network(one: CampaignRates) -> dict[str, Any]:
    """Return the column of layers: of each its colour, its bar with whiskers, its share of the bits, and texts."""
    metric, rows = painted_metric(one.task), layer_rows(one)
    scale = max((row["rate"][0] or 0.0 for row in rows if row["rate"]), default=0.0)
    sure = [row["rate"][2] for row in rows if row["rate"] and row["rate"][2] - row["rate"][1] <= 2 * WIDEST]
    end = max([1.2 * scale, *sure]) or 1.0
    end = min(end, metric.bounds[1])  # of a share 100 %
    drawn = []
    for row in rows:
        rate, bar, paint = row["rate"], None, ""
        text = said = "no trials" if rate is None else ""
        if rate is not None:
            estimate = math.nan if rate[0] is None else rate[0]
            text = metric.interval(Interval(rate[1], rate[2], estimate, "", one.confidence))
            said = f"{metric.label} {text}"
            bar = tuple(f"{100 * min(part / end, 1):.2f}" for part in (rate[0] or 0.0, rate[1], rate[2]))
            unsure = " unsure" if rate[2] - rate[1] > 2 * WIDEST else ""
            paint = f"p{math.ceil(_PAINTS * math.sqrt((rate[0] or 0.0) / scale))}" if scale else "p0"
            paint += unsure
        share = f"{100 * row['share']:.3g} %"
        drawn.append({
            "name": row["name"], "trials": row["trials"], "text": text if one.by_layer else "", "said": said,
            "bar": bar, "paint": paint, "width": f"{100 * row['share']:.2f}", "of_bits": share,
        })  # fmt: skip
    return {"layers": drawn, "painted": bool(one.by_layer), "headline": metric, "scale": end}


def _line(fold: Fold, shown: Sequence[Metric]) -> tuple[Fold, list[tuple[Metric, Interval | None]]]:
    return fold, [(metric, fold.rate(metric.name)) for metric in shown]


def command_of(spec: str | None, store: str) -> str:
    """Return the command that repeats the campaign; empty if the store has none, or one of another version."""
    try:
        return command_line(parse_spec(spec or ""), store)
    except InputError:
        return ""


def _settings(one: CampaignRates, canary: Any, limits: dict[str, Any]) -> dict[str, str]:
    """Return the settings that fix the answers, and the environment, for people."""
    shown = {"data": one.golden["data"], "scored output": one.golden.get("output") or "all outputs"}
    shown |= {"campaign (SHA-256)": digest_of(one.campaign)}
    names = {"model": "model (SHA-256)", "data": "data (SHA-256)", "design": "trials"}
    for name, value in sorted(one.campaign.items()):
        if value not in ([], "", None, False) and name not in ("strata", "output", one.campaign["design"]):
            shown[names.get(name, name)] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    key = one.campaign["design"]
    if key in (*CONDITION_SAMPLERS, "ber"):
        shown[key] = ", ".join(f"{rate:g}" for rate in one.campaign[key])
    if canary:
        shown["canary"] = f"seen in {canary['seen']}" + (
            f" after {', '.join(canary['unseen'])}" if canary["unseen"] else ""
        )
    if limits["timeout_s"]:
        shown["time limit of a trial"] = f"{limits['timeout_s']:.4g} s"
    if limits["memory_bytes"]:
        shown["memory of a worker"] = f"{limits['memory_bytes'] / 1e6:,.0f} MB"
    return shown | {f"environment: {name}": str(value) for name, value in sorted((one.environment or {}).items())}
