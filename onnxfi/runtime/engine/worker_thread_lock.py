"""A lock that the threads of one worker pass on while the runtime computes.

The thread that holds the lock may read and change everything the threads share. Other threads run only while it is
`released`, around code of the runtime that touches nothing shared, or while a thread waits in `claim`; code between two
such places needs no further lock. In a thread that holds no lock, `released` and `claim` do nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_held: ContextVar[WorkerThreadLock | None] = ContextVar("lock held by this thread", default=None)


class WorkerThreadLock:
    """The lock of a worker whose threads share open sessions.

    Examples
    --------
    >>> lock = WorkerThreadLock()
    >>> with lock.held(), claim("session"), released():
    ...     pass  # another thread may hold the lock here, but not claim "session"
    >>> lock.is_free()
    True
    """

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._claimed: set[Hashable] = set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock and hold it."""
        with self._condition:
            _held.set(self)
            try:
                yield
            finally:
                _held.set(None)

    @contextmanager
    def passed_on(self) -> Iterator[None]:
        """Let other threads hold the lock meanwhile; for the thread that holds it."""
        _held.set(None)
        self._condition.release()
        try:
            yield
        finally:
            self._condition.acquire()
            _held.set(self)

    @contextmanager
    def claimed(self, resource: Hashable) -> Iterator[None]:
        """Wait for a resource and keep it, also while other threads hold the lock; for the thread that holds it."""
        _held.set(None)
        self._condition.wait_for(lambda: resource not in self._claimed)
        _held.set(self)
        self._claimed.add(resource)
        try:
            yield
        finally:
            self._claimed.discard(resource)
            self._condition.notify_all()

    def is_free(self) -> bool:
        """Return whether no thread holds the lock and no resource is claimed."""
        if not self._condition.acquire(blocking=False):
            return False
        self._condition.release()
        return not self._claimed


@contextmanager
def released() -> Iterator[None]:
    """Let other threads of the worker run meanwhile."""
    lock = _held.get()
    if lock is None:
        yield
        return
    with lock.passed_on():
        yield


@contextmanager
def claim(resource: Hashable) -> Iterator[None]:
    """Keep a resource for this thread, also while other threads of the worker run."""
    lock = _held.get()
    if lock is None:
        yield
        return
    with lock.claimed(resource):
        yield
