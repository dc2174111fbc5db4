"""Faults in the words of one activation, as it goes on from one segment of a model to the next."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from onnxfi.errors import SelectorError
from onnxfi.faults.sites import Index, Sites, Target
from onnxfi.faults.trials import Faults, apply_faults, json_value
from onnxfi.faults.words import Word
from onnxfi.graph.dataflow.batch_layout import SampleAxis
from onnxfi.runtime.engine.ports import Array

#: Step of a loop (-1: in none), sample (-1: none is held) and element of a word.
_Place = tuple[int, int, int]


@dataclass
class InjectedWords:
    """The words of activations before and after the faults of one trial, as they were injected.

    Of a fault in several samples the first is kept, and of all words the `most` first by target, step of a loop, sample
    and element.

    Examples
    --------
    >>> from onnxfi.faults.words import WORDS
    >>> target, found = Target("relu", WORDS["float32"], (4,), kind="activation"), InjectedWords()
    >>> found.add(target, {(0, 3): (0x3F800000, 0x7F800000)})
    >>> found.rows()[0]["target"], found.rows()[0]["before_value"], found.rows()[0]["after_value"]
    ('relu', 1.0, 'Infinity')
    """

    most: int = 32
    _found: dict[str, tuple[Word, dict[_Place, tuple[int, int]]]] = field(default_factory=dict)

    def add(self, target: Target, words: dict[tuple[int, int], tuple[int, int]], step: int = -1) -> None:
        """Keep the words before and after faults, by sample (-1: the activation holds none) and element."""
        kept = self._found.get(target.id, (target.word, {}))[1]
        kept |= {(step, *place): pair for place, pair in words.items()}
        self._found[target.id] = target.word, {place: kept[place] for place in sorted(kept)[: self.most]}

    def rows(self) -> tuple[dict[str, Any], ...]:
        """Return the words as plain values: target, index, sample, step, the word and its number before and after."""
        found = ((name, *one, word) for name, (word, kept) in sorted(self._found.items()) for one in kept.items())
        return tuple(_row(*one) for one in islice(found, self.most))


def _row(name: str, place: _Place, pair: tuple[int, int], word: Word) -> dict[str, Any]:
    """Return one word as plain values."""
    step, sample, index = place
    row: dict[str, Any] = {"target": name, "index": index} | ({} if sample < 0 else {"sample": sample})
    row |= {} if step < 0 else {"step": step}
    numbers = word.values(np.array(pair, np.uint64)).tolist()
    for when, bits, value in zip(("before", "after"), pair, numbers, strict=True):
        row[when] = f"0x{bits:0{-(-word.bits // 4)}x}"
        row[f"{when}_value"] = json_value(value)
    return row


def inject_words(
    array: Array, target: Target, held: SampleAxis | None, faults: Faults, *, start: int, size: int,
    kept: InjectedWords | None = None, step: int = -1,
) -> Array:  # fmt: skip
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
    kept : InjectedWords, optional
        What keeps the words before and after the faults.
    step : int, default: -1
        The step of a loop that the words are kept of.

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
    elements = here.sites.index
    index = samples * words.shape[1] + elements
    sites = Sites(np.zeros(len(rows), np.int64), index, here.sites.bit)
    values = words.reshape(-1)
    here = replace(here, targets=(target,), sites=sites, before=None, after=None, real_values=None)
    stored = target.word.words(values[index])
    _, final = apply_faults(here, stored)
    values[index] = target.word.values(final)
    if kept is not None:
        named = faults.sites.times_or_all()[rows, 0] >= 0
        shown = samples + start if held is not None and len(moved) == size else np.full(len(samples), -1)
        _keep(kept, target, (shown, elements, stored, final), named, first=start == 0, step=step)
    faulty = flat.reshape(moved.shape)
    return np.ascontiguousarray(faulty[0] if held is None else held.back(faulty))


def _keep(
    kept: InjectedWords, target: Target, columns: tuple[Any, Any, Any, Any], named: Any, *, first: bool, step: int
) -> None:
    """Keep words of a batch from columns of samples, elements, and words before and after; rows go by sample.

    Of a fault that names no sample it is that of the first sample of the first batch.
    """
    samples, index = columns[:2]
    rows = np.flatnonzero(named | first)
    if len(rows):
        # One number for each element of a sample; words that are not among the first are not looked at.
        place = (np.where(named, samples, -1)[rows] + 1) * (int(index.max()) + 1) + index[rows]
        rows = rows[np.unique(place, return_index=True)[1][: kept.most]]
        words = zip(*(column[rows].tolist() for column in columns), strict=True)
        kept.add(target, {(sample, element): (before, after) for sample, element, before, after in words}, step)


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
