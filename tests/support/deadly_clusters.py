"""Data whose workers on a cluster end, hang or run out of memory with the trials 1, 2 and 3."""

DEADLY = """
import multiprocessing, os, resource, signal, time
from pathlib import Path
import numpy as np
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.tasks.outcomes import failed

HERE = Path(PLACE)

def data():
    with np.load(HERE / "d.npz") as held:
        arrays = dict(held)
    if multiprocessing.parent_process() is not None:
        TrialExecutor.trial = trial
    return arrays

whole = TrialExecutor.trial

def trial(self, header, golden, lines):
    number = next((n for n in range(1, 4) if f'"trial": {n},' in lines[0]), 0)
    with open(HERE / "ran.txt", "a") as ran:
        ran.write(f"{number} {os.getpid()}\\n")
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 2:
        time.sleep(600)
    if number == 3 and resource.getrlimit(resource.RLIMIT_DATA)[0] == 3 << 30:
        return failed(golden, "memory")
    return whole(self, header, golden, lines)
"""
