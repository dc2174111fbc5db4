"""`onnxfi run MODEL`: a campaign, from the first trial to the report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.campaign_options import SOURCE, campaign, campaign_options
from onnxfi.cli.options import JSON

if TYPE_CHECKING:
    from onnxfi.campaign.runner import Running
    from onnxfi.campaign.store import Result


@click.command("run")
@SOURCE
@campaign_options
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="STORE",
    help="Where results go (default: MODEL-stem.onnxfi.db in this folder).",
)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Worker processes (default: the cores).")
@click.option(
    "--shard", metavar="I/N", help="Run every N-th trial from the I-th on, into a store of its own; see onnxfi merge."
)
@click.option("--fresh", is_flag=True, help="Move an existing store to STORE.old and start anew.")
@JSON
def command(
    source: Path, out: Path | None, workers: int | None, shard: str | None, fresh: bool, as_json: bool, **given: Any
) -> None:
    """Run a campaign: many trials on labelled data, into a store that can be resumed, extended and merged.

    Golden runs twice, a canary proves that faults reach the weights, then the trials. The same command goes on where a
    stopped one was; with more trials it extends.

    \b
    onnxfi run model.onnx --data images.npz --ber 1e-7:1e-3 --repeat 10
    onnxfi run model.onnx --data images.npz --single --margin 0.01 --confidence 0.99
    onnxfi run model.onnx --data images.npz --single --margin 0.01 --per layer
    onnxfi run campaign.yaml
    """
    from onnxfi.campaign.report import report
    from onnxfi.campaign.runner import default_store, run
    from onnxfi.campaign.store import set_aside
    from onnxfi.cli.report import print_report
    from onnxfi.cli.show import document, note

    wanted = campaign(source, given)
    store = out or default_store(wanted.model)
    old = set_aside(store) if fresh else None
    if old is not None and not as_json:
        note(f"moved the old store to {old}")
    running = run(wanted, store, workers=workers or os.cpu_count() or 1, shard=_shard(shard))
    if not as_json:
        for line in _begin(running, workers or os.cpu_count() or 1):
            note(line)
    errors = 0
    try:
        with _live(running) as tell:
            for result in running:
                errors += result.error is not None
                tell(result)
    except KeyboardInterrupt:
        note(f"stopped; what was done is in {store}, the same command goes on from there")
        raise SystemExit(130) from None
    if errors:
        note(
            f"{errors} trials ended in an error of the harness, not in an outcome; onnxfi show {store} TRIAL says why; the same command runs them again"
        )
    found = report(store)
    if as_json:
        document(found.document())
    else:
        print_report(found)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, slash, last = text.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise click.UsageError(f"--shard {text!r} is not of the form I/N with I from 1 to N, as 1/3")
    return int(first), int(last)


def _begin(running: Running, workers: int) -> Iterator[str]:
    yield from running.plan.describe()
    yield f"{running.bench.data.description}; {running.bench.note}"
    left = running.total - running.done
    if running.done:
        yield f"{running.done:,} of {running.total:,} trials are in {running.store} already"
    yield f"one golden run took {running.golden_s:.2f} s; {left:,} trials with {workers} workers take some {_duration(left * running.golden_s * 1.3 / workers)}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def _live(running: Running) -> Iterator[Any]:
    """A progress bar with the running outcome rates, on a terminal."""
    import sys

    counts = {"masked": 0, "sdc": 0, "due": 0}

    def count(result: Result) -> None:
        if result.error is None:
            counts[result.outcome] += 1

    if not sys.stderr.isatty():
        yield count
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from onnxfi.faults.statistics import clopper_pearson

    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=running.total, completed=running.done)

        def tell(result: Result) -> None:
            count(result)
            n = sum(counts.values())
            if n and (n < 50 or n % 20 == 0):
                ends = {k: clopper_pearson(v, n, running.plan.campaign.confidence) for k, v in counts.items()}
                text = "  ".join(f"{k} {i.estimate:.1%} [{i.low:.1%}, {i.high:.1%}]" for k, i in ends.items())
                bar.update(task, advance=1, description=text)
            else:
                bar.advance(task)

        yield tell
