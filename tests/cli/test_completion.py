"""Completion: the shells' scripts, and what a shell gets that asks."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
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


#: Command that starts each shell without anybody's settings, and lets it read the script.
SHELLS = {
    "bash": (["bash", "--norc", "-i"], 'eval "$(onnxfi completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit && compinit -u -D; eval "$(onnxfi completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "onnxfi completion fish | source"),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_what_a_person_types(tmp_path: Path, shell: str) -> None:
    """Commands, options, choices and files, by the tab key of the real shell."""
    import pty

    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "net-of-mine.onnx").touch()
    (tmp_path / "onnxfi").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxfi "$@"\n')
    (tmp_path / "onnxfi").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "TERM": "xterm", "HOME": str(tmp_path)}
    line, script = SHELLS[shell]
    process, terminal = pty.fork()
    if not process:
        os.chdir(tmp_path)
        os.execvpe(line[0], line, env)
    try:
        typed(terminal, script + "; echo re''ady\n", "ready")
        typed(terminal, "onnxfi insp\t", "inspect ")
        typed(terminal, "net-of\t", "net-of-mine.onnx")
        typed(terminal, "\x15onnxfi run --exh\t", "--exhaustive")
        typed(terminal, "\x15onnxfi completion z\t", "zsh")
    finally:
        os.kill(process, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(process, 0)


def typed(terminal: int, keys: str, expected: str) -> None:
    """Type into a terminal, and wait until it shows what is expected."""
    os.write(terminal, keys.encode())
    shown, end = "", time.monotonic() + 60
    while expected not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown):
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")


def test_another_shell_is_refused(run: Run) -> None:
    result = run("completion", "csh")
    assert result.code == 2 and "'csh' is not one of 'bash', 'zsh', 'fish'" in result.err
