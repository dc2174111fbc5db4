"""The report: results folded by rate, layer and bit, each rate with its interval.

The trial is the unit of statistics. Yes/no outcomes of trials get exact binomial intervals; per-sample rates and
accuracies get theirs from the spread between trials, weighted by stratum where the plan drew so. Both hold for the
samples that were run; what the choice of samples adds is stated apart.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.campaign.outcomes import CLASSES, unpacked
from onnxfi.campaign.store import Row, Store, StoreError
from onnxfi.errors import OutputError
from onnxfi.faults.statistics import Interval, Stratum, clopper_pearson, sample_error, stratified_interval
from onnxfi.faults.trials import json_value

#: Yes/no outcomes of trials: the rate at which any sample's top-1 changes depends on the number of samples.
YES_NO: dict[str, Callable[[Row], bool]] = {
    "masked": lambda row: row.outcome == "masked",
    "sdc": lambda row: row.outcome == "sdc",
    "due": lambda row: row.outcome == "due",
    "any_sdc1": lambda row: float(row.metrics.get("sdc1", 0)) > 0,
}
#: Shares of samples, averaged over trials.
SHARES = (
    "top1",
    "top5",
    "sdc1",
    "sdc5",
    "critical",
    "nonfinite",
    "masked_samples",
    "sdc_samples",
    "due_samples",
    *CLASSES,
)
_WAYS_OF_ONE = ("single", "exhaustive")


@dataclass(frozen=True)
class Rate:
    """A rate with its interval; `of` is what it is a share of: trials, or samples."""

    name: str
    of: str
    interval: Interval

    def row(self) -> dict[str, Any]:
        """As plain values for JSON."""
        i = self.interval
        return {
            "name": self.name,
            "of": self.of,
            **{k: json_value(getattr(i, k)) for k in ("low", "high")},
            "value": json_value(i.estimate),
        }


@dataclass(frozen=True)
class Fold:
    """Trials that belong together: all, those of one rate, layer or bit."""

    key: str
    trials: int
    population: int | None
    outcomes: dict[str, int]
    rates: tuple[Rate, ...]

    def rate(self, name: str) -> Interval | None:
        """The interval of a rate; None where these trials do not have it."""
        return next((r.interval for r in self.rates if r.name == name), None)


@dataclass(frozen=True)
class Report:
    """A campaign's results, folded."""

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
    rows: tuple[Row, ...]
    strata: tuple[dict[str, Any], ...]

    def to_pandas(self) -> Any:
        """One line a trial, as a pandas DataFrame."""
        try:
            import pandas  # type: ignore[import-untyped,unused-ignore]
        except ImportError:
            raise OutputError("pandas is not installed; pip install pandas, or use --csv") from None
        return pandas.DataFrame(_details(self))

    def document(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "store": str(self.store), "trials": self.everything.trials, "planned": self.planned,
            "errors": self.errors, "confidence": self.confidence, "outcomes": self.everything.outcomes,
            "rates": [rate.row() for rate in self.everything.rates],
            "golden": self.golden["metrics"], "samples": self.golden["samples"],
            **{name: [_plain(fold) for fold in getattr(self, name)] for name in ("by_rate", "by_layer", "by_bit")},
        }  # fmt: skip


def report(store: str | Path) -> Report:
    """Fold the results of a store.

    Raises StoreError for what is no store, or one without a result.
    """
    with Store.open(store) as opened:
        campaign = opened.get("identity")
        rows = tuple(opened.rows())
        if campaign is None or not rows:
            raise StoreError(f"{str(store)!r} holds no result yet; onnxfi run goes on with it")
        strata, cells = tuple(opened.strata()), [tuple(cell) for cell in opened.get("cells") or []]
        golden, confidence = opened.get("golden"), float(opened.get("length")["confidence"])
        planned, errors, environment = opened.count("plan"), opened.count("errors"), opened.get("environment")
    fold = _Folder(campaign["way"], strata, cells, confidence)
    rates = sorted({s["ber"] for s in strata if s["ber"] is not None})
    layers, bits = (_layers(cells), _bits(cells)) if campaign["way"] in _WAYS_OF_ONE else ([], [])
    return Report(
        Path(store), campaign, golden, environment, confidence, planned, errors,
        fold("all", rows),
        tuple(fold(f"{r:g}", [row for row in rows if strata[row.stratum]["ber"] == r]) for r in rates),
        tuple(fold(layer, [r for r in rows if r.layer == layer], layer=layer) for layer in layers),
        tuple(fold(str(bit), [r for r in rows if r.bit == bit], bit=bit) for bit in bits),
        _sample_error(rows, golden["samples"], confidence),
        rows,
        strata,
    )  # fmt: skip


def _layers(cells: Iterable[tuple[Any, ...]]) -> list[str]:
    return list(dict.fromkeys(layer for layer, _, _ in cells))


def _bits(cells: Iterable[tuple[Any, ...]]) -> list[int]:
    return sorted({bit for _, bit, _ in cells if bit is not None})


