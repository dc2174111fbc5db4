"""Roles and schemes: what a stored tensor is for, and how a stored integer stands for a real number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROLES = (
    *("weight", "bias", "scale", "zero-point"),
    *("threshold", "leak", "refractory", "reset", "spike"),  # words of exposed neurons
)


@dataclass(frozen=True)
class Scheme:
    """How the integers of a tensor stand for real numbers: (integer − zero point) × scale.

    `name` says which operators take it: `QDQ`, `QOperator`, `dynamic`, `MatMulNBits`, `GatherBlockQuantized`, `Cast +
    Mul`. `scales` are the ids of the targets whose product is the scale; none where it is only known at run time.
    `zero_point` is the id of the zero points, '' where there are none: then it is `offset`. Scales lie along `axes` of
    the tensor (() for one scale), `axis` is the one that blocks of `block` elements divide, or the only one.
    `others` are there where other nodes scale the same integers in another way.
    """

    name: str
    scales: tuple[str, ...] = ()
    zero_point: str = ""
    axes: tuple[int, ...] = ()
    axis: int | None = None
    block: int = 0
    offset: int = 0
    others: tuple[Scheme, ...] = ()

    def means(self, other: Scheme) -> bool:
        """Return whether two schemes give each integer the same number, by the tensors that they name."""
        mine, theirs = ((one.scales, one.zero_point, one.axes, one.block) for one in (self, other))
        return mine == theirs

    def place(self, shape: tuple[int, ...], held: tuple[int, ...], index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the scale (or zero point) of each element (`index`, flat, [n]) lies in a tensor of shape `held`.

        >>> Scheme("QDQ", axes=(0,), axis=0).place((2, 3), (2,), np.array([0, 2, 3])).tolist()
        [0, 0, 1]
        >>> Scheme("MatMulNBits", axes=(0, 1), block=4).place((2, 3, 4), (6,), np.array([3, 4, 12])).tolist()
        [0, 1, 3]
        """
        if int(np.prod(held, dtype=np.int64)) == 1:
            return np.zeros_like(index)
        at = np.unravel_index(index, shape)
        dims = held
        if self.name == "MatMulNBits":  # rows of packed zero points may be longer than the blocks that they serve
            rows = shape[self.axes[0]]
            dims = (rows, int(np.prod(held, dtype=np.int64)) // rows)
        flat = np.zeros_like(index)
        for axis, n in zip(self.axes, dims, strict=True):
            step = at[axis] // self.block if self.block and axis == self.axis else at[axis]
            flat = flat * n + (step if n > 1 else 0)
        return flat

    def fits(self, shape: tuple[int, ...], held: tuple[int, ...]) -> bool:
        """Whether scales of shape `held` can belong to a tensor of this shape.

        >>> Scheme("QDQ", axes=(0,), axis=0).fits((2, 3), (3,))
        False
        """
        if all(n == 1 for n in held):
            return True
        if any(not 0 <= axis < len(shape) for axis in self.axes):
            return False
        if self.name == "MatMulNBits":  # flat, or with rows that are padded
            rows, blocks = shape[:2]
            return rows > 0 and int(np.prod(held)) % rows == 0 and int(np.prod(held)) // rows >= blocks
        if len(held) != len(self.axes) or self.block < 0:
            return False
        lengths = (
            -(-shape[axis] // self.block) if self.block and axis == self.axis else shape[axis] for axis in self.axes
        )
        return all(n in (1, length) for n, length in zip(held, lengths, strict=True))
