"""Differences between campaigns that lie side by side: each against the first, rate by rate, with intervals.

Each campaign has faults of its own, so the interval of a difference comes from both intervals (`difference_interval`).
The answers lost to SDC or DUE stand beside every rate, since a rate of silent errors also falls where more errors are
detected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from onnxfi.campaign.report.findings import listed, lost_answers, measured
from onnxfi.campaign.report.rates import CampaignRates
from onnxfi.campaign.report.tables import report_labels
from onnxfi.statistics.intervals import Interval
from onnxfi.statistics.paired import difference_interval
from onnxfi.tasks.task import Metric

#: The answers that are not kept, whether silently or not.
LOST = Metric("lost_answers", label="answers lost to SDC or DUE")
#: The sentence where nothing can be compared.
NOTHING_SHARED = "These campaigns have no metric at a common rate; each stands for itself below."
#: Rates that are named in a sentence.
_MOST_NAMED = 4


@dataclass(frozen=True)
class Difference:
    """A metric of two campaigns at a rate ("all": over all trials), and the interval of second minus first."""

    first_label: str
    second_label: str
    key: str
    metric: Metric
    first: Interval
    second: Interval

    @property
    def apart(self) -> Interval:
        """Second minus first."""
        return difference_interval(self.first, self.second)

    @property
    def better(self) -> bool | None:
        """True or False where the second is surely better or worse, else None."""
        if self.apart.low <= 0 <= self.apart.high:
            return None
        return (self.apart.low > 0) == (self.metric.better == "higher")

    @property
    def text(self) -> str:
        """The difference with its interval, in points of percent or in the unit of the metric."""
        return difference_text(self.metric, self.apart)


def difference_text(metric: Metric, i: Interval) -> str:
    """Return a difference with its interval, in points of percent or in the unit of the metric."""
    if not metric.share:
        return f"{i.estimate:+.4g} [{i.low:+.4g}, {i.high:+.4g}] {metric.unit}".rstrip()
    return f"{100 * i.estimate:+.2f} [{100 * i.low:+.2f}, {100 * i.high:+.2f}] points"


def differences(found: Sequence[CampaignRates]) -> list[Difference]:
    """Return the differences of each campaign from the first, at the rates and in the metrics that both have.

    >>> differences([])
    []
    """
    if len(found) < 2:
        return []
    labels, lost = report_labels(found), [lost_answers(one) for one in found]
    first, rows = found[0], list[Difference]()
    for k, one in enumerate(found[1:], 1):
        sweeps = [bool(each.by_rate) for each in (first, one)]
        if sweeps[0] != sweeps[1] or first.task.name != one.task.name:
            continue
        metric = measured(first)[0] if sweeps[0] else first.task.metric(first.task.headline)
        folds = [{f.key: f for f in each.by_rate or (each.everything,)} for each in (first, one)]
        for shown in (metric, LOST):
            for key in (key for key in folds[0] if key in folds[1]):
                values = [
                    lost[n].get(key) if shown == LOST else folds[m][key].estimated(shown.name)
                    for m, n in enumerate((0, k))
                ]
                if values[0] is not None and values[1] is not None:
                    rows.append(Difference(labels[0], labels[k], key, shown, values[0], values[1]))
    return rows


def difference_sentences(rows: Sequence[Difference]) -> Iterator[str]:
    """Yield where a campaign does better or worse than the first, a sentence for each metric."""
    for (label, _), group in groupby(rows, key=lambda row: (row.second_label, row.metric)):
        here = list(group)
        metric, first = here[0].metric, here[0].first_label
        parts = []
        for better, word in ((True, "better"), (False, "worse")):
            if sure := [row for row in here if row.better is better]:
                values = [abs(row.apart.estimate) for row in sure]
                ends = dict.fromkeys(_size(metric, value) for value in (min(values), max(values)))
                parts.append(f"{word}{_at(sure)} by {' to '.join(ends)}{' points' if metric.share else ''}")
        if open_rows := [row for row in here if row.better is None]:
            parts.append(f"not to be distinguished{_at(open_rows)}")
        yield f"{label} against {first}, {metric.label}: {'; '.join(parts)}."


def _size(metric: Metric, value: float) -> str:
    return f"{100 * value:.1f}" if metric.share else metric.text(value)


def _at(rows: Sequence[Difference]) -> str:
    keys = [row.key for row in rows]
    if keys == ["all"]:
        return ""
    return f" at {listed(keys)}" if len(keys) <= _MOST_NAMED else f" at {len(keys)} rates from {keys[0]} to {keys[-1]}"
