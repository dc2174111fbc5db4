"""`onnxfi run MODEL`: run a campaign and print its report."""

from __future__ import annotations

import math
import re
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.campaign_options import CAMPAIGN, SOURCE, campaign_of
from onnxfi.cli.options import JSON, PATH, Duration, verb
from onnxfi.cli.streams import from_stdin
from onnxfi.cli.terminal import count, number, print_json, print_line, print_note, progress, table
from onnxfi.errors import InputError

if TYPE_CHECKING:
    from onnxfi.campaign.results.rows import Result
    from onnxfi.campaign.run.runner import Running
    from onnxfi.campaign.spec.campaign import Campaign

#: Seconds between two updates of the progress: of the bar on a terminal, and of lines elsewhere.
_BAR_S, LINE_S = 0.5, 60.0
#: Kept of --time for the report: a share, and seconds at most.
_REPORT_SHARE, _REPORT_S = 0.05, 5.0
#: Seconds of trials after which the first line comes.
FIRST_LINE_S = 5.0
#: Longest text of --shard.
_MAX_SHARD_LENGTH = 40


_OPTIONS = (
    click.option("-o", "--out", type=PATH, metavar="STORE", help="Store of the results (default: MODEL-stem.onnxfi.db in this folder)."),
    click.option("--workers", type=click.IntRange(0), metavar="N", help="Worker processes; 0 runs trials in this process (default: one per GPU that the provider uses, else one per core)."),
    click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Time limit of a trial; a longer one hangs, which is a DUE (default: 10 s and 20 golden runs)."),
    click.option("--worker-memory", metavar="SIZE", help="Memory limit of a worker, as 800MB or 4GB; a trial beyond it is a DUE (default: three quarters of the machine's; Linux)."),
    click.option("--scheduler", metavar="ADDRESS", help="Run trials on the workers of this Dask scheduler, as tcp://host:8786 (extra: distributed)."),
    click.option("--local-cluster", type=click.IntRange(1), metavar="N", help="Run trials on N Dask workers on this machine (extra: distributed)."),
    click.option("--shard", metavar="I/N", help="Run every N-th trial from the I-th into a separate store; see onnxfi merge."),
    click.option("--memory", metavar="SIZE", default="1GiB", show_default=True, help="Cache size of each worker process for golden activations and sessions; anything beyond is recomputed."),
    click.option("--memory-device", metavar="SIZE", help="Memory of its GPU that each worker may take, with all that it has open (default: any; needs --provider cuda or tensorrt)."),
    click.option("--time", "time_s", type=Duration(), metavar="TIME", help="Stop after this time, as 90s, 10m or 2h; the same command goes on."),
    click.option("--fresh", is_flag=True, help="Move an existing store to STORE.old and start again."),
)  # fmt: skip


