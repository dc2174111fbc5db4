"""Trials on Dask workers: the same rows as here, whatever happens to a worker; shards in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from deadly_clusters import DEADLY
from small_pipelines import cascade
from tiny_campaigns import mlp, ran, tables

from onnxfi.campaign.results.merge import merge
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.workers import dask_executor as module
from onnxfi.campaign.workers.dask_executor import Cluster, cluster
from onnxfi.campaign.workers.scheduling import versions
from onnxfi.errors import InputError, OnnxfiError, OutputError

pytest.importorskip("distributed", reason="clusters need the extra distributed")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of Dask's own sockets and loops when processes are killed
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]


def campaign(**fields: Any) -> Campaign:
    return Campaign(**{"model": "m.onnx", "data": "d.npz", "provider": "cpu", "single": True, "trials": 200, **fields})


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    """Two worker processes, for all tests of this file."""
    with cluster(local=2) as far:
        yield far


@pytest.fixture
def workers(two: Cluster) -> Cluster:
    """Both, also where one was ended by the test before."""
    two.client.wait_for_workers(2)
    return two


@pytest.mark.slow
def test_the_rows_are_those_of_one_process_and_files_travel_by_content(
    here: Path, workers: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The workers' folder is another one, so that they see none of the files."""
    whole = onnx.load("m.onnx")
    (here / "ext").mkdir()
    onnx.save(whole, "ext/m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    wanted = campaign(model="ext/m.onnx", trials=60)
    ran(wanted, here / "whole.db")
    results = ran(wanted, here / "s.db", executor=workers)
    assert workers.files_digest is not None
    assert sorted(r.trial for r in results) == list(range(1, 61))
    assert tables(here / "s.db") == tables(here / "whole.db")
    assert not ran(wanted, here / "s.db", executor=workers), "what is done is done"
    mlp(here, seed=7)
    before = workers.files_digest
    ran(campaign(trials=30), here / "other.db", executor=workers)
    assert workers.files_digest != before, "other content has another digest"
    ran(campaign(trials=30), here / "whole2.db")
    assert tables(here / "other.db") == tables(here / "whole2.db")


@pytest.mark.slow
def test_a_pipeline_travels_with_its_models_and_functions(here: Path, workers: Cluster) -> None:
    cascade(here)
    wanted = campaign(model="pipeline.yaml", stage="finder", trials=12, bits="22-31", allow_code=True)
    ran(wanted, here / "alone.db")
    results = ran(wanted, here / "apart.db", executor=workers)
    assert workers.files_digest is not None and len(results) == 12
    assert tables(here / "apart.db") == tables(here / "alone.db")


@pytest.mark.slow
def test_workers_run_the_engine_of_the_campaign(here: Path, workers: Cluster) -> None:
    other = campaign(trials=20, engine="reference", provider="auto")
    alone, apart = list(run(other, "alone.db")), list(run(other, "apart.db", executor=workers))
    assert {row.trial: row.outcome for row in apart} == {row.trial: row.outcome for row in alone}
    with Store.open("apart.db") as opened:
        known = opened.get("environment")
    assert known["runtime"].startswith("onnx "), known


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_nothing(here: Path, workers: Cluster) -> None:
    ran(campaign(), here / "whole.db")
    running = run(campaign(), here / "s.db", executor=workers)
    seen = []
    for result in running:
        seen.append(result.trial)
        if len(seen) == 20:
            [pid, *_] = workers.client.run(os.getpid).values()
            os.kill(pid, signal.SIGKILL)
    assert sorted(seen) == list(range(1, 201)), "nothing is lost, nothing counted twice"
    assert tables(here / "s.db") == tables(here / "whole.db")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to a limit of its memory")
@pytest.mark.parametrize("hangs", [False, True])
def test_what_ends_a_worker_is_run_again_alone_in_a_fresh_one(here: Path, workers: Cluster, hangs: bool) -> None:
    text = DEADLY.replace("PLACE", repr(str(here))).replace("number == 2", f"number == 2 and {hangs}")
    name = f"deadly_far_{hangs}"  # a worker that outlives one case keeps its module
    (here / f"{name}.py").write_text(text)
    workers.client.register_plugin(_Path(str(here)), name="path")
    wanted = campaign(model=str(here / "m.onnx"), trials=3, data=f"{name}:data")
    # On a slow machine a worker that is killed may be known to be dead a second later: that must not look like a hang.
    limit_s = 4.0 if hangs else 200.0
    ran(wanted, here / "s.db", executor=workers, timeout_s=limit_s, worker_memory_bytes=3 << 30)
    ends = {1: ("due", "crash"), 3: ("due", "memory")} | ({2: ("due", "timeout")} if hangs else {})
    with Store.open(here / "s.db") as opened:
        found = {row.trial: (row.outcome, row.cause) for row in opened.rows()}
    assert found == {2: ("sdc", None)} | ends
    seen = [line.split() for line in (here / "ran.txt").read_text().splitlines()]
    for number in ends:
        times = [at for at, (trial, _) in enumerate(seen) if trial == str(number)]
        _, process = seen[times[-1]]
        assert process not in {before for _, before in seen[: times[-1]]}, (
            f"trial {number} ended in a used process: {seen}"
        )

    def heal() -> None:
        if used := sys.modules.get(name):
            used.TrialExecutor.trial = used.whole

    workers.client.run(heal)


def test_a_client_that_closes_while_it_is_asked_is_one_line() -> None:
    class Closing:
        status = "running"

        def nthreads(self) -> Any:
            self.status = "closed"
            raise RuntimeError("ConnectionPool is closed")

    with pytest.raises(OnnxfiError, match="the scheduler is lost"):
        Cluster(Closing()).size()


def test_others_workers_that_do_not_start_again_are_used_as_they_are(
    here: Path, workers: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A scheduler of somebody else is seen from outside alone."""
    monkeypatch.setattr(module, "RESTART_S", 0.3)
    others = Cluster(workers.client)
    monkeypatch.setattr(workers.client, "sync", lambda call, *given, **how: sync(workers.client, call, *given, **how))
    assert others.restart_idle() is None
    assert "did not start again; going on with the others, as they are" in caplog.text
    caplog.clear()
    assert others.restart_idle() is None
    assert not caplog.text


def sync(client: Any, call: Any, *given: Any, **how: Any) -> Any:
    """Do as the client does, but for restarting, which fails."""
    if "wait_for_workers" in how:
        raise TimeoutError("1/1 nanny worker(s) did not shut down")
    return type(client).sync(client, call, *given, **how)


class _Path:
    """Puts a folder on the path of modules, on every worker."""

    def __new__(cls, folder: str) -> Any:
        from distributed import WorkerPlugin

        class Path_(WorkerPlugin):
            def setup(self, worker: Any) -> None:
                import sys

                sys.path.insert(0, folder)

        return Path_()


@pytest.mark.slow
def test_a_worker_can_come_later(here: Path, workers: Cluster) -> None:
    ran(campaign(), here / "whole.db")
    running = run(campaign(), here / "s.db", executor=workers)
    for number, _ in enumerate(running):
        if number == 5:
            workers.own.scale(3)
            workers.client.wait_for_workers(3)
            assert workers.size() == 3
    assert tables(here / "s.db") == tables(here / "whole.db")
    workers.own.scale(2)


@pytest.mark.slow
def test_trials_for_a_gpu_go_to_workers_that_offer_one(
    here: Path, workers: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As none is here, the CPU stands for it."""

    async def offer(dask_worker: Any) -> None:
        await dask_worker.set_resources(GPU=1)

    def count(dask_worker: Any) -> int:
        return int(dask_worker.state.executed_count)

    monkeypatch.setattr(module, "ON_GPU", ("CPUExecutionProvider",))
    ran(campaign(trials=20), here / "whole.db")
    ran(campaign(trials=20), here / "none.db", executor=workers)
    assert (workers.resources, workers.size()) == ({}, 2), "where no worker offers one, all take part"
    first, *_ = workers.client.nthreads()
    workers.client.run(offer, workers=[first])
    before = workers.client.run(count)
    ran(campaign(trials=20), here / "s.db", executor=workers)
    assert workers.size() == 1
    assert {address for address, n in workers.client.run(count).items() if n > before[address]} == {first}
    assert tables(here / "s.db") == tables(here / "none.db") == tables(here / "whole.db")


# Bad input


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.5)
    for address in ("tcp://127.0.0.1:9", "nowhere", "tcp://"):
        with pytest.raises(InputError, match="no scheduler answers at"), cluster(address):
            pass


def test_a_scheduler_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(module, "ANSWER_S", 0.5)
    with LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty:
        said = f"the scheduler '{empty.scheduler_address}' has no worker; start one with `dask worker"
        with pytest.raises(InputError, match=re.escape(said)), cluster(empty.scheduler_address):
            pass


def refused(wanted: Campaign, workers: Cluster, said: str) -> None:
    """A worker that cannot take part is named before anything is run or written."""
    with pytest.raises(OnnxfiError, match=said):
        run(wanted, "never.db", executor=workers)
    assert not Path("never.db").exists()


def test_other_versions_are_named(here: Path, workers: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "versions", lambda engine: versions(engine) | {"runtime": "onnxruntime 0.0.1"})
        refused(campaign(), workers, r"worker tls://\S+ has runtime onnxruntime\S* \S+, this process .*0.0.1; install")
    with monkeypatch.context() as patch:
        patch.setattr(workers.client, "run", raising(ModuleNotFoundError("onnxfi")))
        refused(campaign(), workers, "a worker has no onnxfi of this version; install the same one there")


def raising(error: Exception) -> Any:
    def run(*given: Any, **how: Any) -> None:
        raise error

    return run


def test_a_worker_without_the_provider_is_named(here: Path, workers: Cluster) -> None:
    def hide() -> None:
        import onnxruntime as ort

        ort.kept, ort.get_available_providers = ort.get_available_providers, list

    def show() -> None:
        import onnxruntime as ort

        ort.get_available_providers = ort.kept

    workers.client.run(hide)
    try:
        for provider in ("cpu", "auto"):
            refused(campaign(provider=provider), workers, r"worker tls://\S+: provider '\S+' is not in the installed")
    finally:
        workers.client.run(show)


def test_a_worker_without_the_custom_operators_is_named(
    here: Path, workers: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    extensions = pytest.importorskip("onnxruntime_extensions", reason="a real library of custom operators")
    library, here_only = extensions.get_library_path(), module.file_sha256
    monkeypatch.setattr(module, "file_sha256", lambda path: "0" * 64 if str(path) == library else here_only(path))
    refused(
        campaign(custom_ops=(library,)), workers, r"worker tls://\S+ lacks the custom operators '.*put the library at"
    )


@pytest.mark.slow
def test_limits_of_others_workers_are_their_own(here: Path, workers: Cluster) -> None:
    others = Cluster(workers.client)
    with pytest.raises(InputError, match="workers of a scheduler have limits of their own"):
        run(campaign(), here / "s.db", executor=others, worker_memory_bytes=1 << 30)


@pytest.mark.slow
def test_a_missing_extra_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"pip install 'onnxfi\[distributed\]'"), cluster(local=1):
        pass


# A scheduler of one's own, and none at all


@pytest.mark.slow
def test_a_lost_scheduler_is_reported_and_another_resumes_the_store(here: Path, workers: Cluster) -> None:
    folder = {"cwd": here, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    host = ("--host", "127.0.0.1")
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", *host, "--port", "0", "--no-dashboard",
         "--scheduler-file", "s.json"], **folder,
    )  # fmt: skip
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", "s.json", "--nthreads", "1",
         "--no-dashboard", *host], **folder,
    )  # fmt: skip
    try:
        while not ((here / "s.json").is_file() and (here / "s.json").read_text().endswith("}")):
            time.sleep(0.05)
        address = json.loads((here / "s.json").read_text())["address"]
        with pytest.raises(OnnxfiError, match="the scheduler is lost"), cluster(address) as far:
            assert not far.owned
            running = run(campaign(), here / "s.db", executor=far)
            for number, _ in enumerate(running):
                if number == 10:
                    scheduler.kill()
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    with Store.open(here / "s.db") as opened:
        done = opened.count("results")
    assert 0 < done < 200
    ran(campaign(), here / "s.db", executor=workers)
    ran(campaign(), here / "whole.db")
    assert tables(here / "s.db") == tables(here / "whole.db")


