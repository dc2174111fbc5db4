"""Distributions: measured tables from which each fault event is drawn.

A table has rows, each a probability with a number of bits and their positions, a mask, cells or a value error, and with
a spatial shape; tables may hold for some operators, layers and number formats only. The file, JSON of version 1, is
described in docs/reference/distribution.md and used as `distribution:file=TABLE.json`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import SelectorError
from onnxfi.faults.fault_model import FaultModel, Spread
from onnxfi.faults.hardware.distribution_file import FILE, DistributionRow, Table, parse_tables
from onnxfi.faults.hardware.fault_description import DescribedFault
from onnxfi.faults.models import Add, Flip, FlipMask, Scale, Set
from onnxfi.faults.sampling import Numbers, derive, uniform
from onnxfi.faults.sites import Sites, Target
from onnxfi.faults.words import Word

#: Numbers of the random words of an event (`sampling.derive`); bits have further ones, and each element its own.
_ROW, _SIGN, _SIZE, _BITS, _ELEMENTS = 0, 1, 2, 3, 1 << 20


@dataclass(frozen=True)
class Distribution(DescribedFault):
    """Fault event drawn from a measured table: bits, positions, spatial shape and value error together.

    Stands for what a beam, a gate-level simulation or the field has shown. `sha256` is the digest of the file; it is
    filled in if it is not given, and a file of other content is refused. A drawn fault is written as the `flip-mask`,
    `set`, `scale` or `add` that it is.
    """

    name = "distribution"
    described = FILE
    composite = True
    tables: tuple[Table, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the file and check its digest."""
        object.__setattr__(self, "tables", _parse(self.content(), self.file))

    @property
    def element_model(self) -> FaultModel:
        """The effect on one element that is hardest to express: a value error if a row has one, else a flip of bits."""
        kinds = {row.value_kind for table in self.tables for row in table.rows}
        return Add(1.0) if "absolute" in kinds else Scale() if kinds & {"relative", "factor"} else FlipMask()

    def table_of(self, target: Target) -> Table | None:
        """Return the first table that holds for a target, None if there is none."""
        return next((table for table in self.tables if table.holds(target)), None)

    def fits(self, target: Target) -> bool:
        """Return True if a table holds for the target; SelectorError if a row of it does not fit there."""
        table = self.table_of(target)
        if table is None:
            return False
        for number, row in enumerate(table.rows, 1):
            if reason := row.misfit(target):
                raise SelectorError(
                    f"distribution {self.file!r}: row {number} of {table.label} does not fit {target.id!r}: {reason}; "
                    f"leave it out with --exclude, or give it a table of its own"
                )
        return True

    def spread(self, targets: tuple[Target, ...], sites: Sites, raw: Numbers) -> Spread:
        """Return the faults of events, each drawn from the table of its target."""
        choice = uniform(derive(raw, _ROW))
        tables = [self.table_of(target) for target in targets]
        rows, index, bits, models = list[int](), list[int](), list[int](), list[FaultModel]()
        for k, (ordinal, at) in enumerate(zip(sites.target.tolist(), sites.index.tolist(), strict=True)):
            target, table = targets[ordinal], tables[ordinal]
            if table is None:
                raise SelectorError(
                    f"distribution {self.file!r} has no table for {target.id!r} ({target.op or 'no op'})"
                )
            row = table.rows[int(np.searchsorted(table.ends, choice[k], side="right"))]
            for place, bit, model in event_faults(row, target, at, raw[k : k + 1]):
                rows.append(k)
                index.append(place)
                bits.append(bit)
                models.append(model)
        return sites.moved(rows, index, bits), tuple(models)


@lru_cache(maxsize=64)
def _parse(text: bytes, file: str) -> tuple[Table, ...]:
    return parse_tables(FILE.parse(text, file))


def event_faults(
    row: DistributionRow, target: Target, index: int, raw: NDArray[np.uint64]
) -> list[tuple[int, int, FaultModel]]:
    """Return (element, bit or -1, model) of each fault of one event of this row at an element."""
    if row.cells:
        bit = _positions(row, target.word, raw)[0]
        cells = row.array.cluster(target.word.bits, target.size, index, bit, row.cells)
        return [(word, place, Flip()) for word, place in cells]
    reached = row.elements(target.axes, index)
    if row.share < 1:
        chances = uniform(derive(reached.astype(np.uint64) ^ raw, _ELEMENTS))
        reached = reached[(chances < row.share) | (reached == index)]
    if not row.each:
        model = _model(row, target.word, raw)
        return [(place, -1, model) for place in reached.tolist()]
    own = derive(reached.astype(np.uint64) ^ raw, _ELEMENTS + 1)
    return [(place, -1, _model(row, target.word, own[k : k + 1])) for k, place in enumerate(reached.tolist())]


def _model(row: DistributionRow, word: Word, raw: NDArray[np.uint64]) -> FaultModel:
    """Return the effect of a row on one element, its random parameters drawn."""
    if row.mask is not None:
        return FlipMask(row.mask)
    if row.bits:
        return FlipMask(sum(1 << bit for bit in _positions(row, word, raw)))
    if row.value_kind == "set":
        return Set(row.low)
    size = float(uniform(derive(raw, _SIZE))[0])
    if row.value_kind in ("relative", "factor"):
        amount = _log_uniform(row.low, row.high, size)
    else:
        amount = row.low + (row.high - row.low) * size
    sign = 1 if row.value_kind == "factor" or float(uniform(derive(raw, _SIGN))[0]) < 0.5 else -1
    if row.value_kind == "relative":
        return Scale(1 + sign * amount)
    return Scale(amount) if row.value_kind == "factor" else Add(sign * amount)


def _log_uniform(low: float, high: float, share: float) -> float:
    """Return the number at this share of the way from `low` to `high` on a logarithmic scale, the same everywhere."""
    with localcontext(Context(prec=40)):  # the exp of numpy is not correctly rounded on every machine
        first, last = Decimal(low).ln(), Decimal(high).ln()
        return min(max(float((first + (last - first) * Decimal(share)).exp()), low), high)


def _positions(row: DistributionRow, word: Word, raw: NDArray[np.uint64]) -> list[int]:
    """Return the bits of one event, drawn one after the other without repetition by the weights of the positions."""
    weights = _weights(row, word).copy()
    if row.adjacent:
        low = _draw(weights[: word.bits - row.bits + 1], raw, _BITS)
        return [*range(low, low + row.bits)]
    found = []
    for k in range(1 if row.cells else row.bits):
        found.append(_draw(weights, raw, _BITS + k))
        weights[found[-1]] = 0.0
    return sorted(found)


@lru_cache(maxsize=256)
def _weights(row: DistributionRow, word: Word) -> NDArray[np.float64]:
    return row.bit_weights(word)


def _draw(weights: NDArray[np.float64], raw: NDArray[np.uint64], number: int) -> int:
    ends = np.cumsum(weights)
    return int(np.searchsorted(ends, float(uniform(derive(raw, number))[0]) * ends[-1], side="right"))
