"""Several reports side by side: a line for each, and for each rate of a sweep, with the same columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxfi.campaign.report.report import Fold, Report
from onnxfi.campaign.report.tables import cell, write_csv
from onnxfi.graph.write.output_file import atomic_files, make_folder
from onnxfi.graph.write.scratch_folder import scratch_folder


@dataclass(frozen=True)
class Side:
    """A line: the report that it is of and what to call it, the bit error rate (None: all trials), and its trials."""

    report: Report
    label: str
    ber: str | None
    fold: Fold


def labels(found: Sequence[Report]) -> list[str]:
    """Return a label for each report: the name of its file, with the folder where names are the same."""
    names = [one.store.name.removesuffix(".db").removesuffix(".onnxfi") for one in found]
    return names if len(set(names)) == len(names) else [str(one.store) for one in found]


def sides(found: Sequence[Report]) -> list[Side]:
    """Return the lines of reports: by rate where there are several, since a mean over rates says nothing."""
    lines = []
    for one, label in zip(found, labels(found), strict=True):
        if len(one.by_rate) > 1:
            lines += [Side(one, label, fold.key, fold) for fold in one.by_rate]
        else:
            lines.append(Side(one, label, one.by_rate[0].key if one.by_rate else None, one.everything))
    return lines


def write_csv_of_all(found: Sequence[Report], folder: str | Path) -> list[Path]:
    """Write the CSV files of several reports as those of one, each line with its store in the first column.

    Columns that only some of them have are empty for the others. OutputError where the folder cannot be written.
    """
    tables: dict[str, list[tuple[str, Path]]] = {}
    with scratch_folder() as drafts:
        for number, one in enumerate(found):
            for file in write_csv(one, Path(drafts, str(number))):
                tables.setdefault(file.name, []).append((str(one.store), file))
        make_folder(Path(folder))
        return [_joined(Path(folder, name), parts) for name, parts in tables.items()]


def _joined(path: Path, parts: Sequence[tuple[str, Path]]) -> Path:
    columns = dict.fromkeys(name for _, file in parts for name in next(_read(file), []))
    with atomic_files([path]) as (stream,):
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        table = csv.writer(text)
        table.writerow(["store", *columns])
        for store, file in parts:
            head, *rows = _read(file)
            for row in rows:
                held = dict(zip(head, row, strict=True))
                table.writerow([cell(store), *(held.get(name, "") for name in columns)])
        text.detach()
    return path


def _read(file: Path) -> Iterator[list[str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        yield from csv.reader(stream)
