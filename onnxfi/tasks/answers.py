"""A golden output and a faulty one, compared sample by sample.

Each fact is found once, in blocks of rows that stay in the processor's caches, and only for the samples of which some
bit is another: the others are as golden. Judging a trial so costs about as much as running a small model that has as
many classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError
from onnxfi.runtime.data.labels import Labels
from onnxfi.runtime.data.sample_outputs import Outputs, as_run, stacked
from onnxfi.runtime.engine.ports import Array

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Found = TypeVar("Found")
#: Elements of a block: with a few float64 copies it still fits into a cache of 1 MB.
BLOCK = 1 << 15


def float64(values: Array) -> Floats:
    """Return numbers as float64 of the same shape, a complex one as two in a row of its own."""
    if values.dtype.kind in "OUST":
        raise DataError("this metric takes numbers, and the output is text")
    if values.dtype.kind == "c":
        return np.stack([values.real, values.imag], axis=-1).astype(np.float64)
    return values.astype(np.float64)


def differing(golden: Array, faulty: Array) -> Flags:
    """Return the elements that differ in any bit (so -0.0 differs from 0.0, and a NaN equals the same NaN).

    >>> differing(np.array([0.0, np.nan, 1.0]), np.array([-0.0, np.nan, 1.0]))
    array([ True, False, False])
    """
    if golden.dtype != faulty.dtype or golden.dtype.kind in "OUST":
        return np.asarray(golden != faulty, np.bool_)
    width = golden.dtype.itemsize
    words = f"u{width}" if width <= 8 else f"V{width}"
    g, f = (np.ascontiguousarray(one).reshape(-1).view(words) for one in (golden, faulty))
    return np.asarray(g != f, np.bool_).reshape(golden.shape)


def share(true: Flags) -> float:
    """Return the share of true values; 0 of none."""
    return float(np.count_nonzero(true) / true.size) if true.size else 0.0


def _counts(flags: Flags) -> NDArray[np.int64]:
    """Count the true values of each row."""
    if flags.shape[1] < 256:  # to count along an axis is slow, and so is a loop over short rows
        return np.asarray(flags.sum(axis=1, dtype=np.int64))
    return np.array([np.count_nonzero(row) for row in flags], np.int64)


def _comparable(values: Array) -> Array:
    """Numbers in a type whose order numpy finds fast: float32 and float64 as they are, others as float64."""
    return values if values.dtype in (np.float32, np.float64) else float64(values)


@dataclass(frozen=True)
class _Remembering:
    """Answers that keep what was found of them: of golden ones for all trials, of a pair for all metrics that ask."""

    _found: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, function: Callable[[Self], Found]) -> Found:
        """Return what a function finds of these answers; it is called once."""
        if function not in self._found:
            self._found[function] = function(self)
        found: Found = self._found[function]
        return found


@dataclass(frozen=True)
class Answers(_Remembering):
    """The outputs of N samples, their labels ([N, …]), and what is found of each.

    `kind` says how scores are read: as `logits`, `probabilities` or `counts`. `whole` are the golden answers of all
    samples of the campaign, where these are some of them.
    """

    run: tuple[Outputs, ...]
    labels: Labels | None = None
    kind: str = "logits"
    whole: Answers | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, scores: Array, labels: Labels | None = None, kind: str = "logits") -> Answers:
        """Return scores ([N, …]) as answers."""
        return cls(as_run(scores), labels, kind)

    @cached_property
    def scores(self) -> Array:
        """The numbers of the outputs ([N, …]), several side by side; one row where their shapes vary."""
        return stacked(self.run)

    @property
    def values(self) -> Sequence[Any] | Array:
        """The answer of each sample, as the task decodes it ([N])."""
        return self.scores

    @cached_property
    def samples(self) -> NDArray[np.int64]:
        """The number of each sample in the data ([N])."""
        return np.concatenate([outputs.samples for outputs in self.run])

    @cached_property
    def rows(self) -> Array:
        """A row per sample ([N, elements])."""
        whole = np.atleast_1d(self.scores)
        return np.ascontiguousarray(whole).reshape(len(whole), -1 if whole.size else 0)

    def blocks(self, which: NDArray[np.int64]) -> Iterator[tuple[slice, Array]]:
        """Return some of the rows, block by block: their places among those asked for, and what they hold."""
        step = max(1, BLOCK // max(1, self.rows.shape[1]))
        for first in range(0, len(which), step):
            part = which[first : first + step]
            one = self.rows[part[0] : part[0] + 1] if len(part) == 1 else self.rows[part]
            yield slice(first, first + len(part)), one

    @property
    def all(self) -> NDArray[np.int64]:
        """The numbers of all rows."""
        return np.arange(len(self.rows))

    @cached_property
    def top(self) -> NDArray[np.int64]:
        """The top-1 class of each sample, -1 if there is none ([N]); DataError if these are no class scores."""
        self._check_rank()
        return self.tops(self.all)

    def _check_rank(self) -> None:
        if np.ndim(self.scores) != 2:
            raise DataError(f"top-1 takes scores of shape [N, classes], given {list(np.shape(self.scores) or (1,))}")

    @cached_property
    def truth(self) -> Labels:
        """The labels as classes ([N]); DataError if there are none, or they do not fit the scores."""
        self._check_rank()
        if self.labels is None:
            raise DataError("accuracy needs labels; the data has none")
        if self.labels.shape != self.scores.shape[:1]:
            raise DataError(f"{self.labels.size} labels for {len(self.scores)} samples")
        classes = self.rows.shape[1]
        if self.labels.size and not 0 <= self.labels.min() <= self.labels.max() < classes:
            found = f"{self.labels.min()} to {self.labels.max()}"
            raise DataError(f"labels go from {found}, but the model scores {classes} classes, counted from 0")
        return self.labels

    @cached_property
    def right(self) -> Flags:
        """Samples whose top-1 is their label ([N])."""
        return np.asarray(self.top == self.truth)

    def tops(self, which: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the top-1 class of some samples, the lowest in a tie; -1 if there is a NaN, or no class."""
        found = np.full(len(which), -1, np.int64)
        for at, block in self.blocks(which) if self.rows.shape[1] else ():
            values = _comparable(block)
            first = values.argmax(axis=1)  # that of a NaN, where there is one
            found[at] = np.where(np.isnan(values[np.arange(len(values)), first]), -1, first)
        return found

    @cached_property
    def five(self) -> Flags:
        """Samples whose label is in their top-5 ([N])."""
        return self.hold(self.truth, self.all)

    def hold(self, classes: NDArray[np.int64], which: NDArray[np.int64], most: int = 5) -> Flags:
        """Return the samples whose own class ([which], -1: none) is among their `most` highest."""
        found = np.zeros(len(which), np.bool_)
        for at, block in self.blocks(which) if self.rows.shape[1] else ():
            values, own = _comparable(block), classes[at]
            score = np.take_along_axis(values, np.maximum(own, 0)[:, None], axis=1)
            before = _counts(values > score)
            near = np.flatnonzero((before < most) & (own >= 0))
            if not near.size:
                continue
            values, own = values[near], own[near]
            earlier = np.arange(values.shape[1]) < own[:, None]  # in a tie those of a lower class come first
            before[near] += _counts((values == score[near]) & earlier)
            found[at.start + near] = (before[near] < most) & ~np.isnan(values.max(axis=1))
        return found

    @cached_property
    def nonfinite(self) -> Flags:
        """Samples that hold a NaN or an infinity ([N])."""
        return self.broken(self.all)

    def broken(self, which: NDArray[np.int64]) -> Flags:
        """Return a mask of the samples that hold a NaN or an infinity; text and integers never do."""
        found = np.zeros(len(which), np.bool_)
        for at, block in self.blocks(which) if self.rows.dtype.kind not in "iubOUST" else ():
            found[at] = ~np.isfinite(block).all(axis=1)
        return found

    @cached_property
    def largest(self) -> float:
        """The largest finite magnitude."""
        found = 0.0
        for _, block in self.blocks(self.all):
            magnitude = np.abs(float64(block))
            found = max(found, float(magnitude.max(initial=0.0, where=np.isfinite(magnitude))))
        return found

    @cached_property
    def squares(self) -> Floats:
        """For each sample the sum of the squares of what is finite, in units of the square of the largest ([N])."""
        found = np.zeros(len(self.rows))
        for at, block in self.blocks(self.all) if self.largest else ():
            values = float64(block).reshape(len(block), -1) / self.largest
            values[~np.isfinite(values)] = 0.0
            found[at] = _dot(values, values)
        return found

    @cached_property
    def chance(self) -> Floats:
        """The probability or count of the top-1 of each sample, which score shifts compare ([N])."""
        return self.chances(np.maximum(self.top, 0), self.all, self.kind)

    def chances(self, classes: NDArray[np.int64], which: NDArray[np.int64], kind: str) -> Floats:
        """Return the probability or count of one class of each of some samples ([which]): of logits the softmax."""
        found = np.zeros(len(which))
        for at, block in self.blocks(which):
            values, line = float64(block), np.arange(len(block))
            weights = _weights(values) if kind == "logits" else values
            found[at] = weights[line, classes[at]]
            if kind == "logits":
                found[at] /= weights.sum(axis=1)
        return found


