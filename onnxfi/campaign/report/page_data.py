"""All that a page shows of a campaign, as plain values: curves, layers in order of depth, their bits, trials, faults.

Numbers are computed here and drawn there: the script of the page has no statistics. Trials are listed with their faults
as far as a page of 3 MB holds them, those that did most harm first.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.execute.trial_answers import ChangedAnswer
from onnxfi.campaign.report.findings import lost_answers, measured, shares, short, silent_metric
from onnxfi.campaign.report.rates import CampaignRates
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.results.trial_columns import trial_faults
from onnxfi.graph.model.byte_source import printable
from onnxfi.statistics.intervals import Interval, Stratum, stratified_interval
from onnxfi.tasks.outcomes import unpacked
from onnxfi.tasks.task import OUTCOMES, Metric, Task

#: Trials that a page lists, faults of each that it shows, and samples that it names.
MOST_TRIALS, MOST_FAULTS, MOST_SAMPLES = 20_000, 3, 12
#: Trials of many faults of which the largest faults are looked for, since each has up to a thousand lines.
_MOST_LISTED = 300


@dataclass(frozen=True)
class HarmfulTrial:
    """A trial that did much: its result, how many faults it had, and those that moved their number most.

    `rows` is empty where the faults are kept as a recipe, which names none of them.
    """

    trial: int
    ber: float | None
    outcome: str
    cause: str | None
    values: tuple[float | None, ...]
    faults: int
    rows: tuple[dict[str, Any], ...]


def harm_metrics(task: Task) -> tuple[Metric, ...]:
    """Return the metrics that the table of the most harmful trials shows."""
    return tuple(m for m in (task.metric(task.headline), task.accuracy) if m is not None)


def order_of_harm(found: CampaignRates) -> NDArray[np.int64]:
    """Return the places of all trials, worst first: by the headline, by samples that are DUE, by how few are right."""
    trials, task = found.trials, found.task
    headline, lost = (np.nan_to_num(trials.of(name)) for name in (task.headline, "due_samples"))
    right = np.ones(len(trials.trial)) if task.accuracy is None else np.nan_to_num(trials.of(task.accuracy.name), nan=1)
    return np.lexsort((trials.trial, right, -lost, -headline))


def does_harm(found: CampaignRates) -> NDArray[np.bool_]:
    """Return which trials are DUE, or changed an answer as far as the headline says it ([N])."""
    trials = found.trials
    changed = (trials.outcome == OUTCOMES.index("sdc")) & (trials.of(found.task.headline) != 0)
    return np.asarray((trials.outcome == OUTCOMES.index("due")) | changed)


def largest_faults(lines: str, words: Sequence[Mapping[str, Any]] = ()) -> tuple[dict[str, Any], ...]:
    """Return the faults of a trial that moved their number most; none of a trial that is kept as a recipe.

    `words` are those of activations before and after faults, as the trial injected them.
    """
    rows = [_with_word(row, words) for row in map(json.loads, lines.splitlines()) if "target" in row]

    def moved(row: dict[str, Any]) -> float:
        try:
            step = abs(float(row["after_value"]) - float(row["before_value"]))
        except (TypeError, ValueError):
            return math.inf
        return math.inf if math.isnan(step) else step

    return tuple(heapq.nlargest(MOST_FAULTS, rows, key=moved))


def _with_word(row: dict[str, Any], words: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a fault with the word that its trial found there; of a layer in several steps, the first of them."""
    for word in words if row["before"] is None else ():
        here = word["target"] == row["target"] or word["target"].startswith(f"{row['target']}/")
        if here and word["index"] == row["index"] and row.get("sample", word.get("sample")) == word.get("sample"):
            return row | {key: value for key, value in word.items() if key.startswith(("before", "after"))}
    return row


