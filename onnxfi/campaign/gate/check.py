"""The gate: a small seeded campaign against a budget's limits. Verdicts and their statistics: docs/how-to/ci.md.

Trials and looks are fixed by the budget: one look, when all trials have run. A time box, or a trial on which the
harness failed, leaves limits not decided; it never turns pass into fail or back. An adaptive campaign is judged by its
confidence sequence, which holds at every moment, by the rounds that are complete.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxfi.campaign.gate.budget import Budget, BudgetLimit, exclusive
from onnxfi.campaign.gate.measurement import Measured, exact, times_below
from onnxfi.campaign.report.rates import ends_row
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.golden_run_cache import cached_golden
from onnxfi.campaign.run.runner import Running, run
from onnxfi.errors import InputError, SpecError, StoreError, closest
from onnxfi.faults.space import NamePattern
from onnxfi.graph.write.scratch_folder import scratch_folder
from onnxfi.statistics.intervals import Interval
from onnxfi.statistics.paired import difference_interval
from onnxfi.tasks.registry import missing
from onnxfi.tasks.task import Task

PASS, FAIL, UNDECIDED = "pass", "fail", "not decided"
EXIT_CODES: Mapping[str, int] = {PASS: 0, FAIL: 1, UNDECIDED: 3}
#: Rounding in sums of shares: no limit is missed by less.
_SLACK = 1e-12


@dataclass(frozen=True)
class Finding:
    """A limit, what was measured (of a change: the change), and the verdict; `reason` says why it is not decided."""

    limit: BudgetLimit
    interval: Interval
    verdict: str
    reason: str = ""

    @property
    def measured(self) -> str:
        """The value for people."""
        value = self.interval.estimate
        return "-" if math.isnan(value) else f"{self._number(value)} {self._unit}".rstrip()

    @property
    def ends(self) -> str:
        """The interval for people."""
        i = self.interval
        return (
            "exact" if i.method == "exact" else f"[{self._number(i.low)}, {self._number(i.high)}] {self._unit}".rstrip()
        )

    def _number(self, value: float) -> str:
        if self.limit.times_below is not None:
            return f"{value:.4g}"
        if not self.limit.metric.share:
            return f"{value:+.4g}" if self.limit.change else f"{value:.4g}"
        return f"{100 * value:+.2f}" if self.limit.change else f"{100 * value:.2f}"

    @property
    def _unit(self) -> str:
        metric = self.limit.metric
        if self.limit.times_below is not None:
            return "× below"
        return metric.unit if not metric.share else "points" if self.limit.change else "%"

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        ends = "" if self.interval.method == "exact" else f" {self.ends}"
        return f"{self.limit.what}: measured {self.measured}{ends}, allowed {self.limit.allowed}: {self.verdict}{why}"

    def document(self) -> dict[str, Any]:
        """As plain values for JSON."""
        one = self.limit
        return {
            "name": str(one), "rate": one.rate, "ber": one.ber, "layer": one.layer, "golden": one.golden,
            "bound": one.bound, "limit": one.value, **ends_row(self.interval), "verdict": self.verdict,
            "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True)
class CheckResult:
    """The result of a check: a verdict for each limit of a budget, and the measurements behind it.

    Attributes
    ----------
    model : str
        Path of the model.
    findings : tuple of Finding
        For each limit the measured value with its interval, and its verdict.
    measured : Measured
        The rates of the campaign.
    confidence : float
        Confidence with which all verdicts hold together.
    baseline : str, optional
        The baseline that changes were measured against.

    Examples
    --------
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> campaign = Campaign("", data="models/fashion_test.npz", samples=20, ber=1e-5, repeat=2)
    >>> done = check("models/fashion_cnn.onnx", Budget(campaign, (BudgetLimit("top1", golden=True, min=0.99),)))
    >>> done.verdict, done.exit_code, done.summary()
    ('fail', 1, 'FAIL, 1 of 1 limits')
    """

    model: str
    findings: tuple[Finding, ...]
    measured: Measured
    confidence: float
    baseline: str | None = None

    def __repr__(self) -> str:
        return "\n".join((f"{self.model}: {self.summary()}", *map(str, self.findings)))

    @property
    def verdict(self) -> str:
        """`fail` where any limit failed, else `not decided` where any is, else `pass`."""
        verdicts = {finding.verdict for finding in self.findings}
        return FAIL if FAIL in verdicts else UNDECIDED if UNDECIDED in verdicts else PASS

    @property
    def exit_code(self) -> int:
        """The exit code of the command: 0 pass, 1 fail, 3 not decided."""
        return EXIT_CODES[self.verdict]

    def count(self, verdict: str) -> int:
        """Count the limits with that verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)

    def summary(self) -> str:
        """Return the verdict in a few words.

        The limits that were missed, or else those that are not decided, are counted.
        """
        n, of = self.count(self.verdict), len(self.findings)
        return self.verdict.upper() + ("" if self.verdict == PASS else f", {n} of {of} limits")

    def conditions(self) -> str:
        """On what, and how sure."""
        m = self.measured
        ran = f"{m.trials:,} trials" if m.trials == m.planned else f"{m.trials:,} of {m.planned:,} trials"
        each = f"each interval holds with {m.confidence:.6g}, all together with {self.confidence:.6g}"
        counted = dict.fromkeys(f.limit.rate for f in self.findings if m.task.metric(f.limit.rate).fold == "count")
        these = f"; {', '.join(counted)}: of trials on these {m.samples:,} samples, others with more" if counted else ""
        read = f"; {m.reading}" if m.reading else ""
        return f"{ran} on {m.data}; {each}{these}{read}"

    def document(self) -> dict[str, Any]:
        """As plain values for JSON; what `--baseline` reads."""
        return {
            "verdict": self.verdict, "confidence": self.confidence, "baseline": self.baseline,
            "limits": [finding.document() for finding in self.findings], **self.measured.document(),
            "model": self.model,
        }  # fmt: skip


