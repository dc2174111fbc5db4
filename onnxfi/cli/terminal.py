"""Printing: tables, numbers, progress; names from strangers are made harmless."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import click

from onnxfi.graph.model.byte_source import printable

if TYPE_CHECKING:
    from onnxfi.graph.write.faulty_copy import OnProgress

#: Texts up to this length stay on one line.
_FOLDABLE = 16


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, footer: Sequence[object] = ()
) -> None:
    """Print a table; a column whose name starts with `>` is right-aligned.

    On a terminal long texts fold inside their columns, numbers and short texts never; elsewhere nothing does.
    """
    numbers = [name.startswith(">") for name in columns]
    texts = [
        [name.lstrip(">") for name in columns],
        *([printable(cell) for cell in row] for row in (*rows, footer) if row),
    ]
    longest = [max(map(_wide, column)) for column in zip(*texts, strict=True)]
    widths = _fitted(longest, [n if number else min(n, _FOLDABLE) for n, number in zip(longest, numbers, strict=True)])
    head, *body = (_lines(row, widths, numbers) for row in texts)
    rule = " " + ("─" if _shows("─") else "-") * (sum(widths) + 3 * len(widths) - 3)
    if footer:
        body.insert(-1, [""])
    say(title)
    lines = [click.style(line, bold=True) for line in head] + [rule] + [line for row in body for line in row]
    click.echo("\n".join(["", *lines, ""]))


def _wide(text: str) -> int:
    """Columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def _shows(character: str) -> bool:
    """Whether standard output's alphabet has a character."""
    try:
        character.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, AttributeError):  # there may be no standard output at all
        return False
    return True


def _fitted(longest: list[int], least: list[int]) -> list[int]:
    """Widths of columns: on a terminal the widest give way, each down to its least, until all fit side by side."""
    widths = list(longest)
    if sys.stdout is None or not sys.stdout.isatty():
        return widths
    room = shutil.get_terminal_size().columns - 3 * len(widths) + 1
    while sum(widths) > room and (soft := [k for k, width in enumerate(widths) if width > least[k]]):
        widths[max(soft, key=widths.__getitem__)] -= 1
    return widths


def _lines(row: Sequence[str], widths: Sequence[int], numbers: Sequence[bool]) -> list[str]:
    """A row as lines; where a text is too long for its column, more than one."""
    folded = [
        [text]
        if _wide(text) <= width
        else textwrap.wrap(
            text, width // (1 + (_wide(text) > len(text))), drop_whitespace=False, break_on_hyphens=False
        )
        for text, width in zip(row, widths, strict=True)
    ]
    lines = []
    for pieces in zip_longest(*folded, fillvalue=""):
        cells = []
        for piece, width, number in zip(pieces, widths, numbers, strict=True):
            space = " " * (width - _wide(piece))
            cells.append(space + piece if number else piece + space)
        lines.append((" " + "   ".join(cells)).rstrip())
    return lines


def say(text: str) -> None:
    """Print a line as it is."""
    click.echo(printable(text))


def note(text: str) -> None:
    """Print a line to standard error: what a reader should know, but a program need not."""
    click.echo(f"onnxfi: {printable(text)}", err=True)


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
def progress(what: str) -> Iterator[OnProgress | None]:
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
