"""Workers: where trials run. Their number and order change nothing, since a trial is a pure function of its lines.

A trial whose worker dies, hangs or runs out of memory is run once more, alone in a fresh worker; only the same end
twice is its outcome. What the harness itself gets wrong is no outcome: it is kept with its traceback, and run again.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from onnxfi.campaign.bench import Bench, CampaignError, digest
from onnxfi.campaign.outcomes import Golden, failed
from onnxfi.campaign.spec import Campaign
from onnxfi.campaign.store import Result
from onnxfi.faults.faultlist import Header

#: A trial's number and its lines.
Task = tuple[int, str]
Results = Generator[Result, None, None]
_MOST_TRIALS_A_TASK = 16
_TASK_S = 0.5


@dataclass(frozen=True)
class Job:
    """What a worker needs to know before its first trial; small, so that it goes with every task.

    `header` is the line of the fault list, `golden` the digest that the worker's own golden run must have; a trial that
    takes longer than `timeout_s` ends its process (None: no limit).
    """

    campaign: Campaign
    header: str
    golden: str
    golden_s: float
    timeout_s: float | None = None

    @property
    def trials_a_task(self) -> int:
        """Trials that are sent to a worker together: about half a second of work."""
        return max(1, min(_MOST_TRIALS_A_TASK, int(_TASK_S / max(self.golden_s, 1e-3))))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(bench: Bench, golden: Golden, header: Header, pending: Iterator[Task]) -> Results:
    """Run trials in this process: a fault that kills or hangs the runtime does so to this process."""
    for task in pending:
        yield _one(bench, golden, header, task)


def _one(bench: Bench, golden: Golden, header: Header, task: Task) -> Result:
    trial, lines = task
    begun = time.perf_counter()
    try:
        found = bench.trial(header, golden, lines.splitlines())
    except Exception:  # a harness error is no outcome
        return Result(trial, "", None, {}, time.perf_counter() - begun, error=traceback.format_exc(limit=20))
    return Result(trial, found.outcome, found.cause, found.metrics, time.perf_counter() - begun, found.changed)


@lru_cache(maxsize=1)
def _opened(job: Job) -> tuple[Bench, Golden, Header]:
    """A worker's bench: opened with its first task, and kept."""
    bench = Bench.open(job.campaign)
    golden = bench.golden_again()
    if digest(golden) != job.golden:
        raise CampaignError("a worker has another golden run: its runtime or machine is not the same")
    return bench, golden, Header.parse(job.header, "the plan")


def work(job: Job, tasks: list[Task]) -> list[Result]:
    """Run some trials in a worker, whatever executor it belongs to."""
    opened = _opened(job)
    if job.timeout_s is None:
        return [_one(*opened, task) for task in tasks]
    found = []
    with open(os.devnull, "w") as nowhere:
        for task in tasks:
            # The runtime cannot be interrupted, and may hold the interpreter: a watch that needs neither ends both.
            faulthandler.dump_traceback_later(job.timeout_s, exit=True, file=nowhere)
            found.append(_one(*opened, task))
            faulthandler.cancel_dump_traceback_later()
    return found


def _begin() -> None:
    """A worker process ends with its parent, however that ends, and leaves Ctrl-C to it."""
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def processes(size: int) -> Executor:
    """Worker processes of our own, each with a clean interpreter."""
    import multiprocessing

    return ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)


def run_pooled(
    job: Job, golden: Golden, pending: Iterator[Task], workers: int, pool: Callable[[int], Executor] = processes
) -> Results:
    """Run trials in so many workers, in the order in which they come back."""
    suspects: list[Task] = []
    broken = True
    while broken:
        broken, came = False, 0
        try:
            for result, task in _stream(job, pending, workers, pool, suspects):
                came += 1
                if result.cause == "memory":
                    suspects.append(task)
                else:
                    yield result
        except BrokenExecutor:
            broken = True
            if not came:  # is it the trials, or does no worker live at all?
                _ready(job, pool).shutdown()
    yield from _alone(job, golden, suspects, pool)


def _stream(
    job: Job, pending: Iterator[Task], workers: int, pool: Callable[[int], Executor], lost: list[Task]
) -> Iterator[tuple[Result, Task]]:
    """Results with their tasks from one pool; where it breaks, what was under way goes to `lost`."""
    running: dict[Future[list[Result]], list[Task]] = {}
    crew = pool(workers)
    tasks: list[Task] = []
    try:
        while True:
            while len(running) < 2 * workers and (tasks := list(islice(pending, job.trials_a_task))):
                running[crew.submit(work, job, tasks)] = tasks
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                tasks = running[future]
                results = future.result()
                del running[future]
                yield from zip(results, tasks, strict=True)
    except BrokenExecutor:
        lost += dict.fromkeys([*(task for under_way in running.values() for task in under_way), *tasks])
        raise
    finally:
        crew.shutdown(wait=False, cancel_futures=True)


def _alone(job: Job, golden: Golden, suspects: list[Task], pool: Callable[[int], Executor]) -> Results:
    """Each suspect once more, one at a time; what ends badly in a worker that others have used, in a fresh one."""
    crew: Executor | None = None
    try:
        for task in suspects:
            for _ in range(2):
                fresh = crew is None
                crew = crew or _ready(job, pool)
                result = _once(job, golden, task, crew)
                bad = result.cause in ("timeout", "crash", "memory")
                if bad:
                    crew.shutdown(wait=False)
                    crew = None
                if fresh or not bad:
                    yield result
                    break
    finally:
        if crew is not None:
            crew.shutdown(wait=False)


def _once(job: Job, golden: Golden, task: Task, crew: Executor) -> Result:
    """A trial in a worker that does nothing else; what it is where the worker dies."""
    begun = time.perf_counter()
    try:
        [result] = crew.submit(work, job, [task]).result()
        return result
    except BrokenExecutor:
        seconds = time.perf_counter() - begun
        cause = "timeout" if job.timeout_s is not None and seconds >= job.timeout_s else "crash"
        found = failed(golden, cause)
        return Result(task[0], found.outcome, cause, found.metrics, seconds, found.changed)


def _ready(job: Job, pool: Callable[[int], Executor]) -> Executor:
    """One worker that has run golden; CampaignError where it does not live that long."""
    crew = pool(1)
    try:
        crew.submit(work, job, []).result()
    except BrokenExecutor:
        raise CampaignError(
            "a worker process dies before its first trial: there is no memory for it (use fewer workers), or the "
            "program that uses workers lacks its `if __name__ == '__main__':`"
        ) from None
    return crew
