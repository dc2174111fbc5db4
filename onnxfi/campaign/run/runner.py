"""Running a campaign: two golden runs, the canary, then every trial that has no result yet."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import BrokenExecutor, Executor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from onnxfi.campaign.execute import canary
from onnxfi.campaign.execute.golden_run import digest
from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.execute.route_cache import KEPT_BYTES
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.open_model import beside, open_model
from onnxfi.campaign.plan.plan import Plan, enough, make_plan
from onnxfi.campaign.proved.proof_executor import open_executor
from onnxfi.campaign.results.rows import Result
from onnxfi.campaign.results.store import Store, set_aside
from onnxfi.campaign.run.adaptive_rounds import Look, turns
from onnxfi.campaign.run.campaign_record import describe_run, keep_golden, keep_plan
from onnxfi.campaign.run.sweep_extension import extended
from onnxfi.campaign.run.trial_limits import TrialLimits, memory_limit
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import Replay
from onnxfi.campaign.workers.dask_executor import Cluster
from onnxfi.campaign.workers.process_pool import ProcessPool, WorkerProcess, reusable_pool, started_pool
from onnxfi.campaign.workers.scheduling import (
    CanaryCheck,
    RunningBatches,
    run_pooled,
    submit_batches,
    threads_per_process,
)
from onnxfi.campaign.workers.trial_batches import PendingTrial, batches_by_tensor, batches_in_order, interleaved
from onnxfi.campaign.workers.worker import THIS_WORKER, WorkerSetup, run_in_process
from onnxfi.errors import SpecError
from onnxfi.faults.faultlist import FaultList
from onnxfi.graph.model.loading import Model
from onnxfi.graph.write.faulty_copy import OnProgress
from onnxfi.graph.write.output_file import check_output_files
from onnxfi.tasks.kinds.classification import CLASS_OUTCOMES
from onnxfi.tasks.outcomes import GoldenRun
from onnxfi.tasks.registry import AUTO, expected_task, missing
from onnxfi.tasks.task import Metric

#: Results are written when so many wait, or so many seconds have gone.
WRITE_EVERY = 500
WRITE_EVERY_S = 1.0


@dataclass
class Running:
    """A running campaign: its plan, and what the store has already. Iterate over it for the results.

    `total` trials are asked for here (None: as many as it takes), of which `outcomes` counts those that the store has
    already, with the sum of their `headline` in `headline_sum`; `note` says on what they run, `golden_s` how long one
    run takes; `look` is what the complete rounds of an adaptive campaign say. `out_of_time` is true if `until` met
    its deadline before the last trial.
    """

    plan: Plan
    store: Path
    note: str
    total: int | None
    outcomes: Counter[str]
    golden_s: float
    headline: Metric
    headline_sum: float
    results: Generator[Result, None, None] = field(repr=False)
    look: Look | None = None
    early_pool: ProcessPool | None = field(default=None, repr=False)
    out_of_time: bool = False

    def __iter__(self) -> Iterator[Result]:
        return self.results

    def until(self, deadline: float | None, clock: Callable[[], float] = time.monotonic) -> Iterator[Result]:
        """Yield results until the last, or until the deadline of a clock: then `out_of_time` is true."""
        if deadline is not None and clock() >= deadline:
            self.out_of_time = True
            self.close()
            return
        for result in self.results:
            yield result
            if deadline is not None and clock() >= deadline:
                self.out_of_time = True
                self.close()
                return

    def close(self) -> None:
        """Stop; the results that came back are in the store."""
        self.results.close()
        if self.early_pool is not None:  # where no result was read
            self.early_pool.kill()


def default_store(campaign: Campaign) -> Path:
    """Return the default path of the results of a campaign."""
    stage = "" if campaign.stage is None else f".{campaign.stage}"
    return Path(f"{Path(campaign.model.replace(':', '.')).stem}{stage}.onnxfi.db")


def run(
    campaign: Campaign,
    store: str | Path | None = None,
    *,
    workers: int = 0,
    shard: tuple[int, int] | None = None,
    strata: Collection[int] | None = None,
    fresh: bool = False,
    kept_bytes: int = KEPT_BYTES,
    executor: Callable[[], Executor] | Cluster | None = None,
    timeout_s: float | None = None,
    worker_memory_bytes: int | None = None,
    golden: Callable[[TrialExecutor], tuple[GoldenRun, float]] | None = None,
    progress: OnProgress | None = None,
    spare: list[WorkerProcess] | None = None,
) -> Running:
    """Run a campaign; its results are written to a store, and returned one by one.

    An existing store of the same campaign is resumed, or extended if the campaign has more trials or other rates.
    `onnxfi.run` describes arguments and errors. Beside these, `strata` are the numbers, from 0, of the strata whose
    trials are run, by default all; `golden` returns the golden run and its time in seconds, to take them from a cache;
    `progress` is called with the number of trials planned so far, and their total; `spare` is the worker process
    of `spare_process`, which the first pool takes. CampaignError if the golden run is not deterministic, or a canary
    fault stays masked.

    Examples
    --------
    >>> import tempfile
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=50, ber=1e-4, repeat=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [result.outcome for result in run(campaign, folder + "/store.db")]
    ['sdc', 'sdc']
    """
    file, model, given = _place(campaign, store), open_model(campaign), TrialLimits(timeout_s, worker_memory_bytes)
    campaign, strata, lengths = extended(file, campaign, strata, fresh=fresh)
    cluster, own = (executor if isinstance(executor, Cluster) else None), workers if executor is None else 0
    given.check(watched=bool(cluster or own), owned=cluster is None or cluster.owned)
    with ExitStack() as stack:
        soon = own if (fresh or not file.exists()) and enough(campaign, shard, own) else 0
        shape = soon, threads_per_process(campaign, worker_memory_bytes)
        early = stack.enter_context(_early(campaign, model, kept_bytes, worker_memory_bytes, shape, spare=spare))
        local = open_executor(campaign, kept_bytes, model=model)
        _refuse(campaign, local.opened, shard)
        plan = lengths(make_plan(campaign, local.opened.fault_targets))
        if cluster is not None:
            cluster.send(local.opened)
        opened = stack.enter_context(_store(file, fresh=fresh))
        keep_plan(opened, local.opened, plan, progress)
        asked = wanted(plan, shard, strata)
        outcomes = Counter(found for trial, found in opened.done() if asked(trial))
        total = None if campaign.adaptive is not None else sum(map(asked, opened.trials()))
        share = threads_per_process(campaign, known := worker_memory_bytes or memory_limit(opened), local)
        make_pool, size = _pool_and_size(executor, workers, None if total is None else total - outcomes.total(), share)
        if (needed := (size if own and isinstance(size, int) else 0, share)) != shape:
            early = stack.enter_context(_early(campaign, model, kept_bytes, known, needed, early, spare))
        golden_run, golden_s = local.golden_runs.run(again=not own) if golden is None else golden(local)
        given.keep(opened, golden_s)
        setup = _worker_setup(opened, local, plan, (golden_run, golden_s), executor)
        pool = early if own and not worker_memory_bytes else None
        first, setup = _prove(opened, local, plan, setup, pool, opened.pending(asked), needed[0], here=not size)
        keep_golden(opened, local.opened, plan, golden_run)
        headline, before = _headline(opened, golden_run, asked)

    def results() -> Generator[Result, None, None]:
        with Store.open(file, create=True, checked=True) as target, reusable_pool(make_pool, early) as lend:
            for running.look, pending in _trials_by_round(target, plan, asked, first):
                if size:
                    batches = batches_by_tensor(pending, setup.trials_a_task, size)
                    stream = run_pooled(setup, golden_run, batches, size, make_pool, None if cluster else lend, first)
                else:
                    batches = batches_in_order(pending, setup.trials_a_task)
                    stream = run_in_process(local, golden_run, plan.header, batches)
                yield from _kept(target, stream)

    note, rest = describe_run(local.opened, golden_run), results()
    running = Running(plan, file, note, total, outcomes, golden_s, headline, before, rest, early_pool=early)
    return running


def _headline(opened: Store, golden: GoldenRun, asked: Callable[[int], bool]) -> tuple[Metric, float]:
    """Return the headline of the task, and its sum over the trials that have a result."""
    metric = golden.task.metric(golden.task.headline)
    return metric, sum(metric.value(row.outcome, row.metrics) or 0.0 for row in opened.rows() if asked(row.trial))


def _soonest(pending: Iterator[PendingTrial], plan: Plan, most: int, workers: int) -> Iterator[list[PendingTrial]]:
    """Return the first batch of each worker."""
    return islice(batches_by_tensor(interleaved(pending, len(plan.strata)), most, workers), workers)


def _place(campaign: Campaign, store: str | Path | None) -> Path:
    """Return the path of the results; raise OutputError before anything runs where none can be written."""
    if campaign.tabled:
        raise SpecError(
            "outcomes class of every fault make a table, no store; use onnxfi.exhaustive_outcomes", "outcomes"
        )
    file = Path(store) if store is not None else default_store(campaign)
    if not file.is_file():
        check_output_files(None, [file])
    return file


@contextmanager
def _store(file: Path, *, fresh: bool) -> Iterator[Store]:
    """Open the store of a campaign, or a draft of a new one, which is written when all went well.

    So what refuses a campaign leaves no store that is bound to it. An existing store is moved out of the way where a
    fresh one is asked for.
    """
    if not fresh and file.is_file():
        with Store.open(file, create=True) as opened:
            if begun := opened.get("identity") is not None:
                yield opened
        if begun:
            return
    with Store.draft(file) as draft:
        yield draft
        if fresh:
            set_aside(file)
        with Store.open(file, create=True) as opened:
            opened.take(draft)


def _early(
    campaign: Campaign,
    model: Model,
    kept_bytes: int,
    limit: int | None,
    shape: tuple[int, int],
    instead_of: ProcessPool | None = None,
    spare: list[WorkerProcess] | None = None,
) -> AbstractContextManager[ProcessPool | None]:
    """Start workers that open the campaign ahead of their first batch.

    Not where memory may be tight, since the golden run must be known to fit first.
    """
    what = (THIS_WORKER.open_early, campaign, kept_bytes) if limit is None and beside(model, kept_bytes) else (int,)
    return started_pool(shape[0], *what, threads_per_process=shape[1], instead_of=instead_of, spare=spare)


def _pool_and_size(
    executor: Callable[[], Executor] | Cluster | None, workers: int, left: int | None, share: int
) -> tuple[Callable[[int], Executor], int | Callable[[], int]]:
    """Return the factory of workers and their number (0: this process alone), at most the trials `left`."""
    if isinstance(executor, Cluster):
        return executor.pool, executor.size
    if executor is not None:
        return (lambda size: executor()), workers or 1
    return partial(ProcessPool, threads_per_process=share), workers if left is None else min(workers, left)


def wanted(
    plan: Plan, shard: tuple[int, int] | None = None, strata: Collection[int] | None = None
) -> Callable[[int], bool]:
    """Return True if a trial belongs to the campaign, which may be shorter than its store, to the shard and strata."""
    lengths = [stratum.trials for stratum in plan.strata]

    def asked(trial: int) -> bool:
        j, stratum = plan.header.place(trial)
        mine = (shard is None or trial % shard[1] == shard[0] % shard[1]) and (strata is None or stratum in strata)
        return mine and (plan.listed is not None or plan.campaign.adaptive is not None or j < lengths[stratum])

    return asked


def _trials_by_round(
    store: Store, plan: Plan, asked: Callable[[int], bool], first: RunningBatches
) -> Iterator[tuple[Look | None, Iterator[PendingTrial]]]:
    """Yield the trials to run: all after the `first`, or round by round, drawn once earlier rounds are written."""
    if plan.campaign.adaptive is None:
        taken = {trial for tasks in first.values() for trial, _ in tasks}
        left = store.pending(lambda trial: trial not in taken and asked(trial))
        yield None, interleaved(left, len(plan.strata))
        return
    for look, trials in turns(store, plan):
        yield look, store.pending(set(trials).__contains__)


def _refuse(campaign: Campaign, opened: OpenCampaign, shard: tuple[int, int] | None) -> None:
    """Refuse what an adaptive campaign cannot be."""
    if campaign.adaptive is None:
        return
    if shard is not None:
        raise SpecError("an adaptive campaign draws each round by all of the one before: it has no shards; use workers")
    labelled = opened.judged.labels is not None
    rate = campaign.adaptive.rate
    if opened.front is not None and campaign.scoring.task == AUTO:
        return  # its answers are known after the golden run, and are asked then
    task = expected_task(campaign.scoring.task, opened.output, opened.judged.labels, opened.columns)
    if why := missing(rate, CLASS_OUTCOMES if campaign.scoring.outcomes == "class" else task, labelled=labelled):
        raise SpecError(f"rate {rate!r} cannot be measured: {why}", "rate")


def _worker_setup(
    store: Store,
    local: TrialExecutor,
    plan: Plan,
    golden: tuple[GoldenRun, float],
    executor: Callable[[], Executor] | Cluster | None,
) -> WorkerSetup:
    """Return the setup of the workers; limits hold in local processes only."""
    cluster = isinstance(executor, Cluster)
    limits = {name: store.get(name) if cluster or executor is None else None for name in ("timeout_s", "memory_bytes")}
    if isinstance(executor, Cluster) and not executor.owned:
        limits["memory_bytes"] = None
    line = plan.header.line()
    shared = local.most_together(plan.header) if beside(local.opened.model, local.kept_bytes) else 0
    golden_run, golden_s = digest(golden[0]), golden[1]
    campaign, kept_bytes = local.opened.campaign, local.kept_bytes
    return WorkerSetup(campaign, line, golden_run, golden_s, kept_bytes=kept_bytes, together=shared, **limits)


def _shares(local: TrialExecutor, plan: Plan, setup: WorkerSetup, pool: Executor | None) -> int:
    """Return how many trials may share runs, which a worker is asked where the model is not open here as well."""
    if pool is not None and not beside(local.opened.model, local.kept_bytes):
        with suppress(BrokenExecutor):
            return pool.submit(THIS_WORKER.most_together, setup).result()
    return local.most_together(plan.header)


def _prove(
    store: Store, local: TrialExecutor, plan: Plan, setup: WorkerSetup, pool: Executor | None,
    pending: Iterator[PendingTrial], own: int, *, here: bool,
) -> tuple[RunningBatches, WorkerSetup]:  # fmt: skip
    """Prove once that faults reach what the runtime computes with.

    Return the batches that the pool of `own` workers got meanwhile, and the setup of all workers. Where no trial runs
    `here`, the segments are closed before workers open theirs.
    """
    first: RunningBatches = {}
    tasks = _soonest(pending, plan, setup.trials_a_task, own)
    both = beside(local.opened.model, local.kept_bytes)

    def go() -> None:
        if both and pool is not None and plan.campaign.adaptive is None and not first:
            first.update(submit_batches(pool, setup, tasks))
        if both:
            local.golden_runs.check_steady()

    if not both:  # the model is open once
        local.golden_runs.check_steady()
    if store.get("canary") is None:
        targets = [target for target in plan.targets if target.size]
        check = CanaryCheck(local, targets, setup if own else None, pool, go, both)
        store.put(canary=canary.prove(local, targets, check))
    local.golden_runs.check_steady()
    setup = replace(setup, together=_shares(local, plan, setup, pool))
    if not here:
        local.close_segments()
    return first, setup


def _kept(store: Store, stream: Generator[Result, None, None]) -> Generator[Result, None, None]:
    """Write the results of a stream in batches, and yield them."""
    waiting: list[Result] = []
    written = time.monotonic()
    with closing(stream):
        try:
            for result in stream:
                waiting.append(result)
                if time.monotonic() - written > WRITE_EVERY_S or len(waiting) >= WRITE_EVERY:
                    store.add(waiting)
                    waiting, written = [], time.monotonic()
                yield result
        finally:
            store.add(waiting)


def plan(campaign: Campaign) -> tuple[Plan, float | None]:
    """Plan the trials of a campaign without running them.

    Returns the trials, whose number is their length, and the time of the golden run in seconds if there is data.
    SpecError for a design that the model cannot have.

    Examples
    --------
    >>> made, seconds = plan(Campaign("models/fashion_cnn.onnx", single=True, margin=0.05))
    >>> len(made), seconds
    (664, None)
    """
    if campaign.data.data is None:
        return planned(campaign), None
    local = TrialExecutor.open(campaign)
    made = make_plan(campaign, local.opened.fault_targets)
    return made, local.golden_runs.run()[1]


def planned(campaign: Campaign) -> Plan:
    """Plan a campaign; a run finds the activations where faults are injected into them."""
    if _needs_run(campaign):
        return make_plan(campaign, TrialExecutor.open(campaign).opened.fault_targets)
    return make_plan(campaign, FaultTargets.of(open_model(campaign)))


def _needs_run(campaign: Campaign) -> bool:
    """Return True if faults go into activations, which only a run finds."""
    if isinstance(campaign.design, Replay):
        return FaultList.open(campaign.design.faults).header.activations is not None
    return any(scope.includes_activations for scope in campaign.scopes)
