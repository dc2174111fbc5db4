"""Targets of a decoder in its loop, drawn, listed and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_decoders as tiny

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.plan import make_plan, write_plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import FaultListError, OnnxfiError, SelectorError
from onnxfi.faults.faultlist import FaultList

TASK = "generation:tokens=10"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny.saved(tmp_path, "model", tiny.decoder())
    np.savez(tmp_path / "prompts.npz", input_ids=tiny.prompts())
    return tmp_path


def campaign(place: Path, **fields: object) -> Campaign:
    given = {"target": "kv-cache", "single": True, "trials": 20, "task": TASK, **fields}
    return Campaign(place / "model.onnx", place / "prompts.npz", **given)


def test_the_population_is_every_number_of_the_cache_at_every_step(place: Path) -> None:
    plan = make_plan(campaign(place), TrialExecutor.open(campaign(place)).opened.fault_targets)
    per_position = 2 * tiny.LAYERS * tiny.SIZE * 32
    assert plan.header.population == sum(per_position * (length + k) for length in (6, 5, 4) for k in range(9))
    heads = campaign(place, elements="1,:,:", include="1.value", bits="sign")
    plan = make_plan(heads, TrialExecutor.open(heads).opened.fault_targets)
    assert plan.header.population == sum(4 * (length + k) for length in (6, 5, 4) for k in range(9))
    for trial in plan.trials():
        assert '"past_key_values.1.value"' in trial.lines and '"bits": [31]' in trial.lines


def test_a_list_is_read_without_its_data(place: Path) -> None:
    opened = TrialExecutor.open(campaign(place)).opened
    write_plan(make_plan(campaign(place), opened.fault_targets), place / "plan.jsonl")
    listed = FaultList.open(place / "plan.jsonl")
    again = FaultTargets.from_header(opened.model, listed.header)
    assert again.targets == opened.fault_targets.targets
    assert len([*listed.trials(again.targets, lambda: again.listed(listed.header))]) == 20


def replayed(place: Path, lines: str, task: str = TASK) -> None:
    file = place / "plan.jsonl"
    header = file.read_text().split("\n", 1)[0]
    file.write_text(f"{header}\n{lines}")
    made = Campaign(place / "model.onnx", place / "prompts.npz", faults=file, task=task)
    make_plan(made, TrialExecutor.open(made).opened.fault_targets)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "words"),
    [('"sample": 1, "from": 10', "sample 1 has 10 steps, 0 to 9"), ('"sample": 3, "from": 1', "no sample 3"),
     ('"sample": 0, "from": 0', "the cache holds 0 positions in front of step 0")],
)  # fmt: skip
def test_a_step_that_the_text_does_not_have_is_refused(place: Path, row: str, words: str) -> None:
    opened = TrialExecutor.open(campaign(place)).opened
    write_plan(make_plan(campaign(place), opened.fault_targets), place / "plan.jsonl")
    line = '{"trial": 1, "target": "past_key_values.0.key", "index": 0, ROW, "bits": [3], "fault": "flip", "before": null, "after": null}'
    replayed(place, line.replace("ROW", '"sample": 0, "from": 9'))
    with pytest.raises(OnnxfiError, match=words):
        replayed(place, line.replace("ROW", row))
    with pytest.raises(FaultListError, match="other lengths"):
        replayed(place, line.replace("ROW", '"sample": 0, "from": 3'), "generation:tokens=9")


def test_a_cache_needs_the_loop(place: Path) -> None:
    with pytest.raises(OnnxfiError, match=r"task generation|has no array"):
        TrialExecutor.open(campaign(place, task="auto"))
    with pytest.raises(SelectorError, match="stays in the cache by itself"):
        wrong = campaign(place, persistence="from")
        make_plan(wrong, TrialExecutor.open(wrong).opened.fault_targets)


def test_a_decoder_of_speech_has_the_positions_that_its_encoder_makes(tmp_path: Path) -> None:
    models = {"encoder": tiny.speech_encoder(), "prefill": tiny.decoder(past=False, cross=True)}
    files = ",".join(f"{name}={tiny.saved(tmp_path, name, model)}" for name, model in models.items())
    tiny.saved(tmp_path, "model", tiny.decoder(cross=True, encode=False))
    np.savez(tmp_path / "prompts.npz", input_features=tiny.speech())
    task = f"generation:tokens=10,start=3,{files}"
    cross = campaign(tmp_path, include="*.encoder.*", task=task)
    executor = TrialExecutor.open(cross)
    plan = make_plan(cross, executor.opened.fault_targets)
    # Of 3 prompts, in front of 9 steps: it does not grow.
    assert plan.header.population == 3 * 9 * 2 * tiny.LAYERS * tiny.SIZE * tiny.HEARD * 32
    own = campaign(tmp_path, include="*.decoder.*", task=task)
    plan = make_plan(own, TrialExecutor.open(own).opened.fault_targets)
    assert plan.header.population == 3 * 2 * tiny.LAYERS * tiny.SIZE * 32 * sum(1 + k for k in range(9))


def test_a_text_of_one_step_has_no_cache_to_inject_into(place: Path) -> None:
    with pytest.raises(SelectorError, match="give more tokens"):
        TrialExecutor.open(campaign(place, task="generation:tokens=1"))