def softmax(values: Floats) -> Floats:
    """Return the softmax of each row ([N, classes]); where infinities are highest they share the whole, a NaN stays."""
    weights = _weights(values)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _weights(values: Floats) -> Floats:
    with np.errstate(all="ignore"):
        highest = values.max(axis=1, keepdims=True, initial=-np.inf)
        weights: Floats = values - highest
        if np.isinf(highest).any():
            weights[values == highest] = 0.0
        np.exp(weights, out=weights)
    return weights


@dataclass(frozen=True)
class AnswerPair(_Remembering):
    """Golden answers beside the faulty ones of the same samples and shape.

    `detects` says that a value that is not finite counts as detected (DUE), where the golden value is finite.
    """

    golden: Answers
    faulty: Answers
    detects: bool = True
    #: The largest difference of a masked sample, in the unit of the scores.
    tolerance: float = 0.0
    #: Samples for which a detector raised an alarm that it did not raise in the golden run ([N]).
    alarmed: Flags | None = field(default=None, compare=False)

    @cached_property
    def same_shape(self) -> bool:
        """True if golden and faulty answers have one shape."""
        return (np.shape(self.golden.scores) or (1,)) == (np.shape(self.faulty.scores) or (1,))

    @property
    def labels(self) -> Labels | None:
        """The labels of the samples ([N, …])."""
        return self.golden.labels

    @property
    def values(self) -> Sequence[Any] | Array:
        """The faulty answer of each sample, as the task decodes it ([N]); `golden.values` are the golden ones."""
        return self.faulty.values

    @cached_property
    def differ(self) -> NDArray[np.int64]:
        """The number of elements of each sample that differ in any bit ([N])."""
        found = np.zeros(len(self.golden.rows), np.int64)
        for at, g, f in self._pairs(self.golden.all):
            found[at] = _counts(differing(g, f))
        return found

    @cached_property
    def changed(self) -> NDArray[np.int64]:
        """The numbers of the samples of which some bit is another."""
        return np.flatnonzero(self.differ)

    def _pairs(self, which: NDArray[np.int64]) -> Iterator[tuple[slice, Array, Array]]:
        """Golden and faulty rows of some samples, block by block, with their places among those asked for."""
        for (at, g), (_, f) in zip(self.golden.blocks(which), self.faulty.blocks(which), strict=True):
            yield at, g, f

    @cached_property
    def top(self) -> NDArray[np.int64]:
        """The faulty top-1 class of each sample, -1 if there is none ([N])."""
        found = self.golden.top.copy()
        found[self.changed] = self.faulty.tops(self.changed)
        return found

    @cached_property
    def other_top(self) -> Flags:
        """Samples that changed and whose top-1 is another, or is none in one of both ([N])."""
        return np.asarray(((self.top != self.golden.top) | (self.golden.top < 0)) & (self.differ > 0))

    @cached_property
    def nonfinite(self) -> Flags:
        """Samples in whose faulty output there is a NaN or an infinity ([N])."""
        if self.golden.rows.shape != self.faulty.rows.shape:
            return self.faulty.nonfinite
        found = self.golden.nonfinite.copy()
        found[self.changed] = self.faulty.broken(self.changed)
        return found

    @cached_property
    def detected(self) -> Flags:
        """Samples that are DUE: a NaN or an infinity where the golden output has none, or an alarm ([N])."""
        found = np.zeros(len(self.differ), np.bool_)
        if self.alarmed is not None:
            found |= self.alarmed
        if self.detects:
            which = self.changed[self.nonfinite[self.changed]]
            for at, g, f in self._pairs(which):
                found[which[at]] |= (differing(g, f) & ~np.isfinite(f)).any(axis=1)
        return found

    @cached_property
    def proved(self) -> Flags:
        """Samples whose answer was proved: none, as these ran ([N])."""
        return np.zeros(len(self.differ), np.bool_)

    @cached_property
    def label_five(self) -> Flags:
        """Samples in whose faulty top-5 their label is ([N])."""
        found = self.golden.five.copy()
        found[self.changed] = self.faulty.hold(self.golden.truth[self.changed], self.changed)
        return found

    @cached_property
    def silent_top(self) -> Flags:
        """SDC-1: samples whose top-1 changed and that are not DUE ([N])."""
        return self.other_top & ~self.detected

    @cached_property
    def silent_five(self) -> Flags:
        """SDC-5: of those of SDC-1, the samples whose golden top-1 left the top-5 ([N])."""
        found, which = self.silent_top.copy(), np.flatnonzero(self.silent_top)
        found[which] = ~self.faulty.hold(self.golden.top[which], which)
        return found

    @cached_property
    def distances(self) -> Floats:
        """The largest |faulty - golden| of each sample, infinite if a NaN leaves it undefined ([N])."""
        found = np.zeros(len(self.differ))
        found[self.changed] = self._deviations.far
        return found

    @cached_property
    def within_tolerance(self) -> Flags:
        """Samples that equal the golden ones in every bit, or deviate by no more than the tolerance ([N])."""
        same = self.differ == 0
        if self.tolerance > 0 and self.golden.scores.dtype.kind in "fiuV":
            same |= self.distances <= self.tolerance
        return np.asarray(same if self.alarmed is None else same & ~self.alarmed)

    @cached_property
    def farthest(self) -> float:
        """The largest |faulty - golden|."""
        return float(self.distances.max(initial=0.0))

    @cached_property
    def away(self) -> float:
        """Σ (f - g)² in units of the square of the largest distance, which is finite and above 0."""
        there = self._deviations
        return float(((there.unit / self.farthest) ** 2 * there.away).sum())

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the outputs; 0 if one is zero or not finite."""
        if self.farthest == 0.0:
            return 1.0
        if self.nonfinite.any() or self.golden.nonfinite.any() or not self.golden.largest:
            return 0.0
        there, larger = self._deviations, max(self.golden.largest, self.farthest)
        whole, kept, moved = float(self.golden.squares.sum()), self.golden.largest / larger, there.unit / larger
        # f = g + d, so f·f = g·g + 2 g·d + d·d and g·f = g·g + g·d: only what changed is looked at.
        along = float((moved * there.along).sum())
        parts = whole * kept**2, float((moved**2 * there.away).sum())
        own = sum(parts) + 2 * kept * along
        if not own > 1e-6 * sum(parts):  # f is next to nothing, or d beyond all numbers: the sum has lost its digits
            return self._cosine()
        return float(np.clip((whole * kept + along) / np.sqrt(whole * own), -1.0, 1.0))

    def _cosine(self) -> float:
        """Return the same, with every number of f."""
        own, both, larger = 0.0, 0.0, self.faulty.largest
        if not larger:
            return 0.0
        for _, golden, faulty in self._pairs(self.golden.all):
            g, f = float64(golden).ravel() / self.golden.largest, float64(faulty).ravel() / larger
            own, both = own + float((f * f).sum()), both + float((g * f).sum())
        return float(np.clip(both / np.sqrt(float(self.golden.squares.sum()) * own), -1.0, 1.0))

    @cached_property
    def _deviations(self) -> _Deviations:
        """The distances of the changed samples from the golden ones."""
        found = _Deviations(*np.zeros((4, len(self.changed))))
        found.unit[:] = 1.0
        wide, unit = self.golden.rows.dtype.itemsize > 4, self.golden.largest or 1.0
        with np.errstate(all="ignore"):
            for at, golden, faulty in self._pairs(self.changed):
                g, f = (float64(one).reshape(len(one), -1) for one in (golden, faulty))
                away = difference(g, f)
                found.far[at] = far = magnitude(away)
                if wide:  # the squares of large float64 numbers would overflow
                    found.unit[at] = np.where(far > 0, far, 1.0)
                    away /= found.unit[at, None]
                    g /= unit
                found.away[at] = _dot(away, away)
                found.along[at] = _dot(away, g) / (1.0 if wide else unit)
        return found


@dataclass(frozen=True)
class _Deviations:
    """Sums over the distances of each sample.

    The largest distance; the squares of all distances in units of `unit`'s square; and their products with the golden
    output in units of both.
    """

    far: Floats
    away: Floats
    along: Floats
    unit: Floats


def _dot(a: Floats, b: Floats) -> Floats:
    """Per row the sum of the products; the same number wherever the arrays lie, which BLAS and einsum do not give."""
    return np.asarray((a * b).sum(axis=1))


def magnitude(values: Floats) -> Floats:
    """Per row the largest magnitude; NaN if there is one."""
    return np.asarray(np.maximum(values.max(axis=1), -values.min(axis=1)))


def difference(g: Floats, f: Floats) -> Floats:
    """Return f - g of each element: 0 if they agree bit for bit, infinite if a NaN leaves it undefined."""
    away = f - g
    if not np.isfinite(magnitude(away)).all():
        away[np.isnan(away)] = np.inf
        away[~differing(g, f)] = 0.0
    return away


@dataclass(frozen=True, kw_only=True)
class ClassPair(AnswerPair):
    """Golden answers beside faulty classes, as metrics of class outcomes read them.

    Attributes
    ----------
    top : int array [N]
        The faulty top-1 of each sample, -1 if there is none.
    other_top, detected, nonfinite : bool array [N]
        Samples whose top-1 is another, that are DUE, and that hold a NaN or an infinity.
    proved : bool array [N]
        Samples whose class was proved.
    """

    top: NDArray[np.int64] = field(repr=False)
    other_top: Flags = field(repr=False)
    detected: Flags = field(repr=False)
    nonfinite: Flags = field(repr=False)
    proved: Flags = field(repr=False)
