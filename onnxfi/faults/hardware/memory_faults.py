"""Faults of parts of a memory that holds a model's files: page, row, column, bank, chip, lane, cells of a word line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import InputError, SelectorError
from onnxfi.faults.fault_model import FaultModel, Spread
from onnxfi.faults.hardware.fault_description import DescribedFault
from onnxfi.faults.hardware.memory_layout import FILE, MemoryLayout, parse_layout
from onnxfi.faults.models import BIT_EFFECTS
from onnxfi.faults.sampling import Numbers, derive, uniform
from onnxfi.faults.sites import Sites, Target

#: The coordinates that the cells of a part share with the site; `lane` and `chip` are of bits, the others of bytes.
PARTS = {
    "page": ("page",), "row": ("bank", "row"), "column": ("bank", "column"), "bank": ("bank",), "chip": (), "lane": (),
    "word-line": ("bank", "row"),
}  # fmt: skip
_CHUNK = 1 << 22
_MOST = 20_000_000

Index = NDArray[np.int64]


@dataclass(frozen=True)
class MemoryPart(DescribedFault):
    """Fault in every bit of the selected tensors that lies in the same part of the memory as the site.

    Stands for a defective row, column, bank, chip or DQ lane of a DRAM, and with `part=word-line` for a burst over
    `size` neighbouring columns of one lane. Each bit beside the site's is faulty with probability `share`. `sha256` is
    the digest of the layout's file.
    """

    part: str = "row"
    effect: str = "flip"
    share: float = 1.0
    size: int = 4
    name = "memory"
    unit = "bit"
    composite = True
    described = FILE
    layout: MemoryLayout = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the layout and check the parameters."""
        self.require_known("part", PARTS)
        self.require_known("effect", BIT_EFFECTS)
        self.require(0 <= self.share <= 1 and 1 <= self.size <= 1 << 20, "share,size", "a share to 1, and 1 or more")
        object.__setattr__(self, "layout", parse_layout(self.content(), self.file))
        object.__setattr__(self, "spans_targets", True)
        object.__setattr__(self, "self_inverse", self.effect == "flip")

    @property
    def element_model(self) -> FaultModel:
        """Effect on one bit."""
        return BIT_EFFECTS[self.effect]

    def fits(self, target: Target) -> bool:
        """Return True for stored tensors; SelectorError for what has no address."""
        if target.is_activation:
            raise SelectorError(
                f"{target.id!r} is computed, and has no address in a file; a memory layout is of weights"
            )
        self.layout.place(target, self.file)
        return True

    def spread(self, targets: tuple[Target, ...], sites: Sites, raw: Numbers) -> Spread:
        """Return a fault in each bit of the part of each site."""
        parts: list[tuple[int, int, Index, Index]] = []
        total = 0
        for event, (ordinal, at, bit) in enumerate(
            zip(sites.target.tolist(), sites.index.tolist(), sites.bit.tolist(), strict=True)
        ):
            for other, flat in self._bits(targets, ordinal, at * targets[ordinal].word.storage + bit):
                kept = flat
                if self.share < 1:
                    own = (flat == at * targets[ordinal].word.storage + bit) & (other == ordinal)
                    chance = uniform(derive(derive(flat.astype(np.uint64), other) ^ raw[event], 0))
                    kept = flat[own | (chance < self.share)]
                index, place = np.divmod(kept, targets[other].word.storage)
                held = place < targets[other].word.bits
                parts.append((event, other, index[held], place[held]))
                total += int(held.sum())
                if total > _MOST:
                    raise InputError(f"{self} changes more than {_MOST:,} bits in one trial; narrow the selection")
        lengths = [len(index) for _, _, index, _ in parts]
        rows, ordinals = (np.repeat(np.array([p[k] for p in parts], np.int64), lengths) for k in (0, 1))
        index, place = (np.concatenate([np.zeros(0, np.int64), *(p[k] for p in parts)]) for k in (2, 3))
        return sites.moved(rows.tolist(), index.tolist(), place.tolist(), ordinals.tolist()), (self.element_model,)

    def _bits(self, targets: tuple[Target, ...], ordinal: int, flat: int) -> Iterator[tuple[int, Index]]:
        """Yield the targets that share the part with a bit of one of them, with the numbers of their bits in it."""
        layout = self.layout
        start = layout.place(targets[ordinal], self.file) + flat // 8
        [physical] = layout.physical(np.array([start], np.int64)).tolist()
        site = {name: int(value[0]) for name, value in layout.coordinates(np.array([physical], np.int64)).items()}
        lane = site["lane"] + flat % 8
        for other, target in enumerate(targets):
            base, length = layout.place(target, self.file), target.word.size_bytes(target.size)
            for first in range(0, length, _CHUNK):
                inside = np.arange(first, min(first + _CHUNK, length), dtype=np.int64)
                at = layout.coordinates(layout.physical(base + inside))
                here = np.ones(len(inside), np.bool_)
                for name in PARTS[self.part]:
                    here &= at[name] == site[name]
                if self.part == "word-line":
                    here &= (at["column"] >= site["column"]) & (at["column"] < site["column"] + self.size)
                bits = (inside[here, None] * 8 + np.arange(8)).ravel()
                lanes = (at["lane"][here, None] + np.arange(8)).ravel()
                if self.part in ("lane", "word-line"):
                    bits = bits[lanes == lane]
                elif self.part == "chip":
                    each = layout.lanes // layout.chips
                    bits = bits[lanes // each == lane // each]
                if len(bits := bits[bits < target.size * target.word.storage]):
                    yield other, bits
