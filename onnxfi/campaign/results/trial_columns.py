"""The results of a store as columns of numbers, read in blocks: what reports sum up and order.

A trial as an object costs some microseconds in each of the dozen questions that a page asks; of columns all trials
are asked at once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.results.store import Store
from onnxfi.tasks.task import OUTCOMES, Metric

#: Trials of a block, and trials whose faults SQLite is asked for at once.
AT_ONCE, MOST_ASKED = 8192, 500
#: The types of the columns that are numbers, in the order of the query.
_KINDS: dict[str, type] = {
    "trial": np.int64, "stratum": np.int64, "faults": np.int64, "layer": np.int32, "bit": np.int64, "outcome": np.int8,
}  # fmt: skip


@dataclass(frozen=True)
class TrialColumns:
    """Results in the order of their trials, an element a trial.

    Attributes
    ----------
    trial, stratum, faults : ndarray [N]
        Number of the trial, its stratum, and the number of its faults.
    layer, bit : ndarray [N]
        Place of the layer in `layers`, and bit position; -1 where the faults lie in no single one.
    outcome : ndarray [N]
        Place of the outcome in `OUTCOMES`.
    values : ndarray [metrics, N]
        The metrics that were asked for; NaN where a trial has no value.
    names : tuple of str
        Names of these metrics.
    layers : tuple of str
        Names of the layers.
    changed : tuple of bytes or None
        Of a block the samples that changed silently, as packed bits; empty where blocks are joined.
    """

    trial: NDArray[np.int64]
    stratum: NDArray[np.int64]
    faults: NDArray[np.int64]
    layer: NDArray[np.int32]
    bit: NDArray[np.int64]
    outcome: NDArray[np.int8]
    values: NDArray[np.float64]
    names: tuple[str, ...]
    layers: tuple[str, ...]
    changed: tuple[bytes | None, ...] = ()

    def of(self, name: str) -> NDArray[np.float64]:
        """Return the values of a metric ([N])."""
        found: NDArray[np.float64] = self.values[self.names.index(name)]
        return found

    def by_stratum(self, values: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
        """Return values of the trials ([N]) by stratum, NaN left out."""
        here = ~np.isnan(values)
        order = np.argsort(self.stratum[here], kind="stable")
        strata, begin = np.unique(self.stratum[here][order], return_index=True)
        return dict(zip(strata.tolist(), np.split(values[here][order], begin[1:]), strict=len(strata) > 0))

    def cells(self) -> tuple[NDArray[np.int64], list[tuple[int, str | None, int | None]]]:
        """Return the number of each trial's cell ([N]), and each cell as its stratum, layer and bit."""
        bits, layers = int(self.bit.max(initial=0)) + 2, len(self.layers) + 1
        key = (self.stratum * layers + self.layer + 1) * bits + self.bit + 1
        found, place = np.unique(key, return_inverse=True)
        cells = []
        for one in found.tolist():
            above, bit = divmod(one, bits)
            stratum, layer = divmod(above, layers)
            cells.append((stratum, self.layers[layer - 1] if layer else None, bit - 1 if bit else None))
        return place.reshape(-1), cells


def column_blocks(store: Store, metrics: Sequence[Metric]) -> Iterator[TrialColumns]:
    """Yield the results of a store, some thousand trials at once."""
    cursor = store.db.execute(
        "SELECT trial, stratum, plan.faults, plan.layer, plan.bit, outcome, changed, metrics "
        "FROM results JOIN plan USING (trial) ORDER BY trial"
    )
    layers: dict[str, int] = {}
    outcomes = {name: place for place, name in enumerate(OUTCOMES)}
    while rows := cursor.fetchmany(AT_ONCE):
        trial, stratum, faults, layer, bit, outcome, changed, texts = zip(*rows, strict=True)
        places = [-1 if name is None else layers.setdefault(name, len(layers)) for name in layer]
        bits = [-1 if one is None else one for one in bit]
        found = [outcomes[name] for name in outcome]
        numbers = dict(zip(_KINDS, (trial, stratum, faults, places, bits, found), strict=True))
        columns: dict[str, Any] = {name: np.array(numbers[name], kind) for name, kind in _KINDS.items()}
        values = _values(texts, columns["outcome"], metrics)
        yield TrialColumns(**columns, values=values, names=_names(metrics), layers=tuple(layers), changed=changed)


