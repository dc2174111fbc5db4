"""Differences between campaigns: of equal ones none, of unlike ones with the sign of what is better."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from reported_campaigns import singles, sweep

from onnxfi.campaign.report.differences import LOST, Difference, difference_sentences, differences
from onnxfi.statistics.intervals import Interval


def test_equal_campaigns_cannot_be_distinguished(here: Path) -> None:
    one = sweep(here, "a.db")
    rows = differences([one, one])
    assert [row.key for row in rows] == 2 * ["0.0001", "0.001", "0.01"]
    assert {row.metric.name for row in rows} == {"top1", LOST.name}
    assert all(row.apart.estimate == 0 and row.better is None for row in rows)
    assert all("not to be distinguished" in line for line in difference_sentences(rows))
    assert differences([one, singles(here)]) == [], "a sweep and single faults have nothing in common"
    assert differences([one]) == []


def test_better_is_what_the_metric_says() -> None:
    def interval(value: float) -> Interval:
        return Interval(value - 0.01, value + 0.01, value, "", 0.99)

    lost = Difference("a", "b", "all", LOST, interval(0.5), interval(0.2))
    higher = dataclasses.replace(LOST, better="higher")
    assert lost.better is True and dataclasses.replace(lost, metric=higher).better is False
    assert lost.text == "-30.00 [-31.41, -28.59] points"
    rows = [dataclasses.replace(lost, key=key) for key in ("1e-05", "0.0001")]
    assert list(difference_sentences(rows)) == [
        "b against a, answers lost to SDC or DUE: better at 1e-05 and 0.0001 by 30.0 points."
    ]
