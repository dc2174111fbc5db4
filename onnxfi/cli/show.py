"""Printing: tables, numbers, progress; names from strangers are made harmless."""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from onnxfi.graph.mutate import Progress


def safe(text: object) -> str:
    """Text with control, escape and direction characters written out, so that a name cannot steer a terminal.

    >>> safe("conv\\x1b[31m")
    'conv\\\\x1b[31m'
    """
    return "".join(
        c if c == " " or unicodedata.category(c)[0] not in "CZ" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def console() -> Console:
    """Standard output; wide where it is no terminal, so that nothing is folded in a log."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 160, soft_wrap=False)


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, footer: Sequence[object] = ()
) -> None:
    """Print a table; a column whose name starts with `>` is right-aligned."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, show_footer=bool(footer), pad_edge=False)
    for k, column in enumerate(columns):
        right = column.startswith(">")
        grid.add_column(
            column.lstrip(">"),
            justify="right" if right else "left",
            overflow="fold",
            footer=escape(safe(footer[k])) if footer else "",
        )
    for row in rows:
        grid.add_row(*(escape(safe(cell)) for cell in row))
    out = console()
    out.print(escape(safe(title)), soft_wrap=True)
    out.print(grid)


def say(text: str) -> None:
    """Print a line as it is."""
    click.echo(safe(text))


def note(text: str) -> None:
    """Print a line to standard error: what a reader should know, but a program need not."""
    click.echo(f"onnxfi: {safe(text)}", err=True)


def document(values: dict[str, Any]) -> None:
    """Print one strict JSON document."""
    click.echo(json.dumps(values, allow_nan=False, ensure_ascii=False, indent=2))


def number(value: float | None, *, share: bool = False) -> str:
    """A metric for people: shares in percent, the rest with four significant digits.

    >>> number(0.9115, share=True), number(0.000123456), number(None)
    ('91.15 %', '0.0001235', '-')
    """
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if share else f"{value:.4g}"


@contextmanager
def progress(what: str) -> Iterator[Progress | None]:
    """A progress bar on standard error for what takes longer than a second, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    task, begun, shown = bar.add_task(what, total=None), time.monotonic(), False

    def tell(done: int, total: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - begun > 1:
            bar.start()
            shown = True
        if shown:
            bar.update(task, completed=done, total=total)

    try:
        yield tell
    finally:
        bar.stop()