@verb("run", "Run a campaign on MODEL: many trials on labelled data.", SOURCE, *CAMPAIGN, *_OPTIONS, JSON)
def command(
    source: Path, out: Path | None, workers: int | None, timeout_s: float | None, worker_memory: str | None, scheduler: str | None, local_cluster: int | None, shard: str | None, fresh: bool, memory: str, memory_device: str | None, time_s: float | None, as_json: bool, **flags: Any
) -> None:  # fmt: skip
    """Run a campaign of many trials on labelled data, into a store that can be resumed, extended and merged.

    The golden run is done twice, a canary checks that injected faults have an effect, then the trials run. The same
    command resumes an interrupted campaign; with more trials it extends it. Exit code 3: some trials ended in an error
    of the harness.

    \b
    onnxfi run model.onnx --data images.npz --ber 1e-7:1e-3 --repeat 10
    onnxfi run model.onnx --data images.npz --single --margin 0.01 --confidence 0.99
    onnxfi run model.onnx --data images.npz --single --margin 0.01 --per layer
    onnxfi run model.onnx --data images.npz --single --trials 100000 --outcomes class
    onnxfi run model.onnx --data images.npz --exhaustive --outcomes class -o model.classes.npz
    onnxfi run campaign.yaml
    """
    from onnxfi.campaign.workers.process_pool import spare_process

    began = time.monotonic()
    own = workers != 0 and scheduler is None and local_cluster is None
    with spare_process() if own else nullcontext() as spare:
        from onnxfi.campaign.report.report import report
        from onnxfi.campaign.run.runner import default_store, run
        from onnxfi.campaign.workers.dask_executor import cluster
        from onnxfi.campaign.workers.scheduling import default_workers
        from onnxfi.cli.report import print_report

        campaign = campaign_of(_kept(source, out), flags)
        if memory_device is not None:
            if campaign.engine.provider.lower() == "auto":
                raise click.UsageError("--memory-device needs the provider of the device; add --provider cuda")
            limit = f"gpu_mem_limit={parse_size(memory_device, 'memory-device')}"
            campaign = campaign.with_fields(provider_option=(*campaign.engine.provider_option, limit))
        if campaign.tabled:
            _run_classes(campaign, out, fresh=fresh, as_json=as_json, elsewhere=scheduler or local_cluster or shard)
            return
        if (workers is not None) + (scheduler is not None) + (local_cluster is not None) > 1:
            raise click.UsageError(
                "--workers, --scheduler and --local-cluster each choose where trials run; give only one of them"
            )
        store = out or default_store(campaign)
        with ExitStack() as stack:
            dask = (
                stack.enter_context(cluster(scheduler, local=local_cluster or 0))
                if scheduler or local_cluster
                else None
            )
            n_workers = dask.size() if dask is not None else default_workers(campaign) if workers is None else workers
            with progress("golden run twice, canary, planning of trials") as on_progress:
                running = run(
                    campaign, store, workers=n_workers, shard=_shard(shard), fresh=fresh, progress=on_progress, executor=dask,
                    timeout_s=timeout_s, worker_memory_bytes=parse_size(worker_memory),
                    kept_bytes=parse_size(memory, "memory") or 0, spare=spare,
                )  # fmt: skip
            if not as_json:
                for line in _start_lines(running, n_workers):
                    print_note(line)
            errors = follow(running, n_workers, began, time_s)
        if errors:
            print_note(
                f"{count(errors, 'trial')} ended in an error of the harness, not in an outcome; "
                f"onnxfi show {store} TRIAL prints it, the same command repeats these trials"
            )
        if running.total is None or errors < running.total or running.outcomes:
            found = report(store)
            if as_json:
                print_json(found.summary())
            else:
                print_report(found)
        if errors:
            raise SystemExit(3)


def _kept(source: Path, out: Path | None) -> Path:
    """Return the source; a model from standard input is kept beside its store, which is resumed with it."""
    if source.suffix != ".onnx" or not from_stdin(source):
        return source
    if out is None:
        raise click.UsageError("a model from standard input is kept beside its store; name that with -o STORE")
    return Path(shutil.copy(source, out.with_name(f"{out.name}.onnx")))


