"""`onnxfi run MODEL`: a campaign, from the first trial to the report."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.campaign_options import SOURCE, campaign, campaign_options
from onnxfi.cli.options import JSON, PATH

if TYPE_CHECKING:
    from onnxfi.campaign.execute.runner import Running
    from onnxfi.campaign.results.rows import Result

#: Seconds between two looks at how it goes: on a terminal, and elsewhere.
_LOOK_S, _LINE_S = 0.5, 60.0
#: Letters of I/N.
_LONGEST_SHARD = 40


@click.command("run", short_help="Run a campaign on MODEL: many trials on labelled data.")
@SOURCE
@campaign_options
@click.option(
    "-o", "--out", type=PATH, metavar="STORE", help="Where results go (default: MODEL-stem.onnxfi.db in this folder)."
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    metavar="N",
    help="Workers, in processes of their own; 0 runs trials in this one (default: the cores).",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    metavar="SECONDS",
    help="A trial that takes longer hangs, which is DUE (default: 10 s and 20 golden runs).",
)
@click.option(
    "--worker-memory",
    metavar="SIZE",
    help="A trial that takes more of its worker is out of memory, as 800MB or 4GB (default: three quarters of the machine's; Linux).",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Run trials on the workers of this Dask scheduler, as tcp://host:8786 (extra: distributed).",
)
@click.option(
    "--local-cluster",
    type=click.IntRange(1),
    metavar="N",
    help="Run trials on so many Dask workers on this machine (extra: distributed).",
)
@click.option(
    "--shard", metavar="I/N", help="Run every N-th trial from the I-th on, into a store of its own; see onnxfi merge."
)
@click.option(
    "--memory",
    metavar="SIZE",
    default="1GiB",
    show_default=True,
    help="What each worker process keeps of golden values and sessions; what is beyond is computed again.",
)
@click.option("--fresh", is_flag=True, help="Move an existing store to STORE.old and start anew.")
@JSON
def command(
    source: Path, out: Path | None, workers: int | None, timeout_s: float | None, worker_memory: str | None, scheduler: str | None, local_cluster: int | None, shard: str | None, fresh: bool, memory: str, as_json: bool, **given: Any
) -> None:  # fmt: skip
    """Run a campaign: many trials on labelled data, into a store that can be resumed, extended and merged.

    Golden runs twice, a canary proves that faults reach the weights, then the trials. The same command goes on where a
    stopped one was; with more trials it extends. Exit code 3: some trials ended in an error of the harness.

    \b
    onnxfi run model.onnx --data images.npz --ber 1e-7:1e-3 --repeat 10
    onnxfi run model.onnx --data images.npz --single --margin 0.01 --confidence 0.99
    onnxfi run model.onnx --data images.npz --single --margin 0.01 --per layer
    onnxfi run campaign.yaml
    """
    from onnxfi.campaign.execute.process_pool import hatched

    own = workers != 0 and scheduler is None and local_cluster is None
    with hatched() if own else nullcontext():
        from onnxfi.campaign.execute.dask_cluster import cluster
        from onnxfi.campaign.execute.runner import default_store, run
        from onnxfi.campaign.execute.scheduling import cores
        from onnxfi.campaign.report.report import report
        from onnxfi.cli.report import print_report
        from onnxfi.cli.terminal import count, document, note, progress

        wanted = campaign(source, given)
        if (workers is not None) + (scheduler is not None) + (local_cluster is not None) > 1:
            raise click.UsageError(
                "--workers, --scheduler and --local-cluster each say where trials run; give one of them"
            )
        store = out or default_store(wanted.model)
        with ExitStack() as stack:
            far = (
                stack.enter_context(cluster(scheduler, local=local_cluster or 0))
                if scheduler or local_cluster
                else None
            )
            crew = far.size() if far is not None else cores() if workers is None else workers
            with progress("planning") as told:
                running = run(
                    wanted, store, workers=crew, shard=_shard(shard), fresh=fresh, progress=told, executor=far,
                    timeout_s=timeout_s, worker_memory_bytes=_size(worker_memory),
                    kept_bytes=_size(memory, "memory") or 0,
                )  # fmt: skip
            if not as_json:
                for line in _begin(running, crew):
                    note(line)
            errors = _follow(running, crew)
        if errors:
            note(
                f"{count(errors, 'trial')} ended in an error of the harness, not in an outcome; "
                f"onnxfi show {store} TRIAL says why, the same command runs them again"
            )
        if running.total is None or errors < running.total or running.outcomes:
            found = report(store)
            if as_json:
                document(found.summary())
            else:
                print_report(found)
        if errors:
            raise SystemExit(3)


def _follow(running: Running, crew: int) -> int:
    """Run to the end, and show how it goes; how many trials ended in an error of the harness."""
    from onnxfi.cli.terminal import note
    from onnxfi.statistics.intervals import clopper_pearson

    # The report's intervals load scipy, which takes as long as some trials: that is done while workers run them.
    threading.Thread(target=clopper_pearson, args=(0, 1)).start()
    errors = 0
    try:
        with closing(running), _live(running, crew) as tell:
            for result in running:
                errors += result.error is not None
                tell(result)
    except KeyboardInterrupt:
        note(f"stopped; what was done is in {running.store}, the same command goes on from there")
        raise SystemExit(130) from None
    return errors


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, slash, last = text.partition("/")
    whole = first.isdecimal() and last.isdecimal() and len(text) < _LONGEST_SHARD
    if not (slash and whole and 1 <= int(first) <= int(last)):
        raise click.UsageError(f"--shard {text!r} is not of the form I/N with I from 1 to N, as 1/3")
    return int(first), int(last)


def _size(text: str | None, flag: str = "worker-memory") -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip(), re.I)
    if match is None:
        raise click.UsageError(f"--{flag} {text!r} is no size; write 800MB, 4GB or 4GiB")
    size = float(match[1]) * (1024 if match[3] else 1000) ** (" kmgt".index(match[2].lower() or " "))
    if size >= 1 << 63:
        raise click.UsageError(f"--{flag} {text[:40]!r} is more than any machine has; write 800MB, 4GB or 4GiB")
    return int(size)


def _begin(running: Running, workers: int) -> Iterator[str]:
    """What is known before the first trial."""
    from onnxfi.cli.terminal import count

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
        crew = max(1, workers)
        seconds = duration(left * running.golden_s / crew)
        much = f"the {left:,} to run some {seconds} on {count(crew, 'core')}, or less by shorter routes"
        yield f"one trial takes about {running.golden_s:.2g} s, {much}"


def duration(seconds: float) -> str:
    """A length of time for people.

    >>> duration(50), duration(5000), duration(5e6)
    ('50 s', '1.4 hours', '57.9 days')
    """
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= (2 if unit != "hours" else 1) * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def _live(running: Running, crew: int) -> Iterator[Callable[[Result], None]]:
    """How it goes: trials done, rate, time left, outcome rates so far. A bar on a terminal, else a line a minute."""
    from onnxfi.cli.terminal import note

    counts, begun, terminal = Counter(running.outcomes), time.monotonic(), sys.stderr.isatty()
    done, busy_s, told = 0, 0.0, begun - _LOOK_S if terminal else begun  # a bar tells from its first trial on

    def look(result: Result) -> str | None:
        nonlocal done, busy_s, told
        done, busy_s = done + 1, busy_s + result.time_s
        counts.update([result.outcome] if result.error is None else [])
        now = time.monotonic()
        if now - told < (_LOOK_S if terminal else _LINE_S):
            return None
        told = now
        return _state(running, counts, done, pace(done, now - begun, busy_s, crew))

    if not terminal:

        def tell_line(result: Result) -> None:
            if text := look(result):
                note(text)

        yield tell_line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(20), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=running.total, completed=running.outcomes.total())

        def tell_bar(result: Result) -> None:
            bar.update(task, advance=1, description=look(result))

        yield tell_bar


def pace(done: int, elapsed_s: float, busy_s: float, crew: int) -> float:
    """How many trials a second end.

    In the first minute workers still start, and most of what they have done has not come back: then what the trials
    themselves took says more than the clock.

    >>> pace(8, 4.0, 0.8, 2), pace(8_000, 100.0, 80.0, 2)
    (20.0, 80.0)
    """
    clock = done / max(elapsed_s, 1e-9)
    return max(clock, max(crew, 1) * done / max(busy_s, 1e-9)) if elapsed_s < 60 else clock


def _state(running: Running, counts: Counter[str], done: int, rate: float) -> str:
    from onnxfi.cli.report import seen
    from onnxfi.statistics.intervals import clopper_pearson

    n, before = counts.total(), running.outcomes.total()
    if running.total is None:
        found = "" if running.look is None else seen(running.look)
        return f"{before + done:,} trials  {rate:.3g}/s  {found}"
    left = duration((running.total - before - done) / rate)
    confidence = running.plan.campaign.confidence
    rates = [(name, clopper_pearson(counts[name], n, confidence)) for name in ("masked", "sdc", "due")] if n else []
    said = [f"{name} {100 * i.estimate:.1f} % [{100 * i.low:.1f}, {100 * i.high:.1f}]" for name, i in rates]
    return "  ".join([f"{before + done:,} of {running.total:,}", f"{rate:.3g}/s", f"{left} left", *said])
