"""Answers before and after: those of the exported faulty model, and refused where a store says too little or too much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from reported_campaigns import campaign
from tiny_campaigns import mlp, ran

from onnxfi.campaign.execute.export_trial import export_trial
from onnxfi.campaign.execute.trial_answers import changed_answers
from onnxfi.campaign.results.store import Store
from onnxfi.errors import SpecError, StoreError
from onnxfi.tasks.outcomes import unpacked


def tops(model: str) -> list[int]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    [scores] = session.run(None, {"x": np.load("d.npz")["x"]})
    return [int(row.argmax()) for row in scores]


@pytest.mark.parametrize("fields", [{"single": True, "trials": 40, "bits": "29-31"}, {"ber": (3e-2,), "repeat": 6}])
def test_answers_are_those_of_the_faulty_model(here: Path, fields: dict[str, object]) -> None:
    ran(campaign(**fields), here / "s.db")
    with Store.open(here / "s.db") as opened:
        rows = [row for row in opened.rows() if row.outcome == "sdc" and row.changed]
    rows = [row for row in rows if unpacked(row.changed or b"", 12).any()][:4]
    found = changed_answers(here / "s.db", [row.trial for row in rows])
    assert rows and found.keys() == {row.trial for row in rows}
    golden = tops("m.onnx")
    for row in rows:
        export_trial(here / "s.db", row.trial, here / "bad.onnx")
        faulty = tops("bad.onnx")
        places = np.flatnonzero(unpacked(row.changed or b"", 12))[:8].tolist()
        assert [(one.sample, one.golden, one.faulty) for one in found[row.trial]] == [
            (k, f"class {golden[k]}", f"class {faulty[k]}") for k in places
        ]


def test_faults_in_activations(here: Path) -> None:
    ran(campaign(single=True, trials=60, target=("activations",), bits="30"), here / "a.db")
    with Store.open(here / "a.db") as opened:
        worst = [row.trial for row in opened.rows() if row.metrics["sdc1"] == 1.0]
    assert worst
    for trial, answers in changed_answers(here / "a.db", worst[:3]).items():
        assert len(answers) == 1 and answers[0].golden != answers[0].faulty, trial


def test_another_model_and_named_code_are_refused(here: Path) -> None:
    ran(campaign(single=True, trials=3), here / "s.db")
    mlp(here, seed=5)
    with pytest.raises(StoreError, match=r"is of the model .* is another one now"):
        changed_answers(here / "s.db", [1])
    with Store.open(here / "s.db", create=True) as opened:
        opened.put(spec="version: 1\nmodel: m.onnx\ndata: evil:make\nsingle: true\ntrials: 3\n")
    with pytest.raises(SpecError, match="has code run that this file names"):
        changed_answers(here / "s.db", [1])
