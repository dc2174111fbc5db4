"""`onnxfi demo`: a campaign from what is installed alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.mark.slow
def test_it_runs_and_leaves_nothing(run: Run, here: Path) -> None:
    result = run("demo")
    assert result.code == 0 and list(here.iterdir()) == []
    assert "80 of 80 trials" in result.out and result.out.count("onnxfi run ") == 1
    assert [line.split()[0] for line in result.out.splitlines() if line.strip().startswith(("1e-", "0.0"))] == [
        "1e-06", "1e-05", "0.0001", "0.001",
    ]  # fmt: skip


def test_the_commands_that_it_names_are_commands(run: Run, here: Path) -> None:
    shown = run("demo").out
    named = [line.split() for line in shown.splitlines() if line.strip().startswith("onnxfi ")]
    assert [words[1] for words in named] == ["run", "assess", "inject"]
    flags = {word for words in named for word in words if word.startswith("--")}
    known = {option for words in named for option in run(words[1], "--help").out.split() if option.startswith("-")}
    assert flags <= known
