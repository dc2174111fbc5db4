"""Candidates against a search of every flip by brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxfi.attacks.candidates import candidates, check_gradients, largest_words
from onnxfi.errors import InputError
from onnxfi.faults.models import Flip
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import Model, load


def gemm(weights: np.ndarray) -> Model:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", weights.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def moved(weights: np.ndarray, index: int, bit: int) -> float:
    word = weights.reshape(-1)[index : index + 1].view(np.uint32)
    with np.errstate(all="ignore"):
        return float(
            np.float64((word ^ np.uint32(1 << bit)).view(np.float32)[0]) - np.float64(word.view(np.float32)[0])
        )


@settings(max_examples=20)
@given(st.lists(st.floats(-4, 4, width=32), min_size=6, max_size=6))
def test_the_furthest_move_that_stays_finite_is_among_them(numbers: list[float]) -> None:
    weights = np.array(numbers, np.float32).reshape(2, 3)
    model = gemm(weights)
    space = Selector().space(model.targets, Flip())
    found = [(int(n), int(bit)) for flips in candidates(model, space, 400) for n, bit in zip(flips.index, flips.bit, strict=True)]  # fmt: skip
    every = {(n, bit): abs(moved(weights, n, bit)) for n in range(6) for bit in range(32)}
    finite = {site: size for site, size in every.items() if np.isfinite(size)}
    assert len(found) == len(set(found))
    assert all(site in finite for site in found)
    best = max(finite.values())
    if best > 0:
        assert max(finite[site] for site in found) == best


def test_gradients_take_the_flips_with_the_largest_rise_first() -> None:
    rng = np.random.default_rng(0)
    weights, slope = rng.normal(size=(4, 5)).astype(np.float32), rng.normal(size=(4, 5))
    model = gemm(weights)
    space = Selector(bits="mantissa").space(model.targets, Flip())
    (flips,) = candidates(model, space, 7, {"w": slope})
    rises = {(n, bit): moved(weights, n, bit) * slope.reshape(-1)[n] for n in range(20) for bit in range(23)}
    best = sorted(rises.values(), reverse=True)[:7]
    assert [rises[int(n), int(b)] for n, b in zip(flips.index, flips.bit, strict=True)] == pytest.approx(best)


def test_largest_words_are_those_of_each_channel() -> None:
    weights = np.array([[5, 1, 2], [-4, 3, 9]], np.float32)
    model = gemm(weights)
    flips = largest_words(model, model.targets[0], 31, 2)
    assert flips.index.tolist() == [5, 0]
    assert flips.bit.tolist() == [31, 31]


def test_gradients_of_other_tensors_or_shapes_are_refused(tmp_path: Path) -> None:
    model = gemm(np.ones((2, 3), np.float32))
    space = Selector().space(model.targets, Flip())
    with pytest.raises(InputError, match="name no selected tensor: they are of 'v'"):
        check_gradients({"v": np.ones((2, 3))}, space)
    with pytest.raises(InputError, match=r"'w' has shape \[3, 2\], the tensor \[2, 3\]"):
        check_gradients({"w": np.ones((3, 2))}, space)


def test_integers_move_by_their_scale() -> None:
    """Per channel scales decide which int8 words move furthest."""
    weights = np.zeros((4, 2), np.int8)
    scale = np.array([0.1, 10.0], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=1),
            helper.make_node("MatMul", ["x", "d"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(scale, "s")],
    )
    model = load(helper.make_model(graph, opset_imports=[onnx.OperatorSetIdProto(domain="", version=17)], ir_version=8))
    space = Selector(include=("=w",)).space(model.targets, Flip())
    (flips,) = candidates(model, space, 1)
    assert (flips.index[0] % 2, flips.bit[0]) == (1, 7)
