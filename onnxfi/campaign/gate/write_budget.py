"""Writing of budgets: limits that the current model meets with a margin (docs/how-to/ci.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxfi.campaign.gate.budget import Budget, Limit, load_budget, print_budget
from onnxfi.campaign.gate.check import Checked, applied, finish, joint, judged, opened_store, start, value_of
from onnxfi.campaign.gate.measurement import Measured
from onnxfi.campaign.plan.open_model import reopen
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import chosen_design
from onnxfi.errors import InputError, OutputError
from onnxfi.faults.models import Flip
from onnxfi.faults.space import Selector
from onnxfi.graph.write.output_file import atomic_files, check_output_files
from onnxfi.statistics.intervals import Interval, clopper_pearson
from onnxfi.tasks.task import OUTCOMES

#: Arms of today's interval between the measured value and its limit: one for today's sample, one for tomorrow's, and
#: one since tomorrow's interval has to lie wholly on the good side.
ARMS = 3
_TRIALS = 200
_SAMPLES = 200
#: Faults that a trial of the default sweep has at most; at least a tenth of it.
_FAULTS = 100
_MOST_BER = 0.01


@dataclass(frozen=True)
class Proposed:
    """A budget that was written, today's model against it, and what was left out since it would allow everything."""

    budget: Budget
    checked: Checked
    left_out: tuple[Limit, ...]


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
        kept = [_moved(limit, _bound(limit, here, now)) for limit, here in limits]
        budget, left_out = _sayings(base, kept, now.trials)
        checked = judged(str(model), budget.confidence, applied(budget.limits, file), now, None, stopped=False)
    with atomic_files([Path(path)]) as (stream,):
        stream.write(print_budget(budget).encode())
    return Proposed(budget, checked, left_out)


def _sayings(base: Budget, limits: Sequence[Limit], trials: int) -> tuple[Budget, tuple[Limit, ...]]:
    """Return the budget with the limits that say something, and those that would allow everything."""
    idle = tuple(limit for limit in limits if not limit.needs_baseline and limit.value == _loosest(limit))
    kept = tuple(limit for limit in limits if limit not in idle)
    if not kept:
        raise InputError(
            f"no limit would say anything: with {trials:,} trials every interval reaches from end to end; take more "
            f"(repeat or trials in the budget's campaign)"
        )
    return replace(base, limits=kept), idle


def _moved(limit: Limit, value: float) -> Limit:
    """Return the limit at another value; one on a change stays."""
    if limit.needs_baseline:
        return limit
    return replace(limit, min=value) if limit.bound == "min" else replace(limit, max=value)


def _bound(limit: Limit, here: Sequence[Limit], now: Measured) -> float:
    """Return the value of a limit: the worst of those that the layers which it matches would get."""
    least = limit.bound == "min"
    found = [_room(one, value_of(one, now), now.samples, least) for one in here]
    worst = min(found) if least else max(found)
    if math.isinf(worst):
        raise InputError(f"no finite bound for {limit.what}: some trials deviate infinitely; take another rate")
    low, high = now.task.metric(limit.rate).bounds
    return max(low, math.floor(worst * 1e4) / 1e4) if least else min(high, math.ceil(worst * 1e4) / 1e4)


def _loosest(limit: Limit) -> float:
    """Return the value of the bound that allows everything."""
    return limit.metric.bounds[1 if limit.bound == "max" else 0]


def _room(limit: Limit, value: Interval, samples: int, least: bool) -> float:
    """Return the value and three arms of its interval; of the golden run an end of the one over samples."""
    if math.isnan(value.estimate):
        return limit.metric.bounds[0 if least else 1]
    if limit.golden:
        ends = clopper_pearson(round(value.estimate * samples), samples)
        return ends.low if least else ends.high
    return value.estimate + ARMS * ((value.low if least else value.high) - value.estimate)


def usual(measured: Measured) -> tuple[Limit, ...]:
    """Return the default limits of a model, without values."""
    task, bers = measured.task, measured.identity.get("ber") or [None]
    names = [(task.headline, "max"), (OUTCOMES[2], "max")]
    found: list[Limit] = []
    if task.accuracy is not None and task.accuracy.name in measured.golden:
        found.append(Limit(task.accuracy.name, golden=True, min=0.0))
        names.insert(0, (task.accuracy.name, "min"))
    return (*found, *(_open(name, bound, ber) for ber in bers for name, bound in names))


def _open(rate: str, bound: str, ber: float | None) -> Limit:
    return Limit(rate, ber=ber, min=0.0) if bound == "min" else Limit(rate, ber=ber, max=1.0)
