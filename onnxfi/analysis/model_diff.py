"""Differences of two models: which words and bits, in which tensors, and how far; as a fault list, and repaired.

Two files of one network differ where bits went wrong: each differing bit becomes a fault, so that damage seen in the
field is replayed, measured and undone like an injected one. Of two builds of a network, tensors and operators are
compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.analysis.manifest import structure_digest
from onnxfi.errors import InputError
from onnxfi.faults.space import Target
from onnxfi.faults.trials import json_value
from onnxfi.faults.words import Words
from onnxfi.graph.model.graph_index import all_nodes
from onnxfi.graph.model.loading import Model, ModelLike, load
from onnxfi.runtime.inject.weights import Injection, Sample, inject, sample

if TYPE_CHECKING:
    import onnx

#: Words that are compared together.
_CHUNK_WORDS = 1 << 20
#: Differing bits that become faults; beyond, two models are two models and no damaged one.
MOST_FAULTS = 100_000


@dataclass(frozen=True, eq=False)
class TensorDiff:
    """Differences of one tensor.

    Attributes
    ----------
    target : Target
        The tensor, as in the first model.
    words : int
        The words that differ.
    by_bit : tuple of int
        For each bit position from 0 the words in which it differs.
    largest : float
        The largest absolute difference of two numbers; infinite where one is not finite.
    relative : float
        The L2 norm of the difference over that of the first tensor; infinite where a number is not finite.
    index, changed : array of int64 and of uint64, shape (n,)
        The first differing elements (flat, row-major) and their differing bits, at most `MOST_FAULTS`.
    """

    target: Target
    words: int
    by_bit: tuple[int, ...]
    largest: float
    relative: float
    index: NDArray[np.int64]
    changed: Words

    @property
    def bits(self) -> int:
        """The bits that differ."""
        return sum(self.by_bit)

    def document(self) -> dict[str, Any]:
        """Return the differences as plain values for JSON."""
        return {
            "target": self.target.id, "layer": self.target.layer, "dtype": self.target.word.name,
            "elements": self.target.size, "words": self.words, "bits": self.bits, "by_bit": list(self.by_bit),
            "largest": json_value(self.largest), "relative": json_value(self.relative),
        }  # fmt: skip


@dataclass(frozen=True)
class FormatDiff:
    """Distance of one tensor that the models store in two floating-point formats.

    Attributes
    ----------
    target : Target
        The tensor, as in the first model.
    other : str
        Its number format in the second model.
    words : int
        The numbers that differ.
    largest, relative : float
        The largest absolute difference and the relative L2 norm, as in `TensorDiff`.
    """

    target: Target
    other: str
    words: int
    largest: float
    relative: float

    def document(self) -> dict[str, Any]:
        """Return the distance as plain values for JSON."""
        return {
            "target": self.target.id, "layer": self.target.layer, "dtypes": [self.target.word.name, self.other],
            "elements": self.target.size, "words": self.words,
            "largest": json_value(self.largest), "relative": json_value(self.relative),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class ModelDiff:
    """Differences of two models.

    Attributes
    ----------
    first, second : Model
        The models.
    tensors : tuple of TensorDiff
        The tensors that differ, in the order of the first model.
    formats : tuple of FormatDiff
        The tensors that the models store in two floating-point formats, with how far their numbers lie apart.
    only_first, only_second : tuple of str
        Tensors that only one model has, or has in another shape or in a format whose numbers mean something else.
    structure : bool
        True where graph, operators, attributes and names are the same.
    operators : mapping of str to tuple of int
        The operators whose number differs, with how many each model has.
    compared : int
        The tensors that both models have in the same format and shape.

    Examples
    --------
    >>> from onnxfi.runtime.inject.weights import inject, sample
    >>> golden = load("models/fashion_cnn.onnx")
    >>> damaged = inject(golden, sample(golden, sites=["conv1.weight[7]:30", "conv1.weight[7]:2"])).data
    >>> found = diff(golden, damaged)
    >>> [(one.target.id, one.words, one.bits) for one in found.tensors], found.structure
    ([('conv1.weight', 1, 2)], True)
    >>> found.repaired().faulty_digest == golden.digest
    True
    """

    first: Model
    second: Model
    tensors: tuple[TensorDiff, ...]
    formats: tuple[FormatDiff, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    structure: bool
    operators: Mapping[str, tuple[int, int]]
    compared: int

    def __repr__(self) -> str:
        """Return the numbers of what differs."""
        words, alone = sum(one.words for one in self.tensors), len(self.only_first) + len(self.only_second)
        structure = "the same" if self.structure else "another"
        formats = f"{len(self.formats):,} have two formats, " if self.formats else ""
        return (
            f"<ModelDiff of {self.compared:,} tensors: {len(self.tensors):,} differ in {words:,} words, {formats}"
            f"{alone:,} are in one model alone, structure {structure}>"
        )

    @property
    def same(self) -> bool:
        """True where no stored number differs, and the structure is the same."""
        return self.structure and not (self.tensors or self.formats or self.only_first or self.only_second)

    @cached_property
    def bits(self) -> int:
        """The bits that differ in tensors that both models have."""
        return sum(one.bits for one in self.tensors)

    def faults(self) -> Sample:
        """Return the differing bits as flips in the first model, ready for `inject`, which writes the fault list.

        Raises
        ------
        InputError
            Where no bit differs, more than `MOST_FAULTS` do, or the models have other tensors.
        """
        return self._flips(self.first)

    def repaired(self, out: str | Path | None = None) -> Injection:
        """Write the second model with the words of the first; every other byte stays as it is.

        Raises
        ------
        InputError
            As for `faults`.
        OutputError
            Where the output cannot be written.
        """
        return inject(self.second, self._flips(self.second), out)

    def _flips(self, model: Model) -> Sample:
        if self.only_first or self.only_second:
            name = (self.only_first or self.only_second)[0]
            raise InputError(f"the models have other tensors ({name!r}), so their difference is no list of faults")
        for one in self.formats:
            raise InputError(
                f"{one.target.id!r} is {one.target.word.name} in one model and {one.other} in the other, so their "
                f"difference is no list of faults"
            )
        if not self.bits:
            raise InputError("no stored number differs, so there is no fault to list")
        if self.bits > MOST_FAULTS:
            raise InputError(
                f"the models differ in {self.bits:,} bits; a list of faults takes {MOST_FAULTS:,}, more are two models "
                f"and not a damaged one"
            )
        return sample(model, sites=list(self.sites()))

    def sites(self) -> Iterator[str]:
        """Yield the differing bits as sites, `tensor[element]:bit`, in the order of the first model."""
        for one in self.tensors:
            for index, word in zip(one.index.tolist(), one.changed.tolist(), strict=True):
                yield from (f"{one.target.id}[{index}]:{bit}" for bit in range(one.target.word.bits) if word >> bit & 1)

    def document(self) -> dict[str, Any]:
        """Return the differences as plain values for JSON."""
        return {
            "first": self.first.name, "second": self.second.name, "same": self.same, "structure": self.structure,
            "compared": self.compared, "words": sum(one.words for one in self.tensors), "bits": self.bits,
            "tensors": [one.document() for one in self.tensors],
            "formats": [one.document() for one in self.formats],
            "only_first": list(self.only_first), "only_second": list(self.only_second),
            "operators": {name: list(counts) for name, counts in self.operators.items()},
        }  # fmt: skip


def diff(first: ModelLike, second: ModelLike) -> ModelDiff:
    """Compare the stored words and the structure of two models.

    Parameters
    ----------
    first, second : str, Path, bytes, onnx.ModelProto or Model
        The models, the intact one first.

    Returns
    -------
    ModelDiff
        The differences by tensor and bit, and the tensors and operators that only one has.

    Raises
    ------
    ModelError
        Where a model cannot be opened.

    Examples
    --------
    >>> diff("models/fashion_cnn.onnx", "models/fashion_cnn.onnx").same
    True
    """
    one, other = load(first), load(second)
    theirs = {target.id: target for target in other.targets}
    shared = [t for t in one.targets if t.id in theirs and t.shape == theirs[t.id].shape]
    common = [t for t in shared if t.word == theirs[t.id].word]
    converted = [t for t in shared if t.word != theirs[t.id].word and t.word.is_float and theirs[t.id].word.is_float]
    known = {target.id for target in (*common, *converted)}
    compared = (_compare(one, other, target, theirs[target.id]) for target in common)
    counts = [Counter(node.op_type for node in _nodes(model)) for model in (one, other)]
    return ModelDiff(
        one,
        other,
        tuple(found for found in compared if found.words),
        tuple(_compare_numbers(one, other, target, theirs[target.id]) for target in converted),
        tuple(target.id for target in one.targets if target.id not in known),
        tuple(target.id for target in other.targets if target.id not in known),
        structure_digest(one) == structure_digest(other),
        {
            name: (counts[0][name], counts[1][name])
            for name in sorted(counts[0].keys() | counts[1].keys())
            if counts[0][name] != counts[1][name]
        },
        len(common),
    )


def _nodes(model: Model) -> Iterator[onnx.NodeProto]:
    """Yield every node of a model, also those of subgraphs and functions."""
    for nodes in (model.proto.graph.node, *(function.node for function in model.proto.functions)):
        yield from all_nodes(nodes)


class _Distance:
    """Distance of the numbers of a tensor in two models, gathered in chunks."""

    def __init__(self) -> None:
        self.largest = self._squares = self._norm = 0.0

    def add(self, ours: NDArray[np.float64], theirs: NDArray[np.float64], rows: NDArray[np.int64]) -> None:
        """Take a chunk of both tensors, which differs in these rows."""
        with np.errstate(all="ignore"):
            self._norm += float(np.square(ours).sum())
            if len(rows):
                gap = np.abs(ours[rows] - theirs[rows])
                gap[np.isnan(gap)] = np.inf
                self.largest = max(self.largest, float(gap.max()))
                self._squares += float(np.square(gap).sum())

    @property
    def relative(self) -> float:
        """The L2 norm of the difference over that of the first tensor; infinite where a number is not finite."""
        if not self._squares:
            return 0.0
        if not self._norm or not math.isfinite(self._squares + self._norm):
            return math.inf
        return math.sqrt(self._squares / self._norm)


def _chunks(target: Target) -> Iterator[NDArray[np.int64]]:
    for start in range(0, target.size, _CHUNK_WORDS):
        yield np.arange(start, min(start + _CHUNK_WORDS, target.size))


def _numbers(target: Target, words: Words) -> NDArray[np.float64]:
    return target.word.values(words).astype(np.float64)


def _compare_numbers(one: Model, other: Model, target: Target, again: Target) -> FormatDiff:
    """Compare the numbers of a tensor that the models store in two formats."""
    distance, words = _Distance(), 0
    for index in _chunks(target):
        with np.errstate(all="ignore"):
            ours, theirs = _numbers(target, one.words(target, index)), _numbers(again, other.words(again, index))
        rows = np.flatnonzero((ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs)))
        distance.add(ours, theirs, rows)
        words += len(rows)
    return FormatDiff(target, again.word.name, words, distance.largest, distance.relative)


def _compare(one: Model, other: Model, target: Target, again: Target) -> TensorDiff:
    """Compare the words of a tensor in two models."""
    bits, words, distance = target.word.bits, 0, _Distance()
    by_bit, kept, positions = np.zeros(bits, np.int64), [], []
    for index in _chunks(target):
        ours, theirs = one.words(target, index), other.words(again, index)
        changed = ours ^ theirs
        rows = np.flatnonzero(changed)
        with np.errstate(all="ignore"):
            distance.add(_numbers(target, ours), _numbers(again, theirs), rows)
        for bit in range(bits) if len(rows) else ():
            by_bit[bit] += np.count_nonzero(changed[rows] >> np.uint64(bit) & np.uint64(1))
        if words < MOST_FAULTS:
            positions.append(index[rows][: MOST_FAULTS - words])
            kept.append(changed[rows][: MOST_FAULTS - words])
        words += len(rows)
    return TensorDiff(
        target, words, tuple(by_bit.tolist()), distance.largest, distance.relative,
        np.concatenate(positions) if positions else np.zeros(0, np.int64),
        np.concatenate(kept) if kept else np.zeros(0, np.uint64),
    )  # fmt: skip
