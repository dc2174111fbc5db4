"""Workers: where trials run. Their number and order change nothing, since a trial is a pure function of its lines.

A trial whose worker dies, hangs or runs out of memory is run once more, alone in a fresh worker; only the same end
twice is its outcome. What the harness itself gets wrong is no outcome: it is kept with its traceback, and run again.
"""

from __future__ import annotations

import faulthandler
import os
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from platform import python_version

from onnxfi.campaign.bench import Bench, CampaignError, digest, out_of_memory
from onnxfi.campaign.crew import processes
from onnxfi.campaign.limits import limit_memory, memory_held
from onnxfi.campaign.outcomes import Golden, Judgement, failed
from onnxfi.campaign.shortcuts import KEPT_BYTES
from onnxfi.campaign.spec import Campaign
from onnxfi.campaign.store import Result
from onnxfi.campaign.tasks import Task
from onnxfi.errors import EngineError
from onnxfi.faults.faultlist import Header
from onnxfi.faults.space import Target
from onnxfi.runtime.engines import installed_runtimes

Results = Generator[Result, None, None]
#: Tasks that workers have, by what tells when they are done.
UnderWay = dict[Future[list[Result]], list[Task]]
_MOST_TRIALS_A_TASK = 32
_TASK_S = 8.0
#: Workers that may die before one is known to live.
_READY_TRIES = 3


class Died(BrokenExecutor):
    """The worker that ran this died, in each of so many tries; the others live on, which a broken pool's do not."""

    def __init__(self, said: str, tries: int = 1) -> None:
        super().__init__(said)
        self.tries = tries


@dataclass(frozen=True)
class Job:
    """What a worker needs to know before its first trial; small, so that it goes with every task.

    `header` is the line of the fault list, `golden` the digest that the worker's own golden run must have. A trial that
    takes longer than `timeout_s` ends its process, and a worker gets no more than `memory_bytes` (None: no limit), of
    which it keeps `kept_bytes` of golden values and sessions. `together` sends it more trials at a time.
    """

    campaign: Campaign
    header: str
    golden: str
    golden_s: float
    timeout_s: float | None = None
    memory_bytes: int | None = None
    kept_bytes: int = KEPT_BYTES
    together: bool = False

    @property
    def trials_a_task(self) -> int:
        """Trials that are sent to a worker together: some seconds of work, if each ran the whole model."""
        return (
            _MOST_TRIALS_A_TASK
            if self.together
            else max(1, min(_MOST_TRIALS_A_TASK, int(_TASK_S / max(self.golden_s, 1e-3))))
        )


def versions() -> dict[str, str]:
    """What must be the same wherever trials of one campaign run."""
    runtime = " ".join(f"{name} {version(name)}" for name in installed_runtimes())
    return {"onnxfi": version("onnxfi"), "runtime": runtime, "numpy": version("numpy"), "python": python_version()}


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(bench: Bench, golden: Golden, header: Header, pending: Iterator[list[Task]]) -> Results:
    """Run trials in this process, in their order: a fault that kills or hangs the runtime does so to this process."""
    for tasks in pending:
        found = _together(bench, golden, header, tasks)
        for number, task in enumerate(tasks):
            yield found[number] if number in found else _one(bench, golden, header, task)


def _together(bench: Bench, golden: Golden, header: Header, tasks: list[Task]) -> dict[int, Result]:
    """What trials that share runs come to, by their place."""
    begun = time.perf_counter()
    found = bench.together(header, golden, [lines.splitlines() for _, lines in tasks]) if len(tasks) > 1 else {}
    seconds = (time.perf_counter() - begun) / max(1, len(found))
    return {number: _result(tasks[number][0], judgement, seconds) for number, judgement in found.items()}


def _one(bench: Bench, golden: Golden, header: Header, task: Task) -> Result:
    trial, lines = task
    begun = time.perf_counter()
    try:
        found = bench.trial(header, golden, lines.splitlines())
    except Exception:  # a harness error is no outcome
        return Result(trial, "", None, {}, time.perf_counter() - begun, error=traceback.format_exc(limit=20))
    return _result(trial, found, time.perf_counter() - begun)