def campaign_data(
    found: CampaignRates,
    label: str,
    most: int = MOST_TRIALS,
    answers: Mapping[int, Sequence[ChangedAnswer]] | None = None,
) -> dict[str, Any]:
    """Return all that the page draws of a campaign, as plain values for JSON.

    Parameters
    ----------
    found : CampaignRates
        The folded results.
    label : str
        What the page calls the campaign.
    most : int
        The number of trials that are listed.
    answers : mapping, optional
        Answers before and after, by trial.

    Returns
    -------
    dict
        An interval is [estimate, low, high] in the unit of its metric (None: not known), a layer the place of its name.
    """
    task, layers = found.task, layer_rows(found)
    place = {name: k for k, name in enumerate(_sites(found))}
    with Store.open(found.store, checked=True) as opened:
        cells = list(_cells(opened, found, place))
        trials = _trials(opened, found, place, order_of_harm(found)[:most], answers or {})
    metric, golden = measured(found)
    return {
        "label": printable(label),
        "store": printable(found.store.name),
        "silent": _declared(silent_metric(task)),
        "metric": {**_declared(metric), "golden": _number(golden)},
        "samples": found.judged,
        "curve": [
            {"x": float(fold.key), "key": fold.key, "y": _ends(fold.rate(metric.name)), "trials": fold.trials}
            for fold in found.by_rate
        ],
        "stack": list(_stacked(found)),
        "layers": layers,
        "cells": cells,
        "trials": trials,
    }


def model_name(found: CampaignRates) -> str:
    """Return the name of the model's file without its ending, and of the stage of a pipeline."""
    name = found.header.file.replace("\\", "/").rpartition("/")[2].removesuffix(".onnx") or "network"
    stage = found.campaign.get("stage")
    return f"{name}, stage {stage}" if stage else name


def layer_rows(found: CampaignRates) -> list[dict[str, Any]]:
    """Return the layers of a campaign in order of depth, with their share of the bits and their rate.

    Where its trials lie in no one layer there are shares alone.
    """
    folds, sites = {fold.key: fold for fold in found.by_layer}, _sites(found)
    total = sum(sites.values()) or 1
    metric = painted_metric(found.task)
    rows = []
    for name, size in sites.items():
        fold = folds.get(name)
        rate = None if fold is None or not fold.trials else fold.rate(metric.name)
        rows.append({
            "name": printable(name), "sites": size, "share": _number(size / total), "rate": _ends(rate),
            "trials": fold.trials if fold else 0,
            "outcomes": [fold.outcomes[name] for name in OUTCOMES] if fold else [0, 0, 0],
        })  # fmt: skip
    return rows


def _sites(found: CampaignRates) -> dict[str, int]:
    """Return the sites of each layer, in order of depth as far as the store says it."""
    with Store.open(found.store, checked=True) as opened:
        kept = {str(name): int(sites) for name, sites in opened.get("layers") or ()}
    return kept | {fold.key: fold.population or 0 for fold in found.by_layer if fold.key not in kept}


def painted_metric(task: Task) -> Metric:
    """Return the rate that layers and bits are painted with: the headline of the task where it is a share."""
    headline = task.metric(task.headline)
    return headline if headline.bounds == (0, 1) else task.metric("sdc")


def _declared(metric: Metric) -> dict[str, Any]:
    label, axis = short(metric), metric.axis.replace("\n", " ")
    return {"label": label, "axis": axis, "share": metric.share, "unit": metric.unit, "better": metric.better}


def _stacked(found: CampaignRates) -> Iterator[dict[str, Any]]:
    """Yield what becomes of the answers at each rate of a sweep, or of all trials."""
    lost = lost_answers(found)
    for fold in found.by_rate or (found.everything,):
        if fold.trials and (share := shares(found.task, fold)) is not None:
            yield {
                "key": fold.key, "kept": _number(share.kept), "sdc": _number(share.sdc), "due": _number(share.due),
                "lost": _ends(lost.get(fold.key)), "trials": fold.trials,
            }  # fmt: skip


