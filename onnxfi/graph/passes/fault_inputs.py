"""Inputs of an armed model: the columns that it is fed, made of faults.

A column is one slot of one site: `site` [F] is its number, `element` [S,F] the element, `keep` and `flip` [S,F] the
mask of its word (or `scale` and `shift`, the change of its number), `first` and `last` [F] the iterations. S is 1 if
the faults are the same in every sample, else the number of samples. The graph cannot detect that an element is named
twice (one of the two faults would be lost), that an index is negative (it would count from the end), or that a step is
beyond the loop: the first two are checked here, the last by `check_iteration`, where the iterations are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError, SelectorError
from onnxfi.faults.sites import LAST_STEP
from onnxfi.faults.words import Mask
from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.passes.instrument import ActivationFault, Armed

Columns = dict[str, NDArray[Any]]
#: Change of elements: a mask for the word, or a scale and a shift for the number.
_Cell = dict[int, Mask | tuple[float, float]]


def columns(armed: Armed, faults: Sequence[ActivationFault], *, batch: int | None = None) -> Columns:
    """Return the inputs to feed for these faults; empty columns if there are none.

    `batch` is the number of samples in the run, needed if a fault names its sample. Raises SelectorError for an element
    or sample that does not exist, and FaultError for a fault that is not a mask (with `values`: not a scale and shift);
    both name the site.

    >>> from onnxfi.faults.space import Selector
    >>> from onnxfi.graph.dataflow.activation_targets import activations, select_activations
    >>> from onnxfi.graph.passes.instrument import ActivationFault, arm
    >>> from onnxfi.graph.model.loading import load, parse
    >>> model = load("models/fashion_cnn.onnx")
    >>> armed = arm(parse(model), select_activations(activations(model), Selector(include=("=relu",))).activations)
    >>> fed = columns(armed, [ActivationFault(armed.sites[0], 7, Mask(0xFFFFFFFF, 1 << 30))])
    >>> {name: column.tolist() for name, column in fed.items()}["onnxfi.flip"]
    [[1073741824]]
    """
    number = {(a.path, a.name): k for k, a in enumerate(armed.sites)}
    by_site: dict[int, list[ActivationFault]] = {}
    for fault in faults:
        a = fault.activation
        if (a.path, a.name) not in number:
            raise SelectorError(f"{a.target.id!r} is not armed in this model; instrument it with --include '={a.name}'")
        _check(armed, fault, batch)
        by_site.setdefault(number[a.path, a.name], []).append(fault)
    rows = 1 if all(s.sample is None for s in faults) else batch or 1
    slots = [
        (site, first, last, cells)
        for site, mine in sorted(by_site.items())
        for first, last, now in _intervals(mine)
        for cells in [_rows(now, rows)]
    ]
    return _laid_out(armed, slots, rows)


def _laid_out(armed: Armed, slots: Sequence[tuple[int, int, int, list[_Cell]]], rows: int) -> Columns:
    widths = [max(len(cell) for cell in cells) for *_, cells in slots]
    total = sum(widths)
    change, kind = (("scale", "shift"), np.float64) if armed.values else (("keep", "flip"), np.uint64)
    nothing = (1.0, -0.0) if armed.values else Mask((1 << 64) - 1, 0)
    pair: list[NDArray[Any]] = [np.zeros((rows, total), kind) for _ in change]
    element = np.zeros((rows, total), np.int64)
    steps = {name: np.zeros(total, np.int64) for name in ("site", "first", "last")}
    at = 0
    for (site, first, last, cells), width in zip(slots, widths, strict=True):
        here = slice(at, at + width)
        for name, value in (("site", site), ("first", first), ("last", last)):
            steps[name][here] = value
        for row, cell in enumerate(cells):
            # A row with fewer faults repeats its last one, which writes the same value.
            known = list(cell.items()) or [(0, nothing)]
            known += [known[-1]] * (width - len(known))
            element[row, here] = [element for element, _ in known]
            words = [(word.keep, word.flip) if isinstance(word, Mask) else word for _, word in known]
            for column, k in zip(pair, (0, 1), strict=True):
                column[row, here] = np.array([word[k] for word in words], kind)
        at += width
    changes = [column if armed.values else column.view(np.int64) for column in pair]
    made = {"element": element, **dict(zip(change, changes, strict=True))}
    wanted = [name.rpartition(".")[2] for name in armed.inputs]
    return {f"{armed.prefix}.{name}": (made | steps)[name] for name in wanted}


def _intervals(faults: Sequence[ActivationFault]) -> list[tuple[int, int, list[ActivationFault]]]:
    """Split the iterations at the start and end of faults; return each interval with its faults."""
    edges = sorted({s.first for s in faults} | {s.last + 1 for s in faults})
    intervals = []
    for start, end in pairwise(edges):
        now = [s for s in faults if s.first <= start and end - 1 <= s.last]
        if now:
            intervals.append((start, end - 1, now))
    return intervals


def _rows(faults: Sequence[ActivationFault], rows: int) -> list[_Cell]:
    """Return for each row the change of every faulty element, faults of one element merged in order."""
    cells: list[_Cell] = [{} for _ in range(rows)]
    for s in faults:
        for row in range(rows) if s.sample is None else [s.sample]:
            old = cells[row].get(s.element)
            if s.mask is not None:
                cells[row][s.element] = old.then(s.mask) if isinstance(old, Mask) else s.mask
            else:
                cells[row][s.element] = (s.scale, s.shift)
                if isinstance(old, tuple):
                    cells[row][s.element] = (old[0] * s.scale, old[1] * s.scale + s.shift)
    return cells


def _check(armed: Armed, s: ActivationFault, batch: int | None) -> None:
    a = s.activation
    where = site_text(s)
    if s.mask is None and not armed.values:
        raise FaultError(
            f"{where}: a value fault cannot be fed to a file whose words change; instrument it with --values, "
            f"bake it (onnxfi inject), or use a mask, as set-word"
        )
    if s.mask is not None and armed.values:
        raise FaultError(f"{where}: a mask cannot be fed to a file whose numbers are changed; instrument it without")
    if s.mask is not None and (s.mask.keep >> a.target.word.bits or s.mask.flip >> a.target.word.bits):
        raise FaultError(f"{where}: the mask has more than the {a.target.word.bits} bits of {a.target.dtype}")
    check_location(a, s, batch)


def check_iteration(s: ActivationFault, trips: int | None) -> None:
    """Raise SelectorError for a step beyond the loop, if the number of iterations is known."""
    if trips == 0:
        raise SelectorError(f"{site_text(s)}: the loop does not run on this data, so it has no step")
    if trips is not None and s.first >= trips:
        raise SelectorError(f"{site_text(s)}: the loop has {trips} iterations, steps are 0 to {trips - 1}")


def check_location(a: Activation, s: ActivationFault, batch: int | None) -> None:
    """Raise SelectorError for an element, sample or step that does not exist."""
    where = site_text(s)
    if s.element < 0 or (a.shape_known and s.element >= a.target.size):
        raise SelectorError(f"{where}: elements of {a.target.id!r} are 0 to {a.target.size - 1}")
    if s.sample is not None and a.axis is None:
        raise SelectorError(
            f"{where}: {a.target.id!r} has {a.no_axis_message}, so no sample can be named; leave it out"
        )
    if s.sample is not None and (batch is None or not 0 <= s.sample < batch):
        allowed = "give the batch size" if batch is None else f"samples are 0 to {batch - 1}"
        raise SelectorError(f"{where}: no sample {s.sample}; {allowed}")
    if not a.loop and (s.first, s.last) != (0, LAST_STEP):
        raise SelectorError(f"{where}: {a.target.id!r} lies in no loop, so it has no step; leave @step out")
    if not 0 <= s.first <= s.last:
        raise SelectorError(f"{where}: steps count from 0")


def site_text(s: ActivationFault) -> str:
    """Return the site of a fault as text for messages."""
    sample = "" if s.sample is None else f"@sample={s.sample}"
    step = "" if (s.first, s.last) == (0, LAST_STEP) else f"@step={s.first}"
    return f"{s.activation.target.id}[{s.element}]{sample}{step}"
