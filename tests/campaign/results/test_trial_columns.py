"""Results as columns: each number is that of the row, and cells and strata hold the trials of theirs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported_campaigns import singles, sweep

from onnxfi.campaign.results.store import Store
from onnxfi.campaign.results.trial_columns import MetricTexts, trial_columns, trial_faults
from onnxfi.tasks.task import OUTCOMES


@pytest.mark.parametrize("made", [singles, sweep])
def test_columns_are_those_of_the_rows(here: Path, made: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxfi.campaign.results.trial_columns.AT_ONCE", 7)
    found = made(here)  # type: ignore[operator]
    metrics = found.task.reports
    with Store.open(found.store) as opened:
        rows, columns = list(opened.rows()), trial_columns(opened, metrics)
    place, cells = columns.cells()
    assert len(rows) == len(columns.trial) > 7
    for k, row in enumerate(rows):
        assert (columns.trial[k], columns.stratum[k], columns.faults[k]) == (row.trial, row.stratum, row.faults)
        assert cells[place[k]] == (row.stratum, row.layer, row.bit) and OUTCOMES[columns.outcome[k]] == row.outcome
        for metric in metrics:
            value, kept = metric.value(row.outcome, row.metrics), columns.of(metric.name)[k]
            assert math.isnan(kept) if value is None else kept == value
    for stratum, trials in columns.by_stratum(columns.trial.astype(float)).items():
        assert list(trials) == [row.trial for row in rows if row.stratum == stratum]
    assert columns.by_stratum(np.full(len(rows), np.nan)) == {}


def test_faults_come_in_the_order_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxfi.campaign.results.trial_columns.MOST_ASKED", 2)
    found = singles(here)
    with Store.open(found.store) as opened:
        rows = {row.trial: row for row in opened.rows()}
        asked = list(rows)[:5][::-1]
        for trial, one in zip(asked, trial_faults(opened, asked, {asked[0]}), strict=True):
            assert (one.cause, one.changed) == (rows[trial].cause, rows[trial].changed)
            assert one.lines == (opened.lines(trial) if trial == asked[0] else "") and one.words == []


VALUE = st.sampled_from([0.0, 0.25, 1.0, 1e-300, "inf", "-inf", None])


@given(
    st.lists(st.dictionaries(st.sampled_from(["a", "b", "c", 'd"', "é", "f"]), VALUE), min_size=1, max_size=30),
    st.lists(st.sampled_from(["a", "b", "c", 'd"', "é", "f", "g"]), unique=True, max_size=4),
)
def test_metrics_are_those_of_each_text_alone(rows: list[dict[str, float | str | None]], names: list[str]) -> None:
    """Whatever is not asked for differs, also where trials lack what others have, and more texts than are kept."""
    reader = MetricTexts(names, most=8)
    for begin in range(0, len(rows), 5):
        block = rows[begin : begin + 5]
        read = reader.read([json.dumps(row, sort_keys=True) for row in block])
        wanted = [[float(x) if (x := row.get(name)) is not None else math.nan for name in names] for row in block]
        np.testing.assert_array_equal(read, np.array(wanted).reshape(len(block), len(names)))