def trial_columns(store: Store, metrics: Sequence[Metric]) -> TrialColumns:
    """Return all results of a store: 37 bytes a trial, and eight for each metric."""
    most = store.count("results")
    columns: dict[str, Any] = {name: np.empty(most, kind) for name, kind in _KINDS.items()}
    values, done, layers = np.empty((len(metrics), most)), 0, tuple[str, ...]()
    for block in column_blocks(store, metrics):
        inside = slice(done, done + len(block.trial))
        for name, column in columns.items():
            column[inside] = getattr(block, name)
        values[:, inside], layers, done = block.values, block.layers, inside.stop
    return TrialColumns(**columns, values=values, names=_names(metrics), layers=layers)


@dataclass(frozen=True)
class StoredFaults:
    """The faults of a trial as the store has them: lines of the fault list, and the words that an activation had."""

    lines: str
    words: list[dict[str, Any]]
    cause: str | None
    changed: bytes | None


def trial_faults(store: Store, trials: Sequence[int], named: Collection[int]) -> Iterator[StoredFaults]:
    """Yield the faults of trials in the order given; lines and words only of those that are `named`."""
    for begin in range(0, len(trials), MOST_ASKED):
        asked = trials[begin : begin + MOST_ASKED]
        wanted, marks = [one for one in asked if one in named], ", ".join("?" * len(asked))
        rows = store.db.execute(f"SELECT trial, cause, changed FROM results WHERE trial IN ({marks})", asked)
        found = {trial: ("", None, cause, changed) for trial, cause, changed in rows}
        marks = ", ".join("?" * len(wanted))
        rows = store.db.execute(
            f"SELECT trial, lines, words FROM plan JOIN results USING (trial) WHERE trial IN ({marks})", wanted
        )
        for trial, lines, words in rows:
            found[trial] = (lines, words, *found[trial][2:])
        for one in asked:
            lines, words, cause, changed = found[one]
            yield StoredFaults(lines, json.loads(words) if words else [], cause, changed)


def _names(metrics: Sequence[Metric]) -> tuple[str, ...]:
    return tuple(metric.name for metric in metrics)


def _values(texts: Sequence[str], outcome: NDArray[np.int8], metrics: Sequence[Metric]) -> NDArray[np.float64]:
    """Return the metrics of trials ([metrics, N]), as `Metric.value` gives them one by one."""
    known: dict[str, dict[str, Any]] = {}
    rows = [known.get(text) or known.setdefault(text, json.loads(text)) for text in texts]
    found = np.empty((len(metrics), len(rows)))
    counts = [metric.per == "trial" and not metric.any_of for metric in metrics]
    measured = [k for k, counted in enumerate(counts) if not counted]
    found[measured] = _read(rows, [metrics[k].any_of or metrics[k].name for k in measured]).T
    for k, metric in enumerate(metrics):
        if counts[k]:
            found[k] = np.array([name == metric.name for name in OUTCOMES])[outcome]
        elif metric.any_of:
            found[k] = np.where(np.isnan(found[k]), np.nan, found[k] > 0)
    return found


def _read(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> NDArray[np.float64]:
    """Return values by name ([rows, names]); NaN where a row has none, infinity of a text that says so."""
    if len(names) > 1:
        with suppress(KeyError):  # most rows have them all, and are read at once
            return np.array(list(map(itemgetter(*names), rows)), np.float64)
    return np.array([[row.get(name) for name in names] for row in rows], np.float64).reshape(len(rows), len(names))
