"""Terminal output: tables, numbers, progress. Names from model files are escaped."""

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
    from onnxfi.tasks.evaluation import Evaluation

#: Texts up to this length are not wrapped.
_MIN_WRAPPED = 16


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, footer: Sequence[object] = ()
) -> None:
    """Print a table; a column whose name starts with `>` is right-aligned.

    On a terminal long texts wrap inside their columns, numbers and short texts do not; elsewhere nothing wraps.
    """
    numbers = [name.startswith(">") for name in columns]
    texts = [
        [name.lstrip(">") for name in columns],
        *([printable(cell) for cell in row] for row in (*rows, footer) if row),
    ]
    longest = [max(map(_width, column)) for column in zip(*texts, strict=True)]
    widths = _fit_widths(
        longest, [n if number else min(n, _MIN_WRAPPED) for n, number in zip(longest, numbers, strict=True)]
    )
    header, *body = (_wrap_row(row, widths, numbers) for row in texts)
    rule = " " + ("─" if _can_print("─") else "-") * (sum(widths) + 3 * len(widths) - 3)
    if footer:
        body.insert(-1, [""])
    print_line(title)
    lines = [click.style(line, bold=True) for line in header] + [rule] + [line for row in body for line in row]
    click.echo("\n".join(["", *lines, ""]))


def _width(text: str) -> int:
    """Return the number of terminal columns of a text."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def _can_print(character: str) -> bool:
    """Return whether the encoding of standard output has a character."""
    try:
        character.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, AttributeError):  # or there is no standard output
        return False
    return True


def _fit_widths(longest: list[int], minimum: list[int]) -> list[int]:
    """Return column widths that fit the terminal: the widest columns shrink first, each down to its minimum."""
    widths = list(longest)
    if sys.stdout is None or not sys.stdout.isatty():
        return widths
    available = shutil.get_terminal_size().columns - 3 * len(widths) + 1
    while sum(widths) > available and (shrinkable := [k for k, width in enumerate(widths) if width > minimum[k]]):
        widths[max(shrinkable, key=widths.__getitem__)] -= 1
    return widths


def _wrap_row(row: Sequence[str], widths: Sequence[int], numbers: Sequence[bool]) -> list[str]:
    """Return the lines of a row, several where a text is longer than its column."""
    wrapped = [
        [text]
        if _width(text) <= width
        else textwrap.wrap(
            text, width // (1 + (_width(text) > len(text))), drop_whitespace=False, break_on_hyphens=False
        )
        for text, width in zip(row, widths, strict=True)
    ]
    lines = []
    for parts in zip_longest(*wrapped, fillvalue=""):
        cells = []
        for part, width, number in zip(parts, widths, numbers, strict=True):
            space = " " * (width - _width(part))
            cells.append(space + part if number else part + space)
        lines.append((" " + "   ".join(cells)).rstrip())
    return lines


def print_line(text: str) -> None:
    """Print a line to standard output."""
    click.echo(printable(text))


def print_comparison(golden: Evaluation, faulty: Evaluation) -> None:
    """Print the metrics of a fault-free and a faulty evaluation side by side, and the conditions."""
    rows = []
    for name in faulty.metrics:
        share = golden.task.metric(name).share
        rows.append((name, *(number(found.metrics.get(name), share=share) for found in (golden, faulty))))
    table("Golden and faulty outputs", ("Metric", ">Golden", ">Faulty"), rows)
    print_line(faulty.conditions())


def print_note(text: str) -> None:
    """Print a note to standard error."""
    click.echo(f"onnxfi: {printable(text)}", err=True)


def print_json(values: dict[str, Any]) -> None:
    """Print one strict JSON document, in ASCII, so that no name in it can control the terminal."""
    click.echo(json.dumps(values, allow_nan=False, indent=2))


def count(n: int, noun: str) -> str:
    """Return a count with its noun.

    >>> count(1, "target"), count(2048, "fault")
    ('1 target', '2,048 faults')
    """
    return f"{n:,} {noun}{'s' * (n != 1)}"


def number(value: float | None, *, share: bool = False) -> str:
    """Return a metric as text: shares in percent, others with four significant digits.

    >>> number(0.9115, share=True), number(0.000123456), number(None)
    ('91.15 %', '0.0001235', '-')
    """
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if share else f"{value:.4g}"


def value_change(row: Mapping[str, Any]) -> str:
    """Return the value of a faulty word before and after; of a quantised word also the real numbers.

    >>> value_change({"before_value": 12, "after_value": -116, "before_real": 0.5, "after_real": -4.75})
    '12 → -116 (0.5 → -4.75)'
    """
    text = f"{row['before_value']} → {row['after_value']}"
    return f"{text} ({row['before_real']} → {row['after_real']})" if "before_real" in row else text


@contextmanager
def progress(title: str) -> Iterator[OnProgress | None]:
    """Show a progress bar on standard error, if that is a terminal, for a task of more than a second."""
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
    task, started, shown = bar.add_task(title, total=None), time.monotonic(), False

    def update(done: int, total: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - started > 1:
            bar.start()
            shown = True
        if shown:
            bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        bar.stop()
