"""Faults in the words of one activation, as it goes on from one segment of a model to the next."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxfi.errors import SelectorError
from onnxfi.faults.sites import Index, Sites, Target
from onnxfi.faults.trials import Faults, apply_faults
from onnxfi.graph.dataflow.sample_axis import SampleAxis
from onnxfi.runtime.engine.ports import Array


def inject_words(
    array: Array, target: Target, held: SampleAxis | None, faults: Faults, *, start: int, size: int
) -> Array:
    """Return an activation with the words changed that its faults name; the given array stays as it is.

    Parameters
    ----------
    array : array
        The activation of one batch.
    target : Target
        The activation as a target of faults.
    held : SampleAxis or None
        The axis that holds its samples; None if it has none.
    faults : Faults
        Faults in this target. Faults of samples of other batches are left out.
    start, size : int
        The number of the first sample of the batch, and how many samples it has.

    Raises
    ------
    SelectorError
        If an element does not exist, or a sample is named and the rows are no samples.
    """
    if held is not None and (array.ndim <= held.axis or array.shape[held.axis] % held.rows):
        raise SelectorError(f"{target.id!r} has the shape {array.shape} here, not {held.rows:,} rows per sample")
    moved = array[None] if held is None else held.first(array)
    flat = np.array(moved, order="C").reshape(len(moved), -1)
    words = flat.view(target.word.dtype) if target.word.parts > 1 else flat
    rows, samples = _rows(faults, len(moved), start, size, target)
    if not len(rows):
        return array
    here = faults.pick(rows)
    last = int(here.sites.index.max())
    if last >= words.shape[1]:
        raise SelectorError(
            f"{target.id}[{last}] does not exist: a sample has {words.shape[1]:,} elements in this batch"
        )
    index = samples * words.shape[1] + here.sites.index
    sites = Sites(np.zeros(len(rows), np.int64), index, here.sites.bit)
    values = words.reshape(-1)
    here = replace(here, targets=(target,), sites=sites, before=None, after=None, real_values=None)
    _, final = apply_faults(here, target.word.words(values[index]))
    values[index] = target.word.values(final)
    faulty = flat.reshape(moved.shape)
    return np.ascontiguousarray(faulty[0] if held is None else held.back(faulty))


def _rows(faults: Faults, held: int, start: int, size: int, target: Target) -> tuple[Index, Index]:
    """Return the number of each fault and the row that it is in, in the order of the faults."""
    sample = faults.sites.times_or_all()[:, 0]
    named = sample >= 0
    if named.any() and held != size:
        raise SelectorError(
            f"{target.id!r} has {held} rows for {size} samples, so no sample of it can be named; "
            f"use --persistence permanent"
        )
    every, one = np.flatnonzero(~named), np.flatnonzero((sample >= start) & (sample < start + size))
    rows = np.concatenate([np.repeat(every, held), one])
    samples = np.concatenate([np.tile(np.arange(held), len(every)), sample[one] - start])
    order = np.argsort(rows, kind="stable")
    return rows[order], samples[order]
