"""The worker: tasks reach that of the process which runs them, and what it has opened serves the next batch."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from pickle import PicklingError

import pytest
from tiny_campaigns import campaign

from onnxfi.campaign.execute.golden_run import digest
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.workers.worker import THIS_WORKER, Worker, WorkerSetup
from onnxfi.errors import CampaignError


@pytest.fixture
def setup(here: Path) -> WorkerSetup:
    executor = TrialExecutor.open(campaign())
    plan, (golden, golden_s) = (
        make_plan(executor.opened.campaign, executor.opened.fault_targets),
        executor.golden_runs.run(),
    )
    return WorkerSetup(executor.opened.campaign, plan.header.line(), digest(golden), golden_s)


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that executors are opened for."""
    opened, begin = [], TrialExecutor.open.__func__  # type: ignore[attr-defined]

    def counted(cls: type[TrialExecutor], wanted: object, *given: object, **how: object) -> TrialExecutor:
        opened.append(wanted.model)  # type: ignore[attr-defined]
        found: TrialExecutor = begin(cls, wanted, *given, **how)
        return found

    monkeypatch.setattr(TrialExecutor, "open", classmethod(counted))
    return opened


def test_a_task_is_of_the_worker_of_the_process_that_runs_it() -> None:
    assert ForkingPickler.loads(ForkingPickler.dumps(THIS_WORKER.work)) == THIS_WORKER.work
    with pytest.raises(PicklingError, match="not the same object"):
        ForkingPickler.dumps(Worker().work)


def test_what_is_open_serves_every_batch_of_a_setup(setup: WorkerSetup, openings: list[str]) -> None:
    worker = Worker()
    assert worker.work(setup, []) == [] and worker.work(setup, []) == [] and len(openings) == 1
    assert worker.work(replace(setup, kept_bytes=1), []) == [] and len(openings) == 2
    assert worker.work(setup, []) == [] and len(openings) == 3, "one campaign is open at a time"
    assert worker.is_idle()


def test_what_is_opened_early_is_not_opened_again(setup: WorkerSetup, openings: list[str]) -> None:
    worker = Worker()
    for _ in range(2):
        worker.open_early(setup.campaign, setup.kept_bytes)
    assert worker.work(setup, []) == [] and len(openings) == 1
    worker.open_early(setup.campaign, setup.kept_bytes)
    assert len(openings) == 1, "it has the campaign open"
    other = Worker()
    other.open_early(setup.campaign, 1)
    assert other.work(setup, []) == [] and len(openings) == 3, "kept within another limit, it is another executor"


def test_a_worker_whose_golden_run_differs_is_refused_each_time(setup: WorkerSetup) -> None:
    worker = Worker()
    for _ in range(2):
        with pytest.raises(CampaignError, match="the golden run of a worker differs"):
            worker.work(replace(setup, golden="another"), [])
    assert worker.work(setup, []) == [] and worker.is_idle()
