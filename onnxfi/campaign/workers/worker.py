"""Work: what a worker does with trials, whatever executor it belongs to.

Workers that are threads of one process share what it has open, by turns.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from onnxfi.campaign.execute import canary
from onnxfi.campaign.execute.golden_run import digest
from onnxfi.campaign.execute.route_cache import KEPT_BYTES
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.results.rows import Result
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.workers.task_batches import PendingTrial
from onnxfi.errors import CampaignError, DeviceError, EngineError, ProviderError
from onnxfi.faults.faultlist import Header
from onnxfi.runtime.engine.cooperative_lock import CooperativeLock, claim
from onnxfi.runtime.engine.cuda import same_bits_remedy
from onnxfi.runtime.engine.device_errors import out_of_memory
from onnxfi.runtime.engine.process_memory import limit_memory, memory_held
from onnxfi.tasks.outcomes import GoldenRun, Judgement

Results = Generator[Result, None, None]
_MOST_TRIALS_A_TASK = 32
_TASK_S = 8.0
#: How a process ends whose watch has run out: faulthandler's exit.
WATCH_EXIT = 1


@dataclass(frozen=True)
class WorkerSetup:
    """Setup of a worker before its first trial; small, since it is sent with every batch.

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
    """Return the results of trials that share runs, by position; nothing where one fails, so that each runs alone."""
    begun = time.perf_counter()
    try:
        found = executor.together(header, golden, [lines.splitlines() for _, lines in tasks]) if len(tasks) > 1 else {}
    except DeviceError:
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
    except (ProviderError, DeviceError):  # nor would the next trial have one
        raise
    except Exception:  # a harness error is no outcome
        return Result(trial, "", None, {}, time.perf_counter() - begun, error=traceback.format_exc(limit=20))
    return _result(trial, found, time.perf_counter() - begun)


def _result(trial: int, found: Judgement, seconds: float) -> Result:
    return Result(trial, found.outcome, found.cause, found.metrics, seconds, found.changed, route=found.route)


#: The lock of the threads of this process, which share what is open.
_lock = CooperativeLock()
_opened: list[tuple[WorkerSetup, tuple[TrialExecutor, GoldenRun, Header]]] = []


@contextmanager
def _held(setup: WorkerSetup) -> Iterator[tuple[TrialExecutor, GoldenRun, Header]]:
    """Hold the executor of this worker, opened with its first batch; threads of a process take turns."""
    with _lock.held():
        with claim("executor"):
            if not _opened or _opened[0][0] != setup:
                _opened[:] = [(setup, _open(setup))]
            held = _opened[0][1]
        yield held


_ahead: list[tuple[Campaign, int, TrialExecutor, GoldenRun | None]] = []


def open_early(campaign: Campaign, kept_bytes: int) -> None:
    """Open a campaign in a worker and take the golden run ahead of its first batch, which repeats any error."""
    with _lock.held(), claim("executor"):
        if not _ahead and not _opened:  # a quick worker may get what another one should have
            executor = TrialExecutor.open(campaign, kept_bytes, runs=False)
            _ahead.append((executor.opened.campaign, kept_bytes, executor, executor.golden_in_segments()))


def _open(setup: WorkerSetup) -> tuple[TrialExecutor, GoldenRun, Header]:
    known = [
        (executor, golden)
        for campaign, size, executor, golden in _ahead
        if (campaign, size) == (setup.campaign, setup.kept_bytes)
    ]
    _ahead.clear()
    header = Header.parse(setup.header, "the plan")
    executor, golden = known[0] if known else (TrialExecutor.open(setup.campaign, setup.kept_bytes, runs=False), None)
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
    """GoldenRun under the limit of memory that holds from now on; CampaignError where it does not suffice.

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


def work(setup: WorkerSetup, tasks: list[PendingTrial]) -> list[Result]:
    """Run some trials in a worker, whatever executor it belongs to."""
    with _held(setup) as (executor, golden, header):
        with _watched(setup, max(1, len(tasks))):
            known = _together(executor, golden, header, tasks)
        found = []
        for number, task in enumerate(tasks):
            if number in known:
                found.append(known[number])
            else:
                with _watched(setup):
                    found.append(_one(executor, golden, header, task))
    return found


def notices(setup: WorkerSetup, target: str) -> bool:
    """Return True if a worker sees a canary in a target within the time limit of a trial."""
    with _held(setup) as (executor, _, _), _watched(setup):
        return canary.notices(
            executor, executor.opened.fault_targets.targets[executor.opened.fault_targets.by_id[target]]
        )


def shown(setup: WorkerSetup, target: str) -> bool:
    """Return True if the shorter route of a target shows a canary in a worker."""
    with _held(setup) as (executor, _, _):
        return canary.shown(
            executor, executor.opened.fault_targets.targets[executor.opened.fault_targets.by_id[target]]
        )


_watch = threading.Lock()
_ends: dict[object, float] = {}
_discarded: list[IO[str]] = []


@contextmanager
def _watched(setup: WorkerSetup, trials: int = 1) -> Iterator[None]:
    """End this process where what is done takes longer than so many trials may."""
    if setup.timeout_s is None:
        yield
        return
    mine = object()
    with _watch:
        _ends[mine] = time.monotonic() + setup.timeout_s * trials
        _look_out()
    try:
        yield
    finally:
        with _watch:
            del _ends[mine]
            _look_out()


def _look_out() -> None:
    """Watch for the first of the ends that may come."""
    # The runtime cannot be interrupted, and may hold the interpreter: a watch that needs neither ends both.
    faulthandler.cancel_dump_traceback_later()
    if _ends:
        left = max(1e-3, min(_ends.values()) - time.monotonic())
        _discarded[:] = _discarded or [open(os.devnull, "w")]  # noqa: SIM115 (as long as the process)
        faulthandler.dump_traceback_later(left, exit=True, file=_discarded[0])
