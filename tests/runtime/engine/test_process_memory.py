"""Memory of a process: what it holds is counted, and beyond a limit it gets no more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from onnxfi.runtime.engine.process_memory import can_limit_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to a limit of its memory")
LIMITED = """
import numpy as np
from onnxfi.runtime.engine.process_memory import give_back, limit_memory, memory_held
give_back()
held = memory_held()
limit_memory(held + (64 << 20))
np.ones(16 << 20, np.uint8)
try:
    np.ones(256 << 20, np.uint8)
    print("no limit")
except MemoryError:
    print("held")
limit_memory(None)
array = np.ones(256 << 20, np.uint8)
print(memory_held() - held >= 256 << 20)
del array
print(memory_held() - held < 128 << 20)
"""


@linux
def test_a_process_gets_no_more_than_its_limit_and_gives_back_what_is_free() -> None:
    ran = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert (ran.stdout.split(), ran.stderr) == (["held", "True", "True"], "")


@pytest.mark.parametrize(("platform", "can"), [("linux", True), ("darwin", False), ("win32", False)])
def test_where_a_limit_can_be_held(platform: str, can: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxfi.runtime.engine.process_memory.sys.platform", platform)
    assert can_limit_memory() == can
