"""Faults of memory cells: clusters of neighbouring cells, and flips that are likelier in one direction.

An array of cells has lines and columns. A line holds `line` words; of every `interleave` of them the cells alternate,
so that neighbouring columns hold the same bit of different words (as memories do against multi-bit upsets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxfi.errors import FaultError
from onnxfi.faults.fault_model import FaultModel, Spread
from onnxfi.faults.models import Flip, StuckAt0, StuckAt1
from onnxfi.faults.sampling import Numbers, uniform
from onnxfi.faults.sites import Sites, Target
from onnxfi.faults.words import Word

_MOST_CELLS = 64
_FLIP, _UP, _DOWN = Flip(), StuckAt1(), StuckAt0()


@dataclass(frozen=True)
class CellArray:
    """Lines of `line` words each, the cells of `interleave` words alternating.

    Examples
    --------
    >>> CellArray(line=4, interleave=2).cluster(8, 16, 1, 7, [(0, 0), (0, 1), (1, 0)])
    [(1, 7), (2, 0), (5, 7)]
    """

    line: int = 1
    interleave: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.line <= 1 << 40:
            raise FaultError(f"cells: line={self.line} is out of range; give the words of a line, from 1")
        if not 1 <= self.interleave <= self.line or self.line % self.interleave:
            raise FaultError(f"cells: interleave={self.interleave} is out of range; give a divisor of line={self.line}")

    def cluster(
        self, bits: int, words: int, index: int, bit: int, offsets: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Return (word, bit) of the cells at (line, column) offsets from a cell; those beyond the array are left out.

        `bits` is the width of a word, `words` the number of words in the array.
        """
        line, place = divmod(index, self.line)
        group, turn = divmod(place, self.interleave)
        column, columns = (group * bits + bit) * self.interleave + turn, self.line * bits
        found = []
        for down, right in offsets:
            at, there = line + down, column + right
            if at < 0 or not 0 <= there < columns:
                continue
            rest, turn_there = divmod(there, self.interleave)
            group_there, bit_there = divmod(rest, bits)
            word = at * self.line + group_there * self.interleave + turn_there
            if word < words:
                found.append((word, bit_there))
        return found


@dataclass(frozen=True)
class CellCluster(FaultModel):
    """Flip of a rectangle of `rows` × `cols` neighbouring cells; the site is the one with the lowest line and column.

    Stands for a multi-cell upset (MCU) of an SRAM: 1×2 and 2×1 are the frequent ones, 2×2 and larger the rare ones. A
    line of the array holds `line` words of the tensor, the cells of `interleave` words alternate. Cells beyond the
    tensor do not exist.
    """

    rows: int = 1
    cols: int = 2
    line: int = 1
    interleave: int = 1
    name = "cluster"
    unit = "bit"
    composite = True
    self_inverse = True
    examples = ("cluster:rows=2,cols=2,line=8,interleave=4",)

    def __post_init__(self) -> None:
        """Check the numbers."""
        fits = min(self.rows, self.cols) >= 1 and self.rows * self.cols <= _MOST_CELLS
        self.require(fits, "rows,cols", f"1 to {_MOST_CELLS} cells")
        CellArray(self.line, self.interleave)

    @property
    def element_model(self) -> FaultModel:
        """Effect on one cell."""
        return Flip()

    def spread(self, targets: tuple[Target, ...], sites: Sites, raw: Numbers) -> Spread:
        """Return a flip in each cell."""
        array = CellArray(self.line, self.interleave)
        offsets = [(down, right) for down in range(self.rows) for right in range(self.cols)]
        rows, index, bit = list[int](), list[int](), list[int]()
        columns = zip(sites.target.tolist(), sites.index.tolist(), sites.bit.tolist(), strict=True)
        for row, (ordinal, at, lowest) in enumerate(columns):
            target = targets[ordinal]
            for word, place in array.cluster(target.word.bits, target.size, at, lowest, offsets):
                rows.append(row)
                index.append(word)
                bit.append(place)
        return sites.moved(rows, index, bit), (Flip(),)


@dataclass(frozen=True)
class AsymmetricFlip(FaultModel):
    """Flip that is likelier in one direction: `up` of a cell that holds 0, `down` of one that holds 1.

    Stands for retention failures, undervolted SRAM and flash, whose cells fail mostly towards one value. The likelier
    direction has 1, so that the rate of a sweep is its rate; the other is a share of it. A drawn fault is written as
    `flip`, or as the `stuck-at` that it amounts to.
    """

    up: float = 1.0
    down: float = 0.5
    name = "asymmetric-flip"
    unit = "bit"
    is_random = True
    examples = ("asymmetric-flip:up=0.1,down=1",)

    def __post_init__(self) -> None:
        """Check the shares."""
        shares = all(0 <= share <= 1 for share in (self.up, self.down)) and 1 in (self.up, self.down)
        self.require(shares, "up,down", "1 for the likelier direction and its share, from 0 to 1, for the other")

    def draw_parameters(self, raw: int, word: Word) -> FaultModel:
        """Return a flip where the rarer direction fails too, else the stuck-at fault of the likelier one."""
        if float(uniform(np.array([raw], np.uint64))[0]) < min(self.up, self.down):
            return _FLIP
        return _UP if self.up == 1 else _DOWN
