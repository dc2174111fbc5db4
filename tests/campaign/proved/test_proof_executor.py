"""Campaigns whose outcomes are classes: every metric is that of full runs, whatever is proved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_campaigns import mlp, overflowing, ran, samples

from onnxfi.campaign.proved.proof_executor import rows_apart
from onnxfi.campaign.report.report import report
from onnxfi.campaign.results.rows import Result
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import CampaignError, SpecError
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.proofs.weight_faults import WeightProofs

N = 12
METRICS = ("sdc1", "any", "due_samples", "top1", "critical", "top1_changed", "nonfinite", "balanced_accuracy")


def both(folder: Path, given: tuple[str, str], **fields: object) -> tuple[list[Result], list[Result]]:
    """Run a campaign by classes, and by full runs judged by every bit."""
    common = {"batch": 5, "provider": "cpu", **fields}
    found = ran(Campaign(*given, outcomes="class", **common), folder / "class.db")
    return found, ran(Campaign(*given, route="full", **common), folder / "bits.db")


def compare(found: list[Result], truth: list[Result]) -> float:
    """Hold every metric against that of full runs; return the share of answers that were proved."""
    assert [one.trial for one in found] == [one.trial for one in truth] and found
    for one, other in zip(found, truth, strict=True):
        assert one.error is None and other.error is None
        for name in METRICS:
            assert one.metrics.get(name) == other.metrics.get(name), (one.trial, name)
        assert one.metrics["sdc_samples"] == one.metrics["sdc1"]
        assert (one.changed, one.outcome == "due") == (other.changed, other.outcome == "due")
    return float(np.mean([one.metrics["proved_samples"] for one in found]))


DESIGNS = {
    "single": {"single": True, "trials": 100},
    "one layer": {"single": True, "trials": 60, "include": ("=w2",), "bits": "30"},
    "several flips": {"ber": (1e-3, 1e-2), "repeat": 12},
    "several in a tensor": {"ber": 0.02, "repeat": 30, "include": ("=w2",)},
    "words": {"single": True, "trials": 20, "fault": "zero"},
    "stuck-at": {"single": True, "trials": 30, "fault": "stuck-at-1"},
    "activations": {"single": True, "trials": 25, "target": "activations"},
}


@pytest.mark.parametrize("design", DESIGNS)
def test_every_metric_is_that_of_full_runs(design: str, tmp_path: Path) -> None:
    proved = compare(*both(tmp_path, (mlp(tmp_path), samples(tmp_path, N)), **DESIGNS[design]))
    assert (proved > 0) == (design != "activations")


@pytest.mark.parametrize("design", ["one layer", "several in a tensor"])
def test_infinite_scores_keep_their_class(design: str, tmp_path: Path) -> None:
    found, truth = both(tmp_path, overflowing(tmp_path, N), **DESIGNS[design])
    compare(found, truth)
    assert any(one.metrics["due_samples"] for one in truth)


def test_workers_and_rounds_change_no_result(tmp_path: Path) -> None:
    given = Campaign(mlp(tmp_path), samples(tmp_path, N), single=True, trials=40, outcomes="class", batch=5)
    alone, pooled = ran(given, tmp_path / "a.db"), ran(given, tmp_path / "b.db", workers=2)
    rows = [{one.trial: (one.outcome, one.metrics, one.changed) for one in many} for many in (alone, pooled)]
    assert rows[0] == rows[1] and {Route.PROVED} < {one.route for one in alone} | {Route.FULL, Route.PROVED}
    adaptive = ran(given.with_fields(adaptive=True, margin=0.1, trials=None), tmp_path / "c.db")
    assert len(adaptive) > 50 and np.mean([one.metrics["proved_samples"] for one in adaptive]) > 0.3
    found = report(tmp_path / "a.db")
    assert found.everything.rate("proved_samples").estimate > 0.3
    assert found.everything.rate("sdc5") is None


def test_proofs_are_of_faults_apart() -> None:
    channels, elements = np.array([1, 0, 1, 1, 0]), np.array([7, 2, 7, 9, 3])
    found = [*rows_apart(channels, elements)]
    assert np.sort(np.concatenate(found)).tolist() == [0, 1, 2, 3, 4]
    assert [sorted(elements[rows].tolist()) for rows in found] == [[2, 3], [7, 9], [7]]


def test_a_runtime_that_computes_otherwise_ends_the_campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proofs, none = WeightProofs.classes, np.zeros((1, N), np.int16)
    monkeypatch.setattr(WeightProofs, "classes", lambda *given: (proofs(*given) + 1) % 3 + none)
    with pytest.raises(CampaignError, match="does not compute as the proofs assume"):
        both(tmp_path, (mlp(tmp_path), samples(tmp_path, N)), single=True, trials=20)


def test_what_classes_do_not_have_is_refused(tmp_path: Path) -> None:
    given = mlp(tmp_path), samples(tmp_path, N)
    for fields, why in (
        ({"tolerance": 0.1}, "tolerance has no effect"),
        ({"task": "deviation"}, "for scores of classes"),
    ):
        with pytest.raises(SpecError, match=why):
            both(tmp_path, given, single=True, trials=2, **fields)
    with pytest.raises(SpecError, match="sdc5"):
        both(tmp_path, given, adaptive=True, rate="sdc5")
