"""ValueBounds: some channels of a tensor, for faults and samples."""

from __future__ import annotations

import numpy as np

from onnxfi.runtime.certain.bounds import ValueBounds


def test_bounds_are_mapped_and_pick_their_channels() -> None:
    low = np.full((1, 2, 1, 3), -1.0)
    bounds = ValueBounds(low, low + 3, np.ones((1, 2), np.bool_), np.array([1]))
    mapped = bounds.mapped(lambda values: values * 2)
    assert mapped.low.min() == -2 and mapped.high.max() == 4 and mapped.channels is bounds.channels
    golden = np.arange(12.0).reshape(2, 2, 3)
    assert bounds.of(golden).tolist() == golden[:, 1:].tolist()
    assert ValueBounds(low, low, bounds.live).of(golden) is golden
