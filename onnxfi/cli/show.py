"""Printing: tables, numbers, progress; names from strangers are made harmless."""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onnxfi.graph.mutate import Progress

#: Texts up to this length stay on one line.
_FOLDABLE = 16
_UNBOUNDED = 100_000


def safe(text: object) -> str:
    """Text with control, escape and direction characters written out, so that a name cannot steer a terminal.

    >>> safe("conv\\x1b[31m")
    'conv\\\\x1b[31m'
    """
    return "".join(
        c if c == " " or unicodedata.category(c)[0] not in "CZ" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, footer: Sequence[object] = ()
) -> None:
    """Print a table; a column whose name starts with `>` is right-aligned.

    On a terminal long texts fold inside their columns, numbers and short texts never; elsewhere nothing does.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, show_footer=bool(footer), pad_edge=False)
    texts = [[safe(cell) for cell in row] for row in rows]
    foot = [safe(cell) for cell in footer] or [""] * len(columns)
    least = 0
    for name, under, *cells in zip(columns, foot, *texts, strict=True):
        number = name.startswith(">")
        head = name.lstrip(">")
        longest = max(map(cell_len, (head, under, *cells)))
        width = longest if number else min(longest, _FOLDABLE)
        grid.add_column(
            head, under, justify="right" if number else "left", overflow="fold", no_wrap=number, min_width=width
        )
        least += width + 3  # the rule's two spaces and one
    for row in texts:
        grid.add_row(*row)
    out = Console(highlight=False, markup=False, emoji=False)
    terminal = sys.stdout is not None and sys.stdout.isatty()
    out.width = max(out.width, least) if terminal else _UNBOUNDED
    with out.capture() as text:
        out.print(grid)
    say(title)
    click.echo(text.get(), nl=False)


def say(text: str) -> None:
    """Print a line as it is."""
    click.echo(safe(text))


def note(text: str) -> None:
    """Print a line to standard error: what a reader should know, but a program need not."""
    click.echo(f"onnxfi: {safe(text)}", err=True)


def document(values: dict[str, Any]) -> None:
    """Print one strict JSON document, in ASCII, so that no name in it can steer a terminal."""
    click.echo(json.dumps(values, allow_nan=False, indent=2))


def count(n: int, what: str) -> str:
    """A number of things.

    >>> count(1, "target"), count(2048, "fault")
    ('1 target', '2,048 faults')
    """
    return f"{n:,} {what}{'s' * (n != 1)}"


def number(value: float | None, *, share: bool = False) -> str:
    """A metric for people: shares in percent, the rest with four significant digits.

    >>> number(0.9115, share=True), number(0.000123456), number(None)
    ('91.15 %', '0.0001235', '-')
    """
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if share else f"{value:.4g}"


def change(row: Mapping[str, Any]) -> str:
    """The numbers of a fault's line before and after; of a quantised word also the real ones.

    >>> change({"before_value": 12, "after_value": -116, "before_real": 0.5, "after_real": -4.75})
    '12 → -116 (0.5 → -4.75)'
    """
    text = f"{row['before_value']} → {row['after_value']}"
    return f"{text} ({row['before_real']} → {row['after_real']})" if "before_real" in row else text


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
