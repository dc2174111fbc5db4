"""Regular expressions of selectors, which may come from a file that someone else wrote: what they may take is bounded.

Python's matcher goes back and tries again, so an expression of a few letters may take longer than anyone waits. It
looks for signals meanwhile; a timer of the time that the process computes sends one, whatever else the machine does.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from onnxfi.errors import SelectorError

#: Seconds that an expression may compute, over all names; names below the second number do not count.
LONGEST_S, _QUICK_S = 2.0, 0.001
#: Letters of an expression.
_MOST_LETTERS = 1000


class _TooLongError(Exception):
    """An expression that has computed as long as it may."""


class Expression:
    """A regular expression that says which names fit.

    Raises SelectorError where it is none, or longer than 1,000 letters.

    >>> Expression("conv[0-9]$").fits(["conv1", "fc"])
    True
    """

    def __init__(self, pattern: str) -> None:
        self.pattern, self._left_s = pattern, LONGEST_S
        if len(pattern) > _MOST_LETTERS:
            raise SelectorError(
                f"a regular expression takes at most {_MOST_LETTERS:,} letters, this one has {len(pattern):,}; "
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
        """Return whether it is found in one of the names; SelectorError where that takes too long."""
        begun = time.thread_time()
        try:
            with _timed(self._left_s):
                return any(self._compiled.search(name) for name in names)
        except _TooLongError:
            raise SelectorError(
                f"{'re:' + self.pattern[:77]!r} takes more than {LONGEST_S:g} s to be matched with the names of this "
                f"model; write it without a repetition in a repetition, or use a glob, as '*.weight'"
            ) from None
        finally:
            spent = time.thread_time() - begun
            if spent > _QUICK_S:
                self._left_s = max(_QUICK_S, self._left_s - spent)


@contextmanager
def _timed(limit_s: float) -> Iterator[None]:
    """Raise _TooLongError in the block once it has computed so long, where there are timers and in the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
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
