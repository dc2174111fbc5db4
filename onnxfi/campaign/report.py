"""The report: results folded by rate, layer and bit, each rate with its interval.

The trial is the unit of statistics. Yes/no outcomes of trials get exact binomial intervals; per-sample rates and
accuracies get theirs from the spread between trials, weighted by stratum where the plan drew so. Both hold for the
samples that were run; what the choice of samples adds is stated apart. Results are read as a stream: what is held in
memory are sums.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.outcomes import CLASSES, unpacked
from onnxfi.campaign.rates import OUTCOMES, RATES, SHARES, YES_NO, value
from onnxfi.campaign.rounds import Look, look_at
from onnxfi.campaign.scored import Record
from onnxfi.campaign.store import Store, StoreError
from onnxfi.errors import OutputError
from onnxfi.faults.statistics import Interval, Stratum, clopper_pearson, sample_error, stratified_interval
from onnxfi.faults.trials import json_value
from onnxfi.graph.output import make_folder, temporary

#: Sums over trials: how many have a rate, the sum of its values and of their squares ([rates, 3]).
Sums = NDArray[np.float64]
#: Where a trial belongs: its stratum, and its layer and bit.
Key = tuple[int, str | None, int | None]


@dataclass(frozen=True)
class Rate:
    """A rate with its interval; `of` is what it is a share of: trials, or samples."""

    name: str
    of: str
    interval: Interval

    def row(self) -> dict[str, Any]:
        """As plain values for JSON."""
        i = self.interval
        ends = {"value": json_value(i.estimate), "low": json_value(i.low), "high": json_value(i.high)}
        return {"name": self.name, "of": self.of, **ends}


@dataclass(frozen=True)
class Fold:
    """Trials that belong together: all, those of one rate, layer or bit; `population` are the sites they stand for."""

    key: str
    trials: int
    population: int | None
    outcomes: dict[str, int]
    rates: tuple[Rate, ...]

    def rate(self, name: str) -> Interval | None:
        """The interval of a rate; None where these trials do not have it."""
        return next((r.interval for r in self.rates if r.name == name), None)

    def row(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "key": self.key, "trials": self.trials, "population": self.population, "outcomes": self.outcomes,
            "rates": [rate.row() for rate in self.rates],
        }  # fmt: skip


@dataclass(frozen=True)
class Report:
    """A campaign's results, folded. `samples` is what the choice of samples adds to the SDC-1 rate.

    Of an adaptive campaign `look` is what it measures; `by_bit` goes by the fields of bits that it drew from, and only
    trials of complete rounds count.
    """

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
    strata: tuple[dict[str, Any], ...]
    look: Look | None = None

    def details(self) -> Iterator[dict[str, Any]]:
        """One row a trial, read from the store: what it was, its outcome, its metrics."""
        rates = {s["stratum"]: s["ber"] for s in self.strata}
        names = dict.fromkeys(name for name in (*SHARES, *self.golden["metrics"]) if name in self.golden["metrics"])
        with Store.open(self.store) as opened:
            for row in opened.rows():
                yield {
                    "trial": row.trial, "ber": rates[row.stratum], "faults": row.faults, "layer": row.layer,
                    "bit": row.bit, "outcome": row.outcome, "cause": row.cause,
                    **{name: row.metrics.get(name) for name in names},
                }  # fmt: skip

    def to_pandas(self) -> Any:
        """One line a trial, as a pandas DataFrame; OutputError where pandas is not installed."""
        try:
            import pandas  # type: ignore[import-untyped,unused-ignore]
        except ImportError:
            raise OutputError("pandas is not installed; pip install pandas, or use --csv") from None
        return pandas.DataFrame(list(self.details()))

    def summary(self) -> dict[str, Any]:
        """All trials together, as plain values for JSON."""
        return {
            "store": str(self.store), "trials": self.everything.trials, "planned": self.planned,
            "errors": self.errors, "confidence": self.confidence, "outcomes": self.everything.outcomes,
            "rates": [rate.row() for rate in self.everything.rates],
            "golden": self.golden["metrics"], "samples": self.golden["samples"], "data": self.golden["data"],
            "adaptive": None if self.look is None else self.look.row(),
        }  # fmt: skip

    def document(self) -> dict[str, Any]:
        """Everything, as plain values for JSON."""
        folds = {name: [fold.row() for fold in getattr(self, name)] for name in ("by_rate", "by_layer", "by_bit")}
        spread = None if self.samples is None else Rate("sdc1", "samples", self.samples).row()
        return {**self.summary(), **folds, "sample_error": spread}


def report(store: str | Path, *, confidence: float | None = None) -> Report:
    """Fold the results of a store; a campaign that is not finished is reported as far as it is.

    `confidence` is that of every interval (default: what the campaign asks for). Raises StoreError for what is no
    store, or one without a result.

    >>> import tempfile
    >>> from onnxfi.campaign.runner import run
    >>> from onnxfi.campaign.spec import Campaign
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=50, single=True, trials=20)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = list(run(campaign, folder + "/store.db"))
    ...     found = report(folder + "/store.db")
    >>> found.everything.trials, found.everything.rate("sdc1").high < 0.5
    (20, True)
    """
    with Store.open(store) as opened:
        campaign, golden = opened.get("identity"), opened.get("golden")
        if campaign is None or golden is None or not opened.count("results"):
            hint = "; its trials ended in errors of the harness" if opened.count("errors") else ""
            raise StoreError(f"{str(store)!r} holds no result yet{hint}; onnxfi run goes on with it")
        strata = tuple(opened.strata())
        cells = [tuple(cell) for cell in opened.get("cells")]
        confidence = confidence or float(opened.get("length")["confidence"])
        planned, errors, environment = opened.count("plan"), opened.count("errors"), opened.get("environment")
        told = (Path(store), campaign, golden, environment, confidence, planned, errors)
        look = look_at(opened, confidence=confidence) if campaign.get("adaptive") else None
        if look is not None and look.method != "simple":
            return Report(*told, *_scored(opened, golden["rows"], confidence), strata, look)
        fold = _Folder(strata, cells, confidence, look)
        samples = fold.read(opened, golden["rows"])
    rates = sorted({s["ber"] for s in strata if s["ber"] is not None})
    return Report(
        *told,
        fold("all"),
        tuple(fold(f"{rate:g}", strata=[s["stratum"] for s in strata if s["ber"] == rate]) for rate in rates),
        tuple(fold(layer, layer=layer) for layer in dict.fromkeys(layer for layer, _, _ in cells)),
        tuple(fold(str(bit), bit=bit) for bit in sorted({bit for _, bit, _ in cells if bit is not None})),
        None if samples is None or len(rates) > 1 else sample_error(samples, confidence),
        strata,
        look,
    )  # fmt: skip


def _scored(
    store: Store, samples: int, confidence: float
) -> tuple[Fold, tuple[Fold, ...], tuple[Fold, ...], tuple[Fold, ...], Interval | None]:
    """All, by rate, by layer and by bit of an adaptive campaign, and what the choice of samples adds."""
    record = Record.of(store)

    def fold(key: str, inside: Iterable[bool]) -> Fold:
        strata = np.flatnonzero(list(inside))
        values = record.values[record.within(strata)]
        outcomes = {name: int(values[:, RATES.index(name)].sum()) for name in OUTCOMES}
        rates = tuple(Rate(name, _of(name), i) for name, i in record.intervals(strata, confidence).items())
        return Fold(key, len(values), int(record.layout.sizes[strata].sum()), outcomes, rates)

    everything = fold("all", [True] * len(record.layers))
    by_layer = tuple(fold(name, [name == one for one in record.layers]) for name in dict.fromkeys(record.layers))
    fields = [name for name in dict.fromkeys(record.fields) if not name.endswith("words")]
    by_bit = tuple(fold(name, [name == one for one in record.fields]) for name in fields)
    each, rate = record.samples(store, samples), everything.rate("sdc1")
    if each is None or rate is None:
        return everything, (), by_layer, by_bit, None
    spread, p = sample_error(each, confidence), rate.estimate
    low, high = max(p - spread.half_width, 0.0), min(p + spread.half_width, 1.0)
    return everything, (), by_layer, by_bit, replace(spread, low=low, high=high, estimate=p)


def _of(name: str) -> str:
    return "trials" if name in YES_NO else "samples"


def _none() -> Sums:
    return np.zeros((len(RATES), 3))


@dataclass(frozen=True)
class _Folder:
    """Sums become rates: by stratum, each with the number of faults that it was drawn from (none: endless)."""

    strata: tuple[dict[str, Any], ...]
    cells: list[tuple[Any, ...]]
    confidence: float
    look: Look | None = None
    sums: dict[Key, Sums] = field(default_factory=lambda: defaultdict(_none))

    def read(self, store: Store, samples: int) -> NDArray[np.float64] | None:
        """Sum up the results; for each sample how often its top-1 changed, where there is one ([samples])."""
        ran = store.ran()
        sites = self._sites(None, None)
        weight = {
            s: sites[s] / sum(sites[r] for r in ran) / n if sites else 1 / sum(ran.values()) for s, n in ran.items()
        }
        changed = None
        for row in store.rows():
            values = [value(row, name) for name in RATES]
            x = np.array([np.nan if one is None else one for one in values])
            here = ~np.isnan(x)
            self.sums[row.stratum, row.layer, row.bit][here] += np.stack([np.ones_like(x), x, x * x], axis=1)[here]
            if row.changed is not None and samples > 1:
                changed = np.zeros(samples) if changed is None else changed
                changed += weight[row.stratum] * unpacked(row.changed, samples)
        return None if changed is None else np.clip(changed, 0, 1)

    def __call__(
        self, key: str, *, strata: list[int] | None = None, layer: str | None = None, bit: int | None = None
    ) -> Fold:
        parts = self._parts(strata, layer, bit)
        total = np.sum([sums for sums, _ in parts], axis=0)
        outcomes = {name: int(total[RATES.index(name), 1]) for name in OUTCOMES}
        rates = tuple(
            Rate(name, _of(name), self._interval(name, [(s[k], n) for s, n in parts], whole=key == "all"))
            for k, name in enumerate(RATES)
            if total[k, 0]
        )
        population = sum(n for _, n in parts if n) or None
        return Fold(key, int(total[0, 0]), population, outcomes, rates)

    def _parts(self, strata: list[int] | None, layer: str | None, bit: int | None) -> list[tuple[Sums, int | None]]:
        """The sums of each stratum inside a fold, and the sites of the fold there."""
        found: dict[int, Sums] = defaultdict(_none)
        for (stratum, row_layer, row_bit), sums in self.sums.items():
            inside = layer in (None, row_layer) and bit in (None, row_bit)
            if inside and (strata is None or stratum in strata):
                found[stratum] += sums
        if not self.cells:  # sweeps and mixes: trials of an endless population
            return [(np.sum([_none(), *found.values()], axis=0), None)]
        return [(found[stratum], n) for stratum, n in sorted(self._sites(layer, bit).items())]

    def _sites(self, layer: str | None, bit: int | None) -> dict[int, int]:
        """The sites of a layer and bit (None: of all) in each stratum."""
        sites: dict[int, int] = defaultdict(int)
        for cell_layer, cell_bit, n in self.cells:
            if layer in (None, cell_layer) and bit in (None, cell_bit):
                sites[self._drawn_from(cell_layer, cell_bit)] += n
        return sites

    def _drawn_from(self, layer: str, bit: int | None) -> int:
        """The stratum that the sites of a layer and bit belong to."""
        return next(self._homes[key] for key in ((layer, bit), (layer, None), (None, None)) if key in self._homes)

    @cached_property
    def _homes(self) -> dict[tuple[str | None, int | None], int]:
        return {(s["layer"], s["bit"]): s["stratum"] for s in self.strata}

    def _interval(self, name: str, parts: list[tuple[Any, int | None]], *, whole: bool = False) -> Interval:
        if whole and self.look is not None and self.look.rate == name:
            return self.look.interval
        if name in YES_NO and len(parts) == 1:
            ((n, hits, _), population), *_ = parts
            return clopper_pearson(round(hits), int(n), self.confidence, population=population)
        strata = [Stratum(population, int(n), total, squares) for (n, total, squares), population in parts]
        return stratified_interval(strata, self.confidence)


def classes(found: Report) -> list[dict[str, Any]]:
    """The table of Gogebakan et al. (SpikingJET, 2024): a row a layer; the shares from fully masked to DUE sum to 1.

    `faults` counts the trials, `injections` the samples that were run under them. Empty where nothing is classified,
    trials strike many layers at once, or an adaptive campaign estimates each class by itself, so that they sum to 1
    only about.
    """
    golden = found.golden["metrics"].get("top1")
    rows: list[dict[str, Any]] = []
    if found.look is not None:
        return rows
    for fold in found.by_layer:
        shares = [fold.rate(name) for name in CLASSES]
        if all(shares) and fold.trials:
            row: dict[str, Any] = {
                "layer": fold.key, "faults": fold.trials,
                "injections": fold.trials * found.golden.get("judged", found.golden["samples"]),
            }  # fmt: skip
            row |= {name.removeprefix("class_"): i.estimate for name, i in zip(CLASSES, shares, strict=True) if i}
            accuracy = fold.rate("top1")
            rows.append(row | ({"faulty_accuracy": accuracy.estimate, "golden_accuracy": golden} if accuracy else {}))
    return rows


def write_csv(found: Report, folder: str | Path) -> list[Path]:
    """Write the report as CSV files into a folder; returns what was written.

    `detail.csv` has a line a trial, `summary.csv` the rates of all trials with the ends of their intervals; the same by
    rate, layer and bit stands in `rates.csv`, `layers.csv` and `bits.csv`, where there are such, and what `classes`
    says in `classes.csv`.
    """
    place = Path(folder)
    tables: dict[str, Iterable[dict[str, Any]]] = {
        "detail": found.details(),
        "summary": [_flat("", found.everything, found)],
        "rates": [_flat("ber", fold, found) for fold in found.by_rate],
        "layers": [_flat("layer", fold, found) for fold in found.by_layer],
        "bits": [_flat("bit", fold, found) for fold in found.by_bit],
        "classes": classes(found),
    }
    make_folder(place)
    return [_table(place / f"{name}.csv", rows) for name, rows in tables.items() if rows]


def _flat(key: str, fold: Fold, found: Report) -> dict[str, Any]:
    """A fold as one line: what it is, its counts, golden's accuracy, then value and ends of each rate."""
    row: dict[str, Any] = {key: fold.key} if key else {}
    row |= {"trials": fold.trials, "population": fold.population}
    row |= {f"trials_{name}": n for name, n in fold.outcomes.items()}
    row |= {f"golden_{name}": found.golden["metrics"].get(name) for name in ("top1", "top5")}
    for name in (*SHARES, *YES_NO):
        i = fold.rate(name)
        row |= {name: i and i.estimate, f"{name}_low": i and i.low, f"{name}_high": i and i.high}
    return row


def _table(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    with temporary([path]) as (stream,):
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        table = csv.writer(text)
        for number, row in enumerate(rows):
            if not number:
                table.writerow(row)
            table.writerow(f"{v:.12g}" if isinstance(v, float) else "" if v is None else v for v in row.values())
        text.detach()
    return path
