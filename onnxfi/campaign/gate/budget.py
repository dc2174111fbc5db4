"""Budgets: limits on rates under faults, in a YAML file. The format, version 1: docs/reference/budget.md."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import AdaptiveFaults, BerSweep, Exhaustive, Replay, SingleFaults
from onnxfi.campaign.spec.flat_fields import CheckedFields, bounded, refuse_unknown, share_field, types_of
from onnxfi.campaign.spec.spec_file import read_campaign_fields
from onnxfi.campaign.spec.yaml_fields import YamlNode, built, check_version, plain_values, read_fields, read_yaml
from onnxfi.errors import SpecError, closest
from onnxfi.tasks.registry import known_metric, known_tasks, metric_names
from onnxfi.tasks.task import Metric

VERSION = 1
BOUNDS = ("min", "max", "max_drop", "max_rise", "times_below")
#: Fields of a campaign that a budget leaves open, and why.
_OPEN = {
    "model": "the command names it",
    "faults": "a fault list is bound to one model",
    "confidence": "it stands above, beside the limits",
}


@dataclass(frozen=True)
class BudgetLimit(CheckedFields):
    """One bound on one rate of a budget.

    Parameters
    ----------
    rate : str
        Name of an outcome of trials (`sdc1`), or of a metric of the task (`top1`); docs/reference/budget.md lists them.
    ber : float, optional
        Bit error rate of a sweep at which the limit holds; not needed where the sweep has one rate.
    layer : str, optional
        Layers in which the limit holds. A pattern sets one limit for each layer that it matches.
    golden : bool
        True to bound the value of the golden run.
    min, max : float, optional
        Bounds of the value: a share from 0 to 1, or in the unit of the metric.
    max_drop, max_rise : float, optional
        Bounds of the change against a baseline.
    times_below : float, optional
        The value is at least so many times below that of the baseline, as of the unprotected model. Exactly one of the
        five bounds is given.

    Raises
    ------
    SpecError
        For no bound or several, a bound out of range, or a combination that cannot be measured.

    Examples
    --------
    >>> print(BudgetLimit("top1", ber=1e-5, min=0.6))
    top1 at 1e-05: at least 60 %
    >>> print(BudgetLimit("sdc1", layer="conv1", max_rise=0.1))
    sdc1 in conv1: rises by at most 10 points
    """

    rate: str
    ber: float | None = None
    layer: str | None = None
    golden: bool = False
    min: float | None = None
    max: float | None = None
    max_drop: float | None = None
    max_rise: float | None = None
    times_below: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        metric = self.metric
        given = [name for name in BOUNDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise SpecError(
                f"a limit takes exactly one of {', '.join(BOUNDS)}; given: {' and '.join(given) or 'none'}", *given[1:2]
            )
        if self.times_below is not None:
            self._check_times_below()
            return
        low, high = metric.bounds if not self.change else (0.0, metric.bounds[1] - metric.bounds[0])
        if not (low <= self.value <= high and math.isfinite(self.value)):
            allowed = f"a number from {low:g}" + ("" if math.isinf(high) else f" to {high:g}")
            allowed = "a share from 0 to 1, as 0.05" if metric.share else allowed
            raise SpecError(f"{given[0]} {self.value:g} is out of range; give {allowed}", given[0])
        if self.golden and not metric.golden:
            golden = (m for task in known_tasks() for m in task.metrics if m.golden)
            takes = ", ".join(dict.fromkeys(m.name for m in sorted(golden, key=lambda m: not m.needs_labels)))
            raise SpecError(
                f"golden {self.rate} is the same for every model, as there are no faults; golden takes {takes}",
                "golden",
            )
        for name in ("ber", "layer"):
            if self.golden and getattr(self, name) is not None:
                raise SpecError(f"golden and {name} exclude each other: golden is the run without faults", name)

    def _check_times_below(self) -> None:
        """Refuse a factor that is none, and rates of which fewer is not better."""
        if not (1 <= self.value < math.inf):
            raise SpecError(f"times_below {self.value:g} is out of range; give a factor from 1, as 10", "times_below")
        if not self.metric.share or self.metric.better != "lower" or self.golden:
            raise SpecError(
                f"times_below is for rates of faulty trials that are better when lower, as sdc1; for {self.what} take "
                f"max_drop or max_rise",
                "times_below",
            )

    @property
    def metric(self) -> Metric:
        """The metric that is limited; of a user's own, which the campaign names, only the name is known here."""
        return known_metric(self.rate) or Metric(self.rate, unit="", bounds=(-math.inf, math.inf), golden=True)

    @property
    def bound(self) -> str:
        """The name of the bound: min, max, max_drop, max_rise or times_below."""
        return next(name for name in BOUNDS if getattr(self, name) is not None)

    @property
    def value(self) -> float:
        """The bound's value."""
        return float(getattr(self, self.bound))

    @property
    def change(self) -> bool:
        """True for a bound on the change against a baseline."""
        return self.bound in ("max_drop", "max_rise")

    @property
    def needs_baseline(self) -> bool:
        """True for a bound against a baseline."""
        return self.change or self.times_below is not None

    @property
    def what(self) -> str:
        """The measured quantity, for people."""
        where = "" if self.ber is None else f" at {self.ber:g}"
        return ("golden " if self.golden else "") + self.rate + where + (f" in {self.layer}" if self.layer else "")

    @property
    def allowed(self) -> str:
        """The allowed values, for people."""
        said = {"min": "at least", "max": "at most", "max_drop": "drops by at most", "max_rise": "rises by at most"}
        if self.times_below is not None:
            return f"at least {self.times_below:.10g} × below the baseline"
        if not self.metric.share:
            return f"{said[self.bound]} {self.value:.10g} {self.metric.unit}".rstrip()
        share = f"{100 * self.value:.10g}"
        return f"{said[self.bound]} {share} {'%' if not self.change else 'point' if share == '1' else 'points'}"

    def __str__(self) -> str:
        return f"{self.what}: {self.allowed}"


