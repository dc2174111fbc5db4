"""Rowhammer templates matched against a model: which flips of a memory hit which stored bits.

Templates are the flips that a memory was seen to have, by page offset, bit and direction; their file is described in
docs/reference/memory-layout.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError, InputError
from onnxfi.faults.faultlist import Header, fault_row, trial_lines
from onnxfi.faults.hardware.fault_description import Description
from onnxfi.faults.hardware.memory_layout import MemoryLayout, read_layout
from onnxfi.faults.models import StuckAt0, StuckAt1
from onnxfi.faults.sites import Target
from onnxfi.faults.space import Sites
from onnxfi.faults.trials import Faults, Sampler, apply_separately
from onnxfi.graph.model.loading import Model, ModelLike, load
from onnxfi.graph.write.output_file import atomic_files, check_output_files

_FILE = Description(
    "template list", "docs/reference/memory-layout.md", ("version", "name", "source", "page_size", "templates"),
    max_bytes=1 << 26,
)  # fmt: skip
_DIRECTIONS = {"0to1": 1, "1to0": 0}
_MOST_TEMPLATES, _MOST_MATCHES = 1_000_000, 1_000_000


@dataclass(frozen=True)
class Template:
    """Flip that a memory has: byte in the page, bit of the byte, what it becomes, and the page where it was seen."""

    offset: int
    bit: int
    becomes: int
    frame: int | None = None


@dataclass(frozen=True)
class Rowhammer:
    """Templates that flip stored bits of a model.

    Attributes
    ----------
    model : Model
        The model.
    templates : tuple of Template
        The templates in the order of their file.
    template : ndarray of int64, shape (n,)
        Number of the template of each match.
    page : ndarray of int64, shape (n,)
        Page of the file that has to lie in the hammered one; with a layout where it does.
    faults : Faults
        The flip of each match, with its words.
    candidates : int
        Bits of weights under templates, whether they hold the value that flips or not.
    """

    model: Model = field(repr=False)
    templates: tuple[Template, ...] = field(repr=False)
    template: NDArray[np.int64] = field(repr=False)
    page: NDArray[np.int64] = field(repr=False)
    faults: Faults = field(repr=False)
    candidates: int = 0

    def __len__(self) -> int:
        return len(self.template)

    def largest(self, n: int = 20) -> list[int]:
        """Return the matches that change their number most."""
        with np.errstate(all="ignore"):
            gaps = [abs(float(f.value("after")) - float(f.value("before"))) for f in self.faults]
        keys = [np.inf if np.isnan(gap) else gap for gap in gaps]
        return sorted(range(len(keys)), key=lambda k: (-keys[k], k))[:n]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the matches as plain values: template, page, and the fault as a line of a fault list has it."""
        for k, fault in enumerate(self.faults):
            yield {"template": int(self.template[k]), "page": int(self.page[k])} | fault_row(k + 1, fault)

    def write(self, out: str | Path) -> Path:
        """Write the matches as a fault list, each a trial; OutputError if it cannot be written, InputError for none."""
        if not len(self):
            raise InputError("no template flips a stored bit, so there is no fault to list")
        place = Path(out)
        check_output_files(self.model, [place], copy=False)
        header = Header(
            self.model.digest,
            sampler=Sampler("sites", n=len(self)),
            population=len(self),
            file=str(self.model.path or ""),
        )
        with atomic_files([place]) as (stream,):
            stream.write((header.line() + "\n").encode())
            for k in range(len(self)):
                for line in trial_lines(k + 1, self.faults.pick(slice(k, k + 1)), header.sampler, ()):
                    stream.write((line + "\n").encode())
        return place


