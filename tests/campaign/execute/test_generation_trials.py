"""Trials of a decoder in its loop, against loops by hand in which the tensor is edited or the graph is faulty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tiny_decoders as tiny
from onnx import helper, numpy_helper

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan, write_plan
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.graph.partition.route import Route
from onnxfi.tasks.outcomes import judge

COUNT = 10
KEYS = [f"{layer}.{one}" for layer in range(tiny.LAYERS) for one in ("key", "value")]


def campaign(place: Path, model: Any, prompts: Any = None, **fields: Any) -> Campaign:
    tiny.saved(place, "model", model)
    np.savez(place / "prompts.npz", input_ids=tiny.prompts() if prompts is None else prompts)
    given = {
        "single": True,
        "trials": 24,
        "task": f"generation:tokens={COUNT}",
        "threads": 1,
        "provider": "cpu",
        **fields,
    }
    return Campaign(place / "model.onnx", place / "prompts.npz", **given)


def by_hand(model: Any, prompt: Any, faults: list[dict[str, Any]], shape: tuple[int, ...]) -> list[int]:
    """Run a decoder step by step, with bits flipped in numpy arrays between two runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    number = np.float16 if "float16" in session.get_inputs()[-1].type else np.float32
    cache = {key: np.zeros((1, 2, 0, 4), number) for key in KEYS}
    tokens, seen, out = [int(t) for t in prompt if t >= 0], 0, list[int]()
    for step in range(COUNT):
        for fault in faults:
            if fault["from"] == step:
                key = fault["target"].removeprefix("past_key_values.")
                head, position, place = np.unravel_index(fault["index"], shape)
                array = cache[key].copy()
                words = array.view(np.uint16 if number is np.float16 else np.uint32)
                words[0, head, position, place] ^= 1 << fault["bits"][0]
                cache[key] = array
        fed = {"input_ids": np.array([tokens]), "position_ids": np.arange(seen, seen + len(tokens))[None]}
        fed |= {f"past_key_values.{key}": array for key, array in cache.items()}
        logits, *kept = session.run(["logits", *(f"present.{key}" for key in KEYS)], fed)
        cache, seen = dict(zip(KEYS, kept, strict=True)), seen + len(tokens)
        tokens = [int(logits[0, -1].astype(np.float32).argmax())]
        out += tokens
    return out


@pytest.mark.parametrize("numbers", [np.float32, pytest.param(np.float16, marks=pytest.mark.slow)])
def test_a_fault_in_the_cache_is_an_edit_between_two_runs(tmp_path: Path, numbers: Any) -> None:
    model = tiny.decoder(numbers=numbers)
    executor = TrialExecutor.open(campaign(tmp_path, model, target="kv-cache", bits="exponent,sign"))
    golden, _ = executor.golden_runs.run()
    plan = make_plan(executor.opened.campaign, executor.opened.fault_targets)
    shapes, prompts, changed = executor.opened.fault_targets.activation_space, tiny.prompts(), 0
    for trial in plan.trials():
        lines = trial.lines.splitlines()
        found = executor.trial(plan.header, golden, lines)
        rows = [json.loads(line) for line in lines]
        sample = rows[0]["sample"]
        text = by_hand(model, prompts[sample], rows, shapes.shapes[rows[0]["target"]])
        known = golden.run[0].arrays["tokens"][sample].tolist()
        assert found.metrics["changed"] == float(text != known)
        assert found.metrics["divergence"] == np.mean([a != b for a, b in zip(text, known, strict=True)])
        assert found.route is Route.STEPS and "prefill_changed" not in found.metrics
        flipped = {(row["index"], row["sample"], row["from"]): 0 for row in rows}
        for row in rows:
            flipped[row["index"], row["sample"], row["from"]] ^= 1 << row["bits"][0]
        kept = {(w["index"], w["sample"], w["step"]): int(w["before"], 16) ^ int(w["after"], 16) for w in found.words}
        assert kept == flipped
        changed += text != known
    assert changed > 3