def check(
    model: str | Path,
    budget: Budget,
    *,
    baseline: str | Path | None = None,
    store: str | Path | None = None,
    workers: int = 0,
) -> CheckResult:
    """Run the campaign of a budget on a model, and compare the measurements with each limit.

    `onnxfi.check` describes arguments and errors; here the model is a file, and the budget comes from `load_budget`.

    Examples
    --------
    >>> from onnxfi.campaign.gate.budget import Budget, BudgetLimit
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> campaign = Campaign("", data="models/fashion_test.npz", samples=20, ber=1e-5, repeat=2)
    >>> budget = Budget(campaign, (BudgetLimit("top1", golden=True, min=0.8),))
    >>> print(check("models/fashion_cnn.onnx", budget).findings[0])
    golden top1: measured 95.00 %, allowed at least 80 %: pass
    """
    if not budget.limits:
        raise SpecError("the budget holds no limit; add limits, or let --write-budget --force write them")
    deadline = None if budget.time_s is None else time.monotonic() + budget.time_s
    with opened_store(store) as file:
        running = start(model, budget, file, workers)
        limits = applied(budget.limits, file)
        each = joint(limits, budget.confidence)
        before = None if baseline is None else Measured.open(baseline, each)
        if before is not None:
            Measured.of_store(file, each).comparable(before)
        stopped = finish(running, deadline)
        now = Measured.of_store(file, each)
    return judged(str(model), budget.confidence, limits, now, before, stopped)


@contextmanager
def opened_store(store: str | Path | None) -> Iterator[Path]:
    """Return the file that results go into; a temporary one where none is named."""
    if store is not None:
        yield Path(store)
        return
    with scratch_folder() as folder:
        yield folder / "check.db"


def start(model: str | Path, budget: Budget, file: Path, workers: int) -> Running:
    """Golden, the canary and the plan; StoreError if the store holds trials beyond the budget's."""
    running = run(budget.on(model), file, workers=workers, golden=cached_golden)
    with Store.open(file) as opened:
        planned = opened.count("plan")
    if planned > len(running.plan) and running.plan.campaign.adaptive is None:
        running.close()
        raise StoreError(
            f"{file} plans {planned:,} trials, the budget {len(running.plan):,}, and a verdict takes just these; "
            f"name another store"
        )
    return running


def finish(running: Running, deadline: float | None) -> bool:
    """Run the trials; True if the deadline (of the monotonic clock) came before the last."""
    for _ in running.until(deadline, time.monotonic):
        pass
    return running.out_of_time


