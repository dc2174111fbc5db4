"""Scheduling of trials on workers, whose number and order change no result: a trial is a pure function of its lines.

A trial whose worker dies, hangs or runs out of memory is run once more, alone in a fresh worker; only if it ends
that way twice, this is its outcome. An error of the harness is not an outcome: it is stored with its traceback, and the
trial is run again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from platform import python_version

from onnxfi.campaign.execute import canary
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.results.rows import Result
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.workers.process_pool import DEVICE_EXIT, ProcessPool, WorkerExited
from onnxfi.campaign.workers.trial_batches import PendingTrial
from onnxfi.campaign.workers.watchdog import WATCHDOG_EXIT
from onnxfi.campaign.workers.worker import THIS_WORKER, Results, WorkerSetup
from onnxfi.errors import CampaignError
from onnxfi.faults.space import Target
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.engine.cuda import no_cuda
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.runtime.engine.registry import engine_class
from onnxfi.tasks.outcomes import GoldenRun, failed

#: Batches that workers run, by the future of their results.
RunningBatches = dict[Future[list[Result]], list[PendingTrial]]
#: Workers that share a process at most, and the size of a model from which on they do.
_LANES = 4
SHARED_MODEL_BYTES = 8 << 20
#: Workers that may die before one is known to live.
_READY_TRIES = 3


class WorkerDied(BrokenExecutor):
    """The worker of a task died, in each of so many tries; unlike in a broken pool, the others live on."""

    def __init__(self, said: str, tries: int = 1) -> None:
        super().__init__(said)
        self.tries = tries


def versions(engine: Engine) -> dict[str, str]:
    """Return what must be the same wherever trials of one campaign run."""
    known = {"onnxfi": version("onnxfi"), "runtime": engine.version}
    return known | {"numpy": version("numpy"), "python": python_version()}


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(campaign: Campaign) -> int:
    """Return the default number of workers: one for each device, else for each core."""
    return len(campaign.engine.open().devices) or cores()


def threads_per_process(campaign: Campaign, limit_bytes: int | None, executor: TrialExecutor | None = None) -> int:
    """Return the number of worker threads of a process, which share its sessions; exact with an `executor`.

    One where a limit of memory is each worker's own, and where the model is small: that is quickly opened, and what
    Python does for a trial takes as long as what the runtime does.
    """
    if executor is None:
        on_cpu = campaign.engine.provider.lower() == "cpu" or no_cuda() is not None
        file = Path(campaign.model)
        size_bytes = file.stat().st_size if file.is_file() else 0
    else:
        on_cpu = executor.opened.provider == "CPUExecutionProvider"
        size_bytes = sum(source.size for source in executor.opened.model.sources)
    safe = engine_class(campaign.engine.engine).thread_safe
    shared = (
        safe and on_cpu and campaign.engine.threads == 1 and limit_bytes is None and size_bytes >= SHARED_MODEL_BYTES
    )
    return _LANES if shared else 1


def _survives(setup: WorkerSetup, target: Target, batches: int) -> bool:
    """Return True if a worker of its own, which the canary may hang or kill, sees the canary."""
    pool = _ready(setup, ProcessPool)
    try:
        return pool.submit(THIS_WORKER.notices, setup, target.id, batches).result()
    except BrokenExecutor:
        return True
    finally:
        pool.shutdown(wait=False)


@dataclass
class CanaryCheck(canary.Check):
    """Asks for the canary in this process, and by shorter routes in a worker of `pool`.

    A canary that could end the process is asked for in a worker of its own. `go` is called when the other workers may
    start. Without `beside` the model is open in one process at a time: here until a canary was seen, then in
    the worker.
    """

    targets: Sequence[Target]
    setup: WorkerSetup | None
    pool: Executor | None
    go: Callable[[], None]
    beside: bool = True
    _moved: bool = False
    #: The routes of all targets, as a worker finds them that has opened the segments anyway.
    _routes: list[Future[dict[str, Route]]] = field(default_factory=list)

    def shows(self, target: Target, batches: int) -> bool:
        """Return whether a canary is seen: in this process, or in a worker."""
        executor, setup, pool = self.executor, self.setup, self.pool
        if setup is not None and canary.may_hang(executor, target):
            return _survives(setup, target, batches)
        if setup is not None and pool is not None:
            with suppress(BrokenExecutor):
                if self._moved:
                    return pool.submit(THIS_WORKER.notices, setup, target.id, batches).result()
                answer = self._shown(setup, pool, target, batches) if self.beside else None
                seen = canary.changes_answer(executor, target, batches)
                executor.close()
                if answer is None and seen:
                    answer = self._shown(setup, pool, target, batches)
                return canary.held(executor, target, seen, seen and answer is not None and not answer.result())
        return super().shows(target, batches)

    def route(self, target: Target) -> Route:
        """Return the kind of route of faults in a target, as a worker finds it."""
        if self.setup is not None and self.pool is not None:
            with suppress(BrokenExecutor):
                self._moved = not self.beside
                self._ask_routes(self.setup, self.pool)
                return self._routes[0].result()[target.id]
        return super().route(target)

    def _shown(self, setup: WorkerSetup, pool: Executor, target: Target, batches: int) -> Future[bool]:
        answer = pool.submit(THIS_WORKER.shown, setup, target.id, batches)
        self._ask_routes(setup, pool)  # before it gets trials
        self.go()
        return answer

    def _ask_routes(self, setup: WorkerSetup, pool: Executor) -> None:
        if not self._routes:
            self._routes.append(pool.submit(THIS_WORKER.routes, setup, [target.id for target in self.targets]))


def run_pooled(
    setup: WorkerSetup,
    golden: GoldenRun,
    pending: Iterator[list[PendingTrial]],
    workers: int | Callable[[], int],
    make_pool: Callable[[int], Executor] = ProcessPool,
    lend_pool: Callable[[int], Executor] | None = None,
    running: RunningBatches | None = None,
) -> Results:
    """Run trials in workers, and yield the results in the order in which they come back.

    The number of `workers` is read again where it changes. `make_pool` makes a pool of workers; `lend_pool` lends one
    that outlives the call (see `reusable_pool`), whose workers run the batches `running` already.
    """
    suspects: list[PendingTrial] = []
    running = running or {}
    broken = True
    while broken:
        broken, came = False, 0
        try:
            for result, task in _stream(setup, pending, workers, lend_pool or make_pool, suspects, running):
                came += 1
                if result.cause == "memory":
                    suspects.append(task)
                else:
                    yield result
        except BrokenExecutor:
            broken = True
            if not came:  # is it the trials, or does no worker live at all?
                _ready(setup, make_pool).shutdown()
    yield from _alone(setup, golden, suspects, make_pool)


def submit_batches(pool: Executor, setup: WorkerSetup, tasks: Iterator[list[PendingTrial]]) -> RunningBatches:
    """Give batches to workers before their results are waited for; none are running where the workers died."""
    running: RunningBatches = {}
    try:
        for some in tasks:
            running[pool.submit(THIS_WORKER.work, setup, some)] = some
    except BrokenExecutor:
        return {}
    return running


def _stream(
    setup: WorkerSetup,
    pending: Iterator[list[PendingTrial]],
    workers: int | Callable[[], int],
    make_pool: Callable[[int], Executor],
    lost: list[PendingTrial],
    running: RunningBatches,
) -> Iterator[tuple[Result, PendingTrial]]:
    """Yield results with their tasks from one pool; `lost` gets what died, and all that runs where the pool breaks."""
    alive = True
    pool = make_pool(workers if isinstance(workers, int) else 0)
    tasks: list[PendingTrial] = []
    try:
        while True:
            most = 2 * (workers if isinstance(workers, int) else workers())
            while len(running) < most and (tasks := next(pending, [])):
                running[pool.submit(THIS_WORKER.work, setup, tasks)] = tasks
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                tasks = running[future]
                try:
                    results = future.result()
                except WorkerDied:
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
        pool.shutdown(wait=False, cancel_futures=True)


def _alone(
    setup: WorkerSetup, golden: GoldenRun, suspects: list[PendingTrial], make_pool: Callable[[int], Executor]
) -> Results:
    """Each suspect once more, one at a time; what ends badly in a worker that others have used, in a fresh one."""
    pool: Executor | None = None
    try:
        for task in suspects:
            for _ in range(2):
                fresh = pool is None
                pool = pool or _ready(setup, make_pool)
                result = _once(setup, golden, task, pool)
                bad = result.cause in ("timeout", "crash", "memory")
                if bad:
                    pool.shutdown(wait=False)
                    pool = None
                if fresh or not bad:
                    yield result
                    break
    finally:
        if pool is not None:
            pool.shutdown(wait=False)


def _once(setup: WorkerSetup, golden: GoldenRun, task: PendingTrial, pool: Executor) -> Result:
    """Run a trial in a worker of its own; a worker that dies is the outcome of the trial."""
    begun = time.perf_counter()
    try:
        [result] = pool.submit(THIS_WORKER.work, setup, [task]).result()
        return result
    except BrokenExecutor as error:
        seconds = (time.perf_counter() - begun) / (error.tries if isinstance(error, WorkerDied) else 1)
        # A signal is no time limit, however late it comes on a slow machine; elsewhere only the time is known.
        watched = not isinstance(error, WorkerExited) or error.exit_code in (None, WATCHDOG_EXIT)
        cause = "timeout" if watched and setup.timeout_s is not None and seconds >= setup.timeout_s else "crash"
        found = failed(golden, cause)
        return Result(task[0], found.outcome, cause, found.metrics, seconds, found.changed)


def _ready(setup: WorkerSetup, make_pool: Callable[[int], Executor]) -> Executor:
    """Return a pool of one worker that has completed the golden run; CampaignError if it does not live that long."""
    for _ in range(_READY_TRIES):
        pool = make_pool(1)
        try:
            pool.submit(THIS_WORKER.work, setup, []).result()
        except WorkerDied:  # perhaps of a trial that still ran there
            continue
        except BrokenExecutor as error:
            if isinstance(error, WorkerExited) and error.exit_code == DEVICE_EXIT:
                raise CampaignError(
                    "a new worker process cannot use its device: it is lost, or another program holds it; "
                    "nvidia-smi shows its state, and the same command resumes the campaign on another device"
                ) from None
            break
        return pool
    raise CampaignError(
        "a worker process dies before its first trial: there is no memory for it (use fewer workers, or raise "
        "--worker-memory), or the program that uses workers lacks its `if __name__ == '__main__':`"
    )
