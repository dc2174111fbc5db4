"""Completion: the shells' scripts, and what a shell gets that asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]


def completions(*words: str) -> list[str]:
    given = {"_ONNXFI_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    ran = subprocess.run(
        [sys.executable, "-m", "onnxfi"], env=os.environ | given, capture_output=True, text=True, check=True
    )
    return [line.partition(",")[2] for line in ran.stdout.splitlines()]


def test_commands_options_and_choices_are_completed() -> None:
    assert completions("onnxfi", "ins") == ["inspect", "instrument"]
    assert "--exhaustive" in completions("onnxfi", "run", "--ex")
    assert completions("onnxfi", "completion", "z") == ["zsh"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_it_reads(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.code == 0 and "_ONNXFI_COMPLETE" in result.out
    if shutil.which(shell) and shell != "fish":
        read = subprocess.run([shell, "-n"], input=result.out, capture_output=True, text=True, check=False)
        assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_defines_the_completion_of_the_command(run: Run) -> None:
    script = run("completion", "bash").out + "\ncomplete -p onnxfi"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "_onnxfi_completion" in ran.stdout


def test_another_shell_is_refused(run: Run) -> None:
    result = run("completion", "csh")
    assert result.code == 2 and "'csh' is not one of 'bash', 'zsh', 'fish'" in result.err
