"""The installed package of ONNX Runtime: none, a damaged one, two in one folder; and the verbs that need none."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_campaigns import mlp, samples

from onnxfi.errors import EngineError
from onnxfi.runtime.engine import installed_runtime
from onnxfi.runtime.engine.installed_runtime import MISSING, both_runtimes_warning, installed_runtimes, onnxruntime

Run = Callable[..., Any]


def install(monkeypatch: pytest.MonkeyPatch, *present: str) -> None:
    """Let packages of ONNX Runtime be installed, and no other one."""

    def find(name: str) -> None:
        if name not in present:
            raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", find)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without ONNX Runtime."""
    monkeypatch.setattr(installed_runtime, "installed_runtimes", tuple)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


@pytest.mark.parametrize(
    ("present", "warns"),
    [
        (("onnxruntime",), None),
        (("onnxruntime-gpu",), None),
        (
            ("onnxruntime", "onnxruntime-gpu"),
            "onnxruntime and onnxruntime-gpu are installed into one folder and overwrite each other; "
            "keep one: pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
        ),
    ],
)
def test_two_runtimes_in_one_folder_are_reported(
    present: tuple[str, ...], warns: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, *present)
    assert installed_runtimes() == present
    assert both_runtimes_warning() == warns


def test_files_that_pip_took_away_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "onnxruntime-gpu")
    for module in (types.ModuleType("onnxruntime"), None):
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        with pytest.raises(
            EngineError, match=r"onnxruntime-gpu is damaged; pip install --force-reinstall --no-deps onn"
        ):
            onnxruntime()


@pytest.mark.usefixtures("absent")
@pytest.mark.parametrize(
    "words",
    [
        ("eval", "m.onnx", "--data", "d.npz"),
        ("run", "m.onnx", "--data", "d.npz", "--single", "--trials", "2", "-o", "s.db", "--workers", "0"),
        ("inject", "m.onnx", "--count", "1", "--data", "d.npz", "-o", "f.onnx"),
        ("quantize", "m.onnx", "--mode", "fp16", "-o", "q.onnx"),
    ],
)
def test_without_a_runtime_what_runs_models_says_what_to_install(run: Run, words: tuple[str, ...]) -> None:
    mlp(Path())
    samples(Path())
    before = sorted(path.name for path in Path().iterdir())
    ran = run(*words)
    assert (ran.code, ran.out, ran.err) == (2, "", f"onnxfi: error: {MISSING}\n")
    assert sorted(path.name for path in Path().iterdir()) == before


@pytest.mark.usefixtures("absent")
@pytest.mark.parametrize("words", [("inspect",), ("census",), ("inject", "--count", "1"), ("manifest",)])
def test_without_a_runtime_what_reads_the_file_alone_works(run: Run, words: tuple[str, ...]) -> None:
    mlp(Path())
    assert run(words[0], "m.onnx", *words[1:]).code == 0