def _result(trial: int, found: Judgement, seconds: float) -> Result:
    return Result(trial, found.outcome, found.cause, found.metrics, seconds, found.changed, route=found.route)


_idle: list[tuple[Job, tuple[Bench, Golden, Header]]] = []


@contextmanager
def _held(job: Job) -> Iterator[tuple[Bench, Golden, Header]]:
    """A worker's bench: opened with its first task, and kept; threads that work at the same time have one each."""
    try:
        known, opened = _idle.pop()
    except IndexError:
        known, opened = job, _opened(job)
    if known != job:
        _idle.clear()
        opened = _opened(job)
    try:
        yield opened
    finally:
        _idle.append((job, opened))


_ahead: list[tuple[Campaign, int, Bench, Golden]] = []


def ahead(campaign: Campaign, kept_bytes: int) -> None:
    """Open a campaign in a worker and run golden before there is a job; what that says against it, it says again with
    the job."""
    if not _ahead:  # a quick worker may get what another one should have
        bench = Bench.open(campaign, kept_bytes)
        golden = bench.golden_again(served=True)
        bench.warm()
        _ahead.append((campaign, kept_bytes, bench, golden))


def _opened(job: Job) -> tuple[Bench, Golden, Header]:
    known = [
        (bench, golden)
        for campaign, size, bench, golden in _ahead
        if (campaign, size) == (job.campaign, job.kept_bytes)
    ]
    _ahead.clear()
    header = Header.parse(job.header, "the plan")
    bench, golden = known[0] if known else (Bench.open(job.campaign, job.kept_bytes), None)
    if job.memory_bytes is not None:
        golden = _golden_within(job.memory_bytes, bench, golden)
    golden = golden or bench.golden_again(served=True)
    if digest(golden) != job.golden:
        raise CampaignError("a worker has another golden run: its runtime or machine is not the same")
    return bench, golden, header


