"""Fault maps: faults in the cells of a memory that fail at a voltage or temperature.

The selected bits lie packed in the memory, in their order, from cell `base` on. What fails at one voltage fails at
every lower one, in the same trials of a sweep. The file is described in docs/reference/fault-map.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError, SelectorError
from onnxfi.faults import sampling
from onnxfi.faults.fault_model import Failing, FaultModel
from onnxfi.faults.hardware.fault_description import DescribedFault
from onnxfi.faults.hardware.fault_map_file import FILE, CellMap, Instance, parse_map
from onnxfi.faults.models import Flip, StuckAt0, StuckAt1
from onnxfi.faults.sampling import Numbers
from onnxfi.faults.sites import Target

#: Behaviour of a failing cell: read the other value, read 1, read 0.
_EFFECTS = (Flip(), StuckAt1(), StuckAt0())
#: Streams of a memory: each direction by the number of the measured point, above those of trials.
_UP, _DOWN, _WHICH = 1 << 48, 2 << 48, 3 << 48


@dataclass(frozen=True)
class FaultMap(DescribedFault):
    """Failing cells of a memory at a voltage or temperature; a cell may fail in one direction alone.

    Stands for SRAM below its nominal voltage, and for DRAM that is hot or seldom refreshed. Each trial has a memory of
    its own: an instance of the map (or the one of number `instance`, from 0) with the data from a random cell on (or
    from cell `base`). With `fold=1` data larger than the memory lies in it part after part. `sha256` is the digest of
    the file. A fault is written as the `flip`, `stuck-at-0` or `stuck-at-1` that it is.
    """

    instance: int = -1
    base: int = -1
    fold: int = 0
    name = "fault-map"
    unit = "bit"
    described = FILE
    cells: CellMap = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the file, and check its digest and the parameters."""
        found = _parse(self.content(), self.file)
        object.__setattr__(self, "cells", found)
        object.__setattr__(self, "condition", found.axis)
        if self.instance >= max(1, len(found.instances)) or self.instance < -1:
            raise FaultError(
                f"fault map {self.file!r} has {len(found.instances)} instances; there is no {self.instance}"
            )
        if not -1 <= self.base < max(found.size_bits, 1):
            raise FaultError(
                f"fault map {self.file!r} has {found.size_bits:,} cells; there is no cell {self.base} (base)"
            )
        self.require(self.fold in (0, 1), "fold", "0 or 1")

    @property
    def element_model(self) -> FaultModel:
        """Effect on one cell that fails in both directions."""
        return _EFFECTS[0]

    def fits(self, target: Target) -> bool:
        """Return True; SelectorError for activations of one sample or step, since a cell fails in every inference."""
        if target.samples or target.steps:
            raise SelectorError(
                f"a cell fails in every inference, not in one of {target.id!r}; use --persistence permanent"
            )
        return True

    def expected(self, population: int, at: float) -> float:
        """Return the expected number of failing cells under so many bits."""
        found = self.cells
        found.check(at, self.file)
        if found.points:
            point = next(point for point in found.points if point.at == at)
            return population * (point.p01 + point.p10 - point.p01 * point.p10)
        share = population / found.size_bits
        every = [_failing(one, found.axis, at) for one in found.instances]
        sums = [
            float((1 - (1 - one.p01[k]) * (1 - one.p10[k])).sum())
            for one, k in zip(found.instances, every, strict=True)
        ]
        return share * (sums[self.instance] if self.instance >= 0 else sum(sums) / len(sums))

    def failing_sites(self, population: int, at: float, seed: int, stream: int) -> Failing:
        """Return the numbers of the bits whose cells fail, ascending, and what each does.

        Parameters
        ----------
        population : int
            Number of bits that lie in the memory.
        at : float
            The voltage or temperature.
        seed, stream : int
            The memory that is drawn: the same for every voltage.
        """
        found = self.cells
        found.check(at, self.file)
        if found.size_bits and population > found.size_bits and not self.fold:
            raise FaultError(
                f"fault map {self.file!r} is of a memory of {found.size_bits:,} bits, {population:,} are selected: "
                f"a map of another memory size; select fewer, or give fold=1 to load them part after part"
            )
        up, down = self._statistical(population, at, seed, stream) if found.points else self._measured(
            population, at, seed, stream
        )  # fmt: skip
        both = np.intersect1d(up, down, assume_unique=True)
        every = np.union1d(up, down)
        kind = np.where(np.isin(every, both), 0, np.where(np.isin(every, up), 1, 2))
        return every, tuple(_EFFECTS[k] for k in kind.tolist())

    def _statistical(self, population: int, at: float, seed: int, stream: int) -> tuple[Numbers, Numbers]:
        """Return the bits that fail where they hold 0, and where they hold 1, drawn point by point."""
        found = []
        for first, chances in ((_UP, "p01"), (_DOWN, "p10")):
            count, before = 0, 0.0
            for number, point in enumerate(self.cells.points):
                p = getattr(point, chances)
                if p > before:  # of the cells that are still good, so that none recovers
                    more = min(1.0, (p - before) / (1 - before)) if before < 1 else 0.0
                    count += sampling.binomial(population - count, more, seed, first | number << 36 | stream)
                    before = p
                if point.at == at:
                    break
            found.append(np.sort(sampling.permute(population, seed, first | stream, np.arange(count, dtype=np.uint64))))
        return found[0], found[1]

    def _measured(self, population: int, at: float, seed: int, stream: int) -> tuple[Numbers, Numbers]:
        """Return the bits that fail where they hold 0, and where they hold 1, of one instance."""
        found, (which, place) = self.cells, sampling.raw_words(seed, _WHICH | stream, sampling.CHOICE, 2).tolist()
        one = found.instances[which % len(found.instances) if self.instance < 0 else self.instance]
        base = place % found.size_bits if self.base < 0 else self.base
        rows = _failing(one, found.axis, at)
        raw = sampling.raw_words(seed, _WHICH | stream, sampling.VALUE, 2 * len(one.address)).reshape(2, -1)[:, rows]
        bits = (one.address[rows] - base) % found.size_bits
        parts = []
        for chances, words in zip((one.p01, one.p10), raw, strict=True):
            first = bits[sampling.uniform(words) < chances[rows]]
            folds = [first + k * found.size_bits for k in range(-(-population // found.size_bits))]
            every = np.concatenate([np.zeros(0, np.int64), *folds])
            parts.append(np.sort(every[every < population]).astype(np.uint64))
        return parts[0], parts[1]


@lru_cache(maxsize=8)
def _parse(text: bytes, file: str) -> CellMap:
    return parse_map(FILE.parse(text, file))


def _failing(one: Instance, axis: str, at: float) -> NDArray[np.int64]:
    """Return the rows of the cells that fail: at their own voltage and every lower one, or hotter."""
    return np.flatnonzero(one.at >= at if axis == "voltage" else one.at <= at)
