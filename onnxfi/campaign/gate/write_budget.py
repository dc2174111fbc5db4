"""Writing of budgets: limits that the current model meets with a margin (docs/how-to/ci.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from statistics import NormalDist
from typing import Any

from onnxfi.campaign.gate.budget import Budget, BudgetLimit, load_budget, print_budget
from onnxfi.campaign.gate.check import CheckResult, applied, finish, joint, judged, opened_store, start, value_of
from onnxfi.campaign.gate.measurement import Measured
from onnxfi.campaign.plan.open_model import reopen
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import chosen_design
from onnxfi.errors import InputError, OutputError
from onnxfi.faults.models import Flip
from onnxfi.faults.space import Selector
from onnxfi.graph.write.output_file import atomic_files, check_output_files
from onnxfi.statistics.intervals import clopper_pearson
from onnxfi.tasks.task import COMMON, OUTCOMES, Metric

#: Arms of today's interval between the measured value and its limit: one for today's sample, one for tomorrow's, and
#: one since tomorrow's interval has to lie wholly on the good side.
ARMS = 3
_TRIALS = 200
_SAMPLES = 200
#: Faults that a trial of the default sweep has at most; at least a tenth of it.
_FAULTS = 100
_MOST_BER = 0.01
#: Room of a golden value that is no share of samples, of which no interval over samples is known.
_GOLDEN_ROOM = 0.1
#: The highest confidence that an interval is computed for, short of 1 by a few steps of a float.
_SUREST = 1 - 1e-15


@dataclass(frozen=True)
class Proposed:
    """A budget that was written, today's model against it, and what was left out since it would allow everything."""

    budget: Budget
    checked: CheckResult
    left_out: tuple[BudgetLimit, ...]


def default_rate(population: int) -> float:
    """Return the decade of bit error rates that puts between 10 and 100 faults into a trial.

    >>> default_rate(3_387_712), default_rate(816_000_000), default_rate(64)
    (1e-05, 1e-07, 0.01)
    """
    return min(_MOST_BER, float(f"1e{math.floor(math.log10(_FAULTS / max(population, 1)))}"))


def default_budget(model: str | Path, given: Mapping[str, Any]) -> Budget:
    """Return a sweep of 200 trials at one rate, on 200 samples, unless fields are given; no limits yet."""
    opened = reopen(str(model), {name: given.get(name) for name in ("allow_links", "stage")})
    population = Selector().space(opened.targets, Flip()).size
    sweep = {} if chosen_design(given) else {"ber": default_rate(population), "repeat": _TRIALS}
    return Budget(Campaign(**{"model": "", "samples": _SAMPLES, **sweep, **given}))


def base_budget(
    model: str | Path, path: str | Path, given: Mapping[str, Any], *, force: bool = False, allow_code: bool = False
) -> Budget:
    """Return the budget to measure: that of the file at `path` where there is one, else the default.

    OutputError if the file is there and `force` is not given, or where no file can be written.
    """
    place = Path(path)
    check_output_files(None, [place])
    if not place.exists():
        return default_budget(model, given)
    if not force:
        raise OutputError(f"the budget {str(path)!r} exists; --force measures its limits anew, or name another file")
    return load_budget(place, allow_code=allow_code, instead=given).with_fields(given)


def write_budget(
    model: str | Path, base: Budget, path: str | Path, *, store: str | Path | None = None, workers: int = 0
) -> Proposed:
    """Measure a model, and write a budget with the campaign and the choice of limits of `base`, or the usual ones.

    Raises InputError if trials are missing in the end, or no limit would say anything.
    """
    with opened_store(store) as file:
        running = start(model, base, file, workers)
        wanted = base.limits or usual(Measured.of_store(file, base.confidence))
        limits = [(limit, applied([limit], file)) for limit in wanted]
        each = joint([one for _, here in limits for one in here], base.confidence)
        finish(running, None)
        now = Measured.of_store(file, each)
        if now.trials < now.planned:
            raise InputError(
                f"{now.planned - now.trials:,} of {now.planned:,} trials have no outcome, as the harness failed on "
                f"them; no budget is written (with -o STORE, onnxfi show says more)"
            )
        medians = any(now.task.metric(limit.rate).fold == "median" for limit in wanted)
        wide = Measured.of_store(file, _three_arms(each)) if medians else now
        found = [(limit, _bound(limit, here, now, wide)) for limit, here in limits]
        budget, left_out = _sayings(base, found, now)
        checked = judged(str(model), budget.confidence, applied(budget.limits, file), now, None, stopped=False)
    with atomic_files([Path(path)]) as (stream,):
        stream.write(print_budget(budget).encode())
    return Proposed(budget, checked, left_out)


