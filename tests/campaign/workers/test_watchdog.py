"""The watchdog: it ends a process in time, and nothing of it is left where all was done in time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxfi.campaign.workers.watchdog import WATCHDOG_EXIT, Watchdog

HANGS = """
import threading
from contextlib import ExitStack
from onnxfi.campaign.workers.watchdog import Watchdog

watchdog = Watchdog()

def hang(limit_s):
    with watchdog.within(limit_s):
        threading.Event().wait()

with watchdog.within(600.0):  # one that ends in time changes nothing for the others
    pass
others = [threading.Thread(target=hang, args=(limit_s,), daemon=True) for limit_s in {others}]
for other in others:
    other.start()
hang({mine})
"""


@pytest.mark.parametrize(("mine", "others"), [(0.01, ()), (600.0, (0.01,)), (0.01, (600.0,)), (None, (0.01, 600.0))])
def test_the_first_that_takes_too_long_ends_the_process(mine: float | None, others: tuple[float, ...]) -> None:
    code = HANGS.format(mine=mine, others=others)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (WATCHDOG_EXIT, "", ""), "and says nothing"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are not listed here")
def test_nothing_is_left_of_what_was_done_in_time() -> None:
    before, watchdog = os.listdir("/proc/self/fd"), Watchdog()
    for _ in range(3):
        with pytest.raises(ValueError, match="here"), watchdog.within(600.0), watchdog.within(700.0):
            raise ValueError("here")
        with watchdog.within(None):
            pass
    assert os.listdir("/proc/self/fd") == before