def applied(limits: Sequence[BudgetLimit], file: Path) -> tuple[BudgetLimit, ...]:
    """Return the limits on a model, one for each layer that a pattern matches; InputError if it gives no rate."""
    with Store.open(file) as opened:
        golden, cells = opened.get("golden"), opened.get("cells")
    task, layers = Task.declared(golden["task"]), list(dict.fromkeys(cell[0] for cell in cells))
    found: list[BudgetLimit] = []
    for limit in limits:
        if why := missing(limit.rate, task, labelled=_labelled(task, golden["metrics"])):
            raise InputError(f"{limit}: {why}")
        if not task.metric(limit.rate).measured_in(golden["metrics"]):
            raise InputError(f"{limit}: these labels and samples do not define it; leave it out, or take other data")
        if limit.layer is None:
            found.append(limit)
            continue
        pattern = NamePattern(limit.layer)
        here = [layer for layer in layers if pattern.matches([layer])]
        if not here:
            raise InputError(f"{limit}: no layer of the model matches{closest(limit.layer, layers)}")
        found += [replace(limit, layer=layer) for layer in here]
    exclusive(found)
    return tuple(found)


def _labelled(task: Task, metrics: Mapping[str, Any]) -> bool:
    """Return true if the golden run has metrics that compare with labels, or the task has none."""
    needing = [m.name for m in task.metrics if m.needs_labels]
    return not needing or any(name in metrics for name in needing)


def joint(limits: Sequence[BudgetLimit], confidence: float) -> float:
    """Return the confidence of each interval, so that all hold together with the one that is stated (Bonferroni).

    >>> limits = [BudgetLimit("top1", golden=True, min=0.9), BudgetLimit("sdc1", max=0.1), BudgetLimit("due", max=0.1)]
    >>> sure = joint(limits, 0.99)
    >>> round(sure, 6)
    0.995
    """
    return 1 - (1 - confidence) / max(1, sum(not limit.golden for limit in limits))


def judged(
    model: str, confidence: float, limits: Sequence[BudgetLimit], now: Measured, before: Measured | None, stopped: bool
) -> CheckResult:
    """Each limit against what was measured; nothing that rests on trials is decided where some are missing."""
    missing = ""
    # The sequence of intervals of an adaptive campaign holds at every moment, so also at that when time ran out.
    if now.trials < now.planned and not now.identity.get("adaptive"):
        left = now.planned - now.trials
        missing = f"{left:,} of {now.planned:,} trials have no outcome: "
        missing += "time ran out" if stopped else "the harness failed on them"
    findings = tuple(_finding(limit, now, before, missing) for limit in limits)
    return CheckResult(model, findings, now, confidence, None if before is None else before.source)


def _finding(limit: BudgetLimit, now: Measured, before: Measured | None, missing: str) -> Finding:
    value = value_of(limit, now)
    if limit.needs_baseline:
        earlier = None if before is None else value_of(limit, before)
        if earlier is None or math.isnan(earlier.estimate):
            low, high = now.task.metric(limit.rate).bounds
            ends = (0.0, math.inf) if limit.times_below is not None else (low - high, high - low)
            unknown = Interval(*ends, math.nan, "none", now.confidence)
            why = "no baseline was given" if earlier is None else "the baseline has no such rate"
            return Finding(limit, unknown, UNDECIDED, why)
        if limit.times_below is not None:
            value = times_below(value, earlier)
        else:
            value = exact(value.estimate - earlier.estimate) if limit.golden else difference_interval(earlier, value)
    if missing and not limit.golden:
        return Finding(limit, value, UNDECIDED, missing)
    verdict = decide(limit, value)
    return Finding(limit, value, verdict, "the interval lies across the limit" if verdict == UNDECIDED else "")


def value_of(limit: BudgetLimit, measured: Measured) -> Interval:
    """Return the measurement of a limit; without a trial, the bounds of the metric."""
    if limit.golden:
        return exact(measured.golden.get(limit.rate, math.nan))
    found = measured.interval(limit.rate, limit.ber, limit.layer)
    return found or Interval(*measured.task.metric(limit.rate).bounds, math.nan, "none", measured.confidence)


def decide(limit: BudgetLimit, value: Interval) -> str:
    """Pass where the whole interval is on the good side of the limit, fail where on the bad side, else not decided.

    >>> decide(BudgetLimit("sdc1", max=0.1), Interval(0.02, 0.1, 0.05, "", 0.99))
    'pass'
    >>> decide(BudgetLimit("top1", max_drop=0.1), Interval(-0.3, 0.0, -0.2, "", 0.99))
    'not decided'
    """
    bound = -limit.value if limit.bound == "max_drop" else limit.value
    low, high = value.low - bound, value.high - bound
    if limit.bound in ("max", "max_rise"):
        low, high = -high, -low
    return PASS if low >= -_SLACK else FAIL if high < -_SLACK else UNDECIDED
