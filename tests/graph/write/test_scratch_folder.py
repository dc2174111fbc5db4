"""Scratch folders: private, removed whatever happens, also those of killed processes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from onnxfi.errors import OutputError
from onnxfi.graph.write.output_file import atomic_files
from onnxfi.graph.write.scratch_folder import remove_abandoned, scratch_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")


KILLED = """
import os, signal, sys
from pathlib import Path
from onnxfi.graph.write.scratch_folder import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "draft").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_uses_stays(tmp_path: Path) -> None:
    mine = tmp_path / ".onnxfi-0123456789abcdef"  # of that name, but not made here
    other = tmp_path / "onnxfi-results"
    for folder in (mine, other):
        folder.mkdir()
        (folder / "kept").write_text("kept")
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    left = Path(process.stdout.readline().strip())
    with scratch_folder(tmp_path) as own:
        remove_abandoned(tmp_path)
        assert (left / "draft").exists() and own.exists(), "both are in use"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
        assert left.exists(), "a process that is killed removes nothing"
        with scratch_folder(tmp_path):
            assert not left.exists()
        assert own.exists()
    assert not own.exists()
    assert (mine / "kept").exists() and (other / "kept").exists()


def test_a_folder_for_drafts_is_ours_alone_and_goes_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        raise KeyboardInterrupt
    with pytest.raises(OutputError, match="No such file"), atomic_files([tmp_path / "x"]) as _:
        raise FileNotFoundError(2, "No such file")
    assert not list(tmp_path.iterdir())
