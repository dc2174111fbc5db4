"""The program around its commands: help, version, log level, and exit codes where a reader goes away."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxfi.cli.commands import COMMANDS

Run = Callable[..., Any]


def command(*words: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own."""
    line = [sys.executable, "-m", "onnxfi", *map(str, words)]
    return subprocess.run(line, stdin=subprocess.DEVNULL, check=False, **options)  # type: ignore[call-overload]


def test_help_imports_no_library_that_takes_long() -> None:
    """Each `--help` in a fresh interpreter; what is slow is imported where a command needs it."""
    program = """
import sys
from onnxfi.cli import main
for words in ([], ["--help"], ["--version"], *([verb, "--help"] for verb in {verbs}), ["inject"], ["inject", "m"]):
    sys.argv = ["onnxfi", *words]
    try:
        main()
    except SystemExit:
        pass
    heavy = {{"numpy", "onnx", "onnxruntime", "rich", "scipy", "yaml", "google"}} & set(sys.modules)
    assert not heavy, (words, heavy)
"""
    line = [sys.executable, "-c", program.format(verbs=list(COMMANDS))]
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Usage: onnxfi") >= 5


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_without_a_command_there_is_help(run: Run, words: list[str]) -> None:
    ran = run(*words)
    assert (ran.code, ran.err) == (0, "")
    assert all(re.search(rf"^  {verb} +\w.*\w\.$", ran.out, re.M) for verb in ("inspect", "inject", "eval"))


def test_the_version_is_that_of_the_package(run: Run) -> None:
    from importlib.metadata import version

    assert run("--version").out == f"onnxfi, version {version('onnxfi')}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_full_disk_behind_standard_output_is_one_line(models: Path, flags: list[str]) -> None:
    with open("/dev/full", "w") as full:
        ran = command("inspect", models / "fashion_cnn.onnx", *flags, stdout=full, stderr=subprocess.PIPE)
    assert ran.returncode == 2
    assert (
        ran.stderr.startswith(b"onnxfi: error: cannot use standard output: No space left")
        and ran.stderr.count(b"\n") == 1
    )


def test_a_reader_that_goes_away_is_no_failed_check(models: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = command("inspect", models / "fashion_cnn.onnx", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_the_log_level_shows_where_an_error_was_found(here: Path) -> None:
    ran = command("inspect", "no.onnx", capture_output=True, cwd=here, env={**os.environ, "ONNXFI_LOG_LEVEL": "debug"})
    assert ran.returncode == 2
    assert b"Traceback" in ran.stderr and ran.stderr.splitlines()[-1].startswith(b"onnxfi: error: ")


def test_the_log_level_shows_what_was_opened(models: Path, here: Path) -> None:
    ran = command(
        "inspect",
        models / "fashion_cnn.onnx",
        capture_output=True,
        cwd=here,
        env={**os.environ, "ONNXFI_LOG_LEVEL": "info"},
    )
    assert ran.returncode == 0 and b"fashion_cnn.onnx: 9 targets, 1 files" in ran.stderr
