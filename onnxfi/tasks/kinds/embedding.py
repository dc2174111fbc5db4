"""Embedding: a vector for each sample, whose nearest neighbours mean something.

The vectors of the golden run are the gallery. The neighbours of a sample are the other samples, by the cosine of its
vector and their golden ones, the lower number first in a tie; a vector that is zero or not finite has none. A sample is
wrong where its nearest neighbour is another than in the golden run, or the cosine of its faulty and its golden vector
is below ``cosine``, without a new NaN or infinity.

With labels (the person, product or place that a sample shows) recall@k is the share of the samples with another of
their label among the k nearest, of those samples whose label another one has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError
from onnxfi.numbers import named_number, named_whole
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.labels import Labels, as_kind
from onnxfi.runtime.data.sample_outputs import Outputs, class_axes, stacked
from onnxfi.runtime.engine.ports import Array, Port, shape_text
from onnxfi.tasks.answers import AnswerPair, Answers, Flags, Floats, float64, share
from onnxfi.tasks.class_scores import only_output
from onnxfi.tasks.task import Metric, Task

#: Products of two vectors that are held at a time.
_BLOCK = 1 << 22
_NONE = -1


def directions(rows: Array) -> Floats:
    """Return vectors of length 1 ([n,D]); of NaN if one is zero or not finite.

    >>> directions(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [nan, nan]]
    """
    values = float64(rows)
    with np.errstate(all="ignore"):
        values = values / np.abs(values).max(axis=1, keepdims=True, initial=0.0)
        values /= np.sqrt(np.square(values).sum(axis=1, keepdims=True))
    values[~np.isfinite(values).all(axis=1)] = np.nan
    return np.asarray(values)


def _gallery(golden: Answers) -> Floats:
    return directions(golden.rows)


def _all(golden: Answers) -> Answers:
    """Return the golden answers of all samples, of which `golden` may be some."""
    return golden.whole or golden


@dataclass(frozen=True)
class Neighbours:
    """A rule of neighbours: how many count, and the least cosine to the golden vector."""

    k: int = 1
    cosine: float = 0.9

    def nearest(self, golden: Answers, rows: Array, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the k nearest golden samples of some samples' vectors ([n,k]); -1 if there is none."""
        gallery = _all(golden).once(_gallery)
        numbers = _all(golden).samples
        own = directions(rows)
        found = np.full((len(own), self.k), _NONE, np.int64)
        step = max(1, _BLOCK // max(1, len(gallery)))
        for first in range(0, len(own), step):
            part = own[first : first + step]
            near = np.nan_to_num(part @ gallery.T, nan=-np.inf)
            near[samples[first : first + step, None] == numbers[None]] = -np.inf
            order = np.argsort(-near, axis=1, kind="stable")[:, : self.k]
            there = np.isfinite(np.take_along_axis(near, order, axis=1))
            found[first : first + step, : order.shape[1]] = np.where(there, numbers[order], _NONE)
        return found

    def golden(self, golden: Answers) -> NDArray[np.int64]:
        """Return the nearest neighbours of the golden vectors ([N,k])."""
        return self.nearest(golden, golden.rows, golden.samples)

    def faulty(self, pair: AnswerPair) -> NDArray[np.int64]:
        """Return the nearest neighbours of the faulty vectors ([N,k])."""
        found, which = pair.golden.once(self.golden).copy(), pair.changed
        found[which] = self.nearest(pair.golden, pair.faulty.rows[which], pair.golden.samples[which])
        return found

    def other(self, pair: AnswerPair) -> Flags:
        """Return the samples whose nearest neighbour is another ([N])."""
        golden, faulty = pair.golden.once(self.golden)[:, 0], pair.once(self.faulty)[:, 0]
        return np.asarray((golden != faulty) | ((faulty == _NONE) & (pair.differ > 0)))

    def masked(self, pair: AnswerPair) -> Flags:
        """Return the samples with their golden neighbour that lie near their golden vector ([N])."""
        return np.asarray(~pair.once(self.other) & (pair.once(cosines) >= self.cosine))

    def neighbour_changed(self, pair: AnswerPair) -> float:
        """Share of samples whose nearest neighbour is another than in the golden run."""
        return share(pair.once(self.other))

    def recall(self, pair: AnswerPair) -> float:
        """Share of samples with another of their label among the k nearest, of those whose label another one has."""
        labels, whole = pair.labels, _all(pair.golden)
        if labels is None or whole.labels is None:
            raise DataError("recall needs labels; the data has none")
        asked = repeated(whole.labels)[np.searchsorted(whole.samples, pair.golden.samples)]
        near = pair.once(self.faulty)
        of_near = whole.labels[np.searchsorted(whole.samples, np.maximum(near, 0))]
        right = ((of_near == labels[:, None]) & (near != _NONE)).any(axis=1)
        return share(right[asked])


def repeated(labels: Labels) -> Flags:
    """Return the samples whose label another sample has, too ([N])."""
    _, back, counts = np.unique(as_kind("classes", labels), return_inverse=True, return_counts=True)
    return np.asarray(counts[back] > 1)


def cosines(pair: AnswerPair) -> Floats:
    """Return the cosine of the faulty and the golden vector of each sample, 0 if one has no direction ([N])."""
    found, which = np.ones(len(pair.differ)), pair.changed
    golden, faulty = (directions(answers.rows[which]) for answers in (pair.golden, pair.faulty))
    found[which] = np.clip(np.nan_to_num((golden * faulty).sum(axis=1), nan=0.0), -1.0, 1.0)
    return found


def mean_cosine(pair: AnswerPair) -> float:
    """Mean cosine of the faulty and the golden vectors."""
    return float(pair.once(cosines).mean())


def embedding(k: int = 1, cosine: float = 0.9) -> Task:
    """Return the task of embeddings.

    Parameters
    ----------
    k : int
        The number of neighbours in which recall@k looks for the label.
    cosine : float
        The least cosine of a vector to its golden one; below it a sample is wrong. -1 leaves the neighbour alone.

    Raises
    ------
    InputError
        If k is not a whole number of 1 or more, or the cosine is not in [-1, 1].

    Examples
    --------
    >>> embedding(k=5).metric("recall").label
    'recall@5'
    """
    rule = Neighbours(named_whole("k", k, 1, 1000), named_number("cosine", cosine, -1, 1))
    return Task(
        "embedding",
        (
            Metric.of_labels(
                "recall", rule.recall, f"recall@{k}", axis=f"Recall@{k} (%)", needs_all=True,
                defined=lambda labels: bool(repeated(labels).any()),
            ),
            Metric(
                "neighbour_changed", rule.neighbour_changed, label="nearest neighbour changed",
                axis="Nearest neighbour changed (%)",
            ),
            Metric(
                "mean_cosine", mean_cosine, label="mean cosine", per="set", unit="", bounds=(-1.0, 1.0),
                better="higher", unchanged=1.0, failed=0.0,
            ),
        ),
        columns=(("recall", "neighbour_changed"), ("mean_cosine",), ("sdc_samples",), ("sdc",), ("due",)),
        curves=("recall", "neighbour_changed", "sdc"),
        absent="the output is not read as embeddings; name the task with --task embedding",
        labels="classes",
        takes_tolerance=False,
        masked=rule.masked,
        reads=partial(only_output, fits=_fits, what="vectors, [N,D]"),
        misfit=_misfit,
    )  # fmt: skip


def _fits(port: Port) -> bool:
    return "float" in port.dtype and (port.shape is None or len(class_axes(port.shape)) == 2)


def _misfit(run: Sequence[Outputs], data: Data, kind: str) -> str:
    """Return why golden outputs or labels are no embeddings; empty if they are."""
    found = stacked(run)
    if found.dtype.kind in "OUSTcb" or found.ndim != 2 or found.shape[1] < 2:
        return f"the output has shape {shape_text(found.shape)}, and vectors have [N,D] with D of 2 or more"
    if len(found) != data.samples:
        return f"the output has {len(found)} rows for {data.samples} samples"
    if len(found) < 2:
        return "one sample has no neighbour; give 2 or more"
    return ""
