"""Inputs that a task reads: those of the samples that it asks for, whatever the batches and the axis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import DataError
from onnxfi.graph.dataflow.sample_axis import BatchLayout
from onnxfi.runtime.data import kept_inputs
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.kept_inputs import KeptInputs


def data(samples: int, axis: int = 0, fixed: int | None = None) -> Data:
    arrays = {"ids": np.arange(samples * 6).reshape(samples, 2, 3), "mask": np.arange(samples * 2).reshape(samples, 2)}
    moved = {name: np.moveaxis(array, 0, axis) for name, array in arrays.items()}
    return Data.of_arrays(moved, None, BatchLayout(axis, tuple((name, axis) for name in moved), fixed), "")


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 1), st.data())
def test_samples_have_their_rows(samples: int, size: int, axis: int, draw: st.DataObject) -> None:
    kept = KeptInputs.read(data(samples, axis), size, ["ids", "mask"])
    first = draw.draw(st.integers(0, (samples - 1) // size)) * size
    chosen = np.array(draw.draw(st.lists(st.integers(first, min(first + size, samples) - 1), min_size=1, max_size=4)))
    found = kept.of(chosen)
    np.testing.assert_array_equal(found["ids"], np.arange(samples * 6).reshape(samples, 2, 3)[chosen])
    np.testing.assert_array_equal(found["mask"], np.arange(samples * 2).reshape(samples, 2)[chosen])


def test_samples_that_fill_a_batch_up_are_not_kept() -> None:
    kept = KeptInputs.read(data(5, fixed=4), 4, ["mask"])
    assert [len(batch["mask"]) for batch in kept.batches] == [4, 1] and kept.starts.tolist() == [0, 4]
    assert kept.of(np.array([], np.int64))["mask"].shape == (0, 2)


def test_inputs_that_are_not_there_or_take_too_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="the task reads input 'msk'; closest: 'mask' of each sample"):
        KeptInputs.read(data(3), 2, ["msk"])
    monkeypatch.setattr(kept_inputs, "MOST_BYTES", 3 * 16)
    assert KeptInputs.read(data(3), 2, ["mask"])
    with pytest.raises(DataError, match="inputs mask take too much memory; take fewer samples with --samples"):
        KeptInputs.read(data(4), 2, ["mask"])
