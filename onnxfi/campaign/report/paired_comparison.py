"""Paired comparison of two versions of a network: the same faults on both, trial by trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.mapped_list import MappedList, map_list
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.report.differences import difference_text
from onnxfi.campaign.report.html_page import PageHead, PageTable, write_page
from onnxfi.campaign.report.rates import ends_row
from onnxfi.campaign.report.report import Report, report
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.results.trial_columns import TrialColumns, trial_columns
from onnxfi.campaign.run.runner import Running, run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import Replay, SingleFaults
from onnxfi.errors import DataError, NoCanaryError
from onnxfi.graph.write.output_file import make_folder
from onnxfi.protection.calibration import sample_marks
from onnxfi.protection.protect import read_record
from onnxfi.runtime.engine.cuda import CPU
from onnxfi.statistics.intervals import Interval, Stratum, clopper_pearson, stratified_interval
from onnxfi.statistics.paired import Paired, paired, rate_ratio
from onnxfi.tasks.task import OUTCOMES, Metric, Task

#: Runs of one batch, of which the fastest is the time.
_TIMED = 9


@dataclass(frozen=True)
class Side:
    """One of the two versions: its file, and its report."""

    model: str
    digest: str
    size_bytes: int
    nodes: int
    batch_s: float
    found: Report


@dataclass(frozen=True)
class PairedRow:
    """A metric on the trials of one rate (None: of all), on both versions.

    `ratio` says how many times rarer a yes or no became, None for a number.
    """

    metric: Metric
    ber: float | None
    found: Paired
    ratio: Interval | None = None


@dataclass(frozen=True)
class OwnSites:
    """Sites that the second version alone has, and what faults there do.

    `rate` is the headline rate of faults there (None: not drawn apart), `together` that of one fault anywhere in it.
    `without_effect` says that no rate is given since not even all exponent bits of each of its words, set together,
    change an answer: whether faults there reach what is computed cannot be shown.
    """

    targets: int
    sites: int
    population: int
    trials: int = 0
    rate: Interval | None = None
    together: Interval | None = None
    without_effect: bool = False


@dataclass(frozen=True)
class Detection:
    """The score of the detectors in the second version.

    `coverage` is the share of the trials with silent changes in the first version that are DUE in the second,
    `critical` the same of those in which the headline rate is above 0; `false_alarms` the share of fault-free samples
    with an alarm.
    """

    coverage: Interval
    critical: Interval
    false_alarms: Interval


@dataclass(frozen=True)
class PairedComparison:
    """Two versions of a network under the same faults."""

    first: Side
    second: Side
    rows: tuple[PairedRow, ...]
    own: OwnSites
    confidence: float
    detection: Detection | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def task(self) -> Task:
        """The task of both."""
        return self.first.found.task

    def golden(self) -> list[tuple[Metric, float, float]]:
        """Return the metrics that say how right both golden runs are."""
        one, two = (side.found.golden["metrics"] for side in (self.first, self.second))
        names = [name for name in self.task.golden_names if name in one and name in two]
        return [(self.task.metric(name), float(one[name]), float(two[name])) for name in names]

    def document(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "confidence": self.confidence,
            "models": [
                {
                    "model": s.model, "digest": s.digest, "size_bytes": s.size_bytes, "nodes": s.nodes,
                    "batch_s": s.batch_s, "golden": s.found.golden["metrics"], "store": str(s.found.store),
                }
                for s in (self.first, self.second)
            ],
            "rows": [_document(row) for row in self.rows],
            "own": {
                "targets": self.own.targets, "sites": self.own.sites, "population": self.own.population,
                "trials": self.own.trials, "without_effect": self.own.without_effect,
                "rate": _ends(self.own.rate), "together": _ends(self.own.together),
            },
            "detection": None if self.detection is None else {
                f.name: _ends(getattr(self.detection, f.name)) for f in fields(self.detection)
            },
            "notes": list(self.notes),
        }  # fmt: skip


def write_paired_page(found: PairedComparison, file: str | Path) -> Path:
    """Write the page of a paired comparison: the differences on the same faults above both campaigns.

    Raises OutputError if the extra `report` is not installed, or the file cannot be written.
    """
    names = [Path(side.model).stem for side in (found.first, found.second)]
    sentences = [_sentence(row, names[1]) for row in found.rows]
    sentences += [
        f"Without faults {metric.label} is {metric.text(one)} and {metric.text(two)}."
        for metric, one, two in found.golden()
    ]
    heads = ("Metric", "Rate", "Trials", *names, "Difference", "p")
    rows = tuple(
        (row.metric.label, "all" if row.ber is None else f"{row.ber:g}", f"{row.found.n:,}",
         row.metric.text(row.found.first), row.metric.text(row.found.second),
         difference_text(row.metric, row.found.difference), f"{row.found.p_value:.2g}")
        for row in found.rows
    )  # fmt: skip
    tables = (PageTable("The same faults on both, with the interval of paired differences", heads, rows),)
    title = f"{names[0]} and {names[1]} under the same faults"
    head = PageHead(title, (*sentences, *found.notes), (), tables, tuple(names) if names[0] != names[1] else ())
    return write_page([found.first.found, found.second.found], file, head=head)


def _sentence(row: PairedRow, name: str) -> str:
    """Return a difference in words."""
    i, metric = row.found.difference, row.metric
    where = "" if row.ber is None else f" at {row.ber:g}"
    ends = f"{metric.text(row.found.first)} to {metric.text(row.found.second)}, difference {difference_text(metric, i)}"
    if i.low <= 0 <= i.high:
        return f"{metric.label}{where} cannot be distinguished: {ends} ({row.found.n:,} trials)."
    better = (i.low > 0) == (metric.better == "higher")
    detected = " (errors that are detected are no gain by themselves, and no loss where they were silent before)"
    return f"{metric.label}{where} is {'better' if better else 'worse'} in {name}: {ends} ({row.found.n:,} trials)" + (
        f"{detected}." if metric.detected else "."
    )


def _document(row: PairedRow) -> dict[str, Any]:
    f = row.found
    return {
        "metric": row.metric.name, "ber": row.ber, "trials": f.n, "first": f.first, "second": f.second,
        "difference": _ends(f.difference), "only_first": f.only_first, "only_second": f.only_second,
        "p_value": f.p_value, "ratio": _ends(row.ratio),
    }  # fmt: skip


def _ends(i: Interval | None) -> dict[str, Any] | None:
    return None if i is None else ends_row(i)


def compare_paired(
    first: str,
    second: str,
    campaign: Campaign,
    stores: str | Path,
    *,
    workers: int = 0,
    allow_calibration_data: bool = False,
    tell: Callable[[Running], None] | None = None,
) -> PairedComparison:
    """Run the same faults on two versions of a network, and compare them trial by trial.

    Parameters
    ----------
    first, second : str
        The models, as the unprotected and the protected one; the second has the tensors of the first.
    campaign : Campaign
        A sweep (`ber`) or single faults (`single`); its model is replaced by the two.
    stores : str or Path
        The folder of the stores and of the fault list of the second model.
    workers : int
        Worker processes, as in `run`.
    allow_calibration_data : bool
        Score also on samples on which one of the models was calibrated.
    tell : callable, optional
        Called with each running campaign before its trials.

    Returns
    -------
    PairedComparison
        Each metric with the interval of its paired difference, accuracy without faults, time and size.

    Raises
    ------
    SpecError
        For another design, or versions that do not share their tensors.
    DataError
        If the data holds samples on which a model was calibrated.

    Examples
    --------
    >>> import tempfile
    >>> single = Campaign("", "models/fashion_test.npz", samples=50, single=True, trials=20, bits="30")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = compare_paired("models/fashion_cnn.onnx", "models/fashion_cnn.onnx", single, folder)
    >>> {row.found.difference.estimate for row in found.rows}
    {0.0}
    """
    folder = Path(stores)
    make_folder(folder)
    opened = [TrialExecutor.open(replace(campaign, model=model)).opened for model in (first, second)]
    if not allow_calibration_data:
        for one in opened:
            _check_calibration(one)
    made = make_plan(opened[0].campaign, opened[0].fault_targets)
    mapped = map_list(made, opened[1].fault_targets, second, folder / "second.jsonl")
    replayed = replace(campaign, model=second, design=Replay(str(mapped.path)))
    before = _ran(replace(campaign, model=first), folder / "first.onnxfi.db", workers, tell)
    after = _ran(replayed, folder / "second.onnxfi.db", workers, tell)
    own = _own_sites(replace(campaign, model=second), mapped, folder, after, workers, tell)
    times = _batch_times(opened)
    sides = [
        Side(model, one.model.digest, sum(s.size for s in one.model.sources), len(one.model.index.main.nodes), t, found)
        for model, one, t, found in zip((first, second), opened, times, (before, after), strict=True)
    ]
    rows = tuple(_rows(before, after, campaign))
    detection = _detection(before, after, opened[1], campaign.confidence)
    return PairedComparison(sides[0], sides[1], rows, own, campaign.confidence, detection)


def _ran(campaign: Campaign, store: Path, workers: int, tell: Callable[[Running], None] | None) -> Report:
    """Run a campaign to its end, and return its report."""
    running = run(campaign, store, workers=workers)
    if tell is not None:
        tell(running)
    for _ in running:
        pass
    return report(store)


def _check_calibration(one: OpenCampaign) -> None:
    """Refuse data that holds samples on which a model was calibrated."""
    record = read_record(one.model.proto)
    if record is None or record["calibration"] is None or one.data.synthetic:
        return
    shared = len(set(sample_marks(one.data)) & set(record["calibration"]["marks"]))
    if shared:
        raise DataError(
            f"{one.model.name} was calibrated on samples of this data ({shared} of the "
            f"{len(record['calibration']['marks'])} marked ones are in it); score it on other data, or say "
            f"--allow-calibration-data"
        )


def _detection(before: Report, after: Report, opened: OpenCampaign, confidence: float) -> Detection | None:
    """Score the detectors of the second version; None if it has none."""
    flags = [outputs.alarms for outputs in opened.run(opened.session()) if outputs.alarms is not None]
    if not flags:
        return None
    alarms = int(sum(one.sum() for one in flags)), sum(map(len, flags))
    headline = before.task.metric(before.task.headline)
    first, second = _same_trials(before, after, [headline])
    silent, stopped = first.outcome == OUTCOMES.index("sdc"), second.outcome == OUTCOMES.index("due")
    critical = silent & (np.nan_to_num(first.of(headline.name)) != 0)
    found = [clopper_pearson(int(stopped[some].sum()), int(some.sum()), confidence) for some in (silent, critical)]
    return Detection(found[0], found[1], clopper_pearson(*alarms, confidence))


def _own_sites(
    campaign: Campaign, mapped: MappedList, folder: Path, second: Report, workers: int,
    tell: Callable[[Running], None] | None,
) -> OwnSites:  # fmt: skip
    """Count the sites that the second version alone has; where faults are single, draw some there as well."""
    population = mapped.sites + mapped.own_sites
    plain = OwnSites(len(mapped.own), mapped.own_sites, population)
    design = campaign.design
    if not mapped.own_sites or not isinstance(design, SingleFaults):
        return plain
    trials = min(mapped.own_sites, max(20, ceil(second.everything.trials * mapped.own_sites / population)))
    names = tuple(f"={t.id}" for t in mapped.own)
    draw = replace(design.draw, selector=replace(design.draw.selector, include=names, op=(), role=()))
    apart = replace(campaign, design=SingleFaults(trials=trials, draw=draw, seed=design.seed))
    try:
        found = _ran(apart, folder / "own.onnxfi.db", workers, tell)
    except NoCanaryError:
        return replace(plain, without_effect=True)
    headline = found.task.headline
    strata = []
    for one, sites in ((second, mapped.sites), (found, mapped.own_sites)):
        values = one.trials.of(headline)
        values = values[~np.isnan(values)]
        strata.append(Stratum.of(values, max(sites, len(values))))
    together = stratified_interval(strata, campaign.confidence)
    return replace(plain, trials=trials, rate=found.everything.rate(headline), together=together)


def _batch_times(opened: Sequence[OpenCampaign]) -> list[float]:
    """Return the fastest time of one batch on each model, in turns, so that the machine's load meets both alike."""
    sessions = [one.session() for one in opened]
    feeds = [next(iter(one.data.batches(one.size))).feeds for one in opened]
    alone = all(one.provider == CPU and one.campaign.engine.threads == 1 for one in opened)
    clock = time.process_time if alone else time.perf_counter  # the first is blind to what else the machine does
    times: list[list[float]] = [[] for _ in opened]
    for _ in range(_TIMED):
        for k, session in enumerate(sessions):
            begun = clock()
            session.run(feeds[k], opened[k].names or None)
            times[k].append(clock() - begun)
    return [min(one) for one in times]