@pytest.mark.slow
def test_a_step_in_prefill_and_one_behind_it_give_what_a_faulty_graph_gives(tmp_path: Path) -> None:
    """A stuck activation in all steps is the same as the graph with that number added to it, as a bias."""
    executor = TrialExecutor.open(
        campaign(tmp_path, tiny.decoder(), target="activations", persistence="permanent", include="=h.0.active",
                 fault="add:value=3", exhaustive=True, single=False, trials=None)
    )  # fmt: skip
    golden, _ = executor.golden_runs.run()
    plan = make_plan(executor.opened.campaign, executor.opened.fault_targets)
    assert len(plan) == 16, "one fault for each number of a token"
    for trial in plan.trials():
        found = executor.trial(plan.header, golden, trial.lines.splitlines())
        index = json.loads(trial.lines)["index"]
        bias = tiny.weights()["h.0.down"][index % 16] * 3
        model = tiny.decoder(past=False)
        node = next(n for n in model.graph.node if n.output[0] == "h.0.end")
        model.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), "bias"))
        at = list(model.graph.node).index(node)
        model.graph.node.insert(at, helper.make_node("Add", [node.input[1], "bias"], ["biased"]))
        node = model.graph.node[at + 1]
        node.input[1] = "biased"
        texts = [tiny.longhand(model, prompt, COUNT) for prompt in tiny.prompts()]
        known = golden.run[0].arrays["tokens"].tolist()
        assert found.metrics["changed"] == pytest.approx(np.mean([a != b for a, b in zip(texts, known, strict=True)]))


@pytest.mark.slow
def test_transient_faults_in_activations_count_for_their_phase(tmp_path: Path) -> None:
    executor = TrialExecutor.open(campaign(tmp_path, tiny.merged(), target="activations", bits="30", trials=30))
    golden, _ = executor.golden_runs.run()
    plan = make_plan(executor.opened.campaign, executor.opened.fault_targets)
    seen = set()
    for trial in plan.trials():
        found = executor.trial(plan.header, golden, trial.lines.splitlines())
        step = json.loads(trial.lines)["step"]
        phase = ("prefill_changed", "decode_changed")[step > 0]
        assert {"prefill_changed", "decode_changed"} & found.metrics.keys() == {phase}
        assert found.metrics["first_divergence"] >= step, "tokens in front of a fault are golden"
        seen.add(phase)
    assert len(seen) == 2


def test_only_the_steps_behind_a_fault_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = TrialExecutor.open(campaign(tmp_path, tiny.decoder(), target="kv-cache"))
    golden, _ = executor.golden_runs.run()
    plan = make_plan(executor.opened.campaign, executor.opened.fault_targets)
    for sample, prompt in enumerate(executor.loops.prompts):
        executor.loops.plain.of(sample, prompt)
    ran = list[int]()
    loop = type(executor.loops.plain.session.loop)
    step = loop.step
    monkeypatch.setattr(
        loop, "step", lambda self, prompt, state, fed: (ran.append(state.step), step(self, prompt, state, fed))[1]
    )
    for trial in plan.trials():
        ran.clear()
        executor.trial(plan.header, golden, trial.lines.splitlines())
        assert ran == list(range(json.loads(trial.lines)["from"], COUNT))


def test_a_fault_in_a_shared_prefix_reaches_every_text(tmp_path: Path) -> None:
    prompts = tiny.prompts(4, 8, prefix=5)
    executor = TrialExecutor.open(
        campaign(tmp_path, tiny.decoder(), prompts, target="kv-cache", persistence="permanent", elements=":,0:5,:",
                 bits="30", task=f"generation:tokens={COUNT},prefix=5", trials=12)
    )  # fmt: skip
    golden, _ = executor.golden_runs.run()
    plan = make_plan(executor.opened.campaign, executor.opened.fault_targets)
    assert plan.header.population == 2 * tiny.LAYERS * 5 * tiny.SIZE
    most = 0.0
    for trial in plan.trials():
        assert '"sample"' not in trial.lines
        found = executor.trial(plan.header, golden, trial.lines.splitlines())
        most = max(most, found.metrics["changed"])
    assert most == 1.0
    assert judge(golden, golden.run).outcome == "masked"


@pytest.mark.slow
def test_a_campaign_is_the_same_with_workers_and_from_its_list(tmp_path: Path) -> None:
    made = campaign(tmp_path, tiny.decoder(), target=["kv-cache", "activations"], trials=12)
    opened = TrialExecutor.open(made).opened
    write_plan(make_plan(made, opened.fault_targets), tmp_path / "plan.jsonl")
    listed = Campaign(
        tmp_path / "model.onnx", tmp_path / "prompts.npz", faults=tmp_path / "plan.jsonl", task=made.scoring.task,
        threads=1, provider="cpu",
    )  # fmt: skip
    runs = [
        run(made, tmp_path / "one.db"),
        run(made, tmp_path / "two.db", workers=1),
        run(listed, tmp_path / "three.db"),
    ]
    found = [sorted((r.trial, r.outcome, r.metrics["divergence"]) for r in one) for one in runs]
    assert found[0] == found[1] == found[2] and len(found[0]) == 12