@dataclass(frozen=True)
class Budget(CheckedFields):
    """A campaign without a model, and the limits that a model must keep.

    Parameters
    ----------
    campaign : Campaign
        The campaign that is run on each model; its own `model` is empty.
    limits : tuple of BudgetLimit
        The limits.
    confidence : float
        Confidence with which all verdicts hold together.
    time_s : float, optional
        Time limit in seconds. If it ends before the trials do, limits on rates of trials are not decided.

    Raises
    ------
    SpecError
        For limits that contradict each other, or that the campaign cannot measure.

    Examples
    --------
    >>> sweep = Campaign("", data="images.npz", ber=1e-5, repeat=200)
    >>> Budget(sweep, (BudgetLimit("top1", min=0.6), BudgetLimit("sdc1", max=0.3))).limits[0].ber
    1e-05
    """

    campaign: Campaign
    limits: tuple[BudgetLimit, ...] = ()
    confidence: float = share_field(0.99, "0.99")
    time_s: float | None = bounded(None, lambda time: 0 < time < math.inf, "seconds above 0, or leave it out")

    def __post_init__(self) -> None:
        super().__post_init__()
        design = self.campaign.design
        if isinstance(design, Replay):
            raise SpecError(f"a budget takes no faults: {_OPEN['faults']}", "faults")
        if isinstance(design, AdaptiveFaults) and design.method != "guaranteed":
            raise SpecError(
                f"method {design.method!r} holds where one stops by the width of the interval, not by where it "
                f"lies; a budget takes guaranteed, or trials whose number is fixed",
                "campaign",
            )
        placed = (_placed(limit, f"limits[{n}]", self.campaign) for n, limit in enumerate(self.limits))
        object.__setattr__(self, "limits", tuple(placed))
        exclusive(self.limits)

    def with_fields(self, given: Mapping[str, Any], time_s: float | None = None) -> Budget:
        """Return the budget with other values for fields of its campaign, and another time box where one is given."""
        refuse_unknown(given, Campaign)
        for name in given:
            if name in _OPEN:
                raise SpecError(f"the campaign of a budget takes no {name}: {_OPEN[name]}", name)
        campaign = self.campaign.with_fields(**given)
        return replace(self, campaign=campaign, time_s=self.time_s if time_s is None else time_s)

    def on(self, model: str | Path) -> Campaign:
        """Its campaign on a model."""
        return replace(self.campaign, model=str(model), confidence=self.confidence)


def _placed(limit: BudgetLimit, name: str, campaign: Campaign) -> BudgetLimit:
    """Return the limit with the rate of the only sweep; SpecError if the campaign cannot give it."""
    if known_metric(limit.rate, campaign.scoring.task, campaign.scoring.metric) is None:
        raise SpecError(f"no rate {limit.rate[:60]!r}{closest(limit.rate[:60], metric_names())}", f"{name}.rate")
    if limit.golden:
        return limit
    bers = campaign.design.ber if isinstance(campaign.design, BerSweep) else ()
    rates = ", ".join(f"{rate:g}" for rate in bers)
    if limit.layer is not None and not isinstance(campaign.design, SingleFaults | AdaptiveFaults | Exhaustive):
        raise SpecError(
            f"{limit.what}: a trial of this campaign puts faults into many layers at once; layer goes with single and "
            f"exhaustive, or take the layer into the campaign with include",
            name,
        )
    if not bers:
        if limit.ber is not None:
            raise SpecError(f"{limit.what}: the campaign has no bit error rates; leave ber out", name)
        return limit
    if limit.ber is None and len(bers) > 1:
        raise SpecError(f"{limit.what}: at which rate? give ber, one of {rates}", name)
    if limit.ber is not None and limit.ber not in bers:
        raise SpecError(f"{limit.what}: the campaign has no such rate; give one of {rates}", name)
    return replace(limit, ber=bers[0]) if limit.ber is None else limit


