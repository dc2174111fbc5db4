"""A cluster of Dask distributed, behind the protocol of `concurrent.futures.Executor` that the runner speaks.

Model and data travel to each worker once, by content, unless it sees the same files at the same paths. A worker that
dies is Dask's to replace; what it was doing is run once more, alone, in a process that has started again for it. Where
none starts again, a campaign goes on with those that are left. The extra `distributed`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.flat_fields import flat
from onnxfi.campaign.workers.local_dask_cluster import NONE_LEFT, started
from onnxfi.campaign.workers.process_pool import DEVICE_EXIT, begin
from onnxfi.campaign.workers.scheduling import WorkerDied, versions
from onnxfi.campaign.workers.worker import THIS_WORKER, WorkerSetup
from onnxfi.errors import CampaignError, DeviceError, InputError, OnnxfiError, OutputError
from onnxfi.runtime.engine.protocols import Engine, smallest_model

_LOG = logging.getLogger(__name__)
#: Seconds in which a scheduler answers and has a worker.
ANSWER_S = 30.0
#: Seconds after which one looks again for a worker that is free, or has come back.
_AGAIN_S = 0.1
#: Seconds in which a worker ends and comes back, and in which one of a foreign scheduler has nothing to do.
RESTART_S = 120.0
_LOST = "the scheduler is lost; what was done is in the store, and the same command, with another scheduler, goes on"
#: Providers whose trials go to workers that offer the resource GPU, one at a time for each, where there are such.
ON_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


@dataclass
class Cluster:
    """Workers of a scheduler; `own` starts those that were made for this campaign. Made by `cluster`."""

    client: Any = field(repr=False)
    own: Any = field(default=None, repr=False)
    files_digest: str | None = None
    resources: dict[str, float] = field(default_factory=dict)
    restarts_fail: bool = False

    @property
    def owned(self) -> bool:
        """True if the workers were started for this campaign."""
        return self.own is not None

    def size(self) -> int:
        """Workers that are there now; later more or fewer."""
        with self.reached():
            return max(1, len(self._eligible()))

    def pool(self, size: int) -> Executor:
        """Return an executor over all workers; of size 1 over one restarted by its nanny, where there is one."""
        with self.reached():
            return _Tasks(self, self.restart_idle() if size == 1 else None)

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Say so where the scheduler is gone, or no worker of ours starts."""
        try:
            self._answers()
            yield
        except (OSError, TimeoutError):
            raise CampaignError(self.lost) from None
        except RuntimeError:  # a connection that the client closes while it is in use
            self._answers()
            raise

    def _answers(self) -> None:
        if self.client.status in ("closing", "closed"):
            raise CampaignError(self.lost)

    @property
    def lost(self) -> str:
        """The message where no worker answers any more."""
        return NONE_LEFT if self.owned else _LOST

    def restart_idle(self) -> str | None:
        """Start a worker that has nothing to do anew; its address, or None if none can be, which is said.

        One that has just died comes back by itself, so while there is none it waits. Where one did not start again,
        the others are left as they are: they may not either.
        """
        until = time.monotonic() + RESTART_S
        while True:
            self._answers()
            busy, entries = self.client.processing(), self._entries()
            here = [entries[address] | {"address": address} for address in self._eligible() if address in entries]
            can = [worker for worker in here if worker["nanny"]]
            # Nobody waits any more for what runs on workers of ours.
            free = next((worker for worker in can if self.owned or not busy.get(worker["address"])), None)
            if here and (not can or self.restarts_fail or (self.owned and self.own.replaced)):
                return None
            if free is not None:
                return self._restarted(free)
            if can and time.monotonic() > until:
                _LOG.warning("no worker is without work: what ended one is run again in one that was used before")
                return None
            time.sleep(_AGAIN_S)

    def _restarted(self, worker: dict[str, Any]) -> str | None:
        """Have a nanny start its worker anew; the address of the new one, or None if none came, which is said."""
        until = time.monotonic() + RESTART_S
        try:
            # Not the client's method, which waits for a number of workers: another that comes back makes it up.
            self.client.sync(
                self.client.scheduler.restart_workers, workers=[worker["address"]], timeout=RESTART_S,
                wait_for_workers=False, on_error="return", stimulus_id=f"onnxfi-{time.time()}",
            )  # fmt: skip
        except Exception as error:  # whatever went wrong at the scheduler, or in the nanny
            self._answers()
            _LOG.info("restarting worker %s: %s", worker["address"], error)
        while time.monotonic() < until and not (self.owned and not self.own.has(worker["nanny"])):
            self._answers()
            for address, new in self._entries().items():
                back = new["nanny"] == worker["nanny"] and new["local_directory"] != worker["local_directory"]
                if back and new["status"] == "running":  # before that, what is sent to it goes to another one
                    return address
            time.sleep(_AGAIN_S)
        self.restarts_fail = True
        _LOG.warning("worker %s did not start again; going on with the others, as they are", worker["address"])
        return None

    def _eligible(self) -> list[str]:
        """Return the workers that trials go to."""
        if not self.resources:
            return list(self.client.nthreads())
        return [
            address
            for address, worker in self._entries().items()
            if self.resources.keys() <= worker["resources"].keys()
        ]

    def _entries(self) -> dict[str, Any]:
        """Return the scheduler's entry of each worker."""
        try:
            entries = self.client.scheduler_info(n_workers=-1)
        except TypeError:  # an older Dask lists all without being asked
            entries = self.client.scheduler_info()
        if "workers" not in entries:  # the client was closed meanwhile
            raise CampaignError(self.lost)
        return dict(entries["workers"])

    def send(self, opened: OpenCampaign) -> None:
        """Give every worker model and data; CampaignError for one whose versions, provider or libraries are others."""
        self.files_digest, shared = None, _files(opened)
        libraries = map(Path, opened.campaign.engine.custom_ops)
        digests = {str(path): file_sha256(path) for path in [*shared.values(), *libraries]}
        engine = opened.campaign.engine.open()
        with self.reached():
            self.resources = {"GPU": 1.0} if opened.provider in ON_GPU else {}
            self.resources = self.resources if self._eligible() else {}
            try:
                surveyed = self.client.run(survey, digests, engine, smallest_model(), workers=self._eligible())
            except (ImportError, AttributeError, TypeError):  # none, or one that does not know the function
                raise CampaignError("a worker has no onnxfi of this version; install the same one there") from None
        for address, (found, lacks, refusal) in surveyed.items():
            for name, here in versions(engine).items():
                if found.get(name) != here:
                    raise CampaignError(
                        f"worker {address} has {name} {found.get(name)}, this process {here}; install the same versions"
                    )
            for library in opened.campaign.engine.custom_ops:
                if str(Path(library)) in lacks:
                    raise CampaignError(
                        f"worker {address} lacks the custom operators {library!r}; put the library at that path there"
                    )
            if refusal:
                raise CampaignError(f"worker {address}: {refusal}")
        if any(lacks for _, lacks, _ in surveyed.values()):
            self.files_digest = name = hashlib.sha256("".join(digests.values()).encode()).hexdigest()[:32]
            contents = {place: path.read_bytes() for place, path in shared.items()}

            def arrive(worker: Any) -> None:
                unpack(_folder(worker, name), contents)

            self.client.register_plugin(_plugin(arrive), name=f"onnxfi-{name}")


