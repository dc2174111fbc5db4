"""Roles and quantization: what a stored tensor is used for, and how a stored integer represents a real number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROLES = (
    *("weight", "bias", "scale", "zero-point"),
    *("threshold", "leak", "synaptic", "refractory", "reset", "spike"),  # parameters and spikes of exposed neurons
)


@dataclass(frozen=True)
class QuantizationScheme:
    """Representation of real numbers by the integers of a tensor: (integer − zero point) × scale.

    Attributes
    ----------
    name : str
        Operators that read it: `QDQ`, `QOperator`, `dynamic`, `MatMulNBits`, `GatherBlockQuantized`, `Cast + Mul`.
    scales : tuple of str
        Ids of the targets whose product is the scale; empty if it is only known at run time.
    zero_point : str
        Id of the zero points; empty if there are none, and `offset` is subtracted instead.
    axes : tuple of int
        Axes of the tensor along which scales lie; empty for one scale.
    axis : int, optional
        The axis that blocks of `block` elements divide, or the only one.
    block : int
        Elements that share a scale along `axis`; 0 if scales are not blocked.
    offset : int
        Zero point that is not stored.
    others : tuple of QuantizationScheme
        Further schemes, if other nodes scale the same integers in another way.
    """

    name: str
    scales: tuple[str, ...] = ()
    zero_point: str = ""
    axes: tuple[int, ...] = ()
    axis: int | None = None
    block: int = 0
    offset: int = 0
    others: tuple[QuantizationScheme, ...] = ()

    @property
    def granularity(self) -> str:
        """The elements that share a scale: the tensor, a channel (axis), or a block.

        >>> QuantizationScheme("QDQ", ("s",), axes=(0,), axis=0).granularity
        'a scale for each index of axis 0'
        """
        if self.block:
            return f"a scale for each {self.block} elements"
        return f"a scale for each index of axis {self.axis}" if self.axis is not None else "a scale for each tensor"

    def equivalent_to(self, other: QuantizationScheme) -> bool:
        """Return True if both give each integer the same number, judged by the tensors that they name."""
        own, others = ((one.scales, one.zero_point, one.axes, one.block) for one in (self, other))
        return own == others

    def scale_indices(
        self, shape: tuple[int, ...], scale_shape: tuple[int, ...], index: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the flat index of the scale (or zero point) of each element.

        Parameters
        ----------
        shape : tuple of int
            Shape of the quantized tensor.
        scale_shape : tuple of int
            Shape of the tensor of scales.
        index : ndarray of int64, shape (n,)
            Flat indices of elements.

        Returns
        -------
        ndarray of int64, shape (n,)

        Examples
        --------
        >>> per_channel = QuantizationScheme("QDQ", axes=(0,), axis=0)
        >>> per_channel.scale_indices((2, 3), (2,), np.array([0, 2, 3])).tolist()
        [0, 0, 1]
        >>> blocked = QuantizationScheme("MatMulNBits", axes=(0, 1), block=4)
        >>> blocked.scale_indices((2, 3, 4), (6,), np.array([3, 4, 12])).tolist()
        [0, 1, 3]
        """
        if int(np.prod(scale_shape, dtype=np.int64)) == 1:
            return np.zeros_like(index)
        at = np.unravel_index(index, shape)
        dims = scale_shape
        if self.name == "MatMulNBits":  # rows of packed zero points may be longer than the blocks that they serve
            rows = shape[self.axes[0]]
            dims = (rows, int(np.prod(scale_shape, dtype=np.int64)) // rows)
        flat = np.zeros_like(index)
        for axis, n in zip(self.axes, dims, strict=True):
            step = at[axis] // self.block if self.block and axis == self.axis else at[axis]
            flat = flat * n + (step if n > 1 else 0)
        return flat

    def accepts_scales(self, shape: tuple[int, ...], scale_shape: tuple[int, ...]) -> bool:
        """Return True if scales of shape `scale_shape` can belong to a tensor of this shape.

        >>> QuantizationScheme("QDQ", axes=(0,), axis=0).accepts_scales((2, 3), (3,))
        False
        """
        if all(n == 1 for n in scale_shape):
            return True
        if any(not 0 <= axis < len(shape) for axis in self.axes):
            return False
        if self.name == "MatMulNBits":  # flat, or with rows that are padded
            rows, blocks = shape[:2]
            count = int(np.prod(scale_shape))
            return rows > 0 and count % rows == 0 and count // rows >= blocks
        if len(scale_shape) != len(self.axes) or self.block < 0:
            return False
        lengths = (
            -(-shape[axis] // self.block) if self.block and axis == self.axis else shape[axis] for axis in self.axes
        )
        return all(n in (1, length) for n, length in zip(scale_shape, lengths, strict=True))