def exclusive(limits: Sequence[BudgetLimit]) -> None:
    """Refuse limits that are given twice, and such that no model can keep together (SpecError)."""
    scopes: dict[tuple[Any, ...], dict[tuple[str, str], tuple[str, BudgetLimit]]] = {}
    for number, limit in enumerate(limits):
        name = f"limits[{number}]"
        here = scopes.setdefault((limit.golden, limit.ber, limit.layer), {})
        if (limit.rate, limit.bound) in here:
            raise SpecError(f"{limit} is the second {limit.bound} for {limit.what}; leave one", name)
        here[limit.rate, limit.bound] = name, limit
    for here in scopes.values():
        for low, high in dict.fromkeys((*((rate, rate) for rate, _ in here), *_declared("orders"))):
            (_, least), (name, most) = here.get((low, "min"), ("", None)), here.get((high, "max"), ("", None))
            if least is not None and most is not None and least.value > most.value:
                why = "" if low == high else f", and {low} is never above {high}"
                raise SpecError(f"no model can keep both: {least}; {most}{why}", name)
        for parts in _declared("sums"):
            _room(here, parts)


def _declared(what: str) -> tuple[Any, ...]:
    """Return what all known tasks declare of sums or orders, each once."""
    return tuple(dict.fromkeys(one for task in known_tasks() for one in getattr(task, what)))


def _room(here: Mapping[tuple[str, str], tuple[str, BudgetLimit]], parts: Sequence[str]) -> None:
    """Refuse limits on rates that sum to 1 if all their `max` stay below, or all their `min` go beyond."""
    for bound, open_, beyond in (("max", 1.0, -1), ("min", 0.0, 1)):
        found = [here.get((part, bound), ("", None)) for part in parts]
        total = math.fsum(open_ if limit is None else limit.value for _, limit in found)
        if beyond * (total - 1) > 1e-9:
            said = "; ".join(str(limit) for _, limit in found if limit is not None)
            last = [name for name, limit in found if limit is not None][-1]
            raise SpecError(f"no model can keep all of: {said}; {', '.join(parts)} sum to 100 %", last)


def load_budget(path: str | Path, *, allow_code: bool = False, instead: Collection[str] = ()) -> Budget:
    """Read a budget from a YAML file.

    Parameters
    ----------
    path : str or Path
        The file. Paths in it are taken from the current folder.
    allow_code : bool
        Let the budget run code that it names (``module:name``, libraries).
    instead : collection of str
        Fields of the campaign that get other values, and so are not refused.

    Returns
    -------
    Budget
        The campaign and its limits; without limits it can be rewritten, but not checked.

    Raises
    ------
    SpecError
        For a field of a wrong name, type or range, with line and column.

    Examples
    --------
    >>> load_budget("examples/ci/budget.yaml").confidence
    0.99
    """
    whole = read_yaml(path, "budget")
    refused = None if allow_code else instead
    parts = {Campaign: lambda place: _read_campaign(place, refused), BudgetLimit: _read_limit}
    given, places = read_fields(whole, types_of(Budget), extra=("version",), parts=parts)
    if "version" not in given:
        raise whole.error(f"a budget names its version; add version: {VERSION}")
    check_version(given, places, "budget", VERSION)
    if "campaign" not in given:
        raise whole.error("a budget names its campaign; add campaign: with ber or single, and with data")
    for number in range(len(given.get("limits", ()))):
        entries = places[f"limits[{number}]"].entries()
        places |= {f"limits[{number}].{name}": value for name, _, value in entries}
    return built(lambda fields: Budget(**fields), given, places, whole)


def _read_campaign(place: YamlNode, instead: Collection[str] | None) -> Campaign:
    """Return the campaign of a budget; it may name code where `instead` is None."""
    given, places = read_campaign_fields(place, instead)
    for name, why in _OPEN.items():
        if name in given:
            raise places[name].error(f"the campaign of a budget takes no {name}: {why}; leave it out here")
    return built(lambda fields: Campaign(**fields), {"model": "", **given}, places, place)


def _read_limit(place: YamlNode) -> BudgetLimit:
    given, places = read_fields(place, types_of(BudgetLimit))
    if "rate" not in given:
        raise place.error("a limit names its rate; add rate: sdc1, say")
    return built(lambda fields: BudgetLimit(**fields), given, places, place)


def print_budget(budget: Budget) -> str:
    """Return the budget as a YAML file that `load_budget` reads back: every field that is not at its default.

    >>> print(print_budget(Budget(Campaign("", ber=(1e-5,)), (BudgetLimit("top1", min=0.6),))), end="")
    version: 1
    confidence: 0.99
    campaign:
      ber:
      - 1.0e-05
    limits:
    - rate: top1
      ber: 1.0e-05
      min: 0.6
    """
    import yaml

    campaign = plain_values(budget.campaign)
    campaign.pop("model")
    values: dict[str, Any] = {"version": VERSION, "confidence": budget.confidence}
    if budget.time_s is not None:
        values["time_s"] = budget.time_s
    values |= {"campaign": campaign, "limits": [plain_values(limit) for limit in budget.limits]}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
