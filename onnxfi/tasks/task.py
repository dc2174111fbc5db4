"""The task of a network: the meaning of its answers, declared once for stores, reports, gates and figures.

A `Task` declares `Metric` values. Everything outside this folder iterates over these declarations; only what is about
classes alone (outcome tables, attacks, detectors) knows metrics of classification by name. They are plain data apart
from the functions, so a store carries them and a report runs no code of a task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from onnxfi.errors import DataError
from onnxfi.faults.trials import json_value
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.labels import Labels, as_kind
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Array, Port
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.statistics.intervals import Interval
from onnxfi.tasks.answers import AnswerPair, Answers, Flags, share

#: Outcomes of a trial, from its gravest sample: DUE before SDC before masked.
OUTCOMES = ("masked", "sdc", "due")
#: Outcomes exclude each other and leave nothing else.
OUTCOME_SUMS = (OUTCOMES, ("masked_samples", "sdc_samples", "due_samples"))


@dataclass(frozen=True)
class Metric:
    """A declared metric of one trial: its name, unit, bounds and direction, and the function that measures it.

    Parameters
    ----------
    name : str
        The name in stores, files, budgets and tables.
    function : callable, optional
        Measures an `AnswerPair` (golden and faulty answers of N samples) and returns a float. Metrics that follow
        from the outcome of the trial, and those read from a store, have none.
    label : str
        The name for people; `name` by default.
    axis : str
        The label of a figure's axis with its unit; `label` and unit by default.
    per : {"sample", "trial", "set"}
        A share of the samples of a trial, a yes or no of the whole trial, or one number of the set of its samples.
    unit : str
        ``%`` for a share of 1 that people read as a percentage, else the unit of the number.
    bounds : tuple of float
        The least and the largest value. A metric with finite bounds is folded over trials as a mean, one without as
        a median, which is defined where trials without an answer deviate infinitely.
    better : {"lower", "higher"}
        The direction of improvement.
    unchanged : float or None
        The value of an output that is the golden one bit for bit and finite; None if it depends on labels.
    failed : float, callable or None
        The value of a trial without an answer of the expected shape; as a callable, computed from the golden
        `Answers`; None if the faulty answers alone say it.
    needs_labels : bool
        The metric compares with labels.
    needs_all : bool
        The metric says nothing of a single sample: trials that are judged on one sample have no value.
    defined : callable, optional
        Returns whether the metric is defined for these labels; trials have no value where it is not.
    silent : bool
        The metric counts only errors that nothing detects: it is 0 if the trial is DUE without an answer.
    detected : bool
        The metric counts detected errors: it is 0 if a trial without an answer is not DUE.
    golden : bool
        The metric says something about the golden run alone.
    any_of : str
        For a yes or no of a trial: the metric per sample that is above 0 in such a trial; an outcome has none.

    Examples
    --------
    >>> worst = Metric("worst", lambda pair: float(pair.distances.max()), unit="K", bounds=(0.0, float("inf")))
    >>> worst(np.array([[1.0], [2.0]]), np.array([[1.0], [5.0]]))
    3.0
    """

    name: str
    function: Callable[[AnswerPair], float] | None = field(default=None, compare=False, repr=False)
    label: str = ""
    axis: str = ""
    per: Literal["sample", "trial", "set"] = "sample"
    unit: str = "%"
    bounds: tuple[float, float] = (0.0, 1.0)
    better: Literal["lower", "higher"] = "lower"
    unchanged: float | None = 0.0
    failed: float | Callable[[Answers], float] | None = field(default=1.0, compare=False)
    needs_labels: bool = False
    needs_all: bool = False
    defined: Callable[[Labels], bool] | None = field(default=None, compare=False, repr=False)
    silent: bool = False
    detected: bool = False
    golden: bool = False
    any_of: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)
        object.__setattr__(self, "axis", self.axis or f"{self.label} ({self.unit})".removesuffix(" ()"))

    @property
    def share(self) -> bool:
        """True for a share of 1."""
        return self.unit == "%"

    @property
    def of(self) -> str:
        """The population that the metric is a share or a statistic of: trials or samples."""
        return "samples" if self.per == "sample" else "trials"

    @property
    def fold(self) -> Literal["count", "mean", "median"]:
        """The statistic over trials: a binomial count, a mean of bounded values, or a median."""
        if self.per == "trial":
            return "count"
        return "mean" if all(map(math.isfinite, self.bounds)) else "median"

    def __call__(self, golden: Array, faulty: Array, labels: Labels | None = None) -> float:
        """Measure arrays [N, …]; DataError if labels or shapes do not fit."""
        return self.measure(AnswerPair(Answers.of(golden, labels), Answers.of(faulty)))

    def measure(self, pair: AnswerPair) -> float:
        """Measure golden and faulty answers; answers of different shapes give the value at failure."""
        assert self.function is not None
        if not pair.same_shape and self.failed is not None:
            return self.at_failure(pair.golden, due=False)
        try:
            with np.errstate(all="ignore"):
                return self.function(pair)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None

    def at_failure(self, golden: Answers, *, due: bool) -> float:
        """Return the value of a trial without an answer of the expected shape."""
        if (self.silent and due) or (self.detected and not due):
            return 0.0
        return self.failed(golden) if callable(self.failed) else (self.failed or 0.0)

    def value(self, outcome: str, metrics: Mapping[str, Any]) -> float | None:
        """Return the metric of a stored trial; None if the trial has no such value."""
        if self.per == "trial" and not self.any_of:
            return float(outcome == self.name)
        found = metrics.get(self.any_of or self.name)
        if found is None:
            return None
        return float(float(found) > 0) if self.any_of else float(found)

    def applies(self, labels: Labels | None, *, single: bool = False) -> bool:
        """Return whether trials have a value, by the labels of the data; `single` trials are judged on one sample."""
        if self.function is None or (single and self.needs_all) or (labels is None and self.needs_labels):
            return False
        return labels is None or self.defined is None or self.defined(labels)

    def measured_in(self, metrics: Mapping[str, Any]) -> bool:
        """Return true if a campaign whose golden run has these metrics measures this one."""
        return self.name in OUTCOMES or (self.any_of or self.name) in metrics

    def text(self, value: float, digits: int = 2) -> str:
        """Return a value for people, with its unit."""
        if self.share:
            return f"{100 * value:.{digits}f} %"
        return f"{value:.4g} {self.unit}".rstrip()

    def interval(self, i: Interval) -> str:
        """Return an estimate with the ends of its interval for people."""
        estimate = "-" if math.isnan(i.estimate) else self.text(i.estimate)
        low, high = (self.text(end).removesuffix("%").removesuffix(self.unit).rstrip() for end in (i.low, i.high))
        return f"{estimate} [{low}, {high}]"

    def row(self) -> dict[str, Any]:
        """Return the declaration as plain values for JSON."""
        skipped = ("function", "failed", "defined")
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skipped}
        return kept | {"bounds": [json_value(end) for end in self.bounds]}

    @classmethod
    def of_labels(cls, name: str, function: Callable[[AnswerPair], float], label: str = "", **more: Any) -> Metric:
        """Return a metric that compares answers with labels: higher is better, and the golden run has a value."""
        usual = {"better": "higher", "unchanged": None, "failed": 0.0, "needs_labels": True, "golden": True}
        return cls(name, function, label, **(usual | more))

    @classmethod
    def declared(cls, row: Mapping[str, Any]) -> Metric:
        """Return the metric that `row` declares, without its function."""
        known = {f.name for f in fields(cls)}
        low, high = (float(end) for end in row["bounds"])
        return cls(**{k: v for k, v in row.items() if k in known} | {"bounds": (low, high)})


@dataclass(frozen=True)
class ModelOutputs:
    """The outputs that a model declares, and what is asked of them.

    Attributes
    ----------
    ports : tuple of Port
        The outputs that are tensors.
    asked : str or None
        The output of ``--output``.
    data : Data
        The samples and their labels.
    kind : str
        The kind of scores that is asked for.
    non_tensors : mapping of str to str
        The types of the outputs that are no tensors, by name.
    whole : bool
        Whether outputs of maps are refused where no tensor would do.
    """

    ports: tuple[Port, ...]
    asked: str | None
    data: Data
    kind: str = "auto"
    non_tensors: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False


def _misfit(
    run: Sequence[Outputs], data: Data, kind: str, *, check: Callable[[Sequence[Outputs], Data, str], str], labels: str
) -> str:
    """Return what a check says, or the DataError that it raises, or why labels are of another kind."""
    try:
        if not (why := check(run, data, kind)) and labels and data.labels is not None:
            as_kind(labels, data.labels)
    except DataError as error:
        return str(error)
    return why


def _within_tolerance(pair: AnswerPair) -> Flags:
    return pair.within_tolerance


def _silently_other(pair: AnswerPair, *, masked: Callable[[AnswerPair], Flags]) -> Flags:
    return ~masked(pair) & ~pair.detected


@dataclass(frozen=True)
class Task:
    """The meaning of a network's answers: metrics, the rule of a masked sample, and what reports show.

    Parameters
    ----------
    name : str
        The name that ``--task`` takes.
    metrics : tuple of Metric
        The metrics of the task, beside those that every task has (`COMMON`).
    headline : str
        The metric that stands for the task: adaptive campaigns measure it, maps and summaries show it.
    reported, evaluated : tuple of str
        Names of the metrics in reports (all by default) and of those without a campaign (all with a function).
    columns : tuple of tuple of str
        Columns of tables on the terminal; of each the first metric that the trials have.
    page_columns, panels, tiles : tuple of str
        Metrics as columns of tables on the page, as panels of bar charts (the first also as the map of layers and
        bits), and beside the golden run. By default panels and tiles show the headline and the outcomes.
    curves, compared : tuple of str
        Candidates for curves over rates and for comparisons of models (by default `curves`, then changed samples): the
        first that all have is taken.
    classes : tuple of str
        Metrics of exclusive classes, for a table by layer.
    sums : tuple of tuple of str
        Metrics that sum to 1.
    orders : tuple of tuple of str
        Pairs of metrics: the first is never above the second.
    absent : str
        The reason, with a remedy, that a message gives where outputs have another task.
    masked : callable
        Returns the samples of an `AnswerPair` that count as golden ([N]); one that is DUE never does.
    wrong : callable, optional
        Returns the samples whose answer is another one silently ([N]); reports say from them how much the choice of
        samples adds to `headline`, whose share they are. By default, where `masked` is given and `headline` is
        `sdc_samples`, those that `masked` leaves out and that are not DUE.
    decode : callable, optional
        Returns the answer of each of the n samples of some `Outputs`: an array [n, …], or a sequence of n texts, arrays
        or dataclasses. Row r of an output with n rows belongs to sample `outputs.samples[r]`; rows of an output of
        another length belong to the n samples together. The answer of a sample follows from that sample alone. No
        answer (an empty text, no boxes) is an answer too. In a pipeline these are the outputs of its answer. Without
        `decode` the numbers of the outputs are the answers.
    apart : bool
        Outputs have a row per sample, so `decode` may be given some samples of a batch alone. False if rows name their
        sample in a column, as boxes behind a suppression of the whole batch.
    inputs : tuple of str
        Inputs of the model that `decode` finds in `outputs.inputs`, for the same samples.
    reads : callable, optional
        Returns the names of the outputs that count, of `ModelOutputs`; none: all. DataError if they do not fit.
        Without it that is the output of ``--output``, else all.
    keeps : callable, optional
        Returns, of the data, a function from the outputs of some samples to what is kept of them, where outputs are too
        large to be kept whole. Its `forget` lets the next run be the golden one.
    misfit : callable, optional
        Returns (or raises as DataError) why a golden run (batches of `Outputs`), its data or the kind of its scores do
        not fit the task, with the shapes of both sides; empty if they do. Labels of another kind do not fit either.
    labels : str
        The kind of labels that its metrics take, of `onnxfi/runtime/data/labels.py`; empty: as the data has them.
    takes_tolerance : bool
        Whether ``--tolerance`` counts in `masked`.
    alternatives : tuple of Task
        Forms of the task for other outputs; the first that fits is taken where this one does not.
    score_kind, remark : callable, optional
        Returns how golden scores are read, and what is doubtful about it.
    drive : callable, optional
        Returns the engine that runs a model as the task asks, as in a loop, of the engine that runs it once.
    samples : callable, optional
        Opens data in place of `onnxfi.runtime.data.open_data.open_data`, with the same arguments.

    Examples
    --------
    >>> Task("thermometer", (Metric("error"),)).metric("sdc").label
    'SDC'
    """

    name: str
    metrics: tuple[Metric, ...]
    headline: str = "sdc_samples"
    reported: tuple[str, ...] = ()
    evaluated: tuple[str, ...] = ()
    columns: tuple[tuple[str, ...], ...] = ()
    page_columns: tuple[str, ...] = ()
    panels: tuple[str, ...] = ()
    curves: tuple[str, ...] = ("sdc",)
    compared: tuple[str, ...] = ()
    tiles: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    sums: tuple[tuple[str, ...], ...] = OUTCOME_SUMS
    orders: tuple[tuple[str, str], ...] = ()
    absent: str = ""
    labels: str = ""
    takes_tolerance: bool = True
    alternatives: tuple[Task, ...] = field(default=(), compare=False, repr=False)
    apart: bool = True
    inputs: tuple[str, ...] = ()
    masked: Callable[[AnswerPair], Flags] = field(default=_within_tolerance, compare=False, repr=False)
    wrong: Callable[[AnswerPair], Flags] | None = field(default=None, compare=False, repr=False)
    decode: Callable[[Outputs], Sequence[Any] | Array] | None = field(default=None, compare=False, repr=False)
    reads: Callable[[ModelOutputs], tuple[str, ...]] | None = field(default=None, compare=False, repr=False)
    keeps: Callable[[Data], Any] | None = field(default=None, compare=False, repr=False)
    misfit: Callable[[Sequence[Outputs], Data, str], str] | None = field(default=None, compare=False, repr=False)
    score_kind: Callable[[Array], str] | None = field(default=None, compare=False, repr=False)
    drive: Callable[[Engine], Engine] | None = field(default=None, compare=False, repr=False)
    samples: Callable[..., Data] | None = field(default=None, compare=False, repr=False)
    remark: Callable[..., str] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        own = tuple(m for m in self.metrics if m.name not in _COMMON_NAMES)
        metrics = (*COMMON, *own)
        shown = tuple((name,) for name in (*(m.name for m in own), "sdc", "due"))
        columns = self.columns or shown
        shares = [m.name for m in metrics if m.name == self.headline and m.share]
        for name, value in {
            "metrics": metrics,
            "reported": self.reported or tuple(m.name for m in metrics),
            "evaluated": self.evaluated or tuple(m.name for m in metrics if m.function is not None),
            "columns": columns,
            "page_columns": self.page_columns or (*(name for names in columns for name in names), "masked"),
            "panels": self.panels or tuple(dict.fromkeys((*shares, "sdc", "due"))),
            "compared": self.compared or (*(name for name in self.curves if name != "sdc"), "sdc_samples", "sdc"),
            "tiles": self.tiles or tuple(dict.fromkeys((self.headline, "due"))),
        }.items():
            object.__setattr__(self, name, value)
        if self.wrong is None and self.headline == "sdc_samples" and self.masked is not _within_tolerance:
            object.__setattr__(self, "wrong", partial(_silently_other, masked=self.masked))
        if self.misfit is not None:
            object.__setattr__(self, "misfit", partial(_misfit, check=self.misfit, labels=self.labels))

    @cached_property
    def by_name(self) -> Mapping[str, Metric]:
        """The metrics by name."""
        return {m.name: m for m in self.metrics}

    def metric(self, name: str) -> Metric:
        """Return a metric by its name (KeyError)."""
        return self.by_name[name]

    def view(self, names: tuple[str, ...]) -> tuple[Metric, ...]:
        """Return the metrics of these names, in their order."""
        return tuple(self.by_name[name] for name in names)

    @property
    def reports(self) -> tuple[Metric, ...]:
        """The metrics that reports fold over trials."""
        return self.view(self.reported)

    @property
    def accuracy(self) -> Metric | None:
        """The first metric that compares with labels and so says something about the golden run; None without one."""
        return next((m for m in self.metrics if m.golden and m.needs_labels), None)

    @property
    def golden_names(self) -> tuple[str, ...]:
        """The names of the metrics that say how right the golden run is."""
        return tuple(m.name for m in self.metrics if m.golden and m.needs_labels)

    def table(self, present: Collection[str]) -> tuple[Metric, ...]:
        """Return the columns of a table on the terminal, of the metrics that are present."""
        firsts = (next((name for name in names if name in present), None) for names in self.columns)
        return self.view(tuple(name for name in firsts if name is not None))

    def first(self, candidates: Sequence[str], present: Collection[str]) -> Metric:
        """Return the first candidate that is present, else the share of trials that are SDC."""
        return self.by_name[next((name for name in candidates if name in present), OUTCOMES[1])]

    def applicable(self, labels: Labels | None, *, single: bool = False) -> tuple[Metric, ...]:
        """Return the metrics with a function that have a value in each trial (see `Metric.applies`)."""
        return tuple(m for m in self.metrics if m.applies(labels, single=single))

    def row(self) -> dict[str, Any]:
        """Return the declaration as plain values for JSON."""
        skipped = ("metrics", *(f.name for f in fields(self) if not f.compare))
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skipped} | {
            "metrics": [m.row() for m in self.metrics]
        }

    @classmethod
    def declared(cls, row: Mapping[str, Any]) -> Task:
        """Return the task that `row` declares, without its functions."""
        known = {f.name for f in fields(cls)}
        given = {name: _tuples(value) for name, value in row.items() if name in known and name != "metrics"}
        return cls(**given, metrics=tuple(Metric.declared(one) for one in row["metrics"]))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def nonfinite(pair: AnswerPair) -> float:
    """Share of samples in whose faulty output there is a NaN or an infinity; text has none."""
    return share(pair.nonfinite)


#: The metrics of every task.
COMMON = (
    Metric("masked", label="masked", per="trial", better="higher", unchanged=1.0),
    Metric("sdc", label="SDC", axis="SDC\n(% of trials)", per="trial", silent=True),
    Metric("due", label="DUE", axis="DUE\n(% of trials)", per="trial", detected=True),
    Metric("nonfinite", nonfinite, golden=True, failed=None),
    Metric("masked_samples", better="higher", unchanged=1.0, failed=0.0),
    Metric("sdc_samples", label="changed samples", silent=True),
    Metric("due_samples", detected=True),
)
_COMMON_NAMES = frozenset(m.name for m in COMMON)
