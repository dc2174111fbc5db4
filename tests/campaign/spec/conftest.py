"""Campaigns as the command line reads them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxfi.cli import main


@pytest.fixture
def flags(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return the output of `onnxfi plan … --print-spec`."""

    def ran(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["onnxfi", "plan", *words, "--print-spec"])
        main()
        return capsys.readouterr().out

    return ran
