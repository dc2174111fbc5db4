"""Runs of single faults on the samples that they need: outcomes as a full run has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_campaigns import mlp, samples

from onnxfi.campaign.exhaustive.exhaustive_run import ExhaustiveRun
from onnxfi.campaign.proved.campaign_proofs import flip
from onnxfi.campaign.proved.unproved_runs import TensorRuns
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.tasks.outcomes import Judgement


def test_runs_give_the_outcomes_of_the_samples_asked_for(tmp_path: Path) -> None:
    given = Campaign(mlp(tmp_path), samples(tmp_path, 12), exhaustive=True, outcomes="class", batch=5, provider="cpu")
    run = ExhaustiveRun(given)
    [target] = [t for t in run.space.targets if t.id == "w1"]
    runs = TensorRuns(run.executor, run.header, run.golden, target)
    small = TensorRuns(run.executor, run.header, run.golden, target, run.proofs.whole)
    faults = [flip(target, element, bit) for element, bit in ((0, 30), (3, 30), (3, 31))]
    needed = [np.array([1, 11]), np.array([7]), np.arange(12)]
    found = list(runs.run(faults, needed))
    assert [[len(one.samples) for one in each] for each in found] == [[5, 2], [5], [5, 5, 2]]
    for k, each in enumerate(found):
        whole = runs.alone(faults[k])
        assert isinstance(whole, Judgement)
        if k == 2:
            assert sum(one.changed.sum() for one in each) == round(12 * whole.metrics["sdc1"])
            assert sum(one.due.sum() for one in each) == round(12 * whole.metrics["due_samples"])

    for each, others, some in zip(small.run(faults, needed), found, needed, strict=True):
        assert not isinstance(each, Judgement) and not isinstance(others, Judgement)
        [one] = each
        assert one.samples.tolist() == some.tolist()
        for name in ("top", "changed", "due", "nonfinite"):
            whole = np.full(12, 99)
            for other in others:
                whole[other.samples] = getattr(other, name)
            assert (getattr(one, name) == whole[some]).all()
