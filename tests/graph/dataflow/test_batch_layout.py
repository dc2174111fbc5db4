"""Sample axes: where tensors hold their samples, and inputs whose samples are given."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import numpy_helper, parser

from onnxfi.graph.dataflow.activation_targets import Activation, activations
from onnxfi.graph.dataflow.batch_layout import SampleAxis, find_batch_layout
from onnxfi.graph.model.loading import load
from onnxfi.runtime.engine.ports import Array

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def placed(graph: str, **weights: Array) -> dict[str, Activation]:
    """The activations of a model in ONNX's text form, by name."""
    model = parser.parse_model(HEAD + graph)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return {a.name: a for a in activations(load(model))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "name", "place"),
    [
        ("g (float[N,5,4] x) => (float[A,B,C] y) { y = Transpose<perm=[1,0,2]>(x) }", "y", (1, 1, 1)),
        ("g (float[N,5,4] x) => (float[A,B] y) <int64[2] s = {-1,4}> { y = Reshape(x, s) }", "y", (0, 1, 5)),
        ("g (float[N,4] x) => (float[A,B] y) { y = Concat<axis=0>(x, x) }", "y", (0, 2, 1)),
        ("g (float[N,4] x) => (float[B,A] y) { y = Flatten<axis=2>(x) }", "y", (0, 1, 4)),
        ("g (float[8,5,4] x) => (float[8,20] y) <int64[2] s = {8,20}> { z = Reshape(x, s) y = Relu(z) }", "y", (0, 1, 1)),
        ("g (float[8,5,4] x) => (float[B,A] y) <int64[3] s = {8,5,4}> { r = Reshape(x, s) y = Transpose<perm=[1,0,2]>(r) }",
         "y", (1, 1, 1)),
        ("g (float[1,5,4] x) => (float[B,A] y) <int64[2] s = {5,4}> { y = Reshape(x, s) }", "y", (0, 1, 5)),
        ("g (float[N,5,4] x) => (float[A] y) <float[5,4] w = {" + "1," * 19 + "1}> { y = Add(w, w) z = Add(y, x) }",
         "y", None),
    ],
)  # fmt: skip
def test_places(graph: str, name: str, place: tuple[int, int, int] | None) -> None:
    found = placed(graph)[name]
    assert found.place == (None if place is None else SampleAxis(*place)) and not found.axis_unknown_reason


@pytest.mark.parametrize(
    ("shapes", "given", "axes"),
    [
        ({"ids": ("B", "S"), "at": ("S",)}, {}, {"ids": 0}),
        ({"at": ("S",), "ids": ("B", "S")}, {"at": (5,), "ids": (5, 5)}, {"ids": 0}),
        ({"x": ("N", "L", 3), "h": (1, "N", 8)}, {}, {"x": 0, "h": 1}),
        ({"x": ("N", 3), "scale": (1,)}, {}, {"x": 0}),
        ({"x": ("N", 3), "scale": ("M",)}, {"x": (7, 3), "scale": (1,)}, {"x": 0}),
        ({"x": ("N", 3), "long": ("N",)}, {"x": (7, 3), "long": (1,)}, {"x": 0, "long": 0}),
        ({"x": (8, 3), "anchors": (8,)}, {"x": (16, 3), "anchors": (8,)}, {"x": 0}),
        ({"scale": (1,), "x": (4, 3)}, {}, {"x": 0}),
        ({"nodes": ("N", 3), "edges": ("N", "N")}, {}, {"nodes": 0, "edges": 0}),
        ({"rate": (), "x": ("N", 3)}, {}, {"x": 0}),
    ],
)
def test_inputs_with_samples(shapes: Any, given: Any, axes: dict[str, int]) -> None:
    assert find_batch_layout(shapes, 0, given).batched == axes
