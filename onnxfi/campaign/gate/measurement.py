"""The measurements that limits need: from the store of a campaign, or from the JSON of a check."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxfi.campaign.report.rates import Fold, ends_row
from onnxfi.campaign.report.report import report
from onnxfi.campaign.results.store import Store
from onnxfi.errors import BaselineError, StoreError
from onnxfi.statistics.intervals import Interval
from onnxfi.tasks.task import Task

#: Campaigns whose populations differ by more than this share are of different networks.
_SAME_NETWORK = 0.1
#: Fields of a campaign's identity in which a baseline may differ: the model and what protects it are what changed,
#: seeds only choose.
_FREE = ("model", "pipeline", "seed", "strata", "memory_code", "scrub_interval")
_LARGEST_FILE = 1 << 26


@dataclass(frozen=True)
class MeasuredRate:
    """A rate at one bit error rate, in one layer, or (both None) over all trials."""

    rate: str
    ber: float | None
    layer: str | None
    interval: Interval

    def row(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"rate": self.rate, "ber": self.ber, "layer": self.layer} | ends_row(self.interval)


@dataclass(frozen=True)
class Measured:
    """The results of a campaign. `golden` are the metrics without faults; each interval holds with `confidence`.

    `identity` is all that fixes the campaign's answers, `model` and `digest` what it ran on, `population` the sites
    that it draws from.
    """

    source: str
    model: str
    digest: str
    identity: dict[str, Any]
    population: int
    unit: str
    golden: dict[str, Any]
    samples: int
    data: str
    planned: int
    trials: int
    errors: int
    confidence: float
    rates: tuple[MeasuredRate, ...]
    task: Task
    #: A remark on how the scored output is read.
    reading: str = ""

    @classmethod
    def of_store(cls, store: str | Path, confidence: float) -> Measured:
        """Read a store; StoreError for a file that is none, or one that no run has begun to fill."""
        with Store.open(store) as opened:
            identity, golden = opened.get("identity"), opened.get("golden")
            if identity is None or golden is None or opened.get("header") is None:
                raise StoreError(f"{str(store)!r} holds no campaign yet; run it first")
            header = opened.header()
            planned, trials, errors = (opened.count(table) for table in ("plan", "results", "errors"))
        rates = _rates(store, confidence) if trials else ()
        return cls(
            str(store), header.file, header.model, identity, header.population, header.unit, golden["metrics"],
            golden["samples"], golden["data"], planned, trials, errors, confidence, rates,
            Task.declared(golden["task"]), golden.get("reading", ""),
        )  # fmt: skip

    @classmethod
    def open(cls, source: str | Path, confidence: float) -> Measured:
        """Return a baseline: a store, or the JSON of a check whose intervals hold with `confidence` or more."""
        place = Path(source)
        try:
            with place.open("rb") as stream:
                text = stream.read(_LARGEST_FILE)
        except OSError as error:
            raise BaselineError(f"cannot read the baseline {str(source)!r}: {error.strerror}") from None
        if text.startswith(b"SQLite format 3"):
            return cls.of_store(place, confidence)
        found = cls._of_json(text, str(source))
        if found.confidence < confidence - 1e-12:
            raise BaselineError(
                f"the intervals of the baseline {str(source)!r} hold with {found.confidence:.6g}, this budget needs "
                f"{confidence:.6g}; measure it again with this budget, or give the store of the check (-o STORE)"
            )
        return found

    @classmethod
    def _of_json(cls, text: bytes, source: str) -> Measured:
        try:
            row = json.loads(text)
            each = float(row["interval_confidence"])
            rates = tuple(
                MeasuredRate(str(r["rate"]), r["ber"], r["layer"], Interval(*_three(r), "as given", each))
                for r in row["rates"]
            )
            return cls(
                source, str(row["model"]), str(row["digest"]), dict(row["campaign"]), int(row["population"]),
                str(row["unit"]), {str(k): float(v) for k, v in row["golden"].items()}, int(row["samples"]),
                str(row["data"]), int(row["planned"]), int(row["trials"]), int(row["errors"]), each, rates,
                Task.declared(row["task"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            raise BaselineError(
                f"{source!r} is not a baseline; give a store, or what onnxfi check … --json printed"
            ) from None

    def interval(self, rate: str, ber: float | None = None, layer: str | None = None) -> Interval | None:
        """Return the interval of a rate; None if it was not measured."""
        found = (r.interval for r in self.rates if (r.rate, r.ber, r.layer) == (rate, ber, layer))
        return next(found, None)

    def comparable(self, baseline: Measured) -> None:
        """Refuse a baseline of another campaign, data set or network, naming what differs (BaselineError)."""
        now, before = self.identity, baseline.identity
        names = [k for k in sorted({*now, *before} - {*_FREE}) if now.get(k) != before.get(k)]
        if names:
            said = "; ".join(f"{_name(k)}: {_short(before.get(k))} there, {_short(now.get(k))} here" for k in names[:4])
            raise BaselineError(
                f"the baseline {baseline.source!r} cannot be compared: {said}; measure it again with this budget"
            )
        sizes = sorted((self.population, baseline.population))
        if self.unit != baseline.unit or sizes[0] < (1 - _SAME_NETWORK) * sizes[1]:
            raise BaselineError(
                f"the baseline {baseline.source!r} is of another model: {baseline.model!r} has "
                f"{baseline.population:,} {baseline.unit}s of faults, {self.model!r} {self.population:,} "
                f"{self.unit}s; give one of an earlier version of this model"
            )
        if baseline.errors or baseline.trials < baseline.planned:
            raise BaselineError(
                f"the baseline {baseline.source!r} is not complete: {baseline.trials:,} of {baseline.planned:,} trials "
                f"have an outcome; let it run to its end"
            )

    def document(self) -> dict[str, Any]:
        """As plain values for JSON."""
        golden = {m.name: self.golden[m.name] for m in self.task.metrics if m.golden and m.name in self.golden}
        return {
            "model": self.model, "digest": self.digest, "campaign": self.identity, "population": self.population,
            "unit": self.unit, "golden": golden, "samples": self.samples, "data": self.data,
            "planned": self.planned, "trials": self.trials, "errors": self.errors,
            "interval_confidence": self.confidence, "task": self.task.row(),
            "rates": [rate.row() for rate in self.rates],
        }  # fmt: skip


def _rates(store: str | Path, confidence: float) -> tuple[MeasuredRate, ...]:
    found = report(store, confidence=confidence)
    bers = sorted({s["ber"] for s in found.strata if s["ber"] is not None})
    folds: list[tuple[float | None, str | None, Fold]] = [] if bers else [(None, None, found.everything)]
    folds += [(ber, None, fold) for ber, fold in zip(bers, found.by_rate, strict=True)]
    folds += [(None, fold.key, fold) for fold in found.by_layer]
    return tuple(MeasuredRate(r.name, ber, layer, r.interval) for ber, layer, fold in folds for r in fold.rates)


def times_below(now: Interval, before: Interval) -> Interval:
    """Return how many times a rate lies below its baseline, from the ends of both intervals.

    Each end holds with the confidence of the two intervals together. Infinite where the rate may be 0.

    >>> from onnxfi.statistics.intervals import clopper_pearson
    >>> found = times_below(clopper_pearson(2, 400), clopper_pearson(160, 400))
    >>> round(found.low, 1), found.estimate, found.high > 100
    (14.7, 80.0, True)
    """
    low = before.low / now.high if now.high else math.inf
    high = before.high / now.low if now.low else math.inf
    estimate = before.estimate / now.estimate if now.estimate else (math.inf if before.estimate else math.nan)
    return Interval(low, high, estimate, "ratio of ends", min(now.confidence, before.confidence))


def exact(value: Any) -> Interval:
    """Return a value that is no estimate, as an interval without width."""
    return Interval(float(value), float(value), float(value), "exact", 1.0)


def _three(row: dict[str, Any]) -> tuple[float, float, float]:
    return float(row["low"]), float(row["high"]), float(row["value"])


def _name(key: str) -> str:
    return {"data": "the data (SHA-256)", "design": "the sampling design"}.get(key, key)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 48 else text[:16] + "…" + text[-8:]
