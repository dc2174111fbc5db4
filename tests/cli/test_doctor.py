"""`onnxfi doctor`: what is installed, what is missing, and two runtimes in one folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest

from onnxfi.cli import doctor
from onnxfi.errors import EngineError
from onnxfi.runtime.engine.installed_runtime import MISSING

Run = Callable[..., Any]


def test_it_names_versions_providers_and_extras(run: Run) -> None:
    result = run("doctor", "--json")
    found = json.loads(result.out)
    assert found["versions"]["numpy"] == metadata.version("numpy") and found["versions"]["onnxfi"].count(".") == 2
    assert found["providers"]["cpu"] == "runs models"
    assert {"report", "torch", "images", "gpu"} <= {row["extra"] for row in found["extras"]}
    assert not {"test", "docs"} & {row["extra"] for row in found["extras"]}
    shown = run("doctor")
    assert shown.code == result.code == 0 and "runs models" in shown.out


def test_a_missing_package_comes_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "matplotlib":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    (report,) = (row for row in doctor.examination()["extras"] if row["extra"] == "report")
    assert report == {"extra": "report", "missing": ["matplotlib"], "remedy": "pip install 'onnxfi[report]'"}


def test_two_runtimes_in_one_folder_are_a_problem(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ("onnxruntime", "onnxruntime-gpu")
    monkeypatch.setattr("onnxfi.runtime.engine.installed_runtime.installed_runtimes", lambda: found)
    result = run("doctor")
    assert result.code == 1 and "are installed into one folder and overwrite each other; keep one: pip" in result.out


def test_no_runtime_is_a_problem_with_its_remedy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("onnxfi.runtime.engine.installed_runtime.installed_runtimes", tuple)
    result = run("doctor")
    assert result.code == 1 and result.out.splitlines()[-1] == MISSING


def test_a_provider_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise EngineError("no driver")

    monkeypatch.setattr("onnxfi.runtime.engine.onnx_runtime.OrtEngine.prepare", refuse)
    assert set(doctor.examination()["providers"].values()) == {"no driver"}


def test_no_second_runtime_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name.startswith("onnxruntime-") and name != "onnxruntime-extensions":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "onnxruntime" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    needs = metadata.requires
    monkeypatch.setattr(metadata, "requires", lambda name: [] if name == "onnxruntime" else needs(name))
    monkeypatch.setattr("onnxfi.runtime.engine.installed_runtime.installed_runtimes", lambda: ("onnxruntime",))
    rows = {row["extra"]: row for row in doctor.examination()["extras"]}
    assert rows["cpu"]["missing"] == []
    if rows["gpu"]["missing"]:  # where there are wheels of it
        assert rows["gpu"]["remedy"] == "pip uninstall -y onnxruntime && pip install 'onnxfi[gpu]'"
