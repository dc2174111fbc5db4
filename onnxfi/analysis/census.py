"""Census: the effect of every bit flip of a model on the word that it hits, counted without running the model.

The words of each tensor are counted by pattern (up to 16 bits) or by exponent (longer floats), in a stream of chunks of
bounded size; counts times the classes of each pattern give the exact number of flips in each class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from onnxfi.analysis.bit_effects import (
    CATASTROPHIC,
    EFFECTS,
    Counts,
    bin_counts,
    count_effects,
    count_effects_of_words,
    effect_bins,
)
from onnxfi.faults.models import Flip
from onnxfi.faults.space import FaultSpace, Selector, Target
from onnxfi.faults.words import Words
from onnxfi.graph.model.dequantize import describe_scheme, zero_points_at
from onnxfi.graph.model.loading import Model, ModelLike, load

#: Bytes of a tensor that are read together, and words that are looked at one by one.
CHUNK_BYTES = 1 << 22
_CHUNK_WORDS = 1 << 18
#: Numbers of flips for which the share of broken models is foretold.
FLIPS = (1, 10, 100, 1000)


@dataclass(frozen=True)
class CensusRow:
    """Flips of a tensor, or of several, by bit and class.

    Attributes
    ----------
    key : str
        The target, layer or format that it is about.
    layer, dtype, role : str
        Of a target: its layer, number format and role; else empty.
    words, bits : int
        The words, and the flips, one for each bit.
    flips : tuple of tuple of int
        For each bit position from 0 the flips in each class of `EFFECTS`.
    reach : int or None
        Of a scale or zero point the largest number of stored words that one of its flips changes, else None.
    reached : float
        The words that a flip changes, summed over all flips: `reached / bits` on average.
    step : tuple of float or None
        Of quantised integers the smallest and the largest real size of a step: a flip of bit k moves by 2^k of it.
    """

    key: str
    layer: str
    dtype: str
    role: str
    words: int
    bits: int
    flips: tuple[tuple[int, ...], ...]
    reach: int | None = None
    reached: float = 0.0
    step: tuple[float, float] | None = None

    @cached_property
    def totals(self) -> tuple[int, ...]:
        """The flips in each class, over all bits."""
        return tuple(map(sum, zip(*self.flips, strict=True)))

    def share(self, effect: str) -> float:
        """Return the share of a class in all flips."""
        return self.totals[EFFECTS.index(effect)] / self.bits

    def target_document(self) -> dict[str, Any]:
        """Return the row of a target as plain values for JSON."""
        return {
            "target": self.key, "layer": self.layer, "dtype": self.dtype, "role": self.role, **self.document(),
            "reach": self.reach, "step": None if self.step is None else list(self.step),
            "by_bit": [dict(zip(EFFECTS, one, strict=True)) for one in self.flips],
        }  # fmt: skip

    def document(self) -> dict[str, Any]:
        """Return the counts as plain values for JSON."""
        return {
            "words": self.words, "bits": self.bits, "flips": dict(zip(EFFECTS, self.totals, strict=True)),
            "words_per_flip": self.reached / self.bits,
        }  # fmt: skip


@dataclass(frozen=True)
class Census:
    """Effects of all single bit flips of a model, counted; every number is exact.

    Attributes
    ----------
    model, digest : str
        Name and SHA-256 of the model.
    targets : tuple of CensusRow
        One for each target, in file order.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> found = census(load("models/fashion_cnn_int8_qdq.onnx"))
    >>> [row.key for row in found.formats], found.whole.words
    (['uint8', 'float32', 'int8', 'int32'], 106364)
    """

    model: str
    digest: str
    targets: tuple[CensusRow, ...] = field(repr=False)

    @cached_property
    def whole(self) -> CensusRow:
        """All targets together."""
        return _merged("all", self.targets)

    @cached_property
    def layers(self) -> tuple[CensusRow, ...]:
        """The targets of each layer and number format together, in file order."""
        return _grouped(self.targets, lambda row: (row.layer, row.dtype))

    @cached_property
    def formats(self) -> tuple[CensusRow, ...]:
        """The targets of each number format together."""
        return _grouped(self.targets, lambda row: (row.dtype, row.dtype))

    def broken(self, flips: float) -> float:
        """Return the chance that so many flips at random bits hold a catastrophic one: 1 − (1 − p)^n.

        A forecast of the share of broken models, if a catastrophic word breaks one and nothing else does.
        """
        p = self.whole.share(EFFECTS[CATASTROPHIC])
        return 1.0 if p >= 1 else -math.expm1(flips * math.log1p(-p))

    def summary(self) -> dict[str, Any]:
        """Return the whole as plain values for JSON."""
        return {**self.whole.document(), "broken": [{"flips": n, "share": self.broken(n)} for n in FLIPS]}

    def document(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "model": self.model, "digest": self.digest, **self.summary(),
            "targets": [row.target_document() for row in self.targets],
        }  # fmt: skip

    def table(self) -> Iterator[dict[str, Any]]:
        """Yield a line for each bit of each target, as plain values for CSV."""
        for row in self.targets:
            for bit, flips in enumerate(row.flips):
                yield {
                    "target": row.key, "layer": row.layer, "dtype": row.dtype, "role": row.role, "bit": bit,
                    **dict(zip(EFFECTS, flips, strict=True)), "reach": row.reach,
                    "step_least": None if row.step is None else row.step[0] * 2**bit,
                    "step_most": None if row.step is None else row.step[1] * 2**bit,
                }  # fmt: skip


def census(model: ModelLike, selector: Selector | None = None, **selection: Any) -> Census:
    """Count the effect of every single bit flip of a model on its word; nothing is run.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The model.
    selector : Selector, optional
        The selected targets, elements and bits; by default every weight.
    **selection
        Fields of a selector in place of one: ``include="conv1"``, ``bits="exponent"``, ….

    Returns
    -------
    Census
        Flips by target, layer, format and bit in six classes: catastrophic (the number grows by 2^16 or more, or is no
        longer finite), amplification, attenuation, collapse (it shrinks by 2^16 or more), sign, negligible.

    Raises
    ------
    SelectorError
        If nothing is selected.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> found = census(load("models/fashion_cnn.onnx"))
    >>> found.whole.bits, round(found.whole.share("catastrophic"), 4), round(found.broken(10), 2)
    (3387712, 0.0313, 0.27)
    """
    model = load(model)
    space = Selector.given(selector, selection).space(model.targets)
    reach = _reach(model)
    rows = zip(space.targets, space.bit_positions, space.element_counts, strict=True)
    return Census(model.name, model.digest, tuple(_row(model, space, *row, reach) for row in rows))


def _row(
    model: Model, space: FaultSpace, target: Target, places: Sequence[int], words: int, reach: dict[str, int]
) -> CensusRow:
    flips = _count(model, space, target)
    kept = np.zeros_like(flips)
    kept[list(places)] = flips[list(places)]
    most, bits = max((reach[name] for name in target.ids if name in reach), default=None), words * len(places)
    scale = describe_scheme(model, target).get("scale")
    return CensusRow(
        target.id, target.layer, target.dtype, target.role, words, bits, tuple(map(tuple, kept.tolist())),
        most, float(bits * (most or 1)), None if scale is None else (scale[0], scale[1]),
    )  # fmt: skip


def _reach(model: Model) -> dict[str, int]:
    """Return the stored words that one flip of each scale and zero point changes, the most of any of its words."""
    found: dict[str, int] = {}
    for target in model.targets:
        schemes = () if target.scheme is None else (target.scheme, *target.scheme.others)
        for name in {name for one in schemes for name in (*one.scales, one.zero_point) if name}:
            held = model.targets[model.by_id[name]]
            if held.size:
                found[held.id] = found.get(held.id, 0) + -(-target.size // held.size)
    return found


def _count(model: Model, space: FaultSpace, target: Target) -> Counts:
    """Return the flips of a target by bit and class ([bits, classes])."""
    word, varying = target.word, _zero_point(model, target)
    place = model.places[model.by_id[target.id]]
    streamed = len(place.runs) == 1 and not place.runs[0][2] and not place.varint
    if space.elements or isinstance(varying, Target) or not streamed or not effect_bins(word):
        total = np.zeros((word.bits, len(EFFECTS)), np.int64)
        for index, words in _words(model, space, target):
            zero_points = zero_points_at(model, target, index) if isinstance(varying, Target) else varying
            total += count_effects_of_words(word, words, zero_points)
        return total
    bins = np.zeros(effect_bins(word), np.int64)
    per_byte = max(1, 8 // word.storage)
    per_chunk = CHUNK_BYTES * 8 // word.storage // per_byte * per_byte
    with model.sources[place.file].reading() as read:
        for first in range(0, target.size, per_chunk):
            here = min(per_chunk, target.size - first)
            at = place.runs[0][0] + word.size_bytes(first)
            bins += bin_counts(word, np.frombuffer(read(at, at + word.size_bytes(here)), word.carrier), here)
    return count_effects(word, bins, varying)


def _zero_point(model: Model, target: Target) -> float | Target:
    """Return the one zero point of a target, or the target that holds several."""
    scheme = target.scheme
    if scheme is None or not scheme.zero_point:
        return 0.0 if scheme is None else float(scheme.offset)
    held = model.targets[model.by_id[scheme.zero_point]]
    words = model.words(held, np.arange(held.size))
    values = np.unique(held.word.values(words).astype(np.float64))
    return held if len(values) > 1 else float(values[0]) if len(values) else 0.0


def _words(model: Model, space: FaultSpace, target: Target) -> Iterator[tuple[np.ndarray[Any, Any], Words]]:
    """Yield the indices and the words of the selected elements of a target, in chunks."""
    alone = FaultSpace.over([target], Flip(), bits="0", elements=space.elements)
    for first in range(0, alone.size, _CHUNK_WORDS):
        numbers = np.arange(first, min(first + _CHUNK_WORDS, alone.size), dtype=np.uint64)
        index = alone.locate(numbers).index
        yield index, model.words(target, index)


def _merged(key: str, rows: Sequence[CensusRow]) -> CensusRow:
    """Return several rows as one; bits that a format lacks have no flips."""
    longest = max(len(row.flips) for row in rows)
    total = np.zeros((longest, len(EFFECTS)), np.int64)
    for row in rows:
        total[: len(row.flips)] += np.array(row.flips, np.int64)
    layer, dtype, role = (
        held.pop() if len(held := {getattr(row, name) for row in rows}) == 1 else ""
        for name in ("layer", "dtype", "role")
    )
    return CensusRow(
        key, layer, dtype, role, words=sum(row.words for row in rows), bits=sum(row.bits for row in rows),
        flips=tuple(map(tuple, total.tolist())), reached=math.fsum(row.reached for row in rows),
    )  # fmt: skip


def _grouped(rows: Sequence[CensusRow], key: Any) -> tuple[CensusRow, ...]:
    groups: dict[tuple[str, str], list[CensusRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return tuple(_merged(name, held) for (name, _), held in groups.items())
