"""Runs of a small model on some samples: offered only where so many samples have their golden scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_campaigns import mlp, samples

from onnxfi.campaign.exhaustive.exhaustive_run import ExhaustiveRun
from onnxfi.campaign.proved import sample_subset_runs
from onnxfi.campaign.proved.sample_subset_runs import SampleRuns
from onnxfi.campaign.spec.campaign import Campaign


def test_numbers_of_samples_with_other_scores_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Campaign(mlp(tmp_path), samples(tmp_path, 12), exhaustive=True, outcomes="class", batch=5, provider="cpu")
    run = ExhaustiveRun(given)
    assert run.proofs.whole is not None and all(run.proofs.whole.keeps_bits(size) for size in (1, 2, 4, 12))
    other = SampleRuns(
        run.proofs.whole.opened, run.proofs.whole.feeds, np.nextafter(run.proofs.whole.scores, np.float32(9))
    )
    assert not other.keeps_bits(2)
    monkeypatch.setattr(sample_subset_runs, "SMALL_BYTES", 10)
    assert SampleRuns.open(run.opened, run.golden) is None
