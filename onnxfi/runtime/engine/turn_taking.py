"""Sharing: threads that share what is open use it by turns, and let each other go while the runtime computes.

Who has the turn may read and change all that is shared. The turn passes on only in `others`, around what the runtime
does by itself, and in `claim`; so what lies between two such places needs no lock. Threads that never took a turn, as
in a process that runs one trial at a time, notice nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

_turn = threading.Condition(threading.Lock())
_mine = threading.local()
_claimed: set[Hashable] = set()


def _held() -> bool:
    return getattr(_mine, "held", False)


@contextmanager
def turn() -> Iterator[None]:
    """Wait for the turn, and have it.

    >>> with turn(), others():
    ...     pass  # what needs nothing that is shared
    """
    with _turn:
        _mine.held = True
        try:
            yield
        finally:
            _mine.held = False


@contextmanager
def others() -> Iterator[None]:
    """Let others have the turn meanwhile."""
    if not _held():
        yield
        return
    _mine.held = False
    _turn.release()
    try:
        yield
    finally:
        _turn.acquire()
        _mine.held = True


@contextmanager
def claim(what: Hashable) -> Iterator[None]:
    """Have something to oneself also while others have the turn; waits for who has it already."""
    if not _held():
        yield
        return
    _mine.held = False
    _turn.wait_for(lambda: what not in _claimed)
    _mine.held = True
    _claimed.add(what)
    try:
        yield
    finally:
        _claimed.discard(what)
        _turn.notify_all()
