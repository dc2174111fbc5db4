"""Runs of single faults on the samples that they need: outcomes as a full run has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_campaigns import mlp, samples

from onnxfi.campaign.exhaustive.class_run import ClassRun
from onnxfi.campaign.exhaustive.unproved import TensorRuns
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.tasks.outcomes import Judgement


def test_runs_give_the_outcomes_of_the_samples_asked_for(tmp_path: Path) -> None:
    given = Campaign(mlp(tmp_path), samples(tmp_path, 12), exhaustive=True, outcomes="class", batch=5, provider="cpu")
    run = ClassRun(given)
    [target] = [t for t in run.space.targets if t.id == "w1"]
    runs = TensorRuns(run.executor, run.header, run.golden, target)
    small = TensorRuns(run.executor, run.header, run.golden, target, run.whole)
    elements, bits = np.array([0, 3, 3]), np.array([30, 30, 31])
    words = run.opened.model.words(target, elements) ^ (np.uint64(1) << bits.astype(np.uint64))
    needed = [np.array([1, 11]), np.array([7]), np.arange(12)]
    found = list(runs.run(elements, bits, words, needed))
    assert [[len(one.samples) for one in each] for each in found] == [[5, 2], [5], [5, 5, 2]]
    for k, each in enumerate(found):
        whole = runs.alone(int(elements[k]), int(bits[k]))
        assert isinstance(whole, Judgement)
        if k == 2:
            assert sum(one.changed.sum() for one in each) == round(12 * whole.metrics["sdc1"])
            assert sum(one.due.sum() for one in each) == round(12 * whole.metrics["due_samples"])

    for each, others, some in zip(small.run(elements, bits, words, needed), found, needed, strict=True):
        assert not isinstance(each, Judgement) and not isinstance(others, Judgement)
        [one] = each
        assert one.samples.tolist() == some.tolist()
        for name in ("top", "changed", "due"):
            whole = np.full(12, 99)
            for other in others:
                whole[other.samples] = getattr(other, name)
            assert (getattr(one, name) == whole[some]).all()
