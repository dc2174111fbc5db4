"""Samples in memory: every form of the same numbers gives the same arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data_sources import refused
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import DataError
from onnxfi.runtime.data.in_memory import named_arrays
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Port

X = Port("x", "float32", ("N", 3))
IDS, MASK = Port("ids", "int64", ("N", "L")), Port("mask", "int64", ("N", "L"))


class Tensor:
    """A tensor of a framework: its numbers come through numpy's protocol, once it computes no gradients."""

    def __init__(self, array: Any, gradients: bool = True) -> None:
        self.array, self.gradients = np.asarray(array), gradients

    def detach(self) -> Tensor:
        return Tensor(self.array, gradients=False)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if self.gradients:
            raise RuntimeError("call detach first")
        return self.array.astype(dtype or self.array.dtype)


@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.one_of(st.none(), st.integers(1, 12)))
def test_samples_batches_and_arrays_give_the_same(samples: int, size: int, tensors: bool, limit: int | None) -> None:
    x = np.arange(samples * 3, dtype=np.float32).reshape(samples, 3)
    y = np.arange(samples)
    wrap: Any = Tensor if tensors else np.asarray
    starts = range(0, samples, size)
    forms: list[Any] = [
        (wrap(x), wrap(y)),
        {"x": wrap(x), "labels": wrap(y)},
        ({"x": wrap(x)}, wrap(y)),
        [(wrap(one), label) for one, label in zip(x, y, strict=True)],
        [{"x": wrap(one), "labels": label} for one, label in zip(x, y, strict=True)],
        [(wrap(x[k : k + size]), wrap(y[k : k + size])) for k in starts],
        ([wrap(x[k : k + size]), wrap(y[k : k + size])] for k in starts),
    ]
    for form in forms:
        found = named_arrays(form, [X], limit)
        assert np.array_equal(found["x"], x[:limit]) and np.array_equal(found["labels"], y[:limit])
        assert found["x"].dtype == np.float32 and found["labels"].dtype == np.int64


def test_several_inputs_come_in_their_order_or_by_name() -> None:
    ids, mask = np.arange(6).reshape(2, 3), np.ones((2, 3), np.int64)
    for form in ((ids, mask), {"mask": mask, "ids": ids}, [(ids[0], mask[0]), (ids[1], mask[1])]):
        found = named_arrays(form, [IDS, MASK])
        assert np.array_equal(found["ids"], ids) and np.array_equal(found["mask"], mask) and "labels" not in found
    with pytest.raises(
        DataError, match="an item of the data has 1 values; the model takes 'ids', 'mask', and labels may"
    ):
        named_arrays(ids, [IDS, MASK])


def test_a_model_that_takes_labels_gets_them() -> None:
    ports = [X, Port("labels", "int64", ("N",))]
    assert set(named_arrays((np.zeros((2, 3)), np.zeros(2)), ports)) == {"x", "labels"}


def test_an_endless_dataset_is_read_to_the_limit() -> None:
    def endless() -> Any:
        while True:
            yield np.zeros((2, 3), np.float32)

    assert named_arrays(endless(), [X], 5)["x"].shape == (5, 3)


def test_what_does_not_fit_is_said() -> None:
    for bad, message in (
        (object(), "object is no data"),
        ("", "str is no data"),
        ([], "the list has no samples"),
        ([np.zeros((1, 3)), np.zeros((1, 4))], "the samples do not fit together"),
    ):
        with pytest.raises(DataError, match=message):
            named_arrays(bad, [X])


# Inputs that are made up

TEXT = Port("ids", "int64", ("N", "T"))
TEXT_MASK = Port("mask", "int64", ("N", "T"))
LOOSE = Port("x", "float32", ("N", None, 3))


def shapes(*ports: Port, dim: list[str], **how: Any) -> list[tuple[int, ...]]:
    (batch,) = open_data(None, ports, dim=dim, **how).batches(8)
    return [batch.feeds[port.name].shape for port in ports]


def test_one_name_sizes_every_input_that_has_it() -> None:
    assert shapes(TEXT, TEXT_MASK, LOOSE, dim=["T=512", "x[1]=5"]) == [(8, 512), (8, 512), (8, 5, 3)]
    assert shapes(TEXT, dim=[], limit=2) == [(2, 32)]
    assert open_data(None, [TEXT], dim=["T=512"]).description.endswith("open dimensions of 32, T 512")


def test_another_size_is_other_data() -> None:
    digests = {open_data(None, [TEXT], dim=[f"T={n}"]).digest for n in (31, 32, 33)}
    assert len(digests) == 3 and open_data(None, [TEXT]).digest in digests


@pytest.mark.parametrize(
    ("dim", "says"),
    [
        ("T", "dim is 'T'; it takes NAME=SIZE, as T=512"),
        ("T=0", "dim is 'T=0'; it takes"),
        ("T=1e3", "dim is 'T=1e3'; it takes"),
        ("t=4", "no open dimension 't' of the inputs; known: 'T'"),
        ("N=4", "no open dimension 'N' of the inputs"),
    ],
)
def test_what_is_no_dimension_is_named(dim: str, says: str) -> None:
    assert refused(None, TEXT, dim=[dim]).startswith(says)
    said = refused(None, Port("x", "float32", ("N", 3)), dim=["T=4"])
    assert said == "no open dimension 'T' of the inputs; none but that of the samples is open, so leave it out"


def test_data_has_its_own_sizes() -> None:
    assert "leave one of them out" in refused({"ids": np.zeros((2, 3), np.int64)}, TEXT, dim=["T=3"])