@dataclass(frozen=True)
class _Folder:
    way: str
    strata: Sequence[dict[str, Any]]
    cells: Sequence[tuple[Any, ...]]
    confidence: float

    def __call__(self, key: str, rows: Sequence[Row], *, layer: str | None = None, bit: int | None = None) -> Fold:
        outcomes = {name: sum(r.outcome == name for r in rows) for name in ("masked", "sdc", "due")}
        parts = self._parts(rows, layer, bit)
        population = sum(n for _, n in parts if n) or None
        rates = [Rate(name, "trials", self._yes_no(parts, hit)) for name, hit in YES_NO.items() if _has(rows, name)]
        rates += [Rate(name, "samples", self._share(parts, name)) for name in SHARES if _has(rows, name)]
        return Fold(key, len(rows), population, outcomes, tuple(rates))

    def _parts(self, rows: Sequence[Row], layer: str | None, bit: int | None) -> list[tuple[list[Row], int | None]]:
        """The rows by stratum, each with the number of faults that it was drawn from (None: endless)."""
        if self.way not in _WAYS_OF_ONE:
            return [(list(rows), None)]
        parts: list[tuple[list[Row], int | None]] = []
        for s in self.strata:
            inside = sum(
                n
                for cell_layer, cell_bit, n in self.cells
                if layer in (None, cell_layer) and bit in (None, cell_bit)
                and s["layer"] in (None, cell_layer) and s["bit"] in (None, cell_bit)
            )  # fmt: skip
            here = [r for r in rows if r.stratum == s["stratum"]]
            if inside:
                parts.append((here, inside))
        return parts

    def _yes_no(self, parts: list[tuple[list[Row], int | None]], hit: Callable[[Row], bool]) -> Interval:
        if len(parts) == 1:
            rows, population = parts[0]
            return clopper_pearson(sum(map(hit, rows)), len(rows), self.confidence, population=population)
        return stratified_interval([Stratum.of([float(hit(r)) for r in rows], n) for rows, n in parts], self.confidence)

    def _share(self, parts: list[tuple[list[Row], int | None]], name: str) -> Interval:
        strata = [Stratum.of([float(r.metrics[name]) for r in rows if name in r.metrics], n) for rows, n in parts]
        return stratified_interval(strata, self.confidence)


def _has(rows: Sequence[Row], name: str) -> bool:
    if name in ("masked", "sdc", "due"):
        return True
    return any(("sdc1" if name == "any_sdc1" else name) in row.metrics for row in rows)


def _sample_error(rows: Sequence[Row], samples: int, confidence: float) -> Interval | None:
    """What the choice of samples adds to the SDC-1 rate."""
    changed = [row.changed for row in rows if row.changed is not None]
    if not changed or samples < 2:
        return None
    total = np.zeros(samples)
    for one in changed:
        total += unpacked(one, samples)
    return sample_error(total / len(changed), confidence)


def _plain(fold: Fold) -> dict[str, Any]:
    return {
        "key": fold.key, "trials": fold.trials, "population": fold.population, "outcomes": fold.outcomes,
        "rates": [rate.row() for rate in fold.rates],
    }  # fmt: skip


def _details(found: Report) -> list[dict[str, Any]]:
    labels = {s["stratum"]: s for s in found.strata}
    return [
        {
            "trial": row.trial, "ber": labels[row.stratum]["ber"], "faults": row.faults, "layer": row.layer,
            "bit": row.bit, "outcome": row.outcome, "cause": row.cause, **row.metrics,
        }
        for row in found.rows
    ]  # fmt: skip


def write_csv(found: Report, folder: str | Path) -> list[Path]:
    """Write the report as CSV files into a folder: detail (one line a trial), summary, and what there is by rate, layer
    and bit: each rate with the ends of its interval. Returns what was written.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        tables = {"summary": [found.everything], "rates": found.by_rate, "layers": found.by_layer, "bits": found.by_bit}
        written = [_table(place / "detail.csv", _details(found))]
        for name, folds in tables.items():
            if folds:
                written.append(_table(place / f"{name}.csv", [_flat(fold, found) for fold in folds]))
        return written
    except OSError as error:
        raise OutputError(f"cannot write into {str(folder)!r}: {error.strerror}") from None


def _flat(fold: Fold, found: Report) -> dict[str, Any]:
    row: dict[str, Any] = {"key": fold.key, "trials": fold.trials, "population": fold.population}
    row |= {f"trials_{name}": n for name, n in fold.outcomes.items()}
    for rate in fold.rates:
        i = rate.interval
        row |= {rate.name: i.estimate, f"{rate.name}_low": i.low, f"{rate.name}_high": i.high}
    return row | {
        f"golden_{name}": value for name, value in found.golden["metrics"].items() if name in ("top1", "top5")
    }


def _table(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, names, restval="")
        table.writeheader()
        table.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return path
