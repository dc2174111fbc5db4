"""Comparing versions of a network: the same sweep on each, as campaigns of their own would give."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxfi.campaign.report.compare import compare
from onnxfi.campaign.report.report import report
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SpecError

ROOT = Path(__file__).parents[3]
MODELS = [str(ROOT / f"models/fashion_cnn{tail}.onnx") for tail in ("", "_fp16", "_int8_qdq", "_int8_qoperator")]
SWEEP = Campaign("", str(ROOT / "models/fashion_test.npz"), samples=100, ber=(1e-6, 1e-4), repeat=3, provider="cpu")


@pytest.mark.slow
def test_each_version_is_what_a_campaign_of_its_own_gives(tmp_path: Path) -> None:
    from dataclasses import replace

    announced: list[str] = []
    found = compare(
        MODELS, SWEEP, tmp_path / "stores", on_start=lambda running: announced.append(running.plan.campaign.model)
    )
    assert announced == MODELS and found.measure == "top1" and found.rates == (1e-6, 1e-4)
    document = found.document()
    for model, version, row in zip(MODELS, found.versions, document["models"], strict=True):
        store = tmp_path / "alone.db"
        store.unlink(missing_ok=True)
        list(run(replace(SWEEP, model=model), store))
        alone = report(store)
        assert [fold.rates for fold in version.found.by_rate] == [fold.rates for fold in alone.by_rate]
        for cell, fold in zip(row["by_rate"], alone.by_rate, strict=True):
            interval = fold.rate("top1")
            assert interval is not None
            assert (cell["value"], cell["low"], cell["high"]) == (interval.estimate, interval.low, interval.high)
            assert cell["trials"] == 3 and cell["expected"] == cell["ber"] * version.population
    sizes = [version.population for version in found.versions]
    assert sizes[0] == 2 * sizes[1] > 3 * sizes[2]  # fewer bits, fewer faults
    assert compare(MODELS, SWEEP, tmp_path / "stores").document() == document  # resumed: nothing runs twice


def test_a_role_is_swept_alone(tmp_path: Path) -> None:
    from dataclasses import replace

    found = compare(MODELS[:3:2], replace(SWEEP, role=("weight",)), tmp_path)
    assert [version.population for version in found.versions] == [105_744 * 32, 105_744 * 8]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="two models or more"):
        compare(MODELS[:1], SWEEP, tmp_path)
    with pytest.raises(SpecError, match="have the same name"):
        compare([MODELS[0], MODELS[0]], SWEEP, tmp_path)
    with pytest.raises(SpecError, match="runs a sweep"):
        compare(MODELS, Campaign("", single=True, trials=3), tmp_path)