def _golden_within(memory_bytes: int, bench: Bench, known: Golden | None) -> Golden:
    """Golden under the limit of memory that holds from now on; CampaignError where it does not suffice.

    What is `known` already is as good where twice what it took is within the limit.
    """
    held = memory_held()
    try:
        limit_memory(memory_bytes)
        if known is not None and 2 * held < memory_bytes:
            return known
        if held < memory_bytes:
            return bench.golden_again()
    except (EngineError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    limit_memory(None)  # to have room to say so
    raise CampaignError(
        f"a worker may take {memory_bytes / 1e6:,.0f} MB of memory, which is less than the model itself needs: it has "
        f"{held / 1e6:,.0f} MB before it runs; give it more with --worker-memory, or take a smaller --batch"
    )


def work(job: Job, tasks: list[Task]) -> list[Result]:
    """Run some trials in a worker, whatever executor it belongs to."""
    with _held(job) as (bench, golden, header):
        with _watched(job, max(1, len(tasks))):
            known = _together(bench, golden, header, tasks)
        found = []
        for number, task in enumerate(tasks):
            if number in known:
                found.append(known[number])
            else:
                with _watched(job):
                    found.append(_one(bench, golden, header, task))
    return found


@contextmanager
def _watched(job: Job, trials: int = 1) -> Iterator[None]:
    """End this process where what is done takes longer than so many trials may."""
    if job.timeout_s is None:
        yield
        return
    # The runtime cannot be interrupted, and may hold the interpreter: a watch that needs neither ends both.
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(job.timeout_s * trials, exit=True, file=nowhere)
        yield
        faulthandler.cancel_dump_traceback_later()


def _notices(job: Job, target: str, *, watched: bool) -> bool:
    with _held(job) as (bench, _, _), _watched(job) if watched else nullcontext():
        return bench.notices(bench.reach.targets[bench.reach.by_id[target]])


def _survives(job: Job, target: Target) -> bool:
    """Whether a canary is seen, asked in a worker of its own: it may hang or kill the one that asks."""
    crew = _ready(job, processes)
    try:
        return crew.submit(_notices, job, target.id, watched=True).result()
    except BrokenExecutor:
        return True
    finally:
        crew.shutdown(wait=False)


def asks(bench: Bench, job: Job | None, crew: Executor | None, go: Callable[[], None]) -> Callable[[Target], bool]:
    """What says whether a canary is seen: one of the `crew`, who needs what it opens; then others may `go`.

    Without a crew it is this process; what could end who is asked (where there is a job) goes to a worker of its own.
    """

    def asked(target: Target) -> bool:
        if job is not None and (target.structural or bench.loops):
            return _survives(job, target)
        if job is not None and crew is not None:
            with suppress(BrokenExecutor):
                seen = crew.submit(_notices, job, target.id, watched=False)
                go()
                return seen.result()
        return bench.notices(target)

    return asked


def run_pooled(
    job: Job,
    golden: Golden,
    pending: Iterator[list[Task]],
    workers: int | Callable[[], int],
    pool: Callable[[int], Executor] = processes,
    crew: Callable[[int], Executor] | None = None,
    running: UnderWay | None = None,
) -> Results:
    """Run trials in so many workers (asked again where they come and go), in the order in which they come back.

    `pool` makes them; `crew` lends those that outlive the call (see `lasting`), where `running` are under way already.
    """
    suspects: list[Task] = []
    running = running or {}
    broken = True
    while broken:
        broken, came = False, 0
        try:
            for result, task in _stream(job, pending, workers, crew or pool, suspects, running):
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


def under_way(crew: Executor, job: Job, tasks: Iterator[list[Task]]) -> UnderWay:
    """Give tasks to workers before anybody waits for the results; none are under way where the workers died."""
    running: UnderWay = {}
    try:
        for some in tasks:
            running[crew.submit(work, job, some)] = some
    except BrokenExecutor:
        return {}
    return running


def _stream(
    job: Job,
    pending: Iterator[list[Task]],
    workers: int | Callable[[], int],
    pool: Callable[[int], Executor],
    lost: list[Task],
    running: UnderWay,
) -> Iterator[tuple[Result, Task]]:
    """Results with their tasks from one pool; what died goes to `lost`, and where the pool breaks all under way."""
    alive = True
    crew = pool(workers if isinstance(workers, int) else 0)
    tasks: list[Task] = []
    try:
        while True:
            most = 2 * (workers if isinstance(workers, int) else workers())
            while len(running) < most and (tasks := next(pending, [])):
                running[crew.submit(work, job, tasks)] = tasks
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                tasks = running[future]
                try:
                    results = future.result()
                except Died:
                    if not alive:  # two in a row: perhaps no worker lives at all
                        raise
                    results, alive = [], False
                    lost += tasks
                else:
                    alive = True
                del running[future]
                yield from zip(results, tasks, strict=alive)
    except BrokenExecutor:
        lost += dict.fromkeys([*(task for some in running.values() for task in some), *tasks])
        running.clear()
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
    except BrokenExecutor as error:
        seconds = (time.perf_counter() - begun) / (error.tries if isinstance(error, Died) else 1)
        cause = "timeout" if job.timeout_s is not None and seconds >= job.timeout_s else "crash"
        found = failed(golden, cause)
        return Result(task[0], found.outcome, cause, found.metrics, seconds, found.changed)


def _ready(job: Job, pool: Callable[[int], Executor]) -> Executor:
    """One worker that has run golden; CampaignError where it does not live that long."""
    for _ in range(_READY_TRIES):
        crew = pool(1)
        try:
            crew.submit(work, job, []).result()
        except Died:  # perhaps of a trial that still ran there
            continue
        except BrokenExecutor:
            break
        return crew
    raise CampaignError(
        "a worker process dies before its first trial: there is no memory for it (use fewer workers, or raise "
        "--worker-memory), or the program that uses workers lacks its `if __name__ == '__main__':`"
    )