@pytest.mark.slow
def test_the_command_with_a_cluster_of_its_own(here: Path) -> None:
    words = "run m.onnx --data d.npz --provider cpu --single --trials 60 -o s.db --json --local-cluster 2"
    command = [sys.executable, "-m", "onnxfi", *words.split()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (done.stderr, json.loads(done.stdout)["trials"]) == ("", 60)
    ran(campaign(trials=60), here / "whole.db")
    assert tables(here / "s.db") == tables(here / "whole.db")


@pytest.mark.slow
def test_three_shards_in_three_processes(here: Path) -> None:
    words = ["m.onnx", "--data", "d.npz", "--provider", "cpu", "--single", "--trials", "60"]
    onnxfi = [sys.executable, "-m", "onnxfi"]
    subprocess.run([*onnxfi, "plan", *words[:1], *words[3:], "-o", "p.jsonl"], check=True, capture_output=True)
    shards = [
        subprocess.Popen(
            [*onnxfi, "run", "p.jsonl", "--data", "d.npz", "--provider", "cpu", "--workers", "0", "--shard", f"{k}/3",
             "-o", f"{k}.db"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for k in (1, 2, 3)
    ]  # fmt: skip
    for shard in shards:
        _, errors = shard.communicate()
        assert shard.returncode == 0, errors
    assert merge(here / "all.db", [here / f"{k}.db" for k in (3, 1, 2)]) == 60
    ran(Campaign(model="m.onnx", data="d.npz", provider="cpu", faults="p.jsonl"), here / "whole.db")
    assert tables(here / "all.db") == tables(here / "whole.db")