def _sayings(
    base: Budget, found: Sequence[tuple[BudgetLimit, float]], now: Measured
) -> tuple[Budget, tuple[BudgetLimit, ...]]:
    """Return the budget with the limits that say something, and those that would allow everything."""
    kept: list[BudgetLimit] = []
    idle: list[BudgetLimit] = []
    for limit, value in found:
        if limit.needs_baseline:
            kept.append(limit)
            continue
        endless = math.isinf(value)
        if endless and base.limits:
            why = "too many trials deviate infinitely; take another rate, and some 70 trials or more for a median"
            why = "it is infinite; leave this limit out" if limit.golden else why
            raise InputError(f"no finite bound for {limit.what}: {why}")
        bound: dict[str, Any] = {} if endless else {limit.bound: value}
        moved = replace(limit, **bound)
        loosest = now.task.metric(limit.rate).bounds[limit.bound == "max"]
        (idle if endless or value == loosest else kept).append(moved)
    if not kept:
        raise InputError(
            f"no limit would say anything: with {now.trials:,} trials every interval reaches from end to end; take "
            f"more (repeat or trials in the budget's campaign), or another rate"
        )
    return replace(base, limits=tuple(kept)), tuple(idle)


def _three_arms(confidence: float) -> float:
    """Return the confidence of a normal interval that has three arms of one with this confidence, below 1 for floats.

    >>> round(_three_arms(0.5), 3), _three_arms(0.99) < 1
    (0.957, True)
    """
    normal = NormalDist()
    return min(2 * normal.cdf(ARMS * normal.inv_cdf((1 + confidence) / 2)) - 1, _SUREST)


def _bound(limit: BudgetLimit, here: Sequence[BudgetLimit], now: Measured, wide: Measured) -> float:
    """Return the value of a limit: the worst of those that the layers which it matches would get."""
    least, metric = limit.bound == "min", now.task.metric(limit.rate)
    found = [_golden_room(metric, now, least) if one.golden else _room(one, metric, now, wide, least) for one in here]
    worst, (low, high) = min(found) if least else max(found), metric.bounds
    rounded = _outwards(metric, worst, ROUND_FLOOR if least else ROUND_CEILING)
    return max(low, rounded) if least else min(high, rounded)


def _outwards(metric: Metric, value: float, rounding: str) -> float:
    """Return a value rounded outwards: a share to four digits behind the point, other numbers to four digits."""
    if not value or math.isinf(value):
        return value
    exact = Decimal(repr(float(value)))
    return float(exact.quantize(Decimal(1).scaleb(-4 if metric.share else exact.adjusted() - 3), rounding))


def _room(limit: BudgetLimit, metric: Metric, now: Measured, wide: Measured, least: bool) -> float:
    """Return the value under faults and three arms of its interval; arms of a median are counted in trials."""
    value = value_of(limit, wide if metric.fold == "median" else now)
    if math.isnan(value.estimate):
        return metric.bounds[0 if least else 1]
    end = value.low if least else value.high
    return end if metric.fold == "median" else value.estimate + ARMS * (end - value.estimate)


def _golden_room(metric: Metric, now: Measured, least: bool) -> float:
    """Return the golden value with room: of a share an end of the interval over samples, else a tenth of the value."""
    value = float(now.golden.get(metric.name, math.nan))
    if math.isnan(value):
        return metric.bounds[0 if least else 1]
    if math.isinf(value):
        return value
    if metric.share and metric.fold == "mean":
        ends = clopper_pearson(round(value * now.samples), now.samples)
        return ends.low if least else ends.high
    return value + (-1 if least else 1) * _GOLDEN_ROOM * abs(value)


def usual(measured: Measured) -> tuple[BudgetLimit, ...]:
    """Return the default limits of a model, without values that mean anything.

    These are the metric by which versions of a model are compared, golden and under faults; and what faults alone do.
    """
    task, bers = measured.task, measured.identity.get("ber") or [None]
    compared = tuple(name for name in task.compared[:1] if task.metric(name).measured_in(measured.golden))
    own = (metric.name for metric in task.metrics if metric not in COMMON)
    right = map(task.metric, (*compared, *task.golden_names, *own))
    golden = next((m for m in right if m.golden and _finite(measured.golden.get(m.name, math.nan))), None)
    found = [] if golden is None else [_open(golden, golden=True)]
    names = dict.fromkeys((*compared, task.headline, OUTCOMES[2]))
    return (*found, *(_open(task.metric(name), ber=ber) for ber in bers for name in names))


def _finite(value: Any) -> bool:
    return math.isfinite(float(value))


def _open(metric: Metric, **where: Any) -> BudgetLimit:
    """Return a limit on the bad side of a metric, at its end where that is finite."""
    low, high = metric.bounds
    if metric.better == "higher":
        return BudgetLimit(metric.name, min=low if _finite(low) else min(0.0, high), **where)
    return BudgetLimit(metric.name, max=high if _finite(high) else max(0.0, low), **where)
