"""The record of a campaign: what fixes its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run import campaign_record
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import StoreError

ROOT = Path(__file__).parents[3]


def test_a_store_of_a_quantised_model_goes_on_where_sums_are_of_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ROOT / "models" / "fashion_cnn_int8_qdq.onnx"
    campaign = Campaign(file, ROOT / "models" / "fashion_test.npz", samples=4, single=True, trials=2)
    run(campaign, tmp_path / "s.db", workers=0)
    with Store.open(tmp_path / "s.db") as store:
        kind = store.get("identity")["integer_sums"]
    assert kind in ("exact", "saturating")
    monkeypatch.setattr(campaign_record, "integer_sums", lambda *_: "other")
    with pytest.raises(StoreError, match=f'integer_sums: "{kind}" in the store, now "other"'):
        run(campaign, tmp_path / "s.db", workers=0)
