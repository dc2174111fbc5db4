"""Insertion of nodes: every reader sees what is put behind a tensor, in all graphs, and names stay what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, parser
from onnx.reference import ReferenceEvaluator

from onnxfi.errors import ModelError
from onnxfi.graph.passes.bit_arithmetic import NodeBuilder
from onnxfi.graph.passes.insert_nodes import insert_behind

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
X = np.array([[1.0, -2.0]], np.float32)
FLOATS = helper.make_tensor_type_proto(1, ["N", 2])


def ten_times(g: NodeBuilder, value: str, result: str, step: str) -> None:
    """Put a product by ten behind a tensor."""
    g.add("Mul", value, g.constant(10, "float32"), name=result)


def plus_step(g: NodeBuilder, value: str, result: str, step: str) -> None:
    """Add the number of the iteration to a tensor."""
    assert step
    g.add("Add", value, g.add("Cast", step, to=1), name=result)


def ran(model: onnx.ModelProto, **feeds: Any) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    found: list[np.ndarray] = ReferenceEvaluator(model).run(None, feeds)
    return found


def test_every_reader_and_the_output_see_the_new_value() -> None:
    model = parser.parse_model(
        f"{HEAD} g (float[N,2] x) => (float[N,2] a, float[N,2] y) {{ a = Neg(x) y = Add(a, a) }}"
    )
    insert_behind(model, {("", "a"): ten_times}, {("", "a"): FLOATS})
    a, y = ran(model, x=X)
    assert (a == -10 * X).all() and (y == -20 * X).all()
    assert [o.name for o in model.graph.output] == ["a", "y"]
    assert {"a.fault_free"} == {v.name for v in model.graph.value_info}, "the output describes the other side"


def test_an_input_keeps_its_name_and_its_readers_read_another() -> None:
    model = parser.parse_model(
        f"""{HEAD} g (float[N,2] x, bool c) => (float[N,2] y) {{ a = Add(x, x) y = If (c)
        <then_branch = t () => (float[N,2] p) {{ p = Sub(a, x) }}, else_branch = e () => (float[N,2] q) {{ q = Neg(a) }}> }}"""
    )
    insert_behind(model, {("", "x"): ten_times}, {})
    assert [value.name for value in model.graph.input] == ["x", "c"]
    assert (ran(model, x=X, c=np.array(True))[0] == 10 * X).all(), "also those in a branch"
    both = parser.parse_model(f"{HEAD} g (float[N] x) => (float[N] x) {{ }}")
    with pytest.raises(ModelError, match="'x' is an input and an output of the graph at once; choose another tensor"):
        insert_behind(both, {("", "x"): ten_times}, {})


LOOP = f"""{HEAD} g (float[N,2] x) => (float[N,2] y) <int64 n = {{3}}, bool c = {{1}}> {{
    y = Loop (n, c, x) <body = b (int64 i, bool k, float[N,2] s) => (bool k2, float[N,2] t)
        {{ k2 = Identity(k) t = Neg(s) }}> }}"""
SCAN = f"""{HEAD} g (float[2] x, float[3,2] rows) => (float[2] y) {{
    y = Scan (x, rows) <num_scan_inputs = 1, body = b (float[2] s, float[2] row) => (float[2] t) {{ t = Add(s, row) }}> }}"""


def body_of(model: onnx.ModelProto) -> str:
    node = model.graph.node[0]
    return f"{node.op_type}#0.body::"


def test_in_a_loop_the_iteration_is_at_hand() -> None:
    model = parser.parse_model(LOOP)
    insert_behind(model, {(body_of(model), "t"): plus_step}, {})
    value = X
    for step in range(3):
        value = -value + step
    assert (ran(model, x=X)[0] == value).all()


def test_a_scan_is_given_a_state_that_counts() -> None:
    model = parser.parse_model(SCAN)
    insert_behind(model, {(body_of(model), "t"): plus_step}, {})
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert (ran(model, x=X[0], rows=rows)[0] == X[0] + rows.sum(0) + 0 + 1 + 2).all()


def test_a_tensor_that_is_not_there_is_named() -> None:
    model = parser.parse_model(LOOP)
    for place in (("", "none"), ("Loop#0.body::", "none"), ("", "t")):
        with pytest.raises(ModelError, match=f"no tensor '{''.join(place)}' in the graph to inject into; inline local"):
            insert_behind(model, {place: ten_times}, {})


def test_names_that_are_taken_are_passed_over() -> None:
    model = parser.parse_model(
        f"{HEAD} g (float[N,2] x) => (float[N,2] y) {{ fault_free = Neg(x) a = Neg(x) b = Mul(a, fault_free) y = Neg(b) }}"
    )
    model.graph.node[0].output[0] = model.graph.node[2].input[1] = "a.fault_free"
    insert_behind(model, {("", "a"): ten_times}, {})
    assert (ran(model, x=X)[0] == -10 * X * X).all()
