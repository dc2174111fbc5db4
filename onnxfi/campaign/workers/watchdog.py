"""The watchdog of a worker process: it ends the process when a trial takes longer than it may."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Exit code of a process whose watchdog has run out: faulthandler's.
WATCHDOG_EXIT = 1


class Watchdog:
    """Watchdog of a process; its threads may be watched at the same time, and a process has one watchdog.

    Examples
    --------
    >>> with Watchdog().within(60.0):
    ...     print("done in time")
    done in time
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[object, float] = {}
        self._discarded: int | None = None

    @contextmanager
    def within(self, limit_s: float | None) -> Iterator[None]:
        """End this process where the block takes longer; None: however long it takes."""
        if limit_s is None:
            yield
            return
        mine = object()
        with self._lock:
            self._ends[mine] = time.monotonic() + limit_s
            self._set()
        try:
            yield
        finally:
            with self._lock:
                del self._ends[mine]
                self._set()

    def _set(self) -> None:
        """Watch for the first of the ends that may come."""
        # The runtime cannot be interrupted, and may hold the interpreter: a watchdog that needs neither ends both.
        faulthandler.cancel_dump_traceback_later()
        if self._ends:
            left = max(1e-3, min(self._ends.values()) - time.monotonic())
            if self._discarded is None:
                self._discarded = os.open(os.devnull, os.O_WRONLY)  # nobody reads where a thread was
            faulthandler.dump_traceback_later(left, exit=True, file=self._discarded)
        elif self._discarded is not None:
            os.close(self._discarded)
            self._discarded = None
