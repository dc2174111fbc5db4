"""The time of a trial: the mean of the recorded times with its interval, of the same model alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny_campaigns import campaign, mlp, ran

from onnxfi.campaign.results.store import Store
from onnxfi.campaign.results.trial_cost import mean_time, recorded
from onnxfi.errors import InputError
from onnxfi.graph.model.loading import load


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_the_interval_is_scipys_over_what_ran_by_itself(confidence: float) -> None:
    alone = np.random.default_rng(1).gamma(4, size=20)
    low, high = stats.t.interval(confidence, 19, alone.mean(), stats.sem(alone))
    for times in (alone, np.repeat(alone, 8)):
        found = mean_time(times.tolist(), confidence)
        assert (found.low, found.high) == pytest.approx((low, high))


def test_times_of_trials_that_shared_more_weigh_more() -> None:
    found = mean_time([1.0] * 9 + [2.0], 0.9)
    assert found.low < 1.1 < found.high


def test_a_store_gives_the_mean_of_its_times(here: Path) -> None:
    ran(campaign(trials=12, route="full"), here / "s.db")
    found = recorded(here / "s.db", load("m.onnx").digest)
    with Store.open(here / "s.db") as store:
        mean = np.mean(store.times())
    assert (found.trials, found.samples) == (12, 12) and found.seconds.low < mean < found.seconds.high
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
