"""Worker processes: every result and exception comes back, and no process is left."""

from __future__ import annotations

import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future
from pathlib import Path
from typing import Any

import pytest

from onnxfi.campaign.workers.process_pool import ProcessPool, reusable_pool, spare_process, started_pool

#: Seconds that nobody waits in vain, unless a test fails.
LONG = 200.0

CHORES = """
import multiprocessing, os, threading, time
from pathlib import Path

met = threading.Barrier(2)

def meet():
    met.wait(30)
    return os.getpid()

def hold(number):
    Path(f"began-{number}").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    return os.getpid()

def stay():
    time.sleep(600)

def draft():
    from onnxfi.graph.write.scratch_folder import scratch_folder

    with scratch_folder() as folder:
        (folder / "faulty.onnx").touch()
        Path("drafted").touch()
        stay()

class Odd(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")
        self.one = one

class Locked(Exception):
    def __init__(self, said):
        super().__init__(said)
        self.lock = threading.Lock()

class Returns(Exception):
    def __reduce__(self):
        return fails, ()

def fails():
    raise KeyError("not made again")

def odd():
    raise Odd(1, 2)

def locked():
    raise Locked("no copy of a lock")

def inner():
    class Inner(Exception):
        pass
    raise Inner("known nowhere else")

def nested():
    child = multiprocessing.get_context("spawn").Process(target=os.getpid)
    child.start()
    child.join()
    return child.exitcode


def returns():
    raise Returns()

def ends():
    raise SystemExit(3)

class Unmade:
    def __reduce__(self):
        return fails, ()

def thing(kind):
    return {"lock": threading.Lock, "lambda": lambda: lambda: 0, "unmade": Unmade}[kind]()
"""


