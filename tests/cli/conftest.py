"""Whole commands, run in this process in an empty folder: `run("inject", "m.onnx", "--count", 1)`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import parser

from onnxfi.cli import main

ROOT = Path(__file__).parents[2]


def _strict(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")


@dataclass(frozen=True)
class Ran:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one strict JSON document; a bare NaN or anything beside the document is an error."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out, parse_constant=_strict)


Run = Callable[..., Ran]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("ONNXFI_LOG_LEVEL", "COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command as its console script does."""

    def ran(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["onnxfi", *map(str, words)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        return Ran(code, *capsys.readouterr())

    return ran


@pytest.fixture
def save(here: Path) -> Callable[..., str]:
    """Write a model in ONNX's text form to the current folder: `save("m.onnx", "g (float[N] x) => …")`."""

    def saved(name: str, graph: str) -> str:
        head = '<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3]>'
        onnx.save(parser.parse_model(head + graph), here / name)
        return name

    return saved


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the shipped models."""
    return ROOT / "models"


@pytest.fixture(scope="session")
def fetched() -> Path:
    """The folder of the fetched models."""
    return ROOT / "fetched"
