"""The lock of a worker: one thread at a time among those that share, and none waits for one that does not return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count

import pytest

from onnxfi.runtime.engine.worker_thread_lock import WorkerThreadLock, claim, released

#: Seconds that nobody waits in vain, unless a test fails.
LONG = 200.0
LOCK = WorkerThreadLock()


def waits(done: Future[object]) -> bool:
    """Return true while a thread has not come through; a slow one only makes that look so, never a test fail."""
    with suppress(TimeoutError):
        done.result(0.02)
    return not done.done()


def free() -> bool:
    """Return true where no thread holds the lock, and nothing is claimed."""
    return LOCK.is_free()


def through(*steps: Callable[[], object]) -> list[Future[object]]:
    """Return the results of threads of their own."""
    pool = ThreadPoolExecutor(len(steps))
    found = [pool.submit(step) for step in steps]
    pool.shutdown(wait=False)
    return found


def takes() -> str:
    with LOCK.held():
        return "came"


def claims(what: str) -> str:
    with LOCK.held(), claim(what):
        return "came"


def test_one_thread_holds_the_lock_and_another_gets_it_while_it_is_released() -> None:
    with LOCK.held():
        [other] = through(takes)
        assert waits(other)
        with released():
            assert other.result(LONG) == "came"
        [another] = through(takes)
        assert waits(another), "it is taken back"
    assert another.result(LONG) == "came" and free()


def test_a_thread_that_released_the_lock_waits_to_get_it_back() -> None:
    has, goes, order = threading.Event(), threading.Event(), list[str]()

    def stays() -> None:
        with LOCK.held():
            has.set()
            goes.wait(LONG)
            order.append("other")

    with LOCK.held():
        with released():
            [other] = through(stays)
            assert has.wait(LONG)
            threading.Timer(0.02, goes.set).start()
        order.append("back")
    other.result(LONG)
    assert order == ["other", "back"]


def test_a_claim_waits_for_the_same_resource_only_and_outlasts_a_release() -> None:
    with LOCK.held():
        with claim("a"), released():
            same, other = through(lambda: claims("a"), lambda: claims("b"))
            assert other.result(LONG) == "came"
            assert waits(same) and takes() == "came", "a thread that waits for a claim does not hold the lock"
        with released():
            assert same.result(LONG) == "came"
    assert free()


def test_a_claim_within_another_and_one_after_the_other() -> None:
    with LOCK.held(), claim("a"), claim("b"), released():
        [inner] = through(lambda: claims("b"))
        assert waits(inner)
    assert inner.result(LONG) == "came"
    assert claims("a") == claims("a") == "came" and free()


def test_threads_that_hold_no_lock_wait_for_nothing() -> None:
    with LOCK.held(), claim("a"):

        def goes() -> str:
            with released(), claim("a"), released():
                return "came"

        [other] = through(goes)
        assert other.result(LONG) == "came"
    with released(), claim("a"):
        assert free(), "no lock, no claim"
    with LOCK.held():
        with released(), released(), claim("a"):  # as where the runtime calls back
            assert free()
        assert not free()


@pytest.mark.parametrize("deep", range(3))
def test_an_error_frees_lock_and_claims(deep: int) -> None:
    def goes_wrong() -> None:
        with LOCK.held():
            if deep == 0:
                raise KeyError(deep)
            with claim("a"):
                if deep == 1:
                    raise KeyError(deep)
                with released():
                    raise KeyError(deep)

    with pytest.raises(KeyError):
        goes_wrong()
    assert free() and claims("a") == "came"
    with pytest.raises(KeyError), LOCK.held():
        with suppress(ValueError), released():
            raise ValueError
        assert not free(), "back also where that is caught"
        raise KeyError
    assert free()


def test_many_threads_that_share_sessions() -> None:
    """Reads before and behind a place where others may come agree, counted with and without claim."""
    shared, made, inside = {"steps": 0}, dict[int, int](), list[int]()
    opened = count()

    def works(seed: int) -> None:
        for k in range(100):
            key = (seed + k) % 5
            with LOCK.held():
                before = shared["steps"]
                inside.append(seed)
                assert inside == [seed]
                inside.clear()
                shared["steps"] = before + 1
                with claim(("key", key)):
                    if key not in made:
                        with released():
                            pass
                        made[key] = next(opened)
                    with released():
                        pass
                if k % 7 == 0:
                    with suppress(ValueError), claim(key), released():
                        raise ValueError

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(works, seed) for seed in range(6)]:
            done.result(LONG)
    assert shared["steps"] == 600 and sorted(made.values()) == list(range(5)), "each was opened once"
    assert free()


def test_two_workers_have_a_lock_each() -> None:
    other = WorkerThreadLock()
    with LOCK.held(), claim("a"):
        with other.held(), claim("a"), released():
            assert other.is_free() is False
        assert other.is_free() and not free()
