"""Calls in a copy of the process: results, errors, crashes and limits, and nothing else that the process sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxfi import isolated_call
from onnxfi.errors import CrashError, IsolationError
from onnxfi.isolated_call import run_isolated


def test_time_of_a_call_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated_call, "LIMIT_S", 1)

    def forever() -> bytes:
        while True:
            pass

    with pytest.raises(IsolationError, match="more than 1 s"):
        run_isolated(forever)


def test_what_is_isolated_fails_with_its_own_words_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, copies = os.fork, list[int]()

    def counted() -> int:
        copies.append(fork())
        return copies[-1]

    monkeypatch.setattr(os, "fork", counted)

    def fails() -> bytes:
        raise ValueError("no such thing\nand more")

    with pytest.raises(IsolationError, match=r"^no such thing$"):
        run_isolated(fails)
    with pytest.raises(CrashError, match="ended with SIGSEGV"):
        run_isolated(lambda: os.kill(os.getpid(), 11) or b"")
    assert run_isolated(lambda: b"x" * (1 << 22)) == b"x" * (1 << 22)
    assert len(copies) == 3
    for copy in copies:  # other tests of this process may have children of their own
        with pytest.raises(ChildProcessError):
            os.waitpid(copy, os.WNOHANG)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_copy_says_nothing_and_leaves_what_was_said_to_the_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.stdout.write('once'); from onnxfi.isolated_call import run_isolated\n"
        "try: run_isolated(lambda: os.write(2, b'noise') and os.abort())\n"
        "except Exception as error: print(':', error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (ran.stdout, ran.stderr) == ("once: it ended with SIGABRT\n", "")
