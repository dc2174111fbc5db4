"""Shapes of inputs as text: read as they are written, taken of data, and refused where they say nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.converters.shapes import as_tuple, parse_port, parse_ports, ports_of
from onnxfi.errors import InputError

dims = st.lists(st.integers(1, 10**9 - 1) | st.from_regex(r"[A-Za-z_][A-Za-z_0-9]{0,5}", fullmatch=True), min_size=1)


@given(dims, st.sampled_from(["", "float32", "float16", "int64", "bool"]))
def test_a_shape_is_read_as_it_is_written(shape: list[int | str], dtype: str) -> None:
    text = ",".join(map(str, shape)) + (f":{dtype}" if dtype else "")
    port = parse_port(text, "x")
    assert (port.name, port.dtype, port.shape) == ("x", dtype or "float32", tuple(shape))
    assert parse_port(text.replace(",", " , "), "x") == port


@pytest.mark.parametrize("text", ["", "N,", "N,0", "N,-1", "1.5", "N,10000000000", "N;3", "N 3"])
def test_dimensions_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"invalid dimension .*; write N,1,28,28 or N,16:int64, a letter may vary"):
        parse_port(text, "x")


@pytest.mark.parametrize("text", ["N:", "N:float", "N:int64:int64"])
def test_types_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"unknown type .*; use one of float32, float64, float16, int64"):
        parse_port(text, "x")


def test_texts_go_to_the_inputs_in_their_order() -> None:
    assert [port.name for port in parse_ports(["N,3", "N,4"], ["a", "b", "c"])] == ["a", "b"]
    assert as_tuple("N,3") == ("N,3",) and as_tuple(["N,3", "N"]) == ("N,3", "N")
    with pytest.raises(InputError, match="2 input shapes, but the model takes 1: a"):
        parse_ports(["N", "N"], ["a"])
    with pytest.raises(InputError, match="1 input shapes, but the model takes 0: none"):
        parse_ports(["N"], [])


def test_shapes_of_data_in_memory_and_in_an_archive(tmp_path: Path) -> None:
    arrays = {"x": np.zeros((5, 2, 3), np.float32), "ids": np.zeros((5, 4), np.int64), "labels": np.zeros(5, np.int64)}
    np.savez(tmp_path / "d.npz", **arrays)
    for given_data in (arrays, tmp_path / "d.npz", str(tmp_path / "d.npz")):
        found = ports_of(given_data, ["ids", "x", "other"])
        assert [(p.name, p.dtype, p.shape) for p in found] == [
            ("ids", "int64", ("N", 4)),
            ("x", "float32", ("N", 2, 3)),
        ]
    assert ports_of(None, ["x"]) == [] and ports_of(tmp_path, ["x"]) == [] and ports_of("module:function", ["x"]) == []