def _run_classes(campaign: Campaign, out: Path | None, *, fresh: bool, as_json: bool, elsewhere: object) -> None:
    """Run an exhaustive campaign whose outcomes are classes, in this process, and print its table."""
    from onnxfi.campaign.exhaustive.exhaustive_run import default_table, exhaustive_outcomes

    if elsewhere:
        raise click.UsageError(
            "--outcomes class runs in one process; leave --scheduler, --local-cluster and --shard out"
        )
    file, shown = out or default_table(campaign), time.monotonic()

    def on_progress(tensor: str, done: int, faults: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= LINE_S:
            shown = time.monotonic()
            print_note(f"{tensor}: {done:,} of {faults:,} faults")

    try:
        found = exhaustive_outcomes(campaign, file, fresh=fresh, progress=on_progress)
    except KeyboardInterrupt:
        print_note(f"interrupted; what is done is in {file}.parts, the same command goes on")
        raise SystemExit(130) from None
    if as_json:
        print_json({**found.summary(), "table": str(file)})
        return
    for by in ("layer", "bit"):
        rows = [
            (
                row[by],
                f"{row['faults']:,}",
                *(number(row[name], share=True) for name in ("sdc1", "any_sdc1", "due_samples", "top1")),
            )
            for row in found.rows(by)
        ]
        table(f"class outcomes by {by}", (by, ">faults", ">SDC-1", ">any SDC-1", ">DUE", ">top-1"), rows)
    pairs, cost = found.faults * found.samples, found.header["cost"]
    print_line(
        f"{found.faults:,} faults on {found.samples:,} samples: {100 * (1 - found.ran / pairs):.4f} % of "
        f"{pairs:,} answers proved, {found.ran:,} run; {cost['cpu_s']:,.0f} s of processor, {cost['wall_s']:,.0f} s"
    )
    print_line(f"wrote {file}")


def follow(running: Running, n_workers: int, began: float, time_s: float | None = None) -> int:
    """Run all trials, or those until a time is over, and show the progress; return the number of harness errors.

    `began` is the monotonic time at which the command began. InputError for a time in which no trial can begin.
    """
    if time_s is not None and time.monotonic() >= began + time_s and not running.outcomes.total():
        running.close()
        needed = time.monotonic() - began
        raise InputError(
            f"--time {time_s:g} s is too short: opening the model, two golden runs and the canary took {needed:.2g} s; "
            f"give --time {math.ceil(1.2 * needed + 2 * running.golden_s + 1)} or more"
        )
    from onnxfi.statistics.intervals import clopper_pearson

    # The report's intervals import scipy, which takes as long as some trials: it is imported while workers run them.
    threading.Thread(target=clopper_pearson, args=(0, 1)).start()
    errors = 0
    try:
        with closing(running), show_progress(running, n_workers) as on_progress:
            last = None if time_s is None else began + time_s - min(_REPORT_SHARE * time_s, _REPORT_S)
            for result in running.until(last):
                errors += result.error is not None
                on_progress(result)
    except KeyboardInterrupt:
        print_note(f"interrupted; finished trials are in {running.store}, the same command resumes")
        raise SystemExit(130) from None
    if running.out_of_time:
        print_note(f"the time is over; finished trials are in {running.store}, the same command goes on")
    return errors


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, slash, last = text.partition("/")
    whole = first.isdecimal() and last.isdecimal() and len(text) < _MAX_SHARD_LENGTH
    if not (slash and whole and 1 <= int(first) <= int(last)):
        raise click.UsageError(f"--shard must be of the form I/N with I from 1 to N, as 1/3, got {text!r}")
    return int(first), int(last)


def parse_size(text: str | None, flag: str = "worker-memory") -> int | None:
    """Return a size in bytes, as of 800MB, 4GB or 4GiB.

    >>> parse_size("4GiB"), parse_size("800 MB"), parse_size(None)
    (4294967296, 800000000, None)
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip(), re.I)
    if match is None:
        raise click.UsageError(f"--{flag}: invalid size {text!r}; write 800MB, 4GB or 4GiB")
    size = float(match[1]) * (1024 if match[3] else 1000) ** (" kmgt".index(match[2].lower() or " "))
    if size >= 1 << 63:
        raise click.UsageError(f"--{flag}: size {text[:40]!r} is too large; write 800MB, 4GB or 4GiB")
    return int(size)


def _start_lines(running: Running, workers: int) -> Iterator[str]:
    """Yield the lines that are printed before the first trial."""
    yield from running.plan.describe()
    yield running.note
    done = running.outcomes.total()
    if running.total is None:
        if done:
            yield f"{done:,} trials are in {running.store} already"
        yield f"one trial takes about {running.golden_s:.2g} s on one of {max(1, workers)} cores"
        return
    if done:
        yield f"{done:,} of {running.total:,} trials are in {running.store} already"
    if left := running.total - done:
        n_workers = max(1, workers)
        seconds = duration(left * running.golden_s / n_workers)
        rest = f"the remaining {left:,} about {seconds} on {count(n_workers, 'core')}, or less by partial execution"
        yield f"one trial takes about {running.golden_s:.2g} s, {rest}"


def duration(seconds: float) -> str:
    """Return a duration as text.

    >>> duration(50), duration(5000), duration(5e6)
    ('50 s', '1.4 hours', '57.9 days')
    """
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= (2 if unit != "hours" else 1) * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def show_progress(running: Running, n_workers: int) -> Iterator[Callable[[Result], None]]:
    """Show finished trials, speed, time left and outcome rates: a bar on a terminal, else a line a minute."""
    counts, started, terminal = Counter(running.outcomes), time.monotonic(), sys.stderr.isatty()
    # A bar is shown from the first trial, the first line after some seconds.
    done, busy_s, shown = 0, 0.0, started - _BAR_S if terminal else started + min(FIRST_LINE_S, LINE_S) - LINE_S
    headline_sum = running.headline_sum

    def update(result: Result) -> str | None:
        nonlocal done, busy_s, shown, headline_sum
        done, busy_s = done + 1, busy_s + result.time_s
        headline_sum += running.headline.value(result.outcome, result.metrics) or 0.0
        counts.update([result.outcome] if result.error is None else [])
        now = time.monotonic()
        if now - shown < (_BAR_S if terminal else LINE_S):
            return None
        shown = now
        speed = trials_per_second(done, now - started, busy_s, n_workers)
        return _progress_text(running, counts, headline_sum, done, speed)

    if not terminal:

        def print_progress(result: Result) -> None:
            if text := update(result):
                print_note(text)

        yield print_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(20), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        begins = f"trials on {n_workers or 1} {'core' if n_workers < 2 else 'cores'}"
        task = bar.add_task(begins, total=running.total, completed=running.outcomes.total())

        def update_bar(result: Result) -> None:
            bar.update(task, advance=1, description=update(result))

        yield update_bar


def trials_per_second(done: int, elapsed_s: float, busy_s: float, n_workers: int) -> float:
    """Return the number of trials per second.

    In the first minute workers are still starting, and most of their results have not arrived: the time of the trials
    themselves is then a better estimate than the clock.

    >>> trials_per_second(8, 4.0, 0.8, 2), trials_per_second(8_000, 100.0, 80.0, 2)
    (20.0, 80.0)
    """
    clock = done / max(elapsed_s, 1e-9)
    return max(clock, max(n_workers, 1) * done / max(busy_s, 1e-9)) if elapsed_s < 60 else clock


def _progress_text(running: Running, counts: Counter[str], headline_sum: float, done: int, rate: float) -> str:
    from onnxfi.cli.report import estimate_text
    from onnxfi.statistics.intervals import clopper_pearson

    n, before = counts.total(), running.outcomes.total()
    if running.total is None:
        found = "" if running.look is None else estimate_text(running.look)
        return f"{before + done:,} trials  {rate:.3g}/s  {found}"
    left = duration((running.total - before - done) / rate)
    confidence = running.plan.campaign.confidence
    rates = [(name, clopper_pearson(counts[name], n, confidence)) for name in ("masked", "sdc", "due")] if n else []
    rate_texts = [f"{name} {100 * i.estimate:.1f} % [{100 * i.low:.1f}, {100 * i.high:.1f}]" for name, i in rates]
    if (
        n and running.headline.share
    ):  # the share of answers that faults have changed: first, a narrow terminal cuts the end
        rate_texts.insert(0, f"{running.headline.label} {running.headline.text(headline_sum / n)}")
    return "  ".join([f"{before + done:,} of {running.total:,}", f"{rate:.3g}/s", f"{left} left", *rate_texts])
