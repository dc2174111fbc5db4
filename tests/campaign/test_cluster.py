"""Trials on Dask workers: the same rows as here, whatever happens to a worker; shards in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from tiny import mlp, ran, tables

from onnxfi.campaign import cluster as module
from onnxfi.campaign.cluster import Cluster, cluster
from onnxfi.campaign.runner import run
from onnxfi.campaign.spec import Campaign
from onnxfi.campaign.store import Store, merge
from onnxfi.campaign.workers import versions
from onnxfi.errors import InputError, OnnxfiError, OutputError

pytest.importorskip("distributed", reason="clusters need the extra distributed")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of Dask's own sockets and loops when processes are killed
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]


def campaign(**fields: Any) -> Campaign:
    return Campaign(**{"model": "m.onnx", "data": "d.npz", "provider": "cpu", "single": True, "trials": 200, **fields})


@pytest.fixture(scope="module")
def workers() -> Iterator[Cluster]:
    """Two worker processes, for all tests of this file."""
    with cluster(local=2) as far:
        yield far


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
    assert workers.parcel is not None
    assert sorted(r.trial for r in results) == list(range(1, 61))
    assert tables(here / "s.db") == tables(here / "whole.db")
    assert not ran(wanted, here / "s.db", executor=workers), "what is done is done"
    mlp(here, seed=7)
    before = workers.parcel
    ran(campaign(trials=30), here / "other.db", executor=workers)
    assert workers.parcel != before, "other content is another parcel"
    ran(campaign(trials=30), here / "whole2.db")
    assert tables(here / "other.db") == tables(here / "whole2.db")


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


DEADLY = """
import multiprocessing, os, signal
import numpy as np
from onnxfi.campaign.bench import Bench

def data():
    with np.load(PLACE) as held:
        arrays = dict(held)
    if multiprocessing.parent_process() is not None:
        Bench.trial = trial
    return arrays

whole = Bench.trial

def trial(self, header, golden, lines):
    if '"trial": 7,' in lines[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, header, golden, lines)
"""


def test_a_trial_that_kills_its_worker_is_a_crash(
    here: Path, workers: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "deadly_far.py").write_text(DEADLY.replace("PLACE", repr(str(here / "d.npz"))))
    workers.client.register_plugin(_Path(str(here)), name="path")
    wanted = campaign(model=str(here / "m.onnx"), trials=24, data="deadly_far:data")
    ran(campaign(trials=24), here / "whole.db")
    ran(wanted, here / "s.db", executor=workers)
    with Store.open(here / "s.db") as opened:
        rows = {row.trial: (row.outcome, row.cause) for row in opened.rows()}
    with Store.open(here / "whole.db") as opened:
        expected = {row.trial: (row.outcome, row.cause) for row in opened.rows()}
    assert rows == {**expected, 7: ("due", "crash")}


class _Path:
    """Puts a folder on the path of modules, on every worker."""

    def __new__(cls, folder: str) -> Any:
        from distributed import WorkerPlugin

        class Path_(WorkerPlugin):
            def setup(self, worker: Any) -> None:
                import sys

                sys.path.insert(0, folder)

        return Path_()


def test_a_worker_can_come_later(here: Path, workers: Cluster) -> None:
    ran(campaign(), here / "whole.db")
    running = run(campaign(), here / "s.db", executor=workers)
    for number, _ in enumerate(running):
        if number == 5:
            workers.client.cluster.scale(3)
            workers.client.wait_for_workers(3, timeout=30)
            assert workers.size() == 3
    assert tables(here / "s.db") == tables(here / "whole.db")
    workers.client.cluster.scale(2)


# Bad input


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_S", 0.5)
    for address in ("tcp://127.0.0.1:9", "nowhere", "tcp://"):
        with pytest.raises(InputError, match="no scheduler answers at"), cluster(address):
            pass


def test_other_versions_and_missing_libraries_are_named(
    here: Path, workers: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "versions", lambda: versions() | {"runtime": "onnxruntime 0.0.1"})
        with pytest.raises(OnnxfiError, match=r"worker tcp://\S+ has runtime onnxruntime\S* \S+, this process .*0.0.1"):
            run(campaign(), here / "s.db", executor=workers)
    with pytest.raises(OnnxfiError, match=r"no provider|worker tcp"):
        ran(campaign(provider="nosuch"), here / "s.db", executor=workers)


def test_limits_of_others_workers_are_their_own(here: Path, workers: Cluster) -> None:
    others = Cluster(workers.client, owned=False)
    with pytest.raises(InputError, match="workers of a scheduler have limits of their own"):
        run(campaign(), here / "s.db", executor=others, worker_memory_bytes=1 << 30)


def test_the_extra_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"pip install 'onnxfi\[distributed\]'"), cluster(local=1):
        pass


# A scheduler of one's own, and none at all


def test_a_scheduler_that_is_lost_is_told_and_the_store_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        import json

        for _ in range(300):
            if (here / "s.json").is_file() and (here / "s.json").read_text().endswith("}"):
                break
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
    ran(campaign(), here / "s.db")
    ran(campaign(), here / "whole.db")
    assert tables(here / "s.db") == tables(here / "whole.db")


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
        _, errors = shard.communicate(timeout=120)
        assert shard.returncode == 0, errors
    assert merge(here / "all.db", [here / f"{k}.db" for k in (3, 1, 2)]) == 60
    ran(Campaign(model="m.onnx", data="d.npz", provider="cpu", faults="p.jsonl"), here / "whole.db")
    assert tables(here / "all.db") == tables(here / "whole.db")
