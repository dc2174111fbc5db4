"""Terminal output: tables, numbers, progress. Names from model files are escaped."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.streams import named
from onnxfi.graph.model.byte_source import printable

if TYPE_CHECKING:
    from onnxfi.graph.write.faulty_copy import OnProgress
    from onnxfi.tasks.evaluation import Evaluation

#: Texts up to this length are not cut.
_MIN_CUT = 16
#: Seconds before a task is shown.
_SHOWN_AFTER_S = 0.5


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, footer: Sequence[object] = ()
) -> None:
    """Print a table; a column whose name starts with `>` is right-aligned.

    On a terminal that is too narrow long texts are cut in the middle, numbers and short texts are not; columns that do
    not fit even so are left out, the last ones first, and a line names them. Elsewhere all is printed.
    """
    numbers = [name.startswith(">") for name in columns]
    texts = [
        [name.lstrip(">") for name in columns],
        *([printable(cell) for cell in row] for row in (*rows, footer) if row),
    ]
    longest = [max(map(_width, column)) for column in zip(*texts, strict=True)]
    fewest = [n if number else min(n, _MIN_CUT) for n, number in zip(longest, numbers, strict=True)]
    shown = _columns_that_fit(fewest)
    widths = _fit_widths(longest[:shown], fewest[:shown])
    cut = [cut_apart(column, width) for column, width in zip(zip(*texts, strict=True), widths, strict=False)]
    header, *body = (_line(row, widths, numbers[:shown]) for row in zip(*cut, strict=True))
    rule = " " + ("─" if _can_print("─") else "-") * (sum(widths) + 3 * len(widths) - 3)
    if footer:
        body.insert(-1, "")
    print_line(title)
    click.echo("\n".join(["", click.style(header, bold=True), rule, *body, ""]))
    if shown < len(columns):
        needed = sum(fewest) + 3 * len(fewest) - 1
        left_out = ", ".join(name.lstrip(">") for name in columns[shown:])
        print_line(f"left out: {left_out}; a terminal of {needed} columns, a pipe or --json shows all")


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


def _columns_of_terminal() -> int | None:
    """Return the width of the terminal; None where output goes elsewhere."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def _columns_that_fit(fewest: list[int]) -> int:
    """Return how many columns, from the first on, fit the terminal at their smallest widths: two at least."""
    available, shown = _columns_of_terminal(), len(fewest)
    while available is not None and shown > 2 and sum(fewest[:shown]) + 3 * shown - 1 > available:
        shown -= 1
    return shown


def _fit_widths(longest: list[int], fewest: list[int]) -> list[int]:
    """Return column widths that fit the terminal: the widest columns shrink first, each down to its smallest width."""
    widths, columns = list(longest), _columns_of_terminal()
    if columns is None:
        return widths
    available = columns - 3 * len(widths) + 1
    while sum(widths) > available and (shrinkable := [k for k, width in enumerate(widths) if width > fewest[k]]):
        widths[max(shrinkable, key=widths.__getitem__)] -= 1
    return widths


def _line(row: Sequence[str], widths: Sequence[int], numbers: Sequence[bool]) -> str:
    """Return a row of a table as a line."""
    cells = []
    for text, width, number in zip(row, widths, numbers, strict=True):
        space = " " * (width - _width(text))
        cells.append(space + text if number else text + space)
    return (" " + "   ".join(cells)).rstrip()


def cut_apart(texts: Sequence[str], width: int) -> list[str]:
    """Return texts of at most `width` terminal columns, the longer ones cut so that different texts stay different.

    Where names of a network begin and end alike, the words that most of them have give way to those that differ.

    >>> [cut[1:10] for cut in cut_apart(["encoder.stages.3.attention.query", "encoder.stages.4.attention.query"], 16)]
    ['stages.3.', 'stages.4.']
    """
    long = sorted({text for text in texts if _width(text) > width})
    cut = {text: cut_middle(text, width) for text in long}
    if len(set(cut.values())) < len(long):
        words = {text: re.split(r"(?<=[./_])", text) for text in long}
        many = Counter(word for some in words.values() for word in set(some))
        hidden = {word for word, n in many.items() if 2 * n > len(long)}
        before = {one for some in words.values() for one, other in pairwise(some) if other not in hidden}
        for word in sorted(hidden, key=lambda one: (one not in before, len(one), one)):
            if all(_width(_without(words[text], hidden - {word})) <= width for text in long):
                hidden.remove(word)
        cut = {text: cut_middle(_without(words[text], hidden), width) for text in long}
    return [cut.get(text, text) for text in texts]


def _without(words: Sequence[str], hidden: set[str]) -> str:
    """Return words joined, with a mark in place of each run of those that are hidden."""
    runs = groupby(words, key=lambda word: word in hidden)
    return "".join(_mark() if away else "".join(run) for away, run in runs)


def _mark() -> str:
    """Return the mark of what is left out."""
    return "…" if _can_print("…") else "~"


def cut_middle(text: str, width: int) -> str:
    """Return a text of at most `width` terminal columns, without its middle where it is longer.

    >>> cut_middle("fc1.weight", 16), cut_middle("encoder.layers.10.query.weight", 16)[-8:]
    ('fc1.weight', 'y.weight')
    """
    if _width(text) <= width:
        return text
    mark = _mark()
    head, tail = "", ""
    for first, last in zip(text, reversed(text), strict=True):
        if _width(head + mark + last + tail) > width:
            break
        tail = last + tail
        if _width(head + first + mark + tail) > width:
            break
        head += first
    return head + mark + tail


def cut_front(name: str, width: int) -> str:
    """Return the end of a long name, which tells layers and sites apart.

    >>> cut_front("fc1.weight", 16), cut_front("encoder.layers.10.query.weight", 16)
    ('fc1.weight', '…10.query.weight')
    """
    return name if len(name) <= width else "…" + name[1 - width :]


def print_line(text: str) -> None:
    """Print a line to standard output."""
    click.echo(named(printable(text)))


def print_comparison(golden: Evaluation, faulty: Evaluation) -> None:
    """Print the metrics of a fault-free and a faulty evaluation side by side, and the conditions."""
    rows = []
    for name in faulty.metrics:
        values = (found.metrics.get(name) for found in (golden, faulty))
        metric = golden.task.metric(name)
        rows.append((name, *("-" if value is None else metric.text(value) for value in values)))
    table("Golden and faulty outputs", ("Metric", ">Golden", ">Faulty"), rows)
    print_line(faulty.conditions())


def print_note(text: str) -> None:
    """Print a note to standard error."""
    click.echo(f"onnxfi: {named(printable(text))}", err=True)


def print_json(values: dict[str, Any]) -> None:
    """Print one strict JSON document, in ASCII, so that no name in it can control the terminal."""
    click.echo(named(json.dumps(values, allow_nan=False, indent=2)))


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
    """Show on standard error, if that is a terminal, what is done, and how far once that is known.

    A task of less than half a second shows nothing.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    bar = Bar(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), BarColumn(20),
        TaskProgressColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
    )  # fmt: skip
    task = bar.add_task(printable(title), total=None)

    def update(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    begin = threading.Timer(_SHOWN_AFTER_S, bar.start)
    begin.daemon = True
    begin.start()
    try:
        yield update
    finally:
        begin.cancel()
        begin.join()
        bar.stop()
