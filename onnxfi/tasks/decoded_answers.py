"""Answers that a task decodes from outputs: texts, boxes, label maps, vectors; and their comparison.

A value that is not finite counts in outputs, and in the numbers that are decoded of them.

Outputs are compared bit for bit, as those of every task. What is decoded again is what differs: the samples whose rows
differ where each output has a row per sample, else the batch. So outputs may have other lengths in each batch, and
other ones in a faulty run than in the golden run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, EngineError
from onnxfi.runtime.data.sample_outputs import Outputs, alike, same_outputs
from onnxfi.runtime.engine.ports import Array, same_by, same_bytes
from onnxfi.tasks.answers import AnswerPair, Answers, Flags, Floats, difference, differing, float64, magnitude

#: Returns the answer of each sample of some outputs ([n]).
Decode = Callable[[Outputs], Sequence[Any] | Array]


def same_answer(one: Any, other: Any) -> bool:
    """Return true for answers that are equal in every bit.

    >>> same_answer(("cat", np.zeros(2)), ("cat", np.zeros(2))), same_answer(np.zeros(2), -np.zeros(2))
    (True, False)
    """
    if one is other:
        return True
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return same_bytes(one, other)
    if type(one) is not type(other):
        return False
    if is_dataclass(one):
        return all(same_answer(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same_answer, one, other))
    return bool(one == other)


@dataclass(frozen=True)
class DecodedAnswers(Answers):
    """Answers that are decoded from outputs.

    Parameters
    ----------
    decode : callable
        Returns an answer for each sample of some outputs.
    apart : bool
        Whether outputs have a row per sample, so that some samples of a batch may be decoded alone.
    only : int, optional
        The one sample that counts, of a batch whose samples are not apart.
    known : mapping of int to sequence
        The answers of outputs that are decoded already, by the id of the `Outputs`.
    """

    decode: Decode = field(kw_only=True, repr=False, compare=False)
    apart: bool = field(default=True, kw_only=True)
    only: int | None = field(default=None, kw_only=True)
    known: Mapping[int, Sequence[Any] | Array] = field(default_factory=dict, kw_only=True, repr=False, compare=False)

    @cached_property
    def by_batch(self) -> tuple[Sequence[Any] | Array, ...]:
        """The answers of each batch."""
        return tuple(self.known[id(one)] if id(one) in self.known else self.decoded(one) for one in self.run)

    def decoded(self, outputs: Outputs) -> Sequence[Any] | Array:
        """Decode some outputs; DataError if there is not an answer for each sample."""
        found = self.decode(outputs)
        if len(found) != len(outputs.samples):
            raise DataError(f"decode gave {len(found)} answers for {len(outputs.samples)} samples; give one per sample")
        return found

    @cached_property
    def values(self) -> Sequence[Any] | Array:
        """The answer of each sample ([N])."""
        return join_answers(self.by_batch, self.kept)

    @property
    def kept(self) -> NDArray[np.int64] | None:
        """The places of the samples that count; None for all."""
        samples = np.concatenate([outputs.samples for outputs in self.run])
        return None if self.only is None else np.flatnonzero(samples == self.only)

    @cached_property
    def samples(self) -> NDArray[np.int64]:
        """The number of each sample in the data ([N])."""
        samples = np.concatenate([outputs.samples for outputs in self.run])
        return samples if self.kept is None else samples[self.kept]

    @cached_property
    def nonfinite(self) -> Flags:
        """Samples in whose outputs there is a NaN or an infinity ([N])."""
        found = np.concatenate(self.broken_by_batch)
        return found if self.kept is None else found[self.kept]

    @cached_property
    def broken_by_batch(self) -> tuple[Flags, ...]:
        """The same, for all samples of each batch."""
        return tuple(
            broken(one, self.apart) | undefined(values) for one, values in zip(self.run, self.by_batch, strict=True)
        )


def join_answers(
    batches: Sequence[Sequence[Any] | Array], kept: NDArray[np.int64] | None = None
) -> Sequence[Any] | Array:
    """Return the answers of all batches: one array where all are arrays of one shape, else a tuple."""
    arrays = [one for one in batches if isinstance(one, np.ndarray)]
    if len(arrays) == len(batches) and len({(one.shape[1:], one.dtype) for one in arrays}) == 1:
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return whole if kept is None else whole[kept]
    every = [one for batch in batches for one in batch]
    return tuple(every) if kept is None else tuple(every[k] for k in kept)


def broken(outputs: Outputs, apart: bool) -> Flags:
    """Return the samples in whose rows is a NaN or an infinity; all of a batch where rows are not those of samples."""
    found = np.zeros(len(outputs.samples), np.bool_)
    for array in outputs.arrays.values():
        if array.dtype.kind in "iubOUST":
            continue
        bad = ~np.isfinite(array)
        found |= bad.reshape(len(found), -1).any(axis=1) if apart and outputs.has_rows else bad.any()
    return found


def undefined(values: Sequence[Any] | Array) -> Flags:
    """Return the answers of numbers that hold a NaN or an infinity.

    >>> undefined([np.zeros((0, 6)), np.array([np.inf]), "nan"])
    array([False,  True, False])
    """
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        if values.dtype.kind != "f":
            return np.zeros(len(values), np.bool_)
        return np.asarray(~np.isfinite(values).reshape(len(values), -1 if values.size else 0).all(axis=1))
    numbers = (isinstance(one, np.ndarray) and one.dtype.kind == "f" for one in values)
    bad = [here and not np.isfinite(one).all() for here, one in zip(numbers, values, strict=True)]
    return np.array(bad, np.bool_)


@dataclass(frozen=True)
class _Facts:
    """Facts about the samples of a batch, or of all ([N] each), and their faulty answers."""

    differ: Flags
    nonfinite: Flags
    detected: Flags
    values: Sequence[Any] | Array


@dataclass(frozen=True)
class DecodedPair(AnswerPair):
    """Golden answers beside faulty ones, both decoded."""

    golden: DecodedAnswers
    faulty: DecodedAnswers

    @property
    def same_shape(self) -> bool:
        """True: outputs of another length are decoded like any other."""
        return True

    @property
    def values(self) -> Sequence[Any] | Array:
        """The faulty answer of each sample ([N]): the golden object itself where no bit of its outputs differs."""
        return self._facts.values

    @property
    def differ(self) -> NDArray[np.int64]:
        """1 for each sample of whose outputs some bit differs, else 0 ([N])."""
        return self._facts.differ.astype(np.int64)

    @property
    def nonfinite(self) -> Flags:
        """Samples in whose faulty outputs there is a NaN or an infinity ([N])."""
        return self._facts.nonfinite

    @property
    def detected(self) -> Flags:
        """Samples that are DUE: there is a NaN or an infinity in their outputs, where the golden ones have none."""
        found = self._facts.detected if self.detects else np.zeros_like(self._facts.detected)
        return found if self.alarmed is None else found | self.alarmed

    @cached_property
    def distances(self) -> Floats:
        """The largest |faulty - golden| of the outputs of each sample; infinite if lengths differ ([N])."""
        found = np.where(self._whole.differ, np.inf, 0.0)
        first = 0
        for golden, faulty in zip(self.golden.run, self.faulty.run, strict=True):
            mine = found[first : first + len(golden.samples)]
            first += len(golden.samples)
            if mine.any() and self._by_rows(golden, faulty):
                mine[:] = _farthest_of(golden, faulty)
        return found if self.golden.kept is None else found[self.golden.kept]

    @property
    def within_tolerance(self) -> Flags:
        """Samples whose outputs equal the golden ones in every bit, or deviate by no more than the tolerance ([N])."""
        same = ~self._facts.differ
        same = same | (self.distances <= self.tolerance) if self.tolerance > 0 else same
        return same if self.alarmed is None else same & ~self.alarmed

    @cached_property
    def _facts(self) -> _Facts:
        kept, whole = self.golden.kept, self._whole
        if kept is None:
            return whole
        values = whole.values
        some = values[kept] if isinstance(values, np.ndarray) else tuple(values[k] for k in kept)
        return _Facts(whole.differ[kept], whole.nonfinite[kept], whole.detected[kept], some)

    @cached_property
    def _whole(self) -> _Facts:
        """The facts about all samples, also those that do not count."""
        golden = self.golden
        batches = zip(golden.run, self.faulty.run, golden.by_batch, golden.broken_by_batch, strict=True)
        found = [self._of_batch(*batch) for batch in batches]
        differ, nonfinite, detected = (
            np.concatenate([getattr(one, f.name) for one in found]) for f in fields(_Facts)[:-1]
        )
        return _Facts(differ, nonfinite, detected, join_answers([one.values for one in found]))

    def _by_rows(self, golden: Outputs, faulty: Outputs) -> bool:
        """Return whether outputs are compared row by row."""
        return self.golden.apart and golden.has_rows and alike(golden, faulty)

    def _decoded(self, faulty: Outputs) -> Sequence[Any] | Array:
        """Decode faulty outputs; EngineError where a fault left nothing that can be decoded."""
        try:
            return self.faulty.decoded(faulty)
        except DataError as error:
            raise EngineError(str(error)) from error

    def _of_batch(self, golden: Outputs, faulty: Outputs, known: Sequence[Any] | Array, before: Flags) -> _Facts:
        n, apart = len(golden.samples), self.golden.apart
        if same_outputs(golden, faulty):
            none = np.zeros(n, np.bool_)
            return _Facts(none, before, none, known)
        if self._by_rows(golden, faulty):
            return self._by_row(golden, faulty, known, before)
        values = self._decoded(faulty)
        nonfinite = broken(faulty, apart) | undefined(values)
        detected = nonfinite & ~before
        differ = np.array([not same_answer(*pair) for pair in zip(known, values, strict=True)], np.bool_) | detected
        return _Facts(differ, nonfinite, detected, values)

    def _by_row(self, golden: Outputs, faulty: Outputs, known: Sequence[Any] | Array, before: Flags) -> _Facts:
        """Compare row by row, and decode the rows that differ."""
        n = len(golden.samples)
        differ, detected = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        for name, array in golden.arrays.items():
            rows = np.flatnonzero(~same_by(array, faulty.arrays[name], 0))
            differ[rows] = True
            if rows.size:
                detected[rows] |= _fresh(array[rows], faulty.arrays[name][rows])
        rows, nonfinite = np.flatnonzero(differ), before.copy()
        some = faulty.take(rows)
        found = self._decoded(some)
        bad = undefined(found)
        nonfinite[rows] = broken(some, True) | bad
        detected[rows] |= bad & ~before[rows]
        return _Facts(differ, nonfinite, detected, _replaced(known, rows, found))


def _fresh(golden: Array, faulty: Array) -> Flags:
    """Return the rows with a NaN or an infinity where the golden row has a number; text has none."""
    if golden.dtype.kind in "iubOUST":
        return np.zeros(len(golden), np.bool_)
    bad = ~np.isfinite(faulty)
    if not bad.any():
        return np.zeros(len(golden), np.bool_)
    return np.asarray((differing(golden, faulty) & bad).reshape(len(golden), -1).any(axis=1))


def _farthest_of(golden: Outputs, faulty: Outputs) -> Floats:
    """Return the largest distance in each row of all outputs."""
    far = np.zeros(len(golden.samples))
    for name, array in golden.arrays.items():
        rows = np.flatnonzero(~same_by(array, faulty.arrays[name], 0))
        if rows.size:
            far[rows] = np.maximum(far[rows], _farthest(array[rows], faulty.arrays[name][rows]))
    return far


def _farthest(golden: Array, faulty: Array) -> Floats:
    """Return the largest distance in each row, infinite of text."""
    if golden.dtype.kind in "OUST":
        return np.full(len(golden), np.inf)
    with np.errstate(all="ignore"):
        g, f = (float64(array).reshape(len(array), -1) for array in (golden, faulty))
        return magnitude(difference(g, f))


def _replaced(known: Any, rows: NDArray[np.int64], found: Any) -> Any:
    """Return golden answers with faulty ones in some rows."""
    arrays = isinstance(known, np.ndarray) and isinstance(found, np.ndarray)
    if arrays and (known.shape[1:], known.dtype) == (found.shape[1:], found.dtype):
        array = known.copy()
        array[rows] = found
        return array
    values = list(known)
    for row, value in zip(rows.tolist(), found, strict=True):
        values[row] = value
    return values
