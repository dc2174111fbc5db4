"""The golden run: twice the same, through the door of the trials."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from offered_engines import offer
from tiny_campaigns import campaign, save
from unsteady_engines import Changing

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.run.runner import run
from onnxfi.errors import CampaignError, EngineError
from onnxfi.runtime.data.sample_outputs import as_run


@dataclass(frozen=True)
class Noisy(Changing):
    """An engine whose answers are never the same."""

    name: ClassVar[str] = "noisy"
    count: ClassVar[Iterator[int]] = itertools.count()

    def added(self, run: int) -> float:
        return 1e-3 * next(self.count)


def test_golden_runs_twice_and_must_be_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Noisy)
    with pytest.raises(CampaignError, match="two golden runs differ"):
        run(campaign(provider="auto", engine="noisy"), here / "s.db")
    assert not (here / "s.db").exists(), "a refused campaign leaves no store"


def test_golden_goes_through_the_door_of_the_trials(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Changing)
    Changing.prepared.clear()
    TrialExecutor.open(campaign(provider="auto", engine="changing")).golden_runs.run()
    assert Changing.prepared == [Path, bytes], "as the file lies, and as a trial is"


def test_golden_that_does_not_run_on_made_up_inputs_asks_for_real_ones(here: Path) -> None:
    save(here, "g (float[N,M] x) => (float[N,M] y) <float[7] w = {1,2,3,4,5,6,7}> { y = Mul(x, w) }")
    with pytest.raises(EngineError, match="these are synthetic inputs, give real ones with --data"):
        run(campaign(model="g.onnx", data=None), here / "s.db")


def test_kept_outputs_stand_for_the_first_run_only_where_they_agree(here: Path) -> None:
    bench = TrialExecutor.open(campaign())
    golden, seconds = bench.golden_runs.run()
    assert bench.golden_runs.run(golden.run)[0].run is golden.run and seconds > 0
    wrong = as_run(golden.scores + 1)
    assert np.array_equal(bench.golden_runs.run(wrong)[0].scores, golden.scores)
