"""Sharing: one thread at a time among those that share, and no thread waits for one that does not come back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count

import pytest

from onnxfi.runtime.engine import turn_taking
from onnxfi.runtime.engine.turn_taking import claim, others, turn

#: Seconds that nobody waits in vain, unless a test fails.
LONG = 200.0


def waits(done: Future[object]) -> bool:
    """Whether a thread has not come through; a slow one only makes that look so, never a test fail."""
    with suppress(TimeoutError):
        done.result(0.02)
    return not done.done()


def free() -> bool:
    """Whether another thread gets the turn, and nothing is claimed."""
    if not turn_taking._turn.acquire(blocking=False):
        return False
    turn_taking._turn.release()
    return not turn_taking._claimed


def through(*steps: Callable[[], object]) -> list[Future[object]]:
    """What threads of their own come to."""
    pool = ThreadPoolExecutor(len(steps))
    found = [pool.submit(step) for step in steps]
    pool.shutdown(wait=False)
    return found


def takes() -> str:
    with turn():
        return "came"


def claims(what: str) -> str:
    with turn(), claim(what):
        return "came"


def test_the_turn_is_for_one_and_others_lets_another_in_and_takes_it_back() -> None:
    with turn():
        [other] = through(takes)
        assert waits(other)
        with others():
            assert other.result(LONG) == "came"
        [another] = through(takes)
        assert waits(another), "it is taken back"
    assert another.result(LONG) == "came" and free()


def test_others_waits_for_who_has_the_turn_meanwhile() -> None:
    has, goes, order = threading.Event(), threading.Event(), list[str]()

    def stays() -> None:
        with turn():
            has.set()
            goes.wait(LONG)
            order.append("other")

    with turn():
        with others():
            [other] = through(stays)
            assert has.wait(LONG)
            threading.Timer(0.02, goes.set).start()
        order.append("back")
    other.result(LONG)
    assert order == ["other", "back"]


def test_a_claim_waits_for_the_same_and_for_nothing_else_also_while_others_have_the_turn() -> None:
    with turn():
        with claim("a"), others():
            same, other = through(lambda: claims("a"), lambda: claims("b"))
            assert other.result(LONG) == "came"
            assert waits(same) and takes() == "came", "who waits for a claim has not the turn"
        with others():
            assert same.result(LONG) == "came"
    assert free()


def test_a_claim_within_another_and_one_after_the_other() -> None:
    with turn(), claim("a"), claim("b"), others():
        [inner] = through(lambda: claims("b"))
        assert waits(inner)
    assert inner.result(LONG) == "came"
    assert claims("a") == claims("a") == "came" and free()


def test_threads_without_the_turn_notice_nothing() -> None:
    with turn(), claim("a"):

        def goes() -> str:
            with others(), claim("a"), others():
                return "came"

        [other] = through(goes)
        assert other.result(LONG) == "came"
    with others(), claim("a"):
        assert free(), "no turn, no claim"
    with turn():
        with others(), others(), claim("a"):  # as where the runtime calls back
            assert free()
        assert not free()


@pytest.mark.parametrize("deep", range(3))
def test_what_goes_wrong_gives_everything_back(deep: int) -> None:
    def goes_wrong() -> None:
        with turn():
            if deep == 0:
                raise KeyError(deep)
            with claim("a"):
                if deep == 1:
                    raise KeyError(deep)
                with others():
                    raise KeyError(deep)

    with pytest.raises(KeyError):
        goes_wrong()
    assert free() and claims("a") == "came"
    with pytest.raises(KeyError), turn():
        with suppress(ValueError), others():
            raise ValueError
        assert not turn_taking._turn.acquire(blocking=False), "back also where that is caught"
        raise KeyError
    assert free()


def test_many_threads_that_share() -> None:
    """What is read before a place where others may come and what is read behind it, counted with and without claim."""
    shared, made, inside = {"steps": 0}, dict[int, int](), list[int]()
    opened = count()

    def works(seed: int) -> None:
        for k in range(100):
            key = (seed + k) % 5
            with turn():
                before = shared["steps"]
                inside.append(seed)
                assert inside == [seed]
                inside.clear()
                shared["steps"] = before + 1
                with claim(("key", key)):
                    if key not in made:
                        with others():
                            pass
                        made[key] = next(opened)
                    with others():
                        pass
                if k % 7 == 0:
                    with suppress(ValueError), claim(key), others():
                        raise ValueError

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(works, seed) for seed in range(6)]:
            done.result(LONG)
    assert shared["steps"] == 600 and sorted(made.values()) == list(range(5)), "each was opened once"
    assert free()
