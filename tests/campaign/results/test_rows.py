"""Rows of a store: results once, errors of the harness apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxfi.campaign.results.rows import Result
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import StoreError


def campaign(**fields: Any) -> Campaign:
    way = {} if {"ber", "single", "exhaustive", "mix", "faults"} & set(fields) else {"single": True, "trials": 60}
    return Campaign(**{"model": "m.onnx", "data": "d.npz", "provider": "cpu", **way, **fields})


def test_results_are_kept_once_and_errors_apart(here: Path) -> None:
    run(campaign(single=True, trials=3), here / "s.db").close()
    with Store.open(here / "s.db", create=True) as store:
        store.add([Result(1, "", None, {}, 0.0, error="Traceback")])
        assert (store.count("errors"), store.count("results")) == (1, 0)
        assert [trial for trial, _ in store.pending()] == [1, 2, 3]
        store.add([Result(1, "sdc", None, {"a": 1.0}, 0.0, b"x"), Result(1, "due", "crash", {}, 0.0)])
        assert (store.count("errors"), list(store.done())) == (0, [(1, "sdc")])
        found = store.trial(1)
        assert found["result"] == {"outcome": "sdc", "cause": None, "metrics": {"a": 1.0}, "route": "full", "words": []}
        with pytest.raises(StoreError, match="has no trial 9; its trials lie between 1 and 3"):
            store.trial(9)
