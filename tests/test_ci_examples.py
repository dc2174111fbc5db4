"""The files of examples/ci do what they say: their command lines are run as a CI server would, on the shipped model."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from onnxfi.campaign.gate.budget import load_budget

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
CI = ROOT / "examples" / "ci"


def read(name: str) -> Any:
    return yaml.safe_load((CI / name).read_text(encoding="utf-8"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the shipped model, its data and the examples, and `onnxfi` on the path."""
    for name in ("models/fashion_cnn.onnx", "models/fashion_test.npz", "examples/ci/budget.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    file = tmp_path / "bin" / "onnxfi"
    file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxfi "$@"\n')
    file.chmod(0o755)
    return tmp_path


def shell(lines: list[str], folder: Path, **variables: str) -> int:
    """The exit code of lines that a server runs one after the other, in one shell that stops at the first failure."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ONNXFI_CACHE": str(folder / "cache"), **variables}
    env["PATH"] = f"{folder / 'bin'}{os.pathsep}{env['PATH']}"
    return subprocess.run(["bash", "-e", "-c", "\n".join(lines)], cwd=folder, env=env, check=False).returncode


def shorten(folder: Path, golden: float) -> None:
    """Few trials, and a limit that the model meets or not, so that the test is short."""
    file = folder / "examples" / "ci" / "budget.yaml"
    budget = yaml.safe_load(file.read_text())
    budget["campaign"] |= {"repeat": 10, "samples": 50}
    budget["limits"] = [{"rate": "top1", "golden": True, "min": golden}, {"rate": "due", "max": 1}]
    file.write_text(yaml.safe_dump(budget))


def test_the_budget_is_that_of_the_shipped_model() -> None:
    budget = load_budget(CI / "budget.yaml")
    assert budget.campaign.data.data == "models/fashion_test.npz"
    assert {limit.rate for limit in budget.limits} == {"top1", "sdc1", "due"}
    assert any(limit.golden for limit in budget.limits)


def test_the_github_workflow(checkout: Path) -> None:
    flow = read("github-actions.yml")
    assert set(flow) == {"name", True, "permissions", "jobs"}, "YAML reads `on` as true, as GitHub knows"
    steps = flow["jobs"]["onnxfi"]["steps"]
    run = [step["run"] for step in steps if "run" in step]
    assert run[0] == 'pip install "onnxfi[cpu]"'
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    summary = checkout / "summary.md"
    assert shell(run[1:2], checkout) == 0
    assert shell(run[2:], checkout, GITHUB_STEP_SUMMARY=str(summary)) == 0
    assert "PASS" in summary.read_text(encoding="utf-8").splitlines()[0]
    kept = next(step["with"]["path"] for step in steps if "upload-artifact" in step.get("uses", ""))
    assert [name for name in kept.split() if not (checkout / name).is_file()] == []


def test_the_gitlab_job_fails_with_its_model_and_still_shows_why(checkout: Path) -> None:
    job = read("gitlab-ci.yml")["resilience"]
    assert job["before_script"] == ['pip install "onnxfi[cpu]"']
    shorten(checkout, golden=0.99)
    assert shell(job["script"], checkout) == 1
    assert job["artifacts"]["when"] == "always"
    root = ElementTree.parse(checkout / job["artifacts"]["reports"]["junit"]).getroot()
    assert root.get("failures") == "1"
    assert all((checkout / name).is_file() for name in job["artifacts"]["paths"])


def test_the_pre_commit_hook(checkout: Path) -> None:
    (repo,) = read("pre-commit-config.yaml")["repos"]
    (hook,) = repo["hooks"]
    assert (repo["repo"], hook["language"], hook["pass_filenames"]) == ("local", "system", False)
    for name in ("models/m.onnx", "examples/ci/budget.yaml"):
        assert re.search(hook["files"], name)
    assert not re.search(hook["files"], "README.md")
    shorten(checkout, golden=0.8)
    assert shell([shlex.join(shlex.split(hook["entry"]))], checkout) == 0


def test_all_three_run_the_same_check() -> None:
    commands = [
        next(
            step["run"]
            for step in read("github-actions.yml")["jobs"]["onnxfi"]["steps"]
            if "check" in step.get("run", "")
        ),
        read("gitlab-ci.yml")["resilience"]["script"][0],
        read("pre-commit-config.yaml")["repos"][0]["hooks"][0]["entry"],
    ]
    assert {" ".join(command.split()[:5]) for command in commands} == {
        "onnxfi check models/fashion_cnn.onnx --budget examples/ci/budget.yaml"
    }
