"""Comparing: the same sweep on several versions of a network, at equal rate per bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxfi.campaign.report.rates import Fold, ends_row
from onnxfi.campaign.report.report import Report, report
from onnxfi.campaign.report.tables import html_table
from onnxfi.campaign.run.runner import Running, planned, run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import BerSweep
from onnxfi.errors import DataError, SpecError
from onnxfi.graph.model.byte_source import printable
from onnxfi.graph.write.output_file import make_folder
from onnxfi.statistics.intervals import Interval


@dataclass(frozen=True)
class Version:
    """One version of the network: how many sites the sweep had there, and its report."""

    model: str
    digest: str
    population: int
    unit: str
    size_bytes: int
    found: Report

    def at(self, rate: float) -> Fold | None:
        """Return the trials at a rate."""
        return next((fold for fold in self.found.by_rate if fold.key == f"{rate:g}"), None)


@dataclass(frozen=True)
class Comparison:
    """Several versions of a network under the same sweep.

    Attributes
    ----------
    versions : tuple of Version
        The models, with the reports of their campaigns.
    rates : tuple of float
        The bit error rates of the sweep.
    measure : str
        Name of the compared metric, which every version has.
    confidence : float
        Confidence of each interval.

    Examples
    --------
    >>> import tempfile
    >>> sweep = Campaign(model="", data="models/fashion_test.npz", samples=20, ber=(1e-4,), repeat=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = compare(["models/fashion_cnn.onnx", "models/fashion_gru.onnx"], sweep, folder)
    >>> found.measure, [found.cell(version, 1e-4).estimate <= 1 for version in found.versions]
    ('top1', [True, True])
    """

    versions: tuple[Version, ...]
    rates: tuple[float, ...]
    measure: str
    confidence: float

    def __repr__(self) -> str:
        columns, rows = self._rows()
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in (columns, *rows))

    def _repr_html_(self) -> str:
        return html_table(*self._rows())

    def _rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the columns and rows of the short table: a version in each row, a rate in each column."""
        metric = self.versions[0].found.task.metric(self.measure)

        def cells(version: Version) -> Iterator[str]:
            golden = self.golden(version)
            yield printable(Path(version.model).name)
            yield "-" if golden is None else metric.text(golden)
            for rate in self.rates:
                cell = self.cell(version, rate)
                yield "-" if cell is None else metric.interval(cell)

        names = (metric.label, "fault-free", *(f"{rate:g}" for rate in self.rates))
        return names, [tuple(cells(version)) for version in self.versions]

    def cell(self, version: Version, rate: float) -> Interval | None:
        """Return the measure of a version at a rate, with its interval."""
        fold = version.at(rate)
        return None if fold is None else fold.rate(self.measure)

    def golden(self, version: Version) -> float | None:
        """Return the measure without faults: the accuracy; of shares that say how much changes, 0."""
        metric = version.found.task.metric(self.measure)
        if metric.unchanged is not None:
            return metric.unchanged
        value = version.found.golden["metrics"].get(self.measure)
        return None if value is None else float(value)

    def document(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "measure": self.measure, "confidence": self.confidence, "rates": list(self.rates),
            "models": [
                {
                    "model": v.model, "digest": v.digest, "population": v.population, "unit": v.unit,
                    "size_bytes": v.size_bytes, "store": str(v.found.store), "golden": self.golden(v),
                    "samples": v.found.golden["samples"],
                    "by_rate": [_row(rate, v, self.cell(v, rate)) for rate in self.rates],
                }
                for v in self.versions
            ],
        }  # fmt: skip


def _row(rate: float, version: Version, interval: Interval | None) -> dict[str, Any]:
    fold = version.at(rate)
    row: dict[str, Any] = {
        "ber": rate, "trials": 0 if fold is None else fold.trials, "expected": rate * version.population,
        "outcomes": None if fold is None else fold.outcomes,
    }  # fmt: skip
    return row | (dict.fromkeys(("value", "low", "high")) if interval is None else ends_row(interval))


def compare(
    models: Sequence[str],
    campaign: Campaign,
    stores: str | Path,
    *,
    workers: int = 0,
    on_start: Callable[[Running], None] | None = None,
) -> Comparison:
    """Run the sweep of a campaign on several versions of a network, each against its own golden run.

    `onnxfi.compare` describes arguments and errors; here models are files, and the sweep is a campaign whose model is
    replaced by each of them.

    Examples
    --------
    >>> import tempfile
    >>> sweep = Campaign(model="", data="models/fashion_test.npz", samples=50, ber=(1e-4,), repeat=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = compare(["models/fashion_cnn.onnx", "models/fashion_gru.onnx"], sweep, folder)
    >>> [round(found.golden(version), 2) for version in found.versions]
    [0.88, 0.86]
    """
    if not isinstance(campaign.design, BerSweep):
        raise SpecError("compare runs a sweep; give ber, as 1e-6:1e-3")
    if len(models) < 2:
        raise SpecError(f"compare takes two models or more; given {len(models)}")
    for model in models:  # errors of the last model are found before hours of trials
        planned(replace(campaign, model=model))
    places = _places(models, Path(stores))
    versions = []
    for model, place in zip(models, places, strict=True):
        running = run(replace(campaign, model=model), place, workers=workers)
        if on_start is not None:
            on_start(running)
        for _ in running:
            pass
        opened, header = running.plan.model, running.plan.header
        size_bytes = sum(source.size for source in opened.sources)
        versions.append(Version(model, opened.digest, header.population, header.unit, size_bytes, report(place)))
    samples = {v.model: v.found.golden["samples"] for v in versions}
    if len(set(samples.values())) > 1:
        raise DataError(f"the models ran on different numbers of samples: {samples}; give --samples")
    task = versions[0].found.task
    wholes = [version.found.everything for version in versions]
    measure = task.first(task.compared, [m for m in task.compared if all(w.rate(m) is not None for w in wholes)])
    return Comparison(tuple(versions), campaign.design.ber, measure.name, campaign.confidence)


def _places(models: Sequence[str], folder: Path) -> list[Path]:
    """Return a store for each model, named after it; SpecError if two would share one."""
    make_folder(folder)
    places = [folder / f"{Path(model).stem}.onnxfi.db" for model in models]
    for k, place in enumerate(places):
        if place in places[:k]:
            raise SpecError(f"{models[k]!r} and {models[places.index(place)]!r} have the same name; rename one")
    return places
