"""Lanes: workers that are threads of one process share what it has open, and find what one alone finds."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import onnx
import pytest
from campaign_networks import Net, nets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import TIMES
from tiny_campaigns import campaign, chance, deadly, ran, same_but, tables

from onnxfi.campaign.execute.golden_run import digest
from onnxfi.campaign.execute.route_cache import RouteCache
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.run import trial_limits
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.workers import scheduling, worker
from onnxfi.campaign.workers.scheduling import threads_per_process
from onnxfi.campaign.workers.trial_batches import PendingTrial
from onnxfi.campaign.workers.worker import Worker, WorkerSetup, run_in_process
from onnxfi.faults.faultlist import Header
from onnxfi.runtime.engine import onnx_runtime
from onnxfi.runtime.engine.worker_thread_lock import released


@pytest.fixture
def interleaved(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """Threads of this process stand for lanes, and pass the turn on wherever they may; nothing is left open."""
    pauses = cycle((0.0, 3e-4, 0.0, 1e-4, 0.0))

    @contextmanager
    def slowly() -> Iterator[None]:
        with released():
            yield
            sleep(next(pauses))

    monkeypatch.setattr(onnx_runtime, "released", slowly)
    mine = Worker()
    monkeypatch.setattr(scheduling, "THIS_WORKER", mine)
    yield mine
    assert mine.is_idle()


def four() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4)


def net(folder: Path, *kinds: str) -> None:
    made = Net()
    for kind in kinds:
        made.step(kind, len(made.values) - 1, 1)
    onnx.save(made.model([]), folder / "net.onnx")
    np.savez(folder / "x.npz", x=chance(7, 16, 4, 4, seed=7))


ONE, ACTIVATIONS = {"single": True, "trials": 16}, {"target": ("activations",)}
#: Fields of a campaign, and routes that some of its trials take.
CAMPAIGNS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "stored": (ONE, {"channel-delta", "partial", "rebuilt"}),
    "one tensor that is fed": (ONE | {"include": ("=w2",)}, {"partial"}),
    "one tensor by its channels": (ONE | {"include": ("=w0",)}, {"channel-delta"}),
    "sweep": ({"ber": (1e-5, 1e-3), "repeat": 5}, {"rebuilt"}),
    "samples": (ONE | ACTIVATIONS, {"single-sample"}),
    "one value": ({**ONE, **ACTIVATIONS, "trials": 12, "persistence": "permanent"}, {"partial"}),
    "several values": ({"ber": (1e-4,), "repeat": 5, **ACTIVATIONS}, {"partial"}),
    "both": ({"ber": (1e-4,), "repeat": 6, "target": ("weights", "activations")}, {"split"}),
}


@pytest.mark.parametrize(
    ("optimization", "kept_bytes"), [("off", 1 << 30), pytest.param("all", 0, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_lanes_find_what_one_alone_finds(
    here: Path, name: str, kept_bytes: int, optimization: str, interleaved: Worker
) -> None:
    net(here, "conv", "relu", "depthwise", "quantised", "skip", "norm")
    fields, routes = CAMPAIGNS[name]
    wanted = Campaign("net.onnx", "x.npz", provider="cpu", batch=2, optimization=optimization, **fields)
    alone = ran(wanted, here / "alone.db", kept_bytes=kept_bytes)
    assert not any(r.error for r in alone)
    if optimization == "off":  # with it a part may round another way, and its trials take the next longer route
        assert {r.route for r in alone} >= routes
    ran(wanted, here / "lanes.db", kept_bytes=kept_bytes, executor=four, workers=4)
    assert tables(here / "lanes.db") == tables(here / "alone.db")


def asked(
    folder: Path, kept_bytes: int = 1 << 30, **fields: Any
) -> tuple[TrialExecutor, WorkerSetup, list[list[PendingTrial]]]:
    """A campaign on net.onnx as workers know it, and its trials one by one."""
    bench = TrialExecutor.open(
        Campaign(str(folder / "net.onnx"), str(folder / "x.npz"), provider="cpu", **fields), kept_bytes
    )
    plan, (golden, golden_s) = make_plan(bench.opened.campaign, bench.opened.fault_targets), bench.golden_runs.run()
    job = WorkerSetup(bench.opened.campaign, plan.header.line(), digest(golden), golden_s, kept_bytes=kept_bytes)
    return bench, job, [[(trial.trial, trial.lines)] for trial in plan.trials()]


def test_what_several_need_is_opened_once(here: Path, monkeypatch: pytest.MonkeyPatch, interleaved: Worker) -> None:
    net(here, "conv", "relu", "depthwise")
    opened, get = Counter[Hashable](), RouteCache.get

    def counted(self: RouteCache, key: Hashable, opener: Callable[[], Any]) -> Any:
        return get(self, key, lambda: (opened.update([key]), opener())[1])

    monkeypatch.setattr(RouteCache, "get", counted)
    _, job, tasks = asked(here, ber=(1e-4,), repeat=8, target=("weights", "activations"))
    with four() as pool:
        found = list(pool.map(partial(interleaved.work, job), tasks))
    assert len(found) == 8 and list(opened.values()) == [1], "the model is split once"
    opened.clear()
    _, job, tasks = asked(here, single=True, trials=8, include=("=w0",))
    with four() as pool:
        found = list(pool.map(partial(interleaved.work, job), tasks))
    assert {result.route for [result] in found} == {"channel-delta"} and set(opened.values()) == {1}


def test_a_process_that_replaces_a_dead_one_opens_under_its_limit(
    here: Path, monkeypatch: pytest.MonkeyPatch, interleaved: Worker
) -> None:
    """It has a job from the start, and golden by a run of the whole model: the first trials open what they share."""
    net(here, "conv", "relu", "depthwise")
    monkeypatch.setattr(worker, "limit_memory", lambda size: None)
    _, job, tasks = asked(here, single=True, trials=8)
    with four() as pool:
        found = list(pool.map(partial(interleaved.work, replace(job, memory_bytes=1 << 60)), tasks))
    assert [result.trial for [result] in found] == list(range(1, 9)) and not any(r.error for [r] in found)


@pytest.mark.slow
@settings(max_examples=4 * TIMES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=nets(), kept_bytes=st.sampled_from([1 << 30, 0]), in_activations=st.booleans())
def test_any_network_shared_by_four_threads(
    model: onnx.ModelProto,
    kept_bytes: int,
    in_activations: bool,
    interleaved: Worker,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("net")
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "x.npz", x=chance(5, 16, 4, 4, seed=7))
    target = ("activations",) if in_activations else ("weights",)
    bench, job, tasks = asked(folder, kept_bytes, batch=2, single=True, trials=32, target=target)
    pending = [[task for [task] in tasks[k : k + 3]] for k in range(0, len(tasks), 3)]
    golden, header = bench.golden_runs.run()[0], Header.parse(job.header, "the plan")
    alone = list(run_in_process(bench, golden, header, iter(pending)))
    with four() as pool:
        found = [result for some in pool.map(partial(interleaved.work, job), pending) for result in some]
    assert [replace(r, time_s=0.0) for r in found] == [replace(r, time_s=0.0) for r in alone]


# In processes


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is large enough for lanes."""
    monkeypatch.setattr(scheduling, "SHARED_MODEL_BYTES", 0)