def _cells(store: Store, found: CampaignRates, place: dict[str, int]) -> Iterator[list[Any]]:
    """Yield layer, bit, trials, outcomes and rate of each bit of a layer; all its sites are drawn alike."""
    sites = {(layer, bit): n for layer, bit, n in store.get("cells") or ()}
    trials = found.trials
    values = trials.of(painted_metric(found.task).name)
    x = np.nan_to_num(values)
    columns = np.stack([*(trials.outcome == k for k in range(len(OUTCOMES))), ~np.isnan(values), x, x * x])
    for (layer, bit), (*counts, known, total, squares) in trials.by_layer_and_bit(columns).items():
        if (layer, bit) not in sites:
            continue
        outcomes, n = list(map(int, counts)), int(known)
        stratum = Stratum(max(sites[layer, bit], n), n, total, squares)
        rate = stratified_interval([stratum], found.confidence) if n else None
        yield [place[layer], bit, sum(outcomes), outcomes, _ends(rate)]


# Trials


def _trials(
    store: Store,
    found: CampaignRates,
    place: dict[str, int],
    ranked: NDArray[np.int64],
    answers: Mapping[int, Sequence[ChangedAnswer]],
) -> dict[str, Any]:
    """Return the trials at these places as columns, with their faults."""
    shown, samples, held, texts = harm_metrics(found.task), found.golden["samples"], found.trials, _Texts()
    rates = {s["stratum"]: None if s["ber"] is None else f"{s['ber']:g}" for s in found.strata}
    layers = [place.get(name) for name in held.layers] + [None]
    trials, faults = held.trial[ranked].tolist(), held.faults[ranked]
    listed = (faults == 1) | (np.cumsum(faults > 1) <= _MOST_LISTED)
    named = {trial for trial, one in zip(trials, listed.tolist(), strict=True) if one}
    details = list(trial_faults(store, trials, named))
    values = zip(*(held.of(metric.name)[ranked].tolist() for metric in shown), strict=True)
    columns: dict[str, list[Any]] = {
        "trial": trials, "rate": [rates[one] for one in held.stratum[ranked].tolist()],
        "layer": [layers[one] for one in held.layer[ranked].tolist()],
        "bit": [None if one < 0 else one for one in held.bit[ranked].tolist()],
        "outcome": held.outcome[ranked].tolist(), "cause": [one.cause for one in details], "faults": faults.tolist(),
        "values": [list(map(_number, row)) for row in values],
        "words": [[_word(fault, texts) for fault in largest_faults(one.lines, one.words)] for one in details],
        "samples": [None if one.changed is None else _changed(one.changed, samples) for one in details],
        "answers": [[[a.sample, a.golden, a.faulty] for a in answers.get(trial, ())] or None for trial in trials],
    }  # fmt: skip
    return {
        "columns": columns, "texts": texts.found, "metrics": [_declared(m) for m in shown],
        "all": found.everything.trials,
    }  # fmt: skip


class _Texts:
    """Names that repeat, each kept once."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.found)
            self.found.append(printable(text))
        return self._places[text]


def _word(row: dict[str, Any], texts: _Texts) -> list[Any]:
    """Return a fault: target, element, when, model, bits, words and values before and after."""
    when = ", ".join(f"{key} {row[key]}" for key in ("sample", "step", "from") if key in row)
    return [
        texts.place(row["target"]), row["index"], texts.place(when), texts.place(row["fault"]), row["bits"],
        row["before"], row["after"], _text(row["before_value"]), _text(row["after_value"]),
    ]  # fmt: skip


def _text(value: Any) -> str | None:
    return None if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)


@lru_cache(1 << 12)
def _changed(changed: bytes, samples: int) -> tuple[int, ...]:
    """Return how many answers changed silently, and the first of the samples."""
    places = np.flatnonzero(unpacked(changed, samples))
    return (len(places), *map(int, places[:MOST_SAMPLES]))


def _number(value: float | None) -> float | None:
    """Return a number with six digits, as JSON has it."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _ends(i: Interval | None) -> list[float | None] | None:
    return None if i is None else [_number(end) for end in (i.estimate, i.low, i.high)]


def packed(values: Iterable[dict[str, Any]] | dict[str, Any] | Sequence[Any]) -> bytes:
    """Return plain values as JSON, compressed by gzip without a time, so that equal values give equal bytes."""
    import gzip

    return gzip.compress(json.dumps(values, separators=(",", ":"), allow_nan=False).encode(), 9, mtime=0)
