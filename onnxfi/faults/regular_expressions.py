"""Regular expressions of selectors, with bounded time: a selector may come from an untrusted file.

Python's matcher backtracks, so that a short expression may take exponential time. It handles signals meanwhile, and
a timer of the process's CPU time sends one. Python handles signals in the main thread alone: another thread matches in
a copy of the process, whose main thread it is.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from onnxfi.errors import SelectorError

#: Seconds that an expression may compute, over all names; names below the second number do not count.
LONGEST_S, _QUICK_S = 2.0, 0.001
#: Letters of an expression.
_MOST_LETTERS = 1000


class _TooLongError(Exception):
    """Expression that has used up its time."""


class Expression:
    """Regular expression over names.

    SelectorError if it is invalid, or longer than 1,000 characters.

    >>> Expression("conv[0-9]$").fits(["conv1", "fc"])
    True
    """

    def __init__(self, pattern: str) -> None:
        self.pattern, self._left_s = pattern, LONGEST_S
        if len(pattern) > _MOST_LETTERS:
            raise SelectorError(
                f"a regular expression takes at most {_MOST_LETTERS:,} characters, this one has {len(pattern):,}; "
                f"give several selectors"
            )
        try:
            self._compiled = re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            why = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise SelectorError(f"{'re:' + pattern[:77]!r} is no regular expression: {why}") from None

    def __reduce__(self) -> tuple[type[Expression], tuple[str]]:
        return Expression, (self.pattern,)  # another process has its own time

    def fits(self, names: Sequence[str]) -> bool:
        """Return True if it is found in one of the names; SelectorError if that takes too long."""
        begun = time.thread_time()
        try:
            if threading.current_thread() is threading.main_thread() or not hasattr(os, "fork"):
                return self._fits(names)
            return self._fits_in_copy(names)
        except _TooLongError:
            raise SelectorError(
                f"{'re:' + self.pattern[:77]!r} takes more than {LONGEST_S:g} s to match the names of this "
                f"model; write it without nested repetitions, or use a glob, as '*.weight'"
            ) from None
        finally:
            spent = time.thread_time() - begun
            if spent > _QUICK_S:
                self._left_s = max(_QUICK_S, self._left_s - spent)

    def _fits(self, names: Sequence[str]) -> bool:
        with _timed(self._left_s):
            return any(self._compiled.search(name) for name in names)

    def _fits_in_copy(self, names: Sequence[str]) -> bool:
        with warnings.catch_warnings():
            # Python 3.12 warns of threads that the copy does not have; it matches names, which needs none, and ends.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            found = 2  # too long, or out of memory
            with suppress(_TooLongError, MemoryError):
                found = int(self._fits(names))
            os._exit(found)  # without the process's own clean-up
        _, status, used = os.wait4(child, 0)
        self._left_s = max(_QUICK_S, self._left_s - used.ru_utime)
        if (found := os.waitstatus_to_exitcode(status)) not in (0, 1):
            raise _TooLongError
        return bool(found)


@contextmanager
def _timed(limit_s: float) -> Iterator[None]:
    """Raise _TooLongError in the block after this CPU time, on systems with timers."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
