"""The rates of a campaign: results folded by bit error rate, layer and bit, each rate with its interval.

The trial is the unit of statistics. Yes/no outcomes of trials get exact binomial intervals; per-sample rates and
accuracies get theirs from the spread between trials, weighted by stratum where the plan drew so. Both hold for the
samples that were run; what the choice of samples adds is stated apart. Results are read as a stream: what is held in
memory are sums.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.report.adaptive_estimates import AdaptiveRecord
from onnxfi.campaign.results.store import Store, declared_task
from onnxfi.campaign.results.trial_columns import TrialColumns, column_blocks, trial_columns
from onnxfi.campaign.run.adaptive_rounds import Look, look_at
from onnxfi.errors import StoreError
from onnxfi.faults.faultlist import Header
from onnxfi.faults.trials import json_value
from onnxfi.protection.coded_memory import BLOCK_STATUSES
from onnxfi.statistics.intervals import (
    Interval,
    Stratum,
    clopper_pearson,
    median_interval,
    sample_error,
    stratified_interval,
)
from onnxfi.tasks.outcomes import unpacked
from onnxfi.tasks.task import OUTCOMES, Metric, Task

#: Sums over trials: how many have a rate, the sum of its values and of their squares ([rates, 3]).
Sums = NDArray[np.float64]
#: Trials of an adaptive campaign from which the rate in a part of its faults is estimated.
FEWEST = 30
#: Place of a trial: its stratum, and its layer and bit.
TrialCell = tuple[int, str | None, int | None]
#: A stratum of a fold (None: all as one), its sums, and the sites of the fold there.
_Part = tuple[int | None, Sums, int | None]


def ends_row(i: Interval) -> dict[str, Any]:
    """Return an interval as plain values for JSON."""
    return {"value": json_value(i.estimate), "low": json_value(i.low), "high": json_value(i.high)}


@dataclass(frozen=True)
class MetricEstimate:
    """A rate with its interval; `of` is what it is a share of: trials, or samples."""

    name: str
    of: str
    interval: Interval

    def row(self) -> dict[str, Any]:
        """As plain values for JSON."""
        ends = ends_row(self.interval) | ({"value": None} if math.isnan(self.interval.estimate) else {})
        return {"name": self.name, "of": self.of, **ends}


@dataclass(frozen=True)
class Fold:
    """Trials that belong together: all, those of one rate, layer or bit; `population` are the sites they stand for."""

    key: str
    trials: int
    population: int | None
    outcomes: dict[str, int]
    rates: tuple[MetricEstimate, ...]

    def rate(self, name: str) -> Interval | None:
        """Return the interval of a rate; None if these trials do not have it."""
        return next((r.interval for r in self.rates if r.name == name), None)

    def estimated(self, name: str) -> Interval | None:
        """Return the interval of a rate that has an estimate; in an adaptive campaign some have none."""
        found = self.rate(name)
        return None if found is None or math.isnan(found.estimate) else found

    def row(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "key": self.key, "trials": self.trials, "population": self.population, "outcomes": self.outcomes,
            "rates": [rate.row() for rate in self.rates],
        }  # fmt: skip


@dataclass(frozen=True)
class CampaignRates:
    """The results of a campaign, summed by rate, layer and bit; see `Report`, which shows them."""

    store: Path
    campaign: dict[str, Any]
    golden: dict[str, Any]
    environment: dict[str, Any]
    confidence: float
    planned: int
    errors: int
    everything: Fold
    by_rate: tuple[Fold, ...]
    by_layer: tuple[Fold, ...]
    by_bit: tuple[Fold, ...]
    samples: Interval | None
    others: Interval | None
    strata: tuple[dict[str, Any], ...]
    look: Look | None = None

    @classmethod
    def read(cls, store: str | Path, confidence: float | None = None) -> Self:
        """Fold the results of a store, with intervals at `confidence` (None: that of the campaign)."""
        with Store.open(store) as opened:
            campaign, golden = opened.get("identity"), opened.get("golden")
            if campaign is None or golden is None or not opened.count("results"):
                hint = "; its trials ended in errors of the harness" if opened.count("errors") else ""
                raise StoreError(f"{str(store)!r} holds no result yet{hint}; onnxfi run goes on with it")
            strata = tuple(opened.strata())
            cells = [tuple(cell) for cell in opened.get("cells")]
            confidence = confidence or float(opened.get("length")["confidence"])
            planned, errors, environment = opened.count("plan"), opened.count("errors"), opened.get("environment")
            head = (Path(store), campaign, golden, environment, confidence, planned, errors)
            look = look_at(opened, confidence=confidence) if campaign.get("adaptive") else None
            if look is not None and look.method != "simple":
                return cls(*head, *_scored(opened, golden["rows"], confidence, look), strata, look)
            homes = cells if _have_homes(cells, strata) else []
            fold = RateSums(declared_task(opened), strata, homes, confidence, look)
            samples = fold.read(opened, golden["rows"])
        rates = sorted({s["ber"] for s in strata if s["ber"] is not None})
        return cls(
            *head,
            fold("all"),
            tuple(fold(f"{rate:g}", strata=[s["stratum"] for s in strata if s["ber"] == rate]) for rate in rates),
            tuple(fold(layer, layer=layer) for layer in dict.fromkeys(layer for layer, _, _ in cells)),
            tuple(fold(str(bit), bit=bit) for bit in sorted({bit for _, bit, _ in cells if bit is not None})),
            None if samples is None or len(rates) > 1 else sample_error(samples, confidence),
            None if samples is None or len(rates) > 1 else _others(samples, confidence),
            strata,
            look,
        )  # fmt: skip

    @cached_property
    def task(self) -> Task:
        """The task as the store declares it."""
        return Task.declared(self.golden["task"])

    @cached_property
    def header(self) -> Header:
        """The header of the fault list."""
        with Store.open(self.store, checked=True) as opened:
            return opened.header()

    @property
    def telling(self) -> tuple[str, ...]:
        """The metrics of the golden run that a fault can worsen: not those that are at their worst already."""
        measured, metrics = self.golden["metrics"], self.task.by_name
        worst = {name: metrics[name].bounds[metrics[name].better == "lower"] for name in measured if name in metrics}
        return tuple(name for name, value in measured.items() if value is None or value != worst.get(name))

    @cached_property
    def trials(self) -> TrialColumns:
        """The trials as columns, with the metrics that findings and pages ask of each; read from the store once."""
        task = self.task
        asked = [task.metric(task.headline), task.first(task.curves, self.telling)]
        asked += [task.metric(name) for name in ("sdc", "sdc_samples", "due_samples")]
        if task.accuracy is not None:
            asked.append(task.accuracy)
        with Store.open(self.store, checked=True) as opened:
            return trial_columns(opened, list({metric.name: metric for metric in asked}.values()))

    @property
    def judged(self) -> int:
        """The number of samples that each trial is judged on."""
        return int(self.golden.get("judged", self.golden["samples"]))

    def causes(self) -> dict[str, int]:
        """Return the number of DUE trials by cause, the most frequent first.

        `alarm` and `memory-code` are detected by a protection, all others by the runtime or the system alone.
        """
        with Store.open(self.store, checked=True) as opened:
            found = opened.causes()
        return dict(found.most_common())

    def blocks(self) -> dict[str, int] | None:
        """Return the blocks of a coded memory with errors, by what became of them; None without a memory code."""
        if not self.campaign.get("memory_code"):
            return None
        with Store.open(self.store, checked=True) as opened:
            found = Counter[str]()
            for row in opened.rows():
                found.update({s: int(row.metrics.get(f"blocks_{s}", 0)) for s in BLOCK_STATUSES})
        return {status: found[status] for status in BLOCK_STATUSES}

    def details(self) -> Iterator[dict[str, Any]]:
        """One row per trial, read from the store: what it was, its outcome, its metrics."""
        rates = {s["stratum"]: s["ber"] for s in self.strata}
        measured = self.golden["metrics"]
        names = [name for name in dict.fromkeys((*self.task.reported, *measured)) if name in measured]
        with Store.open(self.store) as opened:
            for row in opened.rows():
                yield {
                    "trial": row.trial, "ber": rates[row.stratum], "faults": row.faults, "layer": row.layer,
                    "bit": row.bit, "outcome": row.outcome, "cause": row.cause,
                    **{name: row.metrics.get(name) for name in names},
                }  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """All trials together, as plain values for JSON."""
        return {
            "store": str(self.store), "trials": self.everything.trials, "planned": self.planned,
            "errors": self.errors, "confidence": self.confidence, "outcomes": self.everything.outcomes,
            "rates": [rate.row() for rate in self.everything.rates],
            "golden": self.golden["metrics"], "samples": self.golden["samples"], "judged": self.judged,
            "data": self.golden["data"], "scores": self.golden.get("kind"),
            "adaptive": None if self.look is None else self.look.row(),
        }  # fmt: skip

    def document(self) -> dict[str, Any]:
        """Everything, as plain values for JSON."""
        folds = {name: [fold.row() for fold in getattr(self, name)] for name in ("by_rate", "by_layer", "by_bit")}
        headline = self.task.metric(self.task.headline)
        spread = None if self.samples is None else MetricEstimate(headline.name, headline.of, self.samples).row()
        others = None if self.others is None else MetricEstimate(headline.name, headline.of, self.others).row()
        found = {"causes": self.causes(), "blocks": self.blocks()}
        return {**self.summary(), **found, **folds, "sample_error": spread, "other_samples": others}


def _have_homes(cells: list[tuple[Any, ...]], strata: tuple[dict[str, Any], ...]) -> bool:
    """Return True if the strata divide the sites by layer and bit, so that trials of each stand for its sites.

    Those of a list that a ranking drew do not: they are of tensors, or several are of the same layer.
    """
    keys = [(s["layer"], s["bit"]) for s in strata]
    held = set(keys)
    ways = ({(layer, bit), (layer, None), (None, None)} for layer, bit, _ in cells)
    return len(held) == len(keys) and all(held & way for way in ways)


def _others(samples: NDArray[np.float64], confidence: float) -> Interval | None:
    """Return the interval of the rate on as many other samples; None if all of these are alike."""
    return sample_error(samples, confidence, again=True) if np.ptp(samples) > 0 else None


def _scored(
    store: Store, samples: int, confidence: float, look: Look
) -> tuple[Fold, tuple[Fold, ...], tuple[Fold, ...], tuple[Fold, ...], Interval | None, Interval | None]:
    """All, by rate, by layer and by bit of an adaptive campaign, and the two intervals over samples."""
    record, task = AdaptiveRecord.of(store), declared_task(store)
    place = {metric.name: k for k, metric in enumerate(record.metrics)}

    def fold(key: str, inside: Iterable[bool]) -> Fold:
        strata = np.flatnonzero(list(inside))
        values = record.values[record.within(strata)]
        outcomes = {name: int(values[:, place[name]].sum()) for name in OUTCOMES}
        rates = tuple(
            MetricEstimate(name, task.metric(name).of, _widened(i, values[:, place[name]], whole=key == "all"))
            for name, i in record.intervals(strata, confidence).items()
        )
        return Fold(key, len(values), int(record.layout.sizes[strata].sum()), outcomes, rates)

    everything = fold("all", [True] * len(record.layers))
    ranked = {} if look.ranking is None else {row.name: row.interval for row in look.ranking.rows() if row.trials}
    by_layer = tuple(
        _with_interval(fold(name, [name == one for one in record.layers]), look.rate, ranked.get(name))
        for name in dict.fromkeys(record.layers)
    )
    fields = [name for name in dict.fromkeys(record.fields) if not name.endswith("words")]
    by_bit = tuple(
        _with_interval(fold(name, [name == one for one in record.fields]), look.rate, ranked.get(name))
        for name in fields
    )
    each, rate = record.samples(store, samples), everything.rate(task.headline)
    if each is None or rate is None or math.isnan(rate.estimate):
        return everything, (), by_layer, by_bit, None, None
    spread, others = sample_error(each, confidence), _others(each, confidence)
    around = partial(_around, rate.estimate)
    return everything, (), by_layer, by_bit, around(spread), None if others is None else around(others)


def _with_interval(fold: Fold, rate: str, ranked: Interval | None) -> Fold:
    """Return the fold of a ranked part with the interval of the ranking, so that a part has one and no other."""
    if ranked is None:
        return fold

    def ends(of: MetricEstimate) -> Interval:
        return replace(ranked, estimate=math.nan) if math.isnan(of.interval.estimate) else ranked

    return replace(
        fold, rates=tuple(replace(one, interval=ends(one)) if one.name == rate else one for one in fold.rates)
    )


def _widened(i: Interval, seen: NDArray[np.float64], *, whole: bool) -> Interval:
    """Return an interval of an adaptive campaign, its estimate NaN if that rests on expectations alone.

    The estimate starts from what trials of the same bits in other layers gave. Of a part of the faults it is shown from
    30 trials on, and nowhere beyond all that the trials showed; its ends hold all the same.
    """
    enough = whole or len(seen) >= FEWEST
    within = seen.min() - 1e-9 <= i.estimate <= seen.max() + 1e-9
    return i if enough and within else replace(i, estimate=math.nan)


def _around(p: float, spread: Interval) -> Interval:
    """Return an interval as wide, about another estimate."""
    low, high = max(p - spread.half_width, 0.0), min(p + spread.half_width, 1.0)
    return replace(spread, low=low, high=high, estimate=p)


@dataclass(frozen=True)
class RateSums:
    """Sums become rates: by stratum, each with the number of faults that it was drawn from (none: endless)."""

    task: Task
    strata: tuple[dict[str, Any], ...]
    cells: list[tuple[Any, ...]]
    confidence: float
    look: Look | None = None
    sums: dict[TrialCell, Sums] = field(default_factory=dict)
    #: The values of the metrics without bounds, by name, of which no sums are taken.
    values: dict[str, dict[TrialCell, list[float]]] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that are folded, in the order of the sums."""
        return self.task.reports

    def no_sums(self) -> Sums:
        """Return the sums of no trial."""
        return np.zeros((len(self.metrics), 3))

    def read(self, store: Store, samples: int) -> NDArray[np.float64] | None:
        """Sum up the results; for each sample how often its top-1 changed, where there is one ([samples])."""
        ran = store.ran()
        sites = self._sites(None, None)
        weight = {
            s: sites[s] / sum(sites[r] for r in ran) / n if sites else 1 / sum(ran.values()) for s, n in ran.items()
        }
        changed = None
        for block in column_blocks(store, self.metrics):
            (place, cells), values = block.cells(), block.values.copy()
            for k, name in self._medians:
                for cell, value in zip(place.tolist(), values[k].tolist(), strict=True):
                    if not math.isnan(value):
                        self.values.setdefault(name, {}).setdefault(cells[cell], []).append(value)
                values[k, ~np.isnan(values[k])] = 0.0
            self._add(values.T, place, cells)
            if samples > 1:
                for (stratum, packed), n in Counter(zip(block.stratum.tolist(), block.changed, strict=True)).items():
                    if packed is not None:
                        changed = np.zeros(samples) if changed is None else changed
                        changed += n * weight[stratum] * unpacked(packed, samples)
        return None if changed is None else np.clip(changed, 0, 1)

    @property
    def _medians(self) -> list[tuple[int, str]]:
        """The metrics without bounds, by their place and name: their values go to the lists."""
        return [(k, metric.name) for k, metric in enumerate(self.metrics) if metric.fold == "median"]

    def _add(self, values: NDArray[np.float64], place: NDArray[np.int64], cells: Sequence[TrialCell]) -> None:
        """Add trials to the sums ([trials, metrics]), their values scaled to [0, 1], each to that of its cell."""
        low, width = self._scale
        order = np.argsort(place, kind="stable")
        x = ((values - low) / width)[order]
        here = ~np.isnan(x)
        x = np.where(here, x, 0.0)
        begin = np.searchsorted(place[order], np.arange(len(cells)))
        sums = np.stack([np.add.reduceat(part, begin, axis=0) for part in (here.astype(np.float64), x, x * x)], axis=2)
        for cell, one in zip(cells, sums, strict=True):
            self.sums[cell] = self.sums[cell] + one if cell in self.sums else one

    @cached_property
    def _scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The least value of each metric and the width of its bounds."""
        ends = [(0.0, 1.0) if metric.fold == "median" else metric.bounds for metric in self.metrics]
        return np.array([low for low, _ in ends]), np.array([high - low for low, high in ends])

    def __call__(
        self, key: str, *, strata: list[int] | None = None, layer: str | None = None, bit: int | None = None
    ) -> Fold:
        """Return the outcomes and rates of the trials in some strata, one layer and one bit (None: all)."""
        where = FoldScope(None if strata is None else tuple(strata), layer, bit)
        parts = self.parts(where)
        total = np.sum([sums for _, sums, _ in parts], axis=0)
        place = {metric.name: k for k, metric in enumerate(self.metrics)}
        outcomes = {name: int(total[place[name], 1]) for name in OUTCOMES}
        rates = tuple(
            MetricEstimate(metric.name, metric.of, self.interval(k, where, parts, whole=key == "all"))
            for k, metric in enumerate(self.metrics)
            if total[k, 0]
        )
        population = sum(n for _, _, n in parts if n) or None
        return Fold(key, int(total[0, 0]), population, outcomes, rates)

    def parts(self, where: FoldScope) -> list[_Part]:
        """Return the strata of a fold (None: all as one), each with its sums and the sites of the fold there."""
        found: dict[int, Sums] = defaultdict(self.no_sums)
        for key, sums in self.sums.items():
            if where.holds(key):
                found[key[0]] += sums
        if not self.cells:  # sweeps and mixes: trials of an endless population
            return [(None, np.sum([self.no_sums(), *found.values()], axis=0), None)]
        sites = self._sites(where.layer, where.bit)
        return [(stratum, found[stratum], n) for stratum, n in sorted(sites.items())]

    def _sites(self, layer: str | None, bit: int | None) -> dict[int, int]:
        """Return the sites of a layer and bit (None: of all) in each stratum."""
        sites: dict[int, int] = defaultdict(int)
        for cell_layer, cell_bit, n in self.cells:
            if layer in (None, cell_layer) and bit in (None, cell_bit):
                sites[self._drawn_from(cell_layer, cell_bit)] += n
        return sites

    def _drawn_from(self, layer: str, bit: int | None) -> int:
        """Return the stratum that the sites of a layer and bit belong to."""
        return next(self._homes[key] for key in ((layer, bit), (layer, None), (None, None)) if key in self._homes)

    @cached_property
    def _homes(self) -> dict[tuple[str | None, int | None], int]:
        return {(s["layer"], s["bit"]): s["stratum"] for s in self.strata}

    def interval(self, k: int, where: FoldScope, parts: list[_Part], *, whole: bool = False) -> Interval:
        """Return the interval of the k-th metric over the trials of a fold."""
        metric = self.metrics[k]
        if whole and self.look is not None and self.look.rate == metric.name:
            return self.look.interval
        if metric.fold == "median":
            return median_interval(self._listed(metric, where, parts), self.confidence, bounds=metric.bounds)
        strata = [Stratum(population, int(sums[k, 0]), *sums[k, 1:]) for _, sums, population in parts]
        if metric.fold == "count" and len(strata) == 1:
            one = strata[0]
            return clopper_pearson(round(one.total), one.n, self.confidence, population=one.population)
        found, low = stratified_interval(strata, self.confidence), metric.bounds[0]
        if metric.bounds == (0.0, 1.0):
            return found
        width = metric.bounds[1] - low
        ends = {name: low + getattr(found, name) * width for name in ("low", "high", "estimate")}
        return replace(found, **ends)

    def _listed(
        self, metric: Metric, where: FoldScope, parts: list[_Part]
    ) -> list[tuple[NDArray[np.float64], int | None]]:
        """Return the values of a metric in each stratum of a fold, with the sites of the fold there."""
        found: dict[int | None, list[float]] = defaultdict(list)
        for key, values in self.values.get(metric.name, {}).items():
            if where.holds(key):
                found[key[0] if self.cells else None] += values
        return [(np.array(found[stratum]), n) for stratum, _, n in parts]


@dataclass(frozen=True)
class FoldScope:
    """The trials of a fold: those in some strata, one layer, one bit; None stands for all."""

    strata: tuple[int, ...] | None
    layer: str | None
    bit: int | None

    def holds(self, key: TrialCell) -> bool:
        """Return true if trials of this stratum, layer and bit belong to the fold."""
        stratum, layer, bit = key
        inside = self.layer in (None, layer) and self.bit in (None, bit)
        return inside and (self.strata is None or stratum in self.strata)
