"""A worker: it opens a campaign and runs batches of its trials, whatever executor it belongs to.

Workers that are threads of one process share what it has open, by turns.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from onnxfi.campaign.execute import canary
from onnxfi.campaign.execute.golden_run import digest
from onnxfi.campaign.execute.route_cache import KEPT_BYTES
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.proved.proof_executor import open_executor
from onnxfi.campaign.results.rows import Result
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.workers.trial_batches import PendingTrial
from onnxfi.campaign.workers.watchdog import Watchdog
from onnxfi.errors import CampaignError, DeviceError, EngineError, ProviderError
from onnxfi.faults.faultlist import Header
from onnxfi.faults.space import Target
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.engine.cuda import same_bits_remedy
from onnxfi.runtime.engine.device_errors import out_of_memory
from onnxfi.runtime.engine.process_memory import limit_memory, memory_held
from onnxfi.runtime.engine.worker_thread_lock import WorkerThreadLock, claim
from onnxfi.tasks.outcomes import GoldenRun, Judgement

Results = Generator[Result, None, None]
_MOST_TRIALS_A_TASK = 32
_TASK_S = 8.0


@dataclass(frozen=True)
class WorkerSetup:
    """Setup of a worker before its first trial; small, since it is sent with every batch.

    `header` is the line of the fault list, `golden` the digest that the worker's own golden run must have. A trial that
    takes longer than `timeout_s` ends its process, and a worker gets no more than `memory_bytes` (None: no limit), of
    which it keeps `kept_bytes` of golden values and sessions. So many trials that run `together` are sent at a time.
    """

    campaign: Campaign
    header: str
    golden: str
    golden_s: float
    timeout_s: float | None = None
    memory_bytes: int | None = None
    kept_bytes: int = KEPT_BYTES
    together: int = field(default=0, compare=False)

    @property
    def trials_a_task(self) -> int:
        """Trials that are sent to a worker together: some seconds of work, if each ran the whole model."""
        return self.together or max(1, min(_MOST_TRIALS_A_TASK, int(_TASK_S / max(self.golden_s, 1e-3))))


def run_in_process(
    executor: TrialExecutor, golden: GoldenRun, header: Header, pending: Iterator[list[PendingTrial]]
) -> Results:
    """Run trials in this process, in their order: a fault that kills or hangs the runtime does so to this process."""
    for tasks in pending:
        found = _together(executor, golden, header, tasks)
        for number, task in enumerate(tasks):
            yield found[number] if number in found else _one(executor, golden, header, task)


def _together(
    executor: TrialExecutor, golden: GoldenRun, header: Header, tasks: list[PendingTrial]
) -> dict[int, Result]:
    """Return the results of trials that share runs, by position; nothing if one fails, so that each runs alone."""
    begun = time.perf_counter()
    try:
        found = executor.together(header, golden, [lines.splitlines() for _, lines in tasks]) if len(tasks) > 1 else {}
    except (DeviceError, CampaignError):
        raise
    except Exception:  # each alone then shows which trial it is
        return {}
    seconds = (time.perf_counter() - begun) / max(1, len(found))
    return {number: _result(tasks[number][0], judgement, seconds) for number, judgement in found.items()}


def _one(executor: TrialExecutor, golden: GoldenRun, header: Header, task: PendingTrial) -> Result:
    trial, lines = task
    begun = time.perf_counter()
    try:
        found = executor.trial(header, golden, lines.splitlines())
    except (ProviderError, DeviceError, CampaignError):  # nor would the next trial have one
        raise
    except Exception:  # a harness error is no outcome
        return Result(trial, "", None, {}, time.perf_counter() - begun, error=traceback.format_exc(limit=20))
    return _result(trial, found, time.perf_counter() - begun)


def _result(trial: int, found: Judgement, seconds: float) -> Result:
    return Result(
        trial, found.outcome, found.cause, found.metrics, seconds, found.changed, route=found.route, words=found.words
    )


def _open(
    setup: WorkerSetup, executor: TrialExecutor | None = None, golden: GoldenRun | None = None
) -> tuple[TrialExecutor, GoldenRun, Header]:
    """Open a campaign, where it is not known already, and hold its golden run against that of the setup."""
    header = Header.parse(setup.header, "the plan")
    executor = executor or open_executor(setup.campaign, setup.kept_bytes, runs=False)
    if setup.memory_bytes is not None:
        golden = _golden_within(setup.memory_bytes, executor, golden)
    golden = golden or executor.golden_in_segments()
    if golden is None or digest(golden) != setup.golden:  # segments may round differently
        golden = executor.golden_runs.run_again()
    if digest(golden) != setup.golden:
        raise CampaignError(
            f"the golden run of a worker differs, so no effect of a fault could be distinguished from chance: its "
            f"runtime, machine or device is not the same, or two golden runs differ "
            f"({same_bits_remedy(setup.campaign.engine.open().arithmetic)})"
        )
    executor.golden_runs.keep(golden)
    return executor, golden, header


def _golden_within(memory_bytes: int, executor: TrialExecutor, known: GoldenRun | None) -> GoldenRun:
    """GoldenRun under the limit of memory that holds from now on; CampaignError if it does not suffice.

    What is `known` already is as good where twice what it took is within the limit.
    """
    held = memory_held()
    try:
        limit_memory(memory_bytes)
        if known is not None and 2 * held < memory_bytes:
            return known
        if held < memory_bytes:
            return executor.golden_runs.run_again()
    except (EngineError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    limit_memory(None)  # to have room to say so
    raise CampaignError(
        f"a worker may take {memory_bytes / 1e6:,.0f} MB of memory, which is less than the model itself needs: it has "
        f"{held / 1e6:,.0f} MB before it runs; give it more with --worker-memory, or take a smaller --batch"
    )


@dataclass(frozen=True)
class _OpenedEarly:
    """A campaign that was opened ahead of the first batch, with its golden run where segments gave one."""

    campaign: Campaign
    kept_bytes: int
    executor: TrialExecutor
    golden: GoldenRun | None


class Worker:
    """Worker: it runs batches of trials with what it has opened, which its threads share by turns.

    Examples
    --------
    >>> Worker().is_idle()
    True
    """

    def __init__(self) -> None:
        #: For executors that may give a process several tasks at a time, of which it is to run one.
        self.one_at_a_time = threading.Lock()
        self._lock = WorkerThreadLock()
        self._watchdog = Watchdog()
        self._early: _OpenedEarly | None = None
        self._opened: tuple[WorkerSetup, tuple[TrialExecutor, GoldenRun, Header]] | None = None

    def __reduce__(self) -> str:
        return "THIS_WORKER"  # pickle refuses any other worker, since that name does not stand for it

    def is_idle(self) -> bool:
        """Return True if no thread of it is at work."""
        return self._lock.is_free()

    def open_early(self, campaign: Campaign, kept_bytes: int) -> None:
        """Open a campaign and take the golden run ahead of the first batch, which repeats any error."""
        with self._lock.held(), claim("executor"):
            if self._early is None and self._opened is None:  # a quick worker may get what another one should have
                executor = open_executor(campaign, kept_bytes, runs=False)
                golden = executor.golden_in_segments()
                self._early = _OpenedEarly(executor.opened.campaign, kept_bytes, executor, golden)

    def work(self, setup: WorkerSetup, tasks: list[PendingTrial]) -> list[Result]:
        """Run some trials, whatever executor the worker belongs to."""
        with self._held(setup) as (executor, golden, header):
            with self._watched(setup, max(1, len(tasks))):
                known = _together(executor, golden, header, tasks)
            found = []
            for number, task in enumerate(tasks):
                if number in known:
                    found.append(known[number])
                else:
                    with self._watched(setup):
                        found.append(_one(executor, golden, header, task))
        return found

    def notices(self, setup: WorkerSetup, target: str, batches: int) -> bool:
        """Return True if the worker sees a canary in a target within the time limit of a trial."""
        with self._held(setup) as (executor, _, _), self._watched(setup):
            return canary.notices(executor, _target(executor, target), batches)

    def shown(self, setup: WorkerSetup, target: str, batches: int) -> bool:
        """Return True if the shorter route of a target shows a canary in the worker."""
        with self._held(setup) as (executor, _, _):
            return canary.shown(executor, _target(executor, target), batches)

    def routes(self, setup: WorkerSetup, targets: Sequence[str]) -> dict[str, Route]:
        """Return the kind of route of faults in each of these targets."""
        with self._held(setup) as (executor, _, _):
            return {name: canary.route_of_target(executor, _target(executor, name)) for name in targets}

    def most_together(self, setup: WorkerSetup) -> int:
        """Return how many trials may share runs, and are to be sent at a time."""
        with self._held(setup) as (executor, _, header):
            return executor.most_together(header)

    def _watched(self, setup: WorkerSetup, trials: int = 1) -> AbstractContextManager[None]:
        """End this process where the block takes longer than so many trials may."""
        return self._watchdog.within(None if setup.timeout_s is None else setup.timeout_s * trials)

    @contextmanager
    def _held(self, setup: WorkerSetup) -> Iterator[tuple[TrialExecutor, GoldenRun, Header]]:
        """Hold what is opened for a setup, with the first batch; threads take turns."""
        with self._lock.held():
            with claim("executor"):
                if self._opened is None or self._opened[0] != setup:
                    early, self._early = self._early, None
                    if early is None or (early.campaign, early.kept_bytes) != (setup.campaign, setup.kept_bytes):
                        self._opened = setup, _open(setup)
                    else:
                        self._opened = setup, _open(setup, early.executor, early.golden)
                held = self._opened[1]
            yield held


def _target(executor: TrialExecutor, name: str) -> Target:
    fault_targets = executor.opened.fault_targets
    return fault_targets.targets[fault_targets.by_id[name]]


#: The worker that this process is, if it is one: the only object of onnxfi that outlives a call. An executor, which may
#: be one that onnxfi knows nothing of, sends a function and its arguments and no more, so what a process has open for
#: the next batch is found by a name. Tasks are methods of it, `submit(THIS_WORKER.work, …)`: pickled, it is that name,
#: and so in the process that runs the task it is the worker of that process. There is one for each process, since a
#: limit of memory and a watchdog are those of a process.
THIS_WORKER = Worker()
