"""Workers of a cluster of our own: one that gives up is replaced, and one line says where none is left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from deadly_clusters import DEADLY
from tiny_campaigns import ran

from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.workers import local_dask_cluster
from onnxfi.campaign.workers.dask_executor import cluster
from onnxfi.errors import OnnxfiError


def campaign(**fields: Any) -> Campaign:
    return Campaign(**{"model": "m.onnx", "data": "d.npz", "provider": "cpu", "single": True, "trials": 200, **fields})


pytest.importorskip("distributed", reason="clusters need the extra distributed")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of Dask's own sockets and loops when processes are killed
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]


def fails(self: Any) -> Any:
    raise RuntimeError("no process can be started")


def lethal(here: Path) -> Campaign:
    """Three trials, of which the first kills its worker."""
    (here / "deadly_far.py").write_text(DEADLY.replace("PLACE", repr(str(here))).replace("number == 2", "False"))
    return campaign(model=str(here / "m.onnx"), trials=3, data="deadly_far:data")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the trials look at limits of Linux")
def test_where_no_worker_starts_again_a_campaign_goes_on_with_those_that_are_left(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from distributed.nanny import WorkerProcess

    monkeypatch.setattr(local_dask_cluster, "LOOK_MS", 20)
    with cluster(local=3) as few:
        few.client.register_plugin(_Path(str(here)), name="path")
        monkeypatch.setattr(WorkerProcess, "start", fails)
        ran(lethal(here), here / "s.db", executor=few)
    with Store.open(here / "s.db") as opened:
        assert {row.trial: row.cause for row in opened.rows()} == {1: "crash", 2: None, 3: None}
    assert "did not start again; another one takes its place" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the trials look at limits of Linux")
def test_where_no_worker_is_left_a_campaign_ends_with_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed.nanny import WorkerProcess

    monkeypatch.setattr(local_dask_cluster, "LOOK_MS", 20)
    with cluster(local=1) as few:
        few.client.register_plugin(_Path(str(here)), name="path")
        monkeypatch.setattr(WorkerProcess, "start", fails)
        with pytest.raises(OnnxfiError, match="no worker process starts any more; what was done is in the store"):
            ran(lethal(here), here / "s.db", executor=few)
        with pytest.raises(OnnxfiError, match="no worker process starts any more"):
            few.size()


class _Path:
    """Puts a folder on the path of modules, on every worker."""

    def __new__(cls, folder: str) -> Any:
        from distributed import WorkerPlugin

        class Path_(WorkerPlugin):
            def setup(self, worker: Any) -> None:
                import sys

                sys.path.insert(0, folder)

        return Path_()
