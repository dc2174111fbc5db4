"""A report as one HTML page without dependencies: figures, sortable tables, the most harmful faults, the command.

Made with jinja2, the extra `report`. Everything that comes from a store is escaped, and the page forbids itself to load
or run anything but its own style, script and figures.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from onnxfi.campaign.report.figures import Figure, figures, needs, plain
from onnxfi.campaign.report.rates import CampaignRates, Fold
from onnxfi.campaign.report.tables import comparison_rows, rate_name, report_labels, swept_over
from onnxfi.campaign.report.validity_notes import notes, protection_notes
from onnxfi.campaign.results.rows import Row
from onnxfi.campaign.results.store import Store, declared_task, digest_of
from onnxfi.campaign.spec.spec_file import command_line, parse_spec
from onnxfi.errors import InputError
from onnxfi.graph.write.output_file import atomic_files
from onnxfi.statistics.intervals import Interval
from onnxfi.tasks.task import OUTCOMES, Metric, Task

_MOST_HARMFUL, _MOST_FAULTS = 20, 3


@dataclass(frozen=True)
class Harm:
    """A trial that did much: its result, how many faults it had, and those that moved their number most."""

    trial: int
    ber: float | None
    outcome: str
    cause: str | None
    values: tuple[float | None, ...]
    faults: int
    rows: tuple[dict[str, Any], ...]


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


def harmful(store: str | Path, most: int = _MOST_HARMFUL) -> list[Harm]:
    """Return the trials that changed most answers, worst first; of each the faults that moved their number most.

    >>> import tempfile
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=50, ber=1e-4, repeat=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = list(run(campaign, folder + "/store.db"))
    ...     [(harm.outcome, harm.rows[0]["bits"]) for harm in harmful(folder + "/store.db")]
    [('sdc', [30]), ('sdc', [30])]
    """
    with Store.open(store) as opened:
        rates = {s["stratum"]: s["ber"] for s in opened.strata()}
        task = declared_task(opened)
        shown = harm_metrics(task)
        rows = (row for row in opened.rows() if row.outcome != OUTCOMES[0] and row.faults)
        worst = heapq.nsmallest(most, rows, partial(_order, task))
        return [
            Harm(
                row.trial, rates.get(row.stratum), row.outcome, row.cause,
                tuple(metric.value(row.outcome, row.metrics) for metric in shown), row.faults,
                _largest(opened.trial(row.trial)["lines"]),
            )
            for row in worst
        ]  # fmt: skip


def harm_metrics(task: Task) -> tuple[Metric, ...]:
    """Return the metrics that the table of the most harmful trials shows."""
    return tuple(m for m in (task.metric(task.headline), task.accuracy) if m is not None)


def _order(task: Task, row: Row) -> tuple[float, float, float, int]:
    """Return the order of trials, worst first: by the headline, by samples that are DUE, by how few are right."""
    headline, lost = (
        task.metric(name).value(row.outcome, row.metrics) or 0.0 for name in (task.headline, "due_samples")
    )
    right = 1.0 if task.accuracy is None else task.accuracy.value(row.outcome, row.metrics)
    return -headline, -lost, 1.0 if right is None else right, row.trial


def _largest(text: str) -> tuple[dict[str, Any], ...]:
    """Return the faults of a trial that moved their number most; none of a trial that is kept as a recipe."""
    rows = [row for row in map(json.loads, text.splitlines()) if "target" in row]

    def moved(row: dict[str, Any]) -> float:
        try:
            step = abs(float(row["after_value"]) - float(row["before_value"]))
        except (TypeError, ValueError):
            return math.inf
        return math.inf if math.isnan(step) else step

    return tuple(sorted(rows, key=moved, reverse=True)[:_MOST_FAULTS])


def write_page(
    found: Sequence[CampaignRates], file: str | Path, elements: Sequence[str] = (), *, head: PageHead | None = None
) -> Path:
    """Write the page of one report, or of several row by row, below a `head` where one is given.

    It has maps of the `elements` of these targets.

    Raises OutputError if jinja2 or matplotlib is not installed, or the file cannot be written.
    """
    needs("jinja2")
    text = page(found, elements, head)
    with atomic_files([Path(file)]) as (stream,):
        stream.write(text.encode())
    return Path(file)


def page(found: Sequence[CampaignRates], elements: Sequence[str] = (), head: PageHead | None = None) -> str:
    """Return the page as text."""
    from jinja2 import Environment, StrictUndefined

    style, script, body = (
        (files("onnxfi.campaign.report") / f"page.{e}").read_text("utf-8") for e in ("css", "js", "html")
    )
    shows = [_shown(one, label) for one, label in zip(found, report_labels(found), strict=True)]
    shown, several = found[0].task.view(found[0].task.page_columns), len(found) > 1
    frame = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    frame.filters |= {"value": _value, "plain": lambda text: plain(str(text), 1 << 20), "image": _image}
    digests = {name: _digest(text) for name, text in (("style", style), ("script", script))}
    return frame.from_string(body).render(
        style=style, script=script, digests=digests, figures=figures(found, elements), shows=shows,
        columns=[m.label for m in shown], accuracy=found[0].task.accuracy,
        compared=[(row, _line(row.fold, shown)) for row in comparison_rows(found)] if several and head is None else [],
        head_of_page=head, title=_title(found, head),
    )  # fmt: skip


def _title(found: Sequence[CampaignRates], head: PageHead | None) -> str:
    if head is not None:
        return head.title
    return " and ".join(report_labels(found)) if len(found) < 3 else f"{len(found)} campaigns"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _image(figure: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(figure.bytes("svg")).decode()


def _value(metric: Metric, value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else metric.text(value)


def _shown(one: CampaignRates, label: str) -> dict[str, Any]:
    """Return the values that the page shows of one report."""
    with Store.open(one.store) as opened:
        spec, canary = opened.get("spec"), opened.get("canary")
        limits = {name: opened.get(name) for name in ("timeout_s", "memory_bytes")}
    tables: list[tuple[str, str, Sequence[Fold]]] = [
        (f"By {swept_over(one)}", rate_name(one), one.by_rate),
        ("By layer", "Layer", [fold for fold in one.by_layer if fold.trials]),
        ("By bit", "Bit", [fold for fold in one.by_bit if fold.trials]),
    ]
    task = one.task
    shown = task.view(task.page_columns)
    return {
        "columns": [m.label for m in shown], "golden": task.view(task.golden_names), "tiles": task.view(task.tiles),
        "harms": harm_metrics(task),
        "label": label, "report": one, "harmful": harmful(one.store), "command": command_of(spec, one.store.name),

        "tables": [(title, key, [_line(fold, shown) for fold in folds]) for title, key, folds in tables if folds],
        "settings": _settings(one, canary, limits),
        "notes": list(filter(None, (one.golden.get("reading"), *protection_notes(one), *notes(one)))),
    }  # fmt: skip


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
    if one.campaign["design"] == "ber":
        shown["ber"] = ", ".join(f"{rate:g}" for rate in one.campaign["ber"])
    if canary:
        shown["canary"] = f"seen in {canary['seen']}" + (
            f" after {', '.join(canary['unseen'])}" if canary["unseen"] else ""
        )
    if limits["timeout_s"]:
        shown["time limit of a trial"] = f"{limits['timeout_s']:.4g} s"
    if limits["memory_bytes"]:
        shown["memory of a worker"] = f"{limits['memory_bytes'] / 1e6:,.0f} MB"
    return shown | {f"environment: {name}": str(value) for name, value in sorted((one.environment or {}).items())}
