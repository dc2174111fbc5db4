"""A Dask scheduler and its workers, on this machine and for this process alone.

They speak TLS with a certificate that is made for them and lies in no file, so that nobody else who reaches their ports
is heard. Each worker has a nanny, which starts it again when it ends; a nanny that gives up is replaced.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from onnxfi.errors import CampaignError, OutputError

_LOG = logging.getLogger(__name__)
#: Milliseconds after which one looks again for nannies that gave up, and how many of them are replaced.
LOOK_MS = 500
_MOST_REPLACED = 4
NONE_LEFT = "no worker process starts any more; what was done is in the store, and the same command goes on from there"
_SETTINGS = {
    # One death is enough to ask for: the runner runs what was under way once more itself, alone.
    "distributed.scheduler.allowed-failures": 0,
    # Dask gives a nanny up whose worker is not back in 15 s, however slow the machine is.
    "distributed.deploy.lost-worker-timeout": "10000 days",
    # Pages for people, which ask nobody for a certificate.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


@dataclass
class LocalWorkers:
    """The nannies of workers that were started here."""

    cluster: Any = field(repr=False)
    client: Any = field(repr=False)
    replaced: int = 0

    def scale(self, workers: int) -> None:
        """Have so many workers."""
        self.cluster.scale(workers)

    def has(self, address: str) -> bool:
        """Return True if the nanny at an address is alive."""
        return any(_lives(nanny) and nanny.address == address for nanny in list(self.cluster.workers.values()))

    def look(self) -> None:
        """Replace those that gave up, so many times; hang up where none is left, so that nobody waits for ever."""
        from distributed.core import Status

        if self.cluster.status != Status.running:
            return
        gone = [name for name, nanny in self.cluster.workers.items() if not _lives(nanny)]
        for name in gone:
            wanted = len(self.cluster.worker_spec)
            if self.cluster.worker_spec.pop(name, None) is None:  # it goes already
                continue
            if self.replaced < _MOST_REPLACED:
                self.replaced += 1
                _LOG.warning("a worker process did not start again; another one takes its place")
                self.cluster.scale(wanted)
            else:
                _LOG.warning("a worker process did not start again; going on with %d", wanted - 1)
                self.cluster.scale(wanted - 1)
        if not self.cluster.worker_spec and self.client.status == "running":
            # In another thread: it says goodbye to a scheduler that is served by this one.
            threading.Thread(target=self.client.close, daemon=True).start()


def _lives(nanny: Any) -> bool:
    from distributed.core import Status

    return nanny.status not in (Status.closed, Status.closing, Status.failed)


@contextmanager
def started(workers: int) -> Iterator[tuple[LocalWorkers, Any]]:
    """Start so many workers; their nannies, and a client. They end with the context.

    Raises OutputError if certificates cannot be made, CampaignError if no worker starts.
    """
    import dask
    from distributed import Client, LocalCluster
    from distributed.security import Security
    from tornado.ioloop import PeriodicCallback

    try:
        security = Security.temporary()
    except ImportError:
        raise OutputError("cryptography is not installed; pip install 'onnxfi[distributed]'") from None
    with dask.config.set(_SETTINGS):
        try:
            cluster = LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0,
                silence_logs=logging.CRITICAL, host="127.0.0.1", security=security,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # a fixed port may be taken
            )  # fmt: skip
        except (RuntimeError, OSError, TimeoutError) as error:
            raise CampaignError(f"the worker processes do not start: {error}") from None
        # By its address: a client that knows its cluster changes what that knows of its workers, and they lose count.
        with cluster, Client(cluster.scheduler_address, security=security) as client:
            nannies = LocalWorkers(cluster, client)
            watch = PeriodicCallback(nannies.look, LOOK_MS)
            cluster.loop.add_callback(watch.start)
            try:
                yield nannies, client
            finally:
                cluster.loop.add_callback(watch.stop)
