"""Campaigns in one call, on what a program or a notebook holds: models and samples in memory as well as files.

The other functions on such values are in campaigns.py. The functions behind them take values (`Campaign`) and paths
alone, since a campaign is resumed, extended and shared between processes by what is on disk. What is given in memory is
therefore kept beside the store.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from onnxfi.numbers import named_whole, optional_whole, seconds

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from onnxfi.campaign.report.report import Report
    from onnxfi.campaign.results.rows import Result
    from onnxfi.campaign.run.runner import Running
    from onnxfi.campaign.spec.campaign import Campaign
    from onnxfi.campaign.workers.dask_executor import Cluster
    from onnxfi.graph.model.loading import ModelLike
    from onnxfi.runtime.engine.ports import Port


def run(
    model: ModelLike | Campaign,
    data: Any = None,
    store: str | Path | None = None,
    *,
    workers: int = 0,
    shard: tuple[int, int] | None = None,
    fresh: bool = False,
    executor: Callable[[], Executor] | Cluster | None = None,
    kept_bytes: int = 1 << 30,
    progress: bool | None = None,
    on_result: Callable[[Result], None] | None = None,
    timeout_s: float | str | None = None,
    time_s: float | str | None = None,
    worker_memory_bytes: int | None = None,
    **fields: Any,
) -> Report:
    """Run a campaign to its end and return its report.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto, Model or Campaign
        The model, or a campaign as a value, which then has `data` and `fields` already.
    data : path, arrays, dataset, or None
        The samples with their labels, as `open_data` takes them; None for synthetic inputs.
    store : str or Path, optional
        The file of the results. An existing one of the same campaign is resumed, or extended where more trials are
        asked for. Without it they are kept in a temporary file for as long as the report is.
    workers : int
        Processes that run trials; with 0 they run in this process, which a fault that crashes the runtime ends.
    shard : tuple of int, optional
        (i, n): run every n-th trial from the i-th on; `merge` unites the stores.
    fresh : bool
        Move an existing store to STORE.old and begin again.
    executor : callable or Cluster, optional
        Makes a `concurrent.futures.Executor` that runs the trials; or a cluster of Dask.
    kept_bytes : int
        Golden values and sessions that each process keeps, in bytes; beyond it they are computed again.
    progress : bool, optional
        Show the progress; by default in a notebook and on a terminal.
    on_result : callable, optional
        Called with each `Result` as it comes back.
    timeout_s : float or str, optional
        The time after which a trial hangs, in seconds or as ``30s``; by default 10 and that of 20 golden runs.
        With workers alone.
    time_s : float or str, optional
        The time after which it stops, in seconds or as ``10m``; the report is that of the trials that have finished.
    worker_memory_bytes : int, optional
        The memory of a worker; by default three quarters of the machine's.
    **fields
        The fields of `Campaign`: ``ber``, ``repeat``, ``single``, ``target``, ``include``, ``fault``, ….

    Returns
    -------
    Report
        The rates with their intervals. Where it was interrupted in a notebook, of the trials that have finished.

    Raises
    ------
    InputError
        For a model, data or fields that do not fit, with the remedy.
    StoreError
        For a store of another campaign, unless `fresh`.
    CampaignError
        If the golden run is not deterministic, or a canary fault stays masked.
    KeyboardInterrupt
        Where it was interrupted and is no notebook, or no trial has finished; a `store` that was given keeps them.

    Examples
    --------
    >>> found = run("models/fashion_cnn.onnx", "models/fashion_test.npz", ber=1e-4, repeat=3, samples=50)
    >>> found.everything.trials, found.by_rate[0].rate("top1").estimate < 0.9
    (3, True)
    """
    from onnxfi.campaign.run import runner

    workers, kept_bytes = named_whole("workers", workers), named_whole("kept_bytes", kept_bytes)
    worker_memory_bytes = optional_whole("worker_memory_bytes", worker_memory_bytes)
    shard = None if shard is None else (named_whole("shard", shard[0]), named_whole("shard", shard[1]))
    timeout_s = None if timeout_s is None else seconds(timeout_s)
    deadline = None if time_s is None else time.monotonic() + seconds(time_s)
    with answer_folder(None if store is None else Path(store).parent) as (folder, forget):
        place = folder / "campaign.onnxfi.db" if store is None else Path(store)
        campaign = kept_campaign(model, data, place, fields)
        running = runner.run(
            campaign, place, workers=workers, shard=shard, fresh=fresh, executor=executor, kept_bytes=kept_bytes,
            timeout_s=timeout_s, worker_memory_bytes=worker_memory_bytes,
        )  # fmt: skip
        finished = _follow(running.until(deadline), running, workers, progress, on_result)
        found = _reported(place, finished)
    forget(found)
    return found


@contextmanager
def answer_folder(given: str | Path | None = None) -> Iterator[tuple[Path, Callable[[Any], object]]]:
    """Yield a folder, and a function after whose argument's end it is removed, if it is a temporary one."""
    if given is not None:
        yield Path(given), lambda found: None
        return
    scratch = tempfile.mkdtemp(prefix="onnxfi-")
    try:
        yield Path(scratch), lambda found: weakref.finalize(found, shutil.rmtree, scratch, ignore_errors=True)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def kept_campaign(model: ModelLike | Campaign, data: Any, store: Path, fields: dict[str, Any]) -> Campaign:
    """Return a campaign on files; a model and samples in memory are written beside the store first.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     proto = Path("models/fashion_cnn.onnx").read_bytes()
    ...     campaign = kept_campaign(proto, None, Path(folder, "s.db"), {"ber": 1e-6})
    ...     Path(campaign.model).name
    's.db.onnx'
    """
    from onnxfi.campaign.spec.campaign import Campaign
    from onnxfi.errors import SpecError

    if isinstance(model, Campaign):
        given = [name for name in ("data",) if data is not None] + list(fields)
        if given:
            raise SpecError(f"the campaign has its {given[0]} already; give {given[0]} to Campaign, or a model here")
        return model
    kept = kept_model(model, store)
    return Campaign(kept, kept_data(data, kept, store, fields), **fields)


