"""One trial: what inject and eval find, golden without faults, and a refusal that is due to the fault."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tiny_campaigns import campaign, outcomes, ran, save

import onnxfi
from onnxfi.campaign.execute.export_trial import export_trial
from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.results.store import Store
from onnxfi.errors import EngineError
from onnxfi.graph.model.loading import load
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.tasks.evaluation import evaluate


def meta(store: Path, key: str) -> Any:
    with Store.open(store) as opened:
        return opened.get(key)


GATHER = """net (float[N,4] x) => (float[N,3] y)
    <int64[2] index = {0, 1}, float[2,3] w = {1,2,3,4,5,6}>
    { a = Gather<axis = 1>(x, index) y = MatMul(a, w) }"""


def test_what_the_runtime_refuses_is_due_to_the_fault(here: Path) -> None:
    save(here, GATHER)
    ran(campaign(model="g.onnx", exhaustive=True, include="=index"), here / "s.db")
    found = outcomes(here / "s.db")
    assert len(found) == 128
    rows = {row.trial: row for row in _rows(here / "s.db")}
    errors = {rows[trial].bit for trial, outcome in found.items() if outcome == ("due", "error")}
    assert errors == set(range(2, 64)), "an index beyond the four numbers cannot be gathered"
    some = next(row for row in rows.values() if row.cause == "error")
    assert some.metrics["due_samples"] == 1.0 and some.metrics["top1"] == 0.0
    ran(campaign(model="g.onnx", exhaustive=True, include="=index", due=("nonfinite",)), here / "silent.db")
    silent = outcomes(here / "silent.db")
    assert {silent[trial] for trial, outcome in found.items() if outcome == ("due", "error")} == {("sdc", "error")}


def _rows(store: Path) -> list[Any]:
    with Store.open(store) as opened:
        return list(opened.rows())


def test_python_that_runs_out_of_memory_is_due_to_the_fault(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = OpenCampaign.faulty_session
    for error in (MemoryError(), EngineError("Failed to allocate memory for requested buffer of size 1")):
        count = itertools.count()

        def faulty(self: OpenCampaign, faults: Any, error: Any = error, count: Any = count) -> Any:
            if next(count) == 3:
                raise error
            return whole(self, faults)

        monkeypatch.setattr(OpenCampaign, "faulty_session", faulty)
        store = here / f"{type(error).__name__}.db"
        ran(campaign(route="full"), store)
        assert [trial for trial, found in outcomes(store).items() if found == ("due", "memory")] == [3]
    monkeypatch.undo()


def test_a_trial_is_what_inject_and_eval_find(here: Path) -> None:
    ran(campaign(ber=(0.02,), repeat=3), here / "s.db")
    data = open_data("d.npz", OrtEngine("cpu").prepare("m.onnx").inputs)
    golden = evaluate("m.onnx", data, engine=OrtEngine("cpu"))
    for row in _rows(here / "s.db"):
        export_trial(here / "s.db", row.trial, here / f"{row.trial}.onnx")
        found = evaluate(here / f"{row.trial}.onnx", data, golden=golden, engine=OrtEngine("cpu"))
        assert {name: row.metrics[name] for name in found.metrics} == found.summary()
        drawn = onnxfi.sample(load("m.onnx"), ber=0.02, trial=row.trial)
        assert onnxfi.inject(load("m.onnx"), drawn).data == (here / f"{row.trial}.onnx").read_bytes()


def test_trials_without_faults_are_golden(here: Path) -> None:
    ran(campaign(ber=(0.0,), repeat=3), here / "s.db")
    golden = meta(here / "s.db", "golden")["metrics"]
    assert [(r.outcome, r.faults, r.metrics) for r in _rows(here / "s.db")] == [("masked", 0, golden)] * 3
    export_trial(here / "s.db", 2, here / "same.onnx")
    assert (here / "same.onnx").read_bytes() == (here / "m.onnx").read_bytes()