class _Tasks(Executor):
    """An executor that submits work as tasks of Dask."""

    def __init__(self, cluster: Cluster, preferred: str | None = None) -> None:
        self.cluster = cluster
        self.where = {} if preferred is None else {"workers": [preferred], "allow_other_workers": True}
        self.running: set[Any] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function on a worker; `WorkerDied` where the worker dies of it."""
        answer: Future[Any] = Future()
        cluster = self.cluster
        how = {"pure": False, "resources": cluster.resources, **self.where}
        task = cluster.client.submit(_run_on_worker, fn, cluster.files_digest, *args, **how)
        self.running.add(task)

        def done(task: Any) -> None:
            self.running.discard(task)
            if answer.set_running_or_notify_cancel():
                _pass_on(task, answer, cluster.lost)

        task.add_done_callback(done)
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take back what has not run."""
        if self.running and self.cluster.client.status == "running":
            self.cluster.client.cancel(list(self.running), force=True)


def _pass_on(task: Any, answer: Future[Any], lost: str) -> None:
    from distributed.scheduler import KilledWorker

    if task.status == "finished":
        answer.set_result(task.result())
        return
    error = task.exception() if task.status == "error" else None
    if error is None:
        answer.set_exception(CampaignError(lost))
    elif isinstance(error, KilledWorker):
        answer.set_exception(WorkerDied(str(error), error.allowed_failures + 1))
    else:
        answer.set_exception(error)


