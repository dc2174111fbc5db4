"""The results of a store as columns of numbers, read in blocks: what reports sum up and order.

A trial as an object costs some microseconds in each of the dozen questions that a page asks; of columns all trials
are asked at once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.results.store import Store
from onnxfi.tasks.task import OUTCOMES, Metric

#: Trials of a block, and trials whose faults SQLite is asked for at once.
AT_ONCE, MOST_ASKED = 8192, 500
#: Texts of metrics that are remembered: some 10 MB.
_MOST_KNOWN = 16384
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

    def pick(self, rows: NDArray[np.int64]) -> TrialColumns:
        """Return the trials at these places ([n])."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _KINDS}, values=self.values[:, rows])

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

    def by_cell(self, columns: NDArray[Any]) -> Iterator[tuple[tuple[int, str | None, int | None], list[float]]]:
        """Yield each cell with the sum of each of these columns ([columns, N]) over its trials."""
        place, cells = self.cells()
        sums = np.array([np.bincount(place, column, len(cells)) for column in columns])
        return zip(cells, sums.T.tolist(), strict=True)

    def by_layer_and_bit(self, columns: NDArray[Any]) -> dict[tuple[str, int], list[float]]:
        """Return the sums of columns ([columns, N]) over the trials at each bit of each layer, in their order."""
        found: dict[tuple[str, int], list[float]] = {}
        for (_, layer, bit), sums in self.by_cell(columns):
            if layer is not None and bit is not None:
                before = found.get((layer, bit), [0.0] * len(sums))
                found[layer, bit] = [one + more for one, more in zip(before, sums, strict=True)]
        return dict(sorted(found.items()))


def column_blocks(store: Store, metrics: Sequence[Metric]) -> Iterator[TrialColumns]:
    """Yield the results of a store, some thousand trials at once."""
    cursor = store.db.execute(
        "SELECT trial, stratum, plan.faults, plan.layer, plan.bit, outcome, changed, metrics "
        "FROM results JOIN plan USING (trial) ORDER BY trial"
    )
    layers: dict[str, int] = {}
    outcomes = {name: place for place, name in enumerate(OUTCOMES)}
    counts = [metric.per == "trial" and not metric.any_of for metric in metrics]
    texts_of = MetricTexts([m.any_of or m.name for m, counted in zip(metrics, counts, strict=True) if not counted])
    while rows := cursor.fetchmany(AT_ONCE):
        trial, stratum, faults, layer, bit, outcome, changed, texts = zip(*rows, strict=True)
        places = [-1 if name is None else layers.setdefault(name, len(layers)) for name in layer]
        bits = [-1 if one is None else one for one in bit]
        found = [outcomes[name] for name in outcome]
        numbers = dict(zip(_KINDS, (trial, stratum, faults, places, bits, found), strict=True))
        columns: dict[str, Any] = {name: np.array(numbers[name], kind) for name, kind in _KINDS.items()}
        values = _values(texts_of.read(texts), columns["outcome"], metrics, counts)
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


def _values(
    measured: NDArray[np.float64], outcome: NDArray[np.int8], metrics: Sequence[Metric], counts: Sequence[bool]
) -> NDArray[np.float64]:
    """Return the metrics of trials ([metrics, N]), as `Metric.value` gives them one by one.

    `measured` has those that are not counted ([N, metrics]).
    """
    found = np.empty((len(metrics), len(outcome)))
    found[np.flatnonzero(np.logical_not(counts))] = measured.T
    for k, metric in enumerate(metrics):
        if counts[k]:
            found[k] = np.array([name == metric.name for name in OUTCOMES])[outcome]
        elif metric.any_of:
            found[k] = np.where(np.isnan(found[k]), np.nan, found[k] > 0)
    return found


class MetricTexts:
    """Metrics of trials read from their JSON, in which each text is parsed once.

    Distances differ from trial to trial, and few reports ask for them; without what nobody asks for, most texts are
    alike. Parsing took two fifths of a report of 500,000 trials.
    """

    def __init__(self, names: Sequence[str], most: int = _MOST_KNOWN) -> None:
        self.names, self._most = names, most
        self._cuts: list[tuple[str, str]] | None = None
        self._known: dict[str, int] = {}
        self._rows = np.empty((most, len(names)))

    def read(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the values of each text ([N, names]); NaN where it has none, infinity of a text that says so."""
        if not self.names:
            return np.empty((len(texts), 0))
        if self._cuts is None:
            self._cuts = _unasked(texts[0], self.names)
        if len(self._known) + len(texts) > self._most:
            self._known.clear()
        known, places = self._known, []
        for text in texts:
            asked = _without(text, self._cuts)
            place = known.get(asked)
            if place is None:
                known[asked] = place = len(known)
                values = map(json.loads(text).get, self.names)
                self._rows[place] = [np.nan if value is None else float(value) for value in values]
            places.append(place)
        return self._rows[places]


def _unasked(text: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return where each run of values begins that is not asked for, and where it ends: at the next name, or nowhere.

    The store writes them in the order of their names. Those asked for that this text lacks end a run as well.
    """
    order = sorted({*json.loads(text), *names})
    runs = [(asked, next(run)) for asked, run in groupby(order, key=set(names).__contains__)]
    marks = [(asked, json.dumps(name) + ": ") for asked, name in runs] + [(True, "")]
    return [(mark, marks[k + 1][1]) for k, (asked, mark) in enumerate(marks) if not asked]


def _without(text: str, cuts: Sequence[tuple[str, str]]) -> str:
    """Return a text without these runs, those that it has."""
    kept, at = [], 0
    for begin, end in cuts:
        first = text.find(begin, at)
        last = text.find(end, first) if end else len(text)
        if 0 <= first < last:
            kept.append(text[at:first])
            at = last
    return "".join(kept) + text[at:]