@pytest.fixture
def chores(here: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of things to do that workers can import, in the current folder."""
    (here / "crew_chores.py").write_text(CHORES)
    monkeypatch.syspath_prepend(here)
    import crew_chores  # type: ignore[import-not-found]

    return crew_chores


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """No process is there before, and none is left."""
    assert not multiprocessing.active_children()
    yield
    ended = time.monotonic() + LONG
    while left := multiprocessing.active_children():
        assert time.monotonic() < ended, left
        time.sleep(0.01)


def began(*numbers: int) -> None:
    ended = time.monotonic() + LONG
    while not all(Path(f"began-{number}").exists() for number in numbers):
        assert time.monotonic() < ended
        time.sleep(0.01)


def broken(future: Future[Any]) -> bool:
    return isinstance(future.exception(LONG), BrokenExecutor)


def test_what_workers_answer_comes_back_whatever_it_is(chores: Any) -> None:
    with ProcessPool(2, threads_per_process=2) as pool:
        assert not multiprocessing.active_children(), "there is nothing to do"
        assert pool.submit(pow, 7, -1, mod=11).result(LONG) == 8
        error = pool.submit(operator.truediv, 1, 0).exception(LONG)
        assert isinstance(error, ZeroDivisionError) and "in do" in "".join(error.__notes__), "with its traceback there"
        for chore, said in (
            (chores.odd, "Odd: 1 and 2"),
            (chores.locked, "no copy of a lock"),
            (chores.inner, "known nowhere else"),
            (chores.returns, "Returns"),
        ):
            error = pool.submit(chore).exception(LONG)
            assert isinstance(error, Exception) and said in f"{error} {getattr(error, '__notes__', '')}", chore
        assert isinstance(pool.submit(chores.ends).exception(LONG), SystemExit)
        for kind in ("lock", "lambda", "unmade"):
            assert isinstance(pool.submit(chores.thing, kind).exception(LONG), Exception), kind
        pids = {pool.submit(chores.meet), pool.submit(chores.meet)}
        [pid] = {future.result(LONG) for future in pids}
        assert pid != os.getpid(), "two at a time, in one process"
        last = [pool.submit(pow, 2, k) for k in range(20)]
    assert [future.result(LONG) for future in last] == [2**k for k in range(20)], "all that was asked is done"
    with pytest.raises(BrokenExecutor):
        pool.submit(int)


def test_as_many_processes_as_lanes_ask_for_and_what_waits_is_cancelled(chores: Any, here: Path) -> None:
    pool = ProcessPool(3, threads_per_process=2)
    held = [pool.submit(chores.hold, number) for number in range(3)]
    waiting = [pool.submit(chores.hold, number) for number in range(3, 6)]
    began(0, 1, 2)
    assert len(multiprocessing.active_children()) == 2
    assert waiting[0].cancel()
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    with pytest.raises(CancelledError):
        waiting[2].result()
    (here / "go").touch()
    found = Counter(future.result(LONG) for future in held)
    assert sorted(found.values()) == [1, 2]
    assert not Path("began-3").exists()


def test_a_worker_that_dies_ends_all(chores: Any) -> None:
    pool = ProcessPool(2)
    held, dies = pool.submit(chores.hold, 0), pool.submit(os._exit, 1)
    waiting = pool.submit(chores.hold, 1)
    assert broken(dies) and broken(held) and broken(waiting)
    with pytest.raises(BrokenExecutor, match="a worker has died"):
        pool.submit(int)
    pool.shutdown(cancel_futures=True)


def test_dismissed_workers_end_at_once(chores: Any) -> None:
    pool = ProcessPool(2, threads_per_process=2)
    held = [pool.submit(chores.hold, number) for number in range(3)]
    began(0, 1)
    pool.kill()
    assert not multiprocessing.active_children()
    assert all(map(broken, held))
    pool.kill()
    pool.shutdown()


def test_nothing_is_left_of_what_dismissed_workers_wrote(
    chores: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(here / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    pool = ProcessPool(1)
    future = pool.submit(chores.draft)
    while not (here / "drafted").exists():
        assert not future.done(), future.exception()
        time.sleep(0.01)
    assert list((here / "tmp").glob("onnxfi-*/faulty.onnx"))
    pool.kill()
    assert not list((here / "tmp").glob("onnxfi-*"))


def test_who_has_done_all_is_not_dismissed(chores: Any) -> None:
    pool = ProcessPool(1)
    assert pool.submit(int, "3").result() == 3
    [process] = multiprocessing.active_children()
    pool.shutdown(wait=False)
    pool.kill()
    process.join(LONG)
    assert process.exitcode == 0, "it went by itself"


def test_the_first_pool_takes_processes_that_were_started_early(chores: Any) -> None:
    with spare_process() as spare:
        [child] = multiprocessing.active_children()
        begin = started_pool(2, chores.hold, 0, threads_per_process=2, spare=spare)
        with pytest.raises(ValueError, match="stop"), begin as early:
            assert early is not None
            began(0)
            assert multiprocessing.active_children() == [child]
            raise ValueError("stop")
        assert not multiprocessing.active_children(), "they end where what follows goes wrong"
        assert not spare
    with spare_process() as spare:
        assert len(multiprocessing.active_children()) == 1
        with started_pool(0, int, spare=spare) as none:
            assert none is None


def test_ctrl_c_does_not_reach_who_just_begins() -> None:
    with spare_process() as spare:
        [child] = multiprocessing.active_children()
        for _ in range(20):
            assert child.pid is not None
            os.kill(child.pid, signal.SIGINT)
            time.sleep(0.01)
        pool = ProcessPool(1, spare=spare)
        assert pool.submit(int, "3").result() == 3
        pool.shutdown()


def test_a_reusable_pool_is_lent_and_replaced_after_a_crash() -> None:
    made: list[ProcessPool] = []
    with reusable_pool(lambda size: made.append(ProcessPool(size)) or made[-1]) as lent:  # type: ignore[func-returns-value]
        with lent(1) as pool:
            pid = pool.submit(os.getpid).result(LONG)
        assert lent(1).submit(os.getpid).result(LONG) == pid and len(made) == 1
        assert broken(lent(1).submit(os._exit, 1))
        assert lent(1).submit(os.getpid).result(LONG) != pid and len(made) == 2


def test_what_a_worker_is_asked_may_have_processes_of_its_own(chores: Any) -> None:
    """As a source of data may."""
    pool = ProcessPool(1)
    assert pool.submit(chores.nested).result() == 0
    pool.shutdown()


def test_a_pool_that_is_never_closed_ends_with_the_program(chores: Any, here: Path) -> None:
    script = here / "script.py"
    script.write_text(
        "from onnxfi.campaign.workers.process_pool import ProcessPool\nimport os\n"
        "if __name__ == '__main__':\n    print(ProcessPool(1).submit(os.getpid).result())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