def _run_on_worker(fn: Callable[..., Any], files_digest: str | None, setup: WorkerSetup, *args: Any) -> Any:
    """On a worker: run what was submitted, with the model and the data that were sent."""
    from distributed import get_worker

    worker = get_worker()
    campaign = setup.campaign
    if files_digest is not None:
        folder = _folder(worker, files_digest)
        names: dict[str, Any] = {
            name: str(folder / name / Path(given).name) for name, given in _given(campaign) if given
        }
        campaign = campaign.with_fields(**{name: path for name, path in names.items() if Path(path).is_file()})
    # Whatever threads Dask gives the process: a trial that hangs ends it.
    with THIS_WORKER.one_at_a_time:
        try:
            return fn(replace(setup, campaign=campaign), *args)
        except DeviceError as error:
            if multiprocessing.parent_process() is not None:  # its nanny starts another
                os._exit(DEVICE_EXIT)
            raise CampaignError(f"worker {worker.address}: {error}; start it with a nanny") from None
        except OnnxfiError as error:
            raise CampaignError(f"worker {worker.address}: {error}") from None


def _given(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    return ((name, flat(campaign)[name]) for name in ("model", "data", "labels", "preprocess", "neurons"))


def _folder(worker: Any, files_digest: str) -> Path:
    return Path(worker.local_directory) / f"onnxfi-{os.getpid()}-{files_digest}"


def _files(opened: OpenCampaign) -> dict[str, Path]:
    """Return the files that a worker needs by their place in its folder; folders of images are left out."""
    file = Path(opened.campaign.model)
    folder = file.parent
    # A model whose neurons are exposed is in memory; workers make it of the file that it comes from.
    paths = [source.path for source in opened.model.sources if source.path is not None] or [file]
    if opened.front is not None and file.is_file():
        paths = [file, *opened.front.opened.files]
    found = {}
    for path in paths:
        place = os.path.relpath(path, folder)  # code of the current folder is looked for beside the pipeline, too
        found[f"model/{Path(path).name if place.startswith('..') else place}"] = Path(path)
    for name, given in _given(opened.campaign):
        if name != "model" and given and Path(given).is_file():
            found[f"{name}/{Path(given).name}"] = Path(given)
    return found


def _plugin(setup: Callable[[Any], None]) -> Any:
    """Return a plugin that Dask runs once on each worker, also on later ones."""
    from distributed import WorkerPlugin

    class Plugin(WorkerPlugin):  # type: ignore[misc]
        """Does what was given."""

        def setup(self, worker: Any) -> None:
            setup(worker)

    return Plugin()


def unpack(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder, on a worker."""
    for place, content in files.items():
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def survey(digests: dict[str, str], engine: Engine, model: bytes) -> tuple[dict[str, str], list[str], str]:
    """On a worker: its versions, the files that it lacks as they are (by SHA-256), and why it runs no model."""
    lacks = [path for path, digest in digests.items() if file_sha256(Path(path)) != digest]
    try:
        engine.prepare(model)
    except OnnxfiError as error:
        return versions(engine), lacks, str(error)
    return versions(engine), lacks, ""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; "" if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


@contextmanager
def cluster(scheduler: str | None = None, *, local: int = 0) -> Iterator[Cluster]:
    """Workers of a scheduler (`tcp://host:8786`), or so many `local` ones, started for this campaign.

    Raises OutputError if Dask is not installed, InputError if no scheduler answers, or it has no worker.
    """
    if importlib.util.find_spec("distributed") is None:
        raise OutputError("distributed is not installed; pip install 'onnxfi[distributed]'")
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if scheduler is None:
        with started(local) as (own, client):
            client.register_plugin(_plugin(lambda worker: begin()), name="onnxfi")
            yield Cluster(client, own)
        return
    try:
        _check_connection(scheduler)
        client = Client(scheduler, timeout=ANSWER_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError):
        raise InputError(
            f"no scheduler answers at {scheduler!r} within {ANSWER_S:.0f} s; write tcp://host:8786 as `dask "
            f"scheduler` shows it, or take --local-cluster N"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=ANSWER_S)
        except TimeoutError:
            raise InputError(
                f"the scheduler {scheduler!r} has no worker; start one with `dask worker {scheduler}`"
            ) from None
        yield Cluster(client)


def _check_connection(scheduler: str) -> None:
    """Connect and hang up: a client that was made for nobody hangs, or complains, when it is collected."""
    import asyncio  # slow to load, and most campaigns have no scheduler

    from distributed.comm import connect
    from distributed.security import Security

    async def connect_once() -> None:
        comm = await connect(scheduler, timeout=ANSWER_S, **Security().get_connection_args("client"))
        await comm.close()

    with ThreadPoolExecutor(1) as thread:  # the caller may have a loop of their own
        thread.submit(asyncio.run, connect_once()).result()