def rowhammer(model: ModelLike, templates: str | Path, memory_layout: str | Path | None = None) -> Rowhammer:
    """Match Rowhammer templates against the stored bits of a model.

    Without a layout every page of the model's files may lie under every template, as an attacker who places pages can
    have it; with one, a template acts on the page that lies in its own `frame`.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The model.
    templates : str or Path
        The template list.
    memory_layout : str or Path, optional
        Where the files lie.

    Returns
    -------
    Rowhammer
        The matches, in the order of the templates.

    Raises
    ------
    FaultError
        If a file is damaged, or does not go with the other.

    Examples
    --------
    >>> found = rowhammer("models/fashion_cnn.onnx", "examples/hardware/rowhammer.json")
    >>> len(found.templates), found.candidates
    (6, 620)
    """
    opened = load(model)
    listed, page_size = _read(str(templates))
    layout = None
    if memory_layout is not None:
        layout = read_layout(str(memory_layout))
        if layout.page_bytes != page_size:
            raise FaultError(f"the templates have pages of {page_size:,} bytes, the layout of {layout.page_bytes:,}")
        if any(one.frame is None for one in listed):
            raise FaultError("with a layout each template needs frame, the physical page where it was seen")
    under = _Bytes.of(opened.targets)
    number, page, target, index, bit = _under(listed, under, page_size, layout)
    becomes = np.array([one.becomes for one in listed], np.int64)[number]
    models = (StuckAt0(), StuckAt1())
    sites = Sites(target, index, bit.astype(np.int16))
    faults = Faults(opened.targets, sites, tuple(models[k] for k in becomes.tolist()) or models[:1])
    placed = apply_separately(faults, opened.stored(faults))
    assert placed.before is not None and placed.after is not None
    flips = np.flatnonzero(placed.before != placed.after)
    kept = placed.pick(flips)
    if not len(flips):
        kept = replace(kept, models=models[:1])
    return Rowhammer(opened, listed, number[flips], page[flips], kept, len(number))


@dataclass(frozen=True)
class _Bytes:
    """Stored tensors by their bytes in the files: file, first byte, end, and number of the target, in order."""

    rows: NDArray[np.int64]
    targets: tuple[Target, ...]

    @classmethod
    def of(cls, targets: Sequence[Target]) -> _Bytes:
        rows = [
            (*t.stored, t.stored[1] + t.word.size_bytes(t.size), k)
            for k, t in enumerate(targets)
            if t.stored and t.size and not t.structural
        ]
        return cls(np.array(sorted(rows), np.int64).reshape(-1, 4), tuple(targets))


def _under(
    listed: Sequence[Template], under: _Bytes, page_size: int, layout: MemoryLayout | None
) -> tuple[NDArray[np.int64], ...]:
    """Return the bits of weights under templates: template, page, target, element and bit of each."""
    columns: list[list[int]] = [[], [], [], [], []]
    for file, first, end, ordinal in under.rows.tolist():
        target = under.targets[ordinal]
        base = 0 if layout is None else layout.place(replace(target, stored=(file, 0)))
        pages = np.arange((base + first) // page_size, (base + end - 1) // page_size + 1)
        frames = None if layout is None else layout.physical(pages * page_size) // page_size
        for number, one in enumerate(listed):
            here = pages if frames is None else pages[frames == one.frame]
            at = here * page_size + one.offset - base - first
            inside = (at >= 0) & (at < end - first)
            element, bit = np.divmod(at[inside] * 8 + one.bit, target.word.storage)
            held = (bit < target.word.bits) & (element < target.size)
            many = int(held.sum())
            columns[0] += [number] * many
            columns[1] += here[inside][held].tolist()
            columns[2] += [ordinal] * many
            columns[3] += element[held].tolist()
            columns[4] += bit[held].tolist()
        if len(columns[0]) > _MOST_MATCHES:
            raise InputError(f"more than {_MOST_MATCHES:,} bits lie under templates; give fewer templates, or a layout")
    found = [np.array(column, np.int64) for column in columns]
    order = np.lexsort((found[3], found[2], found[1], found[0]))
    return tuple(column[order] for column in found)


def _read(file: str) -> tuple[tuple[Template, ...], int]:
    """Return the templates of a file, and the size of their pages."""
    row = _FILE.parse(_FILE.read(file), file)
    page_size = row.whole("page_size", 1, 1 << 30, default=4096)
    found = tuple(
        Template(
            one.whole("offset", 0, page_size - 1),
            one.whole("bit", 0, 7),
            _DIRECTIONS[one.one_of("direction", _DIRECTIONS)],
            one.whole("frame", 0, 1 << 50, default=None),
        )
        for one in row.each("templates", ("offset", "bit", "direction", "frame"), _MOST_TEMPLATES, "template")
    )
    return found, page_size
