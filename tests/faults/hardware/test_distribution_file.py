"""Rows of a distribution file: their weights of bits against the definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.faults.hardware.distribution_file import DistributionRow
from onnxfi.faults.words import WORDS


@given(st.lists(st.integers(0, 31), min_size=1, max_size=4, unique=True), st.sampled_from(["float32", "int32"]))
def test_weights_share_each_probability_among_its_bits(bits: list[int], name: str) -> None:
    rows = tuple((str(bit), 1 / len(bits)) for bit in bits)
    weights = DistributionRow(1.0, bits=1, position=rows).bit_weights(WORDS[name])
    assert np.flatnonzero(weights).tolist() == sorted(bits)
    assert np.allclose(weights.sum(), 1)
    assert np.allclose(DistributionRow(1.0, bits=1).bit_weights(WORDS[name]), 1 / 32)
