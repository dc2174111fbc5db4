"""Answers before and after: those of the exported faulty model, and refused where a store says too little or too much."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from reported_campaigns import campaign
from small_pipelines import cascade
from tiny_campaigns import mlp, ran

from onnxfi.campaign.execute.export_trial import export_trial
from onnxfi.campaign.execute.trial_answers import changed_answers, write_outputs
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError, SpecError, StoreError
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


def test_outputs_of_each_trial_and_batch_are_those_of_the_faulty_model(here: Path) -> None:
    ran(campaign(single=True, trials=6, bits="29-31", batch=5), here / "s.db")
    written = write_outputs(here / "s.db", here / "out", [2, 5])
    names = [path.relative_to(here / "out").as_posix() for path in written]
    assert names == [f"{one}/batch-{k}.npz" for one in ("golden", "trial-2", "trial-5") for k in (1, 2, 3)]
    with np.load("d.npz") as data:
        x, labels = data["x"], data["labels"]
    for trial in (None, 2, 5):
        model = "m.onnx"
        if trial is not None:
            export_trial(here / "s.db", trial, here / (model := "bad.onnx"))
        [scores] = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})
        files = [np.load(path) for path in written if path.parent.name == (f"trial-{trial}" if trial else "golden")]
        assert np.concatenate([file["samples"] for file in files]).tolist() == list(range(12))
        [name] = {name for file in files for name in file.files} - {"samples", "labels"}
        np.testing.assert_allclose(np.concatenate([file[name] for file in files]), scores, rtol=1e-5)
        if trial is None:
            assert np.concatenate([file["labels"] for file in files]).tolist() == labels.tolist()


def test_a_trial_of_one_sample_has_the_file_of_its_batch(here: Path) -> None:
    ran(campaign(single=True, trials=3, target=("activations",), batch=5), here / "a.db")
    with Store.open(here / "a.db") as opened:
        batches = [json.loads(opened.lines(trial))["sample"] // 5 + 1 for trial in (1, 2, 3)]
    written = [path for path in write_outputs(here / "a.db", here / "out") if path.parent.name != "golden"]
    assert [path.name for path in written] == [f"batch-{k}.npz" for k in batches]


def test_another_model_and_named_code_are_refused(here: Path) -> None:
    ran(campaign(single=True, trials=3), here / "s.db")
    mlp(here, seed=5)
    with pytest.raises(StoreError, match=r"is of the model .* is another one now"):
        changed_answers(here / "s.db", [1])
    with Store.open(here / "s.db", create=True) as opened:
        opened.put(spec="version: 1\nmodel: m.onnx\ndata: evil:make\nsingle: true\ntrials: 3\n")
    with pytest.raises(SpecError, match="has code run that this file names"):
        changed_answers(here / "s.db", [1])


def test_answers_of_a_pipeline_are_those_of_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = Campaign(cascade(tmp_path), "d.npz", stage="reader", single=True, trials=60, bits="30", allow_code=True)
    worst = max(ran(made, tmp_path / "p.db"), key=lambda result: result.metrics["sdc1"])
    assert worst.metrics["sdc1"] > 0
    found = changed_answers(tmp_path / "p.db", [worst.trial], allow_code=True)[worst.trial]
    assert found and all(one.golden != one.faulty and one.golden.startswith("class ") for one in found)
    with pytest.raises(InputError, match="if you trust it, add --allow-code"):
        changed_answers(tmp_path / "p.db", [worst.trial])


def test_answers_under_a_memory_code_are_those_of_what_it_leaves(here: Path) -> None:
    ran(campaign(ber=(3e-2,), repeat=12, memory_code="tmr"), here / "c.db")
    with Store.open(here / "c.db") as opened:
        rows = {row.trial: row for row in opened.rows() if row.outcome == "sdc" and row.metrics["sdc1"] > 0}
    assert rows
    for trial, answers in changed_answers(here / "c.db", list(rows)).items():
        assert len(answers) == min(8, round(12 * rows[trial].metrics["sdc1"]))