def _rows(first: Report, second: Report, campaign: Campaign) -> list[PairedRow]:
    """Compare the metrics that both have, for each rate of a sweep, or for all trials."""
    metrics = _compared(first.task)
    one, two = _same_trials(first, second, metrics)
    strata: dict[float | None, list[int]] = {}
    for stratum in first.strata:
        strata.setdefault(stratum["ber"], []).append(stratum["stratum"])
    rows = []
    for metric in metrics:
        before, after = one.of(metric.name), two.of(metric.name)
        known = ~np.isnan(before) & ~np.isnan(after)
        for ber, some in strata.items():
            here = known & np.isin(one.stratum, some)
            if here.any():
                rows.append(_row(metric, ber, before[here].tolist(), after[here].tolist(), campaign.confidence))
    return rows


def _same_trials(first: Report, second: Report, metrics: Sequence[Metric]) -> tuple[TrialColumns, TrialColumns]:
    """Return the trials that both campaigns have a result of, in the same order."""
    columns = []
    for found in (first, second):
        with Store.open(found.store, checked=True) as opened:
            columns.append(trial_columns(opened, metrics))
    shared = np.intersect1d(columns[0].trial, columns[1].trial)
    one, two = (each.pick(np.searchsorted(each.trial, shared)) for each in columns)
    return one, two


def _compared(task: Task) -> list[Metric]:
    """Return the metrics that are compared: those of comparisons, the headline, and the outcomes."""
    any_headline = [m.name for m in task.metrics if m.any_of == task.headline]
    names = dict.fromkeys((*task.compared[:1], task.headline, *any_headline, "sdc", "due"))
    return [task.metric(name) for name in names]


def _row(metric: Metric, ber: float | None, first: list[float], second: list[float], confidence: float) -> PairedRow:
    found = paired(first, second, confidence, bounds=metric.bounds)
    yes_or_no = metric.per == "trial"
    ratio = rate_ratio(int(sum(first)), int(sum(second)), len(first), confidence) if yes_or_no else None
    return PairedRow(metric, ber, found, ratio)
