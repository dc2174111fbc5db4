"""`onnxfi help`: the texts of --help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Run = Callable[..., Any]


def test_help_of_a_command_is_its_own(run: Run) -> None:
    assert run("help", "merge").out == run("merge", "--help").out
    assert run("help").out == run("--help").out


def test_help_of_an_unknown_command_says_the_closest(run: Run) -> None:
    result = run("help", "inspec")
    assert result.code == 2 and "no command 'inspec'; closest: 'inspect'" in result.err
