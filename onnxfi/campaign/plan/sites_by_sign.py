"""Sites of the weights of one sign.

A flip in the exponent of a positive weight raises a sum; of a negative one it lowers it, and the next ReLU masks it. So
faults of the two are unlike, as those of different bits are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxfi.faults.sites import Index
from onnxfi.faults.space import FaultSpace, Target
from onnxfi.faults.words import Words

#: Elements that are read at once.
_CHUNK = 1 << 20
#: Elements of a block, whose number with each sign is kept.
_BLOCK = 1 << 12

ReadWords = Callable[[Target, Index], Words]


@dataclass(frozen=True)
class SignBits:
    """The sign of each selected element of a target, a bit each, and how many are negative up to each block."""

    size: int
    packed: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @classmethod
    def read(cls, space: FaultSpace, ordinal: int, read: ReadWords) -> SignBits:
        """Read the signs of the elements of a target of a space."""
        target, size = space.targets[ordinal], space.element_counts[ordinal]
        top, parts = np.uint64(target.word.bits - 1), list[NDArray[np.uint8]]()
        for first in range(0, size, _CHUNK):
            index = space.elements_of(ordinal, np.arange(first, min(first + _CHUNK, size), dtype=np.int64))
            parts.append(np.packbits((read(target, index) >> top) & np.uint64(1) != 0))
        packed = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
        bits = np.bitwise_count(packed).astype(np.int64)
        starts = np.arange(0, len(packed), _BLOCK // 8)
        return cls(size, packed, np.cumsum(np.add.reduceat(bits, starts)) if size else np.zeros(0, np.int64))

    def count(self, *, negative: bool) -> int:
        """Return how many elements have a sign."""
        below = int(self.ends[-1]) if len(self.ends) else 0
        return below if negative else self.size - below

    def places(self, numbers: Index, *, negative: bool) -> Index:
        """Return the places of the elements of one sign with these numbers ([n])."""
        ends = self.ends
        if not negative:
            ends = np.minimum(_BLOCK * np.arange(1, len(ends) + 1), self.size) - ends
        block = np.searchsorted(ends, numbers, side="right")
        found = np.empty(len(numbers), np.int64)
        for one in np.unique(block).tolist():
            here = block == one
            first = one * _BLOCK
            bits = np.unpackbits(self.packed[first // 8 : (first + _BLOCK) // 8])[: self.size - first]
            before = int(ends[one - 1]) if one else 0
            found[here] = first + np.flatnonzero(bits == negative)[numbers[here] - before]
        return found


@dataclass(frozen=True)
class SignedSpace(FaultSpace):
    """The sites of a space whose stored number is negative, or is not.

    `signs` has the signs of the elements of each target; `element_counts` counts those of the sign that is meant.
    """

    signs: tuple[SignBits, ...] = field(default=(), repr=False)
    negative: bool = False

    def elements_of(self, ordinal: int, numbers: Index) -> Index:
        """Return the flat index of numbered elements of a target."""
        return super().elements_of(ordinal, self.signs[ordinal].places(numbers, negative=self.negative))


def by_sign(space: FaultSpace, signs: tuple[SignBits, ...]) -> Iterator[tuple[str, FaultSpace]]:
    """Yield the sites of the two signs, each with its name; the space itself, unnamed, where all have the same one."""
    counts = [[one.count(negative=negative) for one in signs] for negative in (False, True)]
    if not all(map(any, counts)):
        yield "", space
        return
    for name, negative, chosen in zip("+-", (False, True), counts, strict=True):
        rows = [k for k, n in enumerate(chosen) if n]
        yield (
            name,
            SignedSpace(
                tuple(space.targets[k] for k in rows), space.unit, tuple(space.bit_positions[k] for k in rows),
                space.elements, tuple(chosen[k] for k in rows), tuple(signs[k] for k in rows), negative,
            ),
        )  # fmt: skip
