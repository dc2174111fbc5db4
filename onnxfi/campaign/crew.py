"""Crews: worker processes of our own, from their start until the last one who needs them is done.

What a worker imports first is this module, which loads little: so that what it says of the process comes in time.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any


def begin() -> None:
    """A worker process ends with its parent, leaves Ctrl-C to it, and is the first to go where memory ends."""
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The threads of numpy's BLAS, which is not asked for anything here, spin at first: 0.1 s of a core in each worker.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("500")
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _begin() -> None:
    atexit.register(os._exit, 0)  # what a worker holds goes with its process, not piece by piece, which takes longer
    begin()


def processes(size: int) -> ProcessPoolExecutor:
    """Worker processes of our own, each with a clean interpreter."""
    import multiprocessing

    return ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)


def dismiss(crew: ProcessPoolExecutor) -> None:
    """End worker processes at once, whatever they do: what they hold is in no file."""
    for process in list((crew._processes or {}).values()):
        process.terminate()
    crew.shutdown(cancel_futures=True)


@contextmanager
def begun(
    size: int, task: Callable[..., Any], *args: Any, instead_of: ProcessPoolExecutor | None = None
) -> Iterator[ProcessPoolExecutor | None]:
    """So many worker processes, which each do a task already; they end where what follows here goes wrong."""
    if instead_of is not None:
        dismiss(instead_of)
    if not size:
        yield None
        return
    crew = processes(size)
    try:
        for _ in range(size):
            crew.submit(task, *args)
        yield crew
    except BaseException:
        dismiss(crew)
        raise


@contextmanager
def lasting(pool: Callable[[int], Executor], early: Executor | None = None) -> Iterator[Callable[[int], Executor]]:
    """A pool of workers that outlives those who use it: shut down at the end, and made anew where it breaks.

    `early` is one that was begun already.
    """
    kept = [early] if early is not None else []

    def lent(size: int) -> Executor:
        if not (kept and _lives(kept[-1])):
            kept.append(pool(size))
        return _Lent(kept[-1])

    try:
        yield lent
    finally:
        for crew in kept:
            crew.shutdown(wait=False, cancel_futures=True)


def _lives(crew: Executor) -> bool:
    try:
        crew.submit(int)
    except BrokenExecutor:
        return False
    return True


@dataclass
class _Lent(Executor):
    """An executor that belongs to somebody else: who shuts it down gives it back."""

    crew: Executor

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.crew.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass
