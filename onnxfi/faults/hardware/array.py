"""Faults of a systolic array: the outputs of matrix products that one bad processing element computes.

A layer of Conv, Gemm or MatMul is a product of an M × K and a K × N matrix: M are the positions of one sample, N the
output channels of a group, and the array works through it in tiles. docs/reference/array.md has the three mappings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError
from onnxfi.faults.fault_model import FaultModel, Spread
from onnxfi.faults.models import BIT_EFFECTS
from onnxfi.faults.sampling import Numbers
from onnxfi.faults.sites import LAST_STEP, Sites, Target

DATAFLOWS = ("ws", "os", "is")
DURATIONS = ("permanent", "tile", "cycle")
_MOST_ELEMENTS = 1 << 16

Index = NDArray[np.int64]


@dataclass(frozen=True)
class ProductElements:
    """Elements of the output of a matrix product: the product (batch and group), the row m and the column n of each.

    >>> ProductElements.of((4, 2, 2), channel_axis=-3, groups=2).n.tolist()
    [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]
    """

    product: Index
    m: Index
    n: Index

    @classmethod
    def of(cls, shape: tuple[int, ...], channel_axis: int, groups: int) -> ProductElements:
        """Return the elements of an output of this shape, in flat order."""
        axis = len(shape) + channel_axis
        at = np.indices(shape, np.int64).reshape(len(shape), -1)
        # Behind the channels lie the positions; of a product of matrices, whose channels are last, before them.
        positions = [*range(axis + 1, len(shape))] if axis < len(shape) - 1 else [axis - 1] * (axis > 0)
        m, batch = np.zeros(at.shape[1], np.int64), np.zeros(at.shape[1], np.int64)
        for k, length in enumerate(shape):
            if k in positions:
                m = m * length + at[k]
            elif k != axis:
                batch = batch * length + at[k]
        group, n = np.divmod(at[axis], shape[axis] // groups)
        return cls(batch * groups + group, m, n)


@dataclass(frozen=True)
class Array(FaultModel):
    """Bad processing element (PE) of a systolic array of `rows` × `cols`, in all outputs that it computes.

    Stands for a stuck or upset adder or register. With `dataflow` ws (weight-stationary) the partial sums of channel n
    pass through column n mod cols; with os (output-stationary) the PE (m mod rows, n mod cols) accumulates output (m,
    n); with is (input-stationary) the sums of position m pass through column m mod cols. The bad PE is that of the
    site, or `pe` (as 3.5: row 3, column 5). The fault `lasts` for the whole inference in all selected layers
    (permanent), for one tile of one layer, or for one cycle: one output. In each of these outputs `effect` acts on the
    bit of the site.
    """

    rows: int = 16
    cols: int = 16
    dataflow: str = "ws"
    lasts: str = "permanent"
    effect: str = "flip"
    pe: str = ""
    name = "array"
    unit = "bit"
    composite = True
    examples = ("array:rows=8,cols=8,dataflow=os",)
    #: Operators that an array computes.
    operators: ClassVar[tuple[str, ...]] = (
        "=Conv", "=Gemm", "=MatMul", "=QLinearConv", "=QLinearMatMul", "=ConvInteger", "=MatMulInteger", "=FusedConv",
        "=FusedGemm", "=FusedMatMul", "=QGemm",
    )  # fmt: skip
    place: tuple[int, int] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        """Check the description."""
        for key in ("rows", "cols"):
            self.require(1 <= getattr(self, key) <= _MOST_ELEMENTS, key, f"1 to {_MOST_ELEMENTS:,}")
        self.require_known("dataflow", DATAFLOWS)
        self.require_known("lasts", DURATIONS)
        self.require_known("effect", BIT_EFFECTS)
        object.__setattr__(self, "spans_targets", self.lasts == "permanent")
        object.__setattr__(self, "self_inverse", self.effect == "flip")
        if self.pe:
            row, dot, col = self.pe.partition(".")
            if not (dot and row.isdecimal() and col.isdecimal() and len(self.pe) < 20):
                raise FaultError(f"fault 'array': pe={self.pe[:40]!r} is no row and column, as 3.5")
            if int(row) >= self.rows or int(col) >= self.cols:
                raise FaultError(
                    f"fault 'array': pe={self.pe} is beyond the array of {self.rows} rows, {self.cols} columns"
                )
            object.__setattr__(self, "place", (int(row), int(col)))

    @property
    def element_model(self) -> FaultModel:
        """Effect on one output."""
        return BIT_EFFECTS[self.effect]

    def fits(self, target: Target) -> bool:
        """Return True for outputs of Conv, Gemm and MatMul."""
        return bool(target.gemm) and bool(target.axes)

    def computed(self, outputs: ProductElements, place: tuple[int, int]) -> NDArray[np.bool_]:
        """Return which outputs a PE computes over the whole inference ([n])."""
        row, col = place
        if self.dataflow == "os":
            return np.asarray((outputs.m % self.rows == row) & (outputs.n % self.cols == col))
        return np.asarray((outputs.n if self.dataflow == "ws" else outputs.m) % self.cols == col)

    def same_tile(self, outputs: ProductElements, index: int) -> NDArray[np.bool_]:
        """Return which outputs the PE of an element computes in the element's tile ([n])."""
        here = outputs.product == outputs.product[index]
        if self.dataflow != "is":
            here &= outputs.n == outputs.n[index]
        return np.asarray(here if self.dataflow == "ws" else here & (outputs.m == outputs.m[index]))

    def spread(self, targets: tuple[Target, ...], sites: Sites, raw: Numbers) -> Spread:
        """Return a fault in each output that the PE of the site computes."""
        laid = {k: ProductElements.of(t.axes, *t.gemm) for k, t in enumerate(targets) if t.gemm and t.axes and t.size}
        parts: list[tuple[int, int, Index, int]] = []
        for event, (ordinal, at, bit) in enumerate(
            zip(sites.target.tolist(), sites.index.tolist(), sites.bit.tolist(), strict=True)
        ):
            own = laid[ordinal]
            place = self.place or (
                int(own.m[at] % self.rows), int((own.m if self.dataflow == "is" else own.n)[at] % self.cols)
            )  # fmt: skip
            if self.lasts == "permanent":
                same = [k for k in laid if targets[k].word == targets[ordinal].word]
                parts += [(event, k, np.flatnonzero(self.computed(laid[k], place)), bit) for k in same]
            else:
                one = self._nearest(own, at, place)
                tile = np.flatnonzero(self.same_tile(own, one)) if self.lasts == "tile" else np.array([one], np.int64)
                parts.append((event, ordinal, tile if one >= 0 else tile[:0], bit))
        lengths = [len(index) for _, _, index, _ in parts]
        rows, ordinals, bits = (np.repeat(np.array([p[k] for p in parts], np.int64), lengths) for k in (0, 1, 3))
        index = np.concatenate([np.zeros(0, np.int64), *(p[2] for p in parts)])
        moved = sites.moved(rows.tolist(), index.tolist(), bits.tolist(), ordinals.tolist())
        if self.lasts == "permanent" and moved.times is not None:
            moved.times[:, 1:] = 0, LAST_STEP
        return moved, (self.element_model,)

    def _nearest(self, outputs: ProductElements, index: int, place: tuple[int, int]) -> int:
        """Return an output of the PE that is given: the site's if it is one, else the next one; -1 if there is none."""
        if self.place is None:
            return index
        found = np.flatnonzero(self.computed(outputs, place))
        if not len(found):
            return -1
        return int(found[np.searchsorted(found, index) % len(found)])
