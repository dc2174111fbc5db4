"""Numbers of Python, numpy and text become those of Python; what is none is refused."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import onnxfi
from onnxfi.errors import InputError
from onnxfi.numbers import number, seconds, whole_number


@pytest.mark.parametrize(
    "given", [0.5, np.float32(0.5), np.array(0.5), "0.5", Fraction(1, 2), Decimal("0.5"), np.array([0.5])[0]]
)
def test_numbers(given: Any) -> None:
    assert number(given) == 0.5 and type(number(given)) is float
    with pytest.raises(ValueError, match=r"not whole|invalid literal"):
        whole_number(given)


@pytest.mark.parametrize("given", [20, np.int8(20), np.array(20), "20", 20.0, np.float64(20)])
def test_whole_numbers(given: Any) -> None:
    assert whole_number(given) == 20 and type(whole_number(given)) is int


@pytest.mark.parametrize("given", [True, None, "x", [1], b"1", {}, 1j])
def test_what_is_no_number(given: Any) -> None:
    for read in (number, whole_number):
        with pytest.raises(ValueError):
            read(given)
    with pytest.raises(InputError, match="is no duration above 0; write seconds, or 90s, 10m, 2h"):
        seconds(given)


def test_a_draw_takes_numbers_of_every_kind() -> None:
    drawn = onnxfi.sample("models/fashion_cnn.onnx", ber=1e-5, seed=3)
    for rate, seed in (("1e-5", "3"), (np.array(1e-5), np.int64(3)), (Decimal("1e-5"), 3.0)):
        assert onnxfi.sample("models/fashion_cnn.onnx", ber=rate, seed=seed).faults == drawn.faults  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ber takes one number as its rate; given"):
        onnxfi.sample("models/fashion_cnn.onnx", ber=[1e-5, 1e-6])  # type: ignore[arg-type]
