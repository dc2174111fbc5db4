"""Adapters for other tools do what they say: each is run on a shipped model, as its tool would."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import onnxfi
from onnxfi.graph.model.loading import load

ROOT = Path(__file__).parents[1]
ADAPTERS = ROOT / "examples" / "adapters"
BUDGET = {
    "version": 1,
    "confidence": 0.99,
    "campaign": {"data": "few.npz", "ber": [1e-5], "repeat": 4},
    "limits": [{"rate": "top1", "golden": True, "min": 0.5}, {"rate": "due", "max": 1}],
}


def adapter(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ADAPTERS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, few samples, a budget, and `onnxfi` on the path."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "models" / "fashion_cnn.onnx", "model.onnx")
    with np.load(ROOT / "models" / "fashion_test.npz") as archive:
        np.savez("few.npz", **{name: array[:40] for name, array in archive.items()})
    Path("budget.yaml").write_text(yaml.safe_dump(BUDGET))
    Path("bin").mkdir()
    Path("bin/onnxfi").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxfi "$@"\n')
    Path("bin/onnxfi").chmod(0o755)
    return tmp_path


def shell(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ONNXFI_CACHE": str(folder / "cache"), **variables}
    env["PATH"] = f"{folder / 'bin'}{os.pathsep}{env['PATH']}"
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_each_is_short() -> None:
    files = [
        *ADAPTERS.iterdir(),
        ROOT / "action.yml",
        ROOT / ".pre-commit-hooks.yaml",
        ROOT / "examples/ci/gitlab-template.yml",
    ]
    long = {file.name: n for file in files if file.is_file() and (n := len(file.read_text("utf-8").splitlines())) > 60}
    assert not long and len(files) > 5


@pytest.mark.slow
def test_optuna_finds_a_protection(work: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="Optuna is not installed")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=1))
    fields: dict[str, Any] = {"ber": 1e-5, "repeat": 3, "provider": "cpu"}
    study.enqueue_trial({"nan_filter": False, "range": "none"})
    study.enqueue_trial({"nan_filter": True, "range": "clip"})
    study.optimize(adapter("optuna_objective").objective("model.onnx", "few.npz", "few.npz", **fields), n_trials=2)
    bare, protected = study.trials
    found = onnxfi.run("model.onnx", "few.npz", **fields).everything.rate("top1")
    assert bare.values == [found.estimate, 0.0] and bare.user_attrs["interval"] == [found.low, found.high]
    assert protected.values[0] > bare.values[0] and protected.values[1] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries that MLflow uses
def test_mlflow_has_every_rate_of_a_sweep(work: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    found = onnxfi.run("model.onnx", "few.npz", "s.db", ber=[1e-5, 1e-4], repeat=2, provider="cpu")
    mlflow.set_tracking_uri(f"sqlite:///{work / 'm.db'}")
    mlflow.create_experiment("e", artifact_location=str(work / "artifacts"))
    mlflow.set_experiment("e")
    with mlflow.start_run() as active:
        adapter("mlflow_metrics").log_report(found, page=False)
    client = mlflow.MlflowClient()
    history = {m.step: m.value for m in client.get_metric_history(active.info.run_id, "top1")}
    assert history == {k: fold.rate("top1").estimate for k, fold in enumerate(found.by_rate)}
    kept = client.get_run(active.info.run_id).data
    assert kept.metrics["ber"] == 1e-4 and kept.params["repeat" if "repeat" in kept.params else "ber"]
    assert [file.path for file in client.list_artifacts(active.info.run_id, "campaign")] == ["campaign/s.db"]


def test_metrics_for_mlflow_are_those_of_the_report(work: Path) -> None:
    found = onnxfi.run("model.onnx", "few.npz", single=True, trials=3, provider="cpu")
    ((step, metrics),) = adapter("mlflow_metrics").metrics_of(found)
    rate = found.everything.rate("sdc1")
    assert step == 0 and metrics["golden.top1"] == found.golden["metrics"]["top1"]
    assert (metrics["sdc1"], metrics["sdc1.low"], metrics["sdc1.high"]) == (rate.estimate, rate.low, rate.high)
    assert all(np.isfinite(value) for value in metrics.values())


def staged(work: Path) -> dict[str, Any]:
    """Return the stage of DVC with few trials, beside its model and data."""
    stages = yaml.safe_load((ADAPTERS / "dvc.yaml").read_text(encoding="utf-8"))
    stage: dict[str, Any] = stages["stages"]["resilience"]
    (work / "models").mkdir()
    (work / "model.onnx").rename(work / stage["deps"][0])
    (work / "few.npz").rename(work / stage["deps"][1])
    stage["cmd"] = [line.replace("--repeat 20", "--repeat 2 --workers 0") for line in stage["cmd"]]
    (work / "dvc.yaml").write_text(yaml.safe_dump(stages))
    return stage


def damaged(model: Path) -> None:
    onnxfi.inject(str(model), onnxfi.sample(str(model), count=1), f"{model}.faulty")
    Path(f"{model}.faulty").replace(model)


@pytest.mark.slow
def test_the_stage_of_dvc_makes_its_metrics_and_plots(work: Path) -> None:
    stage = staged(work)
    (metrics,), (outs,) = stage["metrics"][0], stage["outs"]
    ((plot, how),) = stage["plots"][0].items()
    for _ in ("first", "of a model that changed"):
        done = shell("\n".join(stage["cmd"]), work)
        assert done.returncode == 0, done.stderr
        assert json.loads((work / metrics).read_text())["trials"] == 6 and (work / outs).is_file()
        head = (work / plot).read_text().splitlines()[0].split(",")
        assert {how["x"], how["y"]} <= set(head)
        (work / outs).unlink()  # as DVC does before a stage
        damaged(work / stage["deps"][0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dvc") is None, reason="DVC is not installed")
def test_dvc_runs_the_stage_where_the_model_changed(work: Path) -> None:
    stage = staged(work)
    assert shell("git init -q; dvc init -q; dvc repro", work).returncode == 0
    assert "didn't change, skipping" in shell("dvc repro", work).stdout
    damaged(work / stage["deps"][0])
    again = shell("dvc repro && dvc metrics show", work)
    assert again.returncode == 0 and "didn't change" not in again.stdout and "resilience.json" in again.stdout, again


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries that lm-eval uses
def test_lm_eval_answers_as_many_items_as_onnxfi(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(work / "hub"))
    models = ROOT / "models"
    lines = (models / "char_gpt_items.jsonl").read_text("utf-8").splitlines()[:12]
    Path("items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    task = {
        "task": "items", "dataset_path": "json", "dataset_kwargs": {"data_files": "items.jsonl"}, "test_split": "train",
        "output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    network, tokenizer = str(models / "char_gpt.onnx"), str(models / "char_gpt_tokenizer.json")
    module = adapter("lm_eval_model")
    golden, faulty = module.main(network, tokenizer, task, "1e-3", "1")
    found = onnxfi.evaluate(
        network, "items.jsonl", task="language-model", preprocess=models / "char_gpt_text.yaml", batch=8
    )
    assert golden["items"]["acc,none"] == found.metrics["answer_accuracy"] > faulty["items"]["acc,none"]
    decoder, text = module.OnnxDecoder(network, tokenizer), "descriptor" * 40
    [(whole, _)] = decoder.loglikelihood([SimpleNamespace(args=("", text[:200]))])
    first, longer = decoder.loglikelihood_rolling([SimpleNamespace(args=(some,)) for some in (text[:200], text)])
    assert first == pytest.approx(whole) and longer < first < 0


@pytest.mark.slow
@pytest.mark.parametrize(("low", "code", "verdict"), [(0.5, 0, "pass"), (1.0, 1, "fail")])
def test_the_action_checks_and_tells_its_verdict(low: float, code: int, verdict: str, work: Path) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    step = next(one for one in action["runs"]["steps"] if one.get("id") == "check")
    limits = [{**BUDGET["limits"][0], "min": low}, BUDGET["limits"][1]]  # type: ignore[index]
    Path("budget.yaml").write_text(yaml.safe_dump({**BUDGET, "limits": limits}))
    given = {"model": "model.onnx", "budget": "budget.yaml", "arguments": "--workers 0"}
    env = {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: given[m[1]], text) for name, text in step["env"].items()
    }
    done = shell(step["run"], work, **env, GITHUB_OUTPUT="out.txt", GITHUB_STEP_SUMMARY="summary.md")
    assert done.returncode == code, done.stderr
    assert Path("out.txt").read_text() == f"verdict={verdict}\n" and Path("onnxfi.xml").is_file()
    assert Path("summary.md").read_text(encoding="utf-8") == Path("onnxfi.md").read_text(encoding="utf-8")
    assert "inputs." not in "".join(one.get("run", "") for one in action["runs"]["steps"]), "no code from an input"


@pytest.mark.slow
def test_the_action_verifies_where_a_manifest_is_given(work: Path) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    step = next(one for one in action["runs"]["steps"] if one.get("name") == "Verify")
    assert step["if"] == "inputs.manifest != ''" and set(step["env"]) == {"MODEL", "MANIFEST"}
    assert shell("onnxfi manifest model.onnx -o known.json", work).returncode == 0
    assert shell(step["run"], work, MODEL="model.onnx", MANIFEST="known.json").returncode == 0
    assert shell("onnxfi inject model.onnx --count 1 -o damaged.onnx", work).returncode == 0
    assert shell(step["run"], work, MODEL="damaged.onnx", MANIFEST="known.json").returncode == 1


def test_the_template_of_gitlab_takes_its_inputs(work: Path) -> None:
    text = (ROOT / "examples" / "ci" / "gitlab-template.yml").read_text(encoding="utf-8")
    spec, _, job = text.partition("\n---\n")
    inputs = {name: (about or {}).get("default") for name, about in yaml.safe_load(spec)["spec"]["inputs"].items()}
    inputs |= {"model": "model.onnx", "budget": "budget.yaml", "arguments": "--workers 0"}
    filled = yaml.safe_load(re.sub(r"\$\[\[ inputs\.(\w+) \]\]", lambda m: str(inputs[m[1]]), job))
    (only,) = filled.values()
    done = shell("\n".join(only["script"]), work)
    assert done.returncode == 0 and Path(only["artifacts"]["reports"]["junit"]).is_file(), done.stderr


@pytest.mark.slow
def test_the_hooks_of_pre_commit(work: Path) -> None:
    hooks = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))}
    onnxfi.manifest(load("model.onnx")).write(Path("model.onnx.manifest.json"))
    whole = [*shlex.split(hooks["onnxfi-verify"]["entry"]), "model.onnx", "model.onnx.manifest.json"]
    assert shell(shlex.join(whole), work).returncode == 0
    onnxfi.inject("model.onnx", onnxfi.sample("model.onnx", count=1), "model.onnx.faulty")
    Path("model.onnx.faulty").replace("model.onnx")
    changed = shell(shlex.join(whole), work)
    assert changed.returncode == 1 and "not whole" in changed.stdout
    for name in ("model.onnx", "model.onnx.manifest.json"):
        assert re.search(hooks["onnxfi-verify"]["files"], name)
    check = [*shlex.split(hooks["onnxfi-check"]["entry"]), "model.onnx", "--budget", "budget.yaml", "--workers", "0"]
    assert shell(shlex.join(check), work).returncode in (0, 1)
