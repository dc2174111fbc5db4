"""Exhaustive class outcomes: every count is that of full runs, proved or not; what is interrupted goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_campaigns import mlp, overflowing, samples

from onnxfi.campaign.exhaustive.exhaustive_run import ExhaustiveRun, default_table, exhaustive_outcomes
from onnxfi.campaign.exhaustive.outcome_table import COLUMNS, read_outcome_table
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import CampaignError, SpecError, StoreError
from onnxfi.runtime.proofs.weight_faults import WeightProofs

N = 12


def campaign(folder: Path, **fields: object) -> Campaign:
    """Return an exhaustive campaign of two tensors: one with a proof, one without."""
    given = {
        "exhaustive": True,
        "outcomes": "class",
        "include": ("=w2", "=b1"),
        "batch": 5,
        "provider": "cpu",
        "bits": "26-31",
    }
    return Campaign(mlp(folder), samples(folder, N), **given | fields)


@pytest.mark.parametrize("large", [False, True])
def test_every_count_is_that_of_full_runs(large: bool, tmp_path: Path) -> None:
    given = campaign(tmp_path)
    if large:  # infinite scores, which are DUE, still have a class
        overflowing(tmp_path, N)
    table = exhaustive_outcomes(given, tmp_path / "t.npz")
    assert table.column("due").any() or not large
    truth = (
        campaign(tmp_path, outcomes="bits", route="full")
        if not large
        else given.with_fields(outcomes="bits", route="full")
    )
    found = {}
    store = tmp_path / "s.db"
    results = list(run(truth, store))
    with Store.open(store) as opened:
        for result in results:
            line = json.loads(opened.trial(result.trial)["lines"].splitlines()[0])
            found[line["target"], line["index"], line["bits"][0]] = result.metrics
    assert len(found) == table.faults == 20 * 6
    names = {"changed": "sdc1", "due": "due_samples", "right": "top1", "critical": "critical"}
    for one in table.tensors:
        for element in range(one.changed.shape[0]):
            for at, bit in enumerate(one.bits):
                for column, metric in names.items():
                    expected = round(found[one.id, element, bit][metric] * N)
                    assert getattr(one, column)[element, at] == expected, (one.id, element, bit, column)
    assert {one.id for one in table.tensors if one.ran.any()} >= {"b1"} and table.ran < table.faults * N


def test_what_is_there_is_read_and_another_campaign_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = campaign(tmp_path, include=("=w2",))
    made = exhaustive_outcomes(given, tmp_path / "t.npz")
    again = exhaustive_outcomes(given, tmp_path / "t.npz")
    assert all((a.changed == b.changed).all() for a, b in zip(made.tensors, again.tensors, strict=True))
    assert again.header == read_outcome_table(tmp_path / "t.npz").header and not (tmp_path / "t.npz.parts").exists()
    with pytest.raises(StoreError, match="another campaign"):
        exhaustive_outcomes(campaign(tmp_path, include=("=w1",)), tmp_path / "t.npz")


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, calls = campaign(tmp_path), []

    def stop(tensor: str, done: int, faults: int) -> None:
        calls.append(tensor)
        if tensor == "b1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exhaustive_outcomes(given, tmp_path / "t.npz", progress=stop)
    assert (tmp_path / "t.npz.parts").is_dir() and not (tmp_path / "t.npz").exists()
    calls.clear()
    table = exhaustive_outcomes(given, tmp_path / "t.npz", progress=lambda tensor, *_: calls.append(tensor))
    assert set(calls) == {"b1"} and table.faults == 120


def test_other_campaigns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="flips of single bits"):
        campaign(tmp_path, fault="zero")
    with pytest.raises(SpecError, match="whole tensors"):
        campaign(tmp_path, elements="0")
    with pytest.raises(SpecError, match="give exhaustive and outcomes class"):
        exhaustive_outcomes(campaign(tmp_path, outcomes="bits"))
    with pytest.raises(SpecError, match="make a table, no store"):
        run(campaign(tmp_path), tmp_path / "s.db")
    with pytest.raises(SpecError, match="for scores of classes"):
        ExhaustiveRun(campaign(tmp_path, task="deviation"))
    assert default_table(campaign(tmp_path)) == Path("m.classes.npz")


def test_counts_are_small_numbers(tmp_path: Path) -> None:
    table = exhaustive_outcomes(campaign(tmp_path, include=("=b2",)), tmp_path / "t.npz")
    assert all(table.column(name).max() <= N and table.column(name).dtype == np.uint32 for name in COLUMNS)


def test_a_runtime_that_computes_otherwise_ends_the_campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proofs, none = WeightProofs.classes, np.zeros((1, N), np.int16)
    monkeypatch.setattr(WeightProofs, "classes", lambda *given: (proofs(*given) + 1) % 3 + none)
    with pytest.raises(CampaignError, match="does not compute as the proofs assume"):
        exhaustive_outcomes(campaign(tmp_path, include=("=w2",)), tmp_path / "t.npz")
