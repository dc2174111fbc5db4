"""The time of a trial: the mean of the recorded times with scipy's interval, of the same model alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny_campaigns import campaign, mlp, ran

from onnxfi.campaign.results.store import Store
from onnxfi.campaign.results.trial_cost import recorded
from onnxfi.errors import InputError
from onnxfi.graph.model.loading import load


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_the_interval_is_that_of_the_recorded_times(here: Path, confidence: float) -> None:
    ran(campaign(trials=12), here / "s.db")
    found = recorded(here / "s.db", load("m.onnx").digest, confidence)
    with Store.open(here / "s.db") as store:
        times = np.array(store.times())
    low, high = stats.t.interval(confidence, len(times) - 1, times.mean(), stats.sem(times))
    assert (found.trials, found.samples) == (len(times), 12)
    assert (found.seconds.low, found.seconds.high) == pytest.approx((max(low, 0.0), high))
    assert found.row() == {
        "store": str(here / "s.db"), "trials": 12, "samples": 12,
        "low_s": found.seconds.low, "high_s": found.seconds.high,
    }  # fmt: skip


def test_times_of_another_model_or_of_too_few_trials_are_refused(here: Path) -> None:
    ran(campaign(trials=1), here / "s.db")
    with pytest.raises(InputError, match=r"too few results in .*s\.db \(1\) for the time of a trial; run 2 trials or"):
        recorded(here / "s.db", load("m.onnx").digest)
    mlp(here, name="n.onnx", seed=9)
    with pytest.raises(InputError, match=r"the times in .*s\.db are of another model, 'm\.onnx'; give a store of this"):
        recorded(here / "s.db", load("n.onnx").digest)