def kept_model(model: ModelLike, store: Path) -> str:
    """Return the file of a model; one in memory is written beside the store first."""
    from onnxfi.graph.model.loading import stored_form
    from onnxfi.graph.write.output_file import atomic_files

    found = stored_form(model)
    if not isinstance(found, bytes):
        return str(found)
    file = store.with_name(f"{store.name}.onnx")
    with atomic_files([file]) as (stream,):
        stream.write(found)
    return str(file)


def kept_data(data: Any, model: str, store: Path, fields: Mapping[str, Any] = MappingProxyType({})) -> str | None:
    """Return the name of data, None for synthetic inputs; samples in memory are written beside the store first.

    `fields` are those of the campaign: how many `samples` are read, and what a pipeline may name.
    """
    from onnxfi.runtime.data.in_memory import named_arrays
    from onnxfi.runtime.data.npz import write_npz

    if data is None or isinstance(data, str | Path):
        return None if data is None else str(data)
    arrays = named_arrays(data, _inputs(model, fields), fields.get("samples"))
    return str(write_npz(store.with_name(f"{store.name}.data.npz"), arrays))


def _inputs(model: str, fields: Mapping[str, Any]) -> Sequence[Port]:
    """Return the inputs of a model, or those of a pipeline that its data gives."""
    from onnxfi.campaign.spec.pipeline_file import load_pipeline, names_pipeline
    from onnxfi.graph.model.loading import load
    from onnxfi.runtime.engine.ports import inputs_of
    from onnxfi.runtime.pipeline.open_pipeline import open_pipeline

    code, links = (bool(fields.get(name)) for name in ("allow_code", "allow_links"))
    if names_pipeline(model):
        return open_pipeline(load_pipeline(model), allow_code=code, allow_links=links).data_ports
    return inputs_of(load(model, allow_links=links).proto)


def _reported(store: Path, finished: bool) -> Report:
    from onnxfi.campaign.report.report import report
    from onnxfi.errors import StoreError

    try:
        found = report(store)
    except StoreError:
        if finished:
            raise
        raise KeyboardInterrupt from None
    if not finished:
        done = f"{found.everything.trials:,} of {found.planned:,} trials"
        warnings.warn(f"interrupted after {done}; run it again with the same store to go on", stacklevel=3)
    return found


def _follow(
    results: Iterator[Result],
    running: Running,
    workers: int,
    shown: bool | None,
    on_result: Callable[[Result], None] | None,
) -> bool:
    """Run all trials; return whether the campaign was left to end."""
    try:
        with closing(running), _display(running, workers, shown) as display:
            for result in results:
                for each in (display, on_result):
                    if each is not None:
                        each(result)
    except KeyboardInterrupt:
        if not in_notebook():
            raise
        return False
    return True


def _display(
    running: Running, workers: int, shown: bool | None
) -> AbstractContextManager[Callable[[Result], None] | None]:
    if shown is False or (shown is None and not (in_notebook() or (sys.stderr is not None and sys.stderr.isatty()))):
        return nullcontext()
    from onnxfi.cli.run import show_progress

    return show_progress(running, workers)


def in_notebook() -> bool:
    """Return whether this program is a notebook, whose stop button interrupts one cell."""
    return "ipykernel" in sys.modules
