"""Converting in an empty folder; what frameworks warn of while they train and save is theirs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxfi.cli import main
from onnxfi.graph.model import load


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ONNXFI_LOG_LEVEL", raising=False)
    return tmp_path


@pytest.fixture
def run(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command: its exit code, standard output and standard error."""

    def ran(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["onnxfi", *map(str, words)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        return (code, *capsys.readouterr())

    return ran


@pytest.fixture
def layers() -> Callable[[Path], dict[str, str]]:
    """The stored tensors of a file and their layers."""

    def found(path: Path) -> dict[str, str]:
        return {target.id: target.layer for target in load(path).targets if not target.structural}

    return found
