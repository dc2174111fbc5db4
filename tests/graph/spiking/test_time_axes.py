"""Time in spiking models: how often a loop runs, and which axes count its steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from spiking_graphs import scanned, unrolled
from spiking_networks import random_network

from onnxfi.graph.model.graph_index import GraphIndex
from onnxfi.graph.spiking.pattern_graph import PatternGraph
from onnxfi.graph.spiking.time_axes import scan_inputs, time_axes, trips_of

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
LOOP = """g (float[2] x, int64 m) => (float[2] y) { n = Constant<value = int64 {7}>() c = Constant<value = bool {1}>()
    y = Loop (COUNT, c, x) <body = b (int64 i, bool k, float[2] s) => (bool k2, float[2] t)
        { k2 = Identity(k) t = Neg(s) }> }"""
SCAN = """g (float[2] x, float[SIZE] rows) => (float[2] y, float[2,T] all) {
    y, all = Scan (x, rows) <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1], body = b
        (float[2] s, float[2] row) => (float[2] t, float[2] u) { t = Add(s, row) u = Neg(t) }> }"""


def trips(text: str, **stored: np.ndarray) -> int | None:
    model = parser.parse_model(f"{HEAD} {text}")
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    loop = next(node for node in model.graph.node if node.op_type in ("Loop", "Scan"))
    return trips_of(loop, PatternGraph(GraphIndex.of(model).main), model)


@pytest.mark.parametrize(("count", "expected"), [("n", 7), ("m", None)])
def test_a_loop_runs_as_often_as_its_count_says(count: str, expected: int | None) -> None:
    assert trips(LOOP.replace("COUNT", count)) == expected


def test_a_scan_runs_over_the_axis_that_it_names() -> None:
    assert trips(SCAN.replace("SIZE", "2,9")) == 9
    assert trips(SCAN.replace("SIZE", "2,T")) is None
    [scan] = parser.parse_model(f"{HEAD} {SCAN.replace('SIZE', '2,9')}").graph.node
    assert scan_inputs(scan) == [("rows", 1)]
    stored = SCAN.replace(", float[SIZE] rows", "")
    assert trips(stored, rows=np.zeros((2, 4), np.float32)) == 4


@pytest.mark.parametrize(("build", "stacked"), [(scanned, {("spikes", 0, "inside")}), (unrolled, set())])
@pytest.mark.parametrize("steps", [3, 6])
def test_a_network_that_is_fed_one_image_has_time_in_its_spikes_alone(
    steps: int, build: Callable[..., onnx.ModelProto], stacked: set[object]
) -> None:
    proto = build(random_network(2), steps, (1, 8, 8))
    loops = {scope.path for scope in GraphIndex.of(proto).graphs if scope.path}
    assert {(one.tensor, one.axis, one.role) for one in time_axes(proto, {steps}, loops)} == stacked
    assert not time_axes(proto, set(), set()), "of no steps and no loops there is no time"


def test_the_axes_of_a_scan_are_those_that_it_names() -> None:
    model = parser.parse_model(f"{HEAD} {SCAN.replace('SIZE', '2,9')}")
    [path] = [scope.path for scope in GraphIndex.of(model).graphs if scope.path]
    found = {(one.tensor, one.axis, one.role) for one in time_axes(model, set(), {path})}
    assert found == {("rows", 1, "input"), ("all", 1, "output")}
    assert not time_axes(model, set(), {"another body"})


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("a, b, c = Split<axis = 1>(x) y = Concat<axis = 1>(a, b, c)", {("x", 1, "input")}),
        ("i = Constant<value = int64 {0}>() a = Gather<axis = 0>(x, i) j = Constant<value = int64 {1}>() "
         "b = Gather<axis = 0>(x, j) y = Concat<axis = 0>(a, b)", set()),
        ("o = Constant<value = int64[1] {0}>() a, b, c = Split<axis = 0>(x) p = Unsqueeze(a, o) q = Unsqueeze(b, o) "
         "r = Unsqueeze(c, o) y = Concat<axis = 0>(p, q, r)", {("x", 0, "input"), ("y", 0, "output")}),
    ],
)  # fmt: skip
def test_steps_of_an_unrolled_graph_are_slices_and_what_is_stacked(nodes: str, found: set[object]) -> None:
    model = parser.parse_model(f"{HEAD} g (float[3,3] x) => (float y) {{ {nodes} }}")
    assert {(one.tensor, one.axis, one.role) for one in time_axes(model, {3}, set())} == found
