"""Ports: whether arrays have the same bytes, however large they are and wherever they differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.runtime.engine import ports
from onnxfi.runtime.engine.ports import Array, same_by, same_bytes


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Array, Array]:
    """An array, and one that differs from it in some elements, or in none."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    kind = draw(st.sampled_from(["<u1", "<f4", "<f8", "<c16", "?"]))
    size = int(np.prod(shape))
    words = draw(st.binary(min_size=size, max_size=size)).translate(bytes([0, 1] * 128))
    one = np.frombuffer(words, np.uint8).astype(kind).reshape(shape)
    other = one.copy()
    for at in draw(st.lists(st.integers(0, size - 1), max_size=2)):
        other.reshape(-1)[at] = not other.reshape(-1)[at]
    return one, other


@given(pairs(), st.integers(1, 3), st.integers(1, 4))
def test_the_same_bytes_are_the_same(pair: tuple[Array, Array], glance: int, look: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ports, "GLANCE", glance)
        patch.setattr(ports, "LOOK", look)
        one, other = pair
        assert same_bytes(one, other) == (one.tobytes() == other.tobytes())
        for axis in range(-one.ndim, one.ndim):
            places = [(np.take(one, k, axis), np.take(other, k, axis)) for k in range(one.shape[axis])]
            assert same_by(one, other, axis).tolist() == [a.tobytes() == b.tobytes() for a, b in places]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (np.float32(0.0), np.float32(-0.0), False),
        (np.float32(np.nan), np.float32(np.nan), True),
        (np.zeros(2, np.float32), np.zeros(2, np.int32), False),
        (np.zeros((1, 2)), np.zeros((2, 1)), False),
        (np.zeros((0, 3)), np.zeros((0, 3)), True),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), True),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), False),
    ],
    ids=str,
)
def test_what_is_the_same(one: Any, other: Any, same: bool) -> None:
    assert same_bytes(np.asarray(one), np.asarray(other)) == same
