"""Quantization schemes: the scale of each element against numpy's broadcasting, and shapes that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.faults.quantization import QuantizationScheme


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_scales_along_an_axis_are_broadcast(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    scheme, index = QuantizationScheme("QDQ", axes=(axis,), axis=axis), np.arange(np.prod(shape))
    column = np.arange(shape[axis]).reshape([-1 if k == axis else 1 for k in range(len(shape))])
    assert scheme.accepts_scales(tuple(shape), (shape[axis],))
    assert (
        scheme.scale_indices(tuple(shape), (shape[axis],), index).tolist()
        == np.broadcast_to(column, shape).ravel().tolist()
    )
    assert not scheme.scale_indices(tuple(shape), (1, 1), index).any()


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_blocks_share_a_scale(rows: int, columns: int, block: int, first: bool) -> None:
    """As `np.repeat` spreads the scales, cut where the last block is shorter."""
    axis = 0 if first else 1
    shape = (columns, rows) if first else (rows, columns)
    scales = [*shape]
    scales[axis] = -(-columns // block)
    scheme = QuantizationScheme("QDQ", axes=(0, 1), axis=axis, block=block)
    spread = np.repeat(np.arange(np.prod(scales)).reshape(scales), block, axis)
    wanted = spread[:columns] if first else spread[:, :columns]
    assert scheme.accepts_scales(shape, tuple(scales))
    assert scheme.scale_indices(shape, tuple(scales), np.arange(np.prod(shape))).tolist() == wanted.ravel().tolist()


@pytest.mark.parametrize(
    ("scheme", "shape", "scales", "accepted"),
    [
        (QuantizationScheme("QDQ"), (2, 3), (), True),
        (QuantizationScheme("QDQ"), (2, 3), (1, 1), True),
        (QuantizationScheme("QDQ", axes=(2,), axis=2), (2, 3), (3,), False),
        (QuantizationScheme("QDQ", axes=(0,), axis=0), (2, 3), (2, 3), False),
        (QuantizationScheme("QDQ", axes=(0,), axis=0, block=-1), (2, 3), (2,), False),
        (QuantizationScheme("MatMulNBits", axes=(0, 1), block=4), (2, 3, 4), (6,), True),
        (QuantizationScheme("MatMulNBits", axes=(0, 1), block=4), (2, 3, 4), (8,), True),  # rows that are padded
        (QuantizationScheme("MatMulNBits", axes=(0, 1), block=4), (2, 3, 4), (4,), False),
        (QuantizationScheme("MatMulNBits", axes=(0, 1), block=4), (0, 3, 4), (6,), False),
    ],
)  # fmt: skip
def test_scales_that_cannot_belong_to_a_tensor(
    scheme: QuantizationScheme, shape: tuple[int, ...], scales: tuple[int, ...], accepted: bool
) -> None:
    assert scheme.accepts_scales(shape, scales) == accepted


def test_schemes_are_the_same_where_they_give_the_same_numbers() -> None:
    one = QuantizationScheme("QDQ", ("s",), "z", (0,), 0)
    assert one.equivalent_to(QuantizationScheme("QOperator", ("s",), "z", (0,), 0))
    for other in (QuantizationScheme("QDQ", ("t",), "z", (0,)), QuantizationScheme("QDQ", ("s",), "z", (0,), 0, 4)):
        assert not one.equivalent_to(other)