def test_workers_share_a_process(here: Path, large: None) -> None:
    wanted = campaign(trials=40)
    ran(wanted, here / "alone.db")
    running = run(wanted, here / "s.db", workers=4)
    assert len(multiprocessing.active_children()) == 1
    assert len(list(running)) == 40
    assert tables(here / "s.db") == tables(here / "alone.db")


@pytest.mark.slow
def test_a_trial_that_hangs_in_a_process_that_others_share(
    here: Path, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(campaign(), here / "alone.db")
    monkeypatch.setattr(trial_limits, "TIMEOUT_S", 3.0)
    monkeypatch.setattr(trial_limits, "TIMEOUT_GOLDEN_RUNS", 0)
    trial = """
if number == 20:
    with released():  # as where the runtime does not come back
        time.sleep(600)
"""
    results = ran(deadly(trial), here / "s.db", workers=4)
    assert sorted(r.trial for r in results) == list(range(1, 25))
    same_but(here / "s.db", here / "alone.db", {20: ("due", "timeout")})


def test_which_campaigns_have_lanes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = campaign()
    assert threads_per_process(wanted, None) == threads_per_process(wanted, None, TrialExecutor.open(wanted)) == 1, (
        "a small model"
    )
    size = (here / "m.onnx").stat().st_size
    monkeypatch.setattr(scheduling, "SHARED_MODEL_BYTES", 100)
    assert (
        threads_per_process(wanted, None) == threads_per_process(wanted, None, TrialExecutor.open(wanted)) == 4
        and size > 100
    )
    assert (
        threads_per_process(wanted, 1 << 30) == threads_per_process(wanted, 1 << 30, TrialExecutor.open(wanted)) == 1
    ), "a limit is each worker's own"
    assert threads_per_process(replace(wanted, threads=2), None) == 1
    assert threads_per_process(replace(wanted, model="none.onnx"), None) == 1
    for none, known in (("no driver", 4), (None, 1)):
        monkeypatch.setattr(scheduling, "no_cuda", lambda none=none: none)
        assert threads_per_process(replace(wanted, provider="auto"), None) == known, (
            "as far as one can say before it runs"
        )
    monkeypatch.undo()
    assert scheduling.SHARED_MODEL_BYTES == 8 << 20
