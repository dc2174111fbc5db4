"""Edits of graphs: names that clash with none, nodes in their places, readers of another tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnxfi.errors import ModelError
from onnxfi.graph.passes.graph_edit import (
    FreeNames,
    GraphEdit,
    add_loop_state,
    insert_behind,
    redirect_node,
    used_names,
)
from onnxfi.graph.passes.node_builder import NodeBuilder

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
NESTED = f"""{HEAD} g (float[N] x, bool c) => (float[N] y) {{
    a = Mul(x, w_one)
    y = If (c) <then_branch = t () => (float[N] p) {{ p = Neg(a) }}, else_branch = e () => (float[N] q)
        {{ a = Abs(x) q = Neg(a) }}> }}"""
X = np.array([-1.0, 2.0], np.float32)


def nested() -> onnx.ModelProto:
    """The model above, whose weight has a dot in its name."""
    model = parser.parse_model(NESTED)
    model.graph.node[0].input[1] = "w.one"
    model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.float32), "w.one"))
    return model


def ran(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    found: np.ndarray = ReferenceEvaluator(model).run(None, feeds)[0]
    return found


def test_names_are_those_of_every_graph_and_what_is_before_a_dot() -> None:
    assert {"x", "c", "y", "a", "p", "q", "w.one", "w"} <= used_names(nested())


@given(st.lists(st.sampled_from(["a", "a2", "b", "w", "w.one", "x2"]), max_size=12))
def test_a_new_name_is_like_no_other(wanted: list[str]) -> None:
    model = nested()
    names = FreeNames(model)
    found = [names.new(name) for name in wanted]
    assert len(set(found)) == len(found) and not used_names(model) & set(found)
    assert all(one.startswith(name) for one, name in zip(found, wanted, strict=True))
    assert all(one == name for k, (one, name) in enumerate(zip(found, wanted, strict=True))
               if name not in used_names(model) and name not in found[:k])  # fmt: skip


def test_nodes_lie_where_they_are_put_in_the_order_in_which_they_were() -> None:
    model = parser.parse_model(f"{HEAD} g (float[N] x) => (float[N] y) {{ a = Neg(x) y = Abs(a) }}")
    edit, made = GraphEdit(model.graph), [helper.make_node("Relu", [f"i{k}"], [f"o{k}"]) for k in range(6)]
    edit.put_behind(1, made[4:5])
    edit.put_before(1, made[2:4])
    edit.put_behind(-1, made[:2])
    edit.put_behind(1, made[5:])
    assert [node.output[0] for node in edit.behind(1)] == ["o4", "o5"] and not edit.behind(0)
    assert [node.output[0] for node in model.graph.node] == ["a", "y"], "nothing is written yet"
    edit.write()
    assert [node.output[0] for node in model.graph.node] == ["o0", "o1", "a", "o2", "o3", "y", "o4", "o5"]


def test_an_edit_without_anything_changes_no_byte() -> None:
    model = nested()
    before = model.SerializeToString(deterministic=True)
    GraphEdit(model.graph).write()
    assert model.SerializeToString(deterministic=True) == before


def test_readers_read_another_tensor_except_where_a_body_has_one_of_that_name() -> None:
    model = nested()
    edit = GraphEdit(model.graph)
    edit.put_behind(edit.maker["a"], [helper.make_node("Mul", ["a", "w.one"], ["b"])])
    edit.redirect("a", "b")
    edit.write()
    assert ran(model, x=X, c=np.array(True)).tolist() == (-4 * X).tolist(), "the branch reads the tensor around it"
    assert ran(model, x=X, c=np.array(False)).tolist() == (-abs(X)).tolist(), "the other branch reads its own"


def test_inputs_that_are_kept_read_on() -> None:
    model = parser.parse_model(f"{HEAD} g (float[N] x) => (float[N] y) {{ a = Neg(x) b = Abs(x) y = Sub(a, a) }}")
    edit = GraphEdit(model.graph)
    edit.redirect("a", "b", kept={(2, 1)})
    assert list(model.graph.node[2].input) == ["b", "a"]
    edit.rename_output(0, "a", "n")
    assert (model.graph.node[0].output[0], edit.maker["n"]) == ("n", 0)


def test_an_output_of_a_body_that_is_a_tensor_around_it_goes_along() -> None:
    node = parser.parse_model(
        f"""{HEAD} g (float[N] x, bool c) => (float[N] y) {{ a = Neg(x) y = If (c)
        <then_branch = t () => (float[N] a) {{ }}, else_branch = e () => (float[N] q) {{ q = Neg(a) }}> }}"""
    ).graph.node[1]
    redirect_node(node, "a", "b")
    assert node.attribute[0].g.output[0].name == "b" and node.attribute[1].g.node[0].input[0] == "b"


LOOPS = {
    "Loop": f"""{HEAD} g (float[2] x) => (float[2] y) <int64 n = {{3}}, bool c = {{1}}> {{
        y = Loop (n, c, x) <body = b (int64 i, bool k, float[2] s) => (bool k2, float[2] t)
            {{ k2 = Identity(k) t = Add(s, s) }}> }}""",
    "Scan": f"""{HEAD} g (float[2] x, float[3,2] rows) => (float[2] y, float[3,2] all) {{
        y, all = Scan (x, rows) <num_scan_inputs = 1, body = b (float[2] s, float[2] row) => (float[2] t, float[2] u)
            {{ t = Add(s, row) u = Identity(t) }}> }}""",
}


def test_a_loop_gets_a_state_behind_its_own() -> None:
    """It counts down from 10 by 2 an iteration, and the other states and outputs stay what they are."""
    feeds = {"x": X, "rows": np.ones((3, 2), np.float32)}
    for text in LOOPS.values():
        model = parser.parse_model(text)
        given = {value.name: feeds[value.name] for value in model.graph.input}
        before = ReferenceEvaluator(model).run(None, given)
        node, names = model.graph.node[0], FreeNames(model)
        following = lambda g, now: g.add("Sub", now, g.constant(2))  # noqa: E731
        _, end, start = add_loop_state(node, node.attribute[-1].g if node.attribute[-1].HasField("g")
                                       else node.attribute[0].g, names, 21, following)  # fmt: skip
        model.graph.node.insert(0, helper.make_node("Constant", [], [start], value_int=10))
        model.graph.output.append(helper.make_tensor_value_info(end, onnx.TensorProto.INT64, []))
        onnx.checker.check_model(model)
        *after, count = ReferenceEvaluator(model).run(None, given)
        assert int(count) == 4
        for one, other in zip(after, before, strict=True):
            np.testing.assert_array_equal(one, other)


OPSETS = '<ir_version: 10, opset_import: ["": 21]>'
FED = np.array([[1.0, -2.0]], np.float32)
FLOATS = helper.make_tensor_type_proto(1, ["N", 2])


def ten_times(g: NodeBuilder, value: str, result: str, step: str) -> None:
    """Put a product by ten behind a tensor."""
    g.add("Mul", value, g.constant(10, "float32"), name=result)


def plus_step(g: NodeBuilder, value: str, result: str, step: str) -> None:
    """Add the number of the iteration to a tensor."""
    assert step
    g.add("Add", value, g.add("Cast", step, to=1), name=result)


def all_outputs(model: onnx.ModelProto, **feeds: Any) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    found: list[np.ndarray] = ReferenceEvaluator(model).run(None, feeds)
    return found


def test_every_reader_and_the_output_see_the_new_value() -> None:
    model = parser.parse_model(
        f"{OPSETS} g (float[N,2] x) => (float[N,2] a, float[N,2] y) {{ a = Neg(x) y = Add(a, a) }}"
    )
    insert_behind(model, {("", "a"): ten_times}, {("", "a"): FLOATS})
    a, y = all_outputs(model, x=FED)
    assert (a == -10 * FED).all() and (y == -20 * FED).all()
    assert [o.name for o in model.graph.output] == ["a", "y"]
    assert {"a.fault_free"} == {v.name for v in model.graph.value_info}, "the output describes the other side"


def test_an_input_keeps_its_name_and_its_readers_read_another() -> None:
    model = parser.parse_model(
        f"""{OPSETS} g (float[N,2] x, bool c) => (float[N,2] y) {{ a = Add(x, x) y = If (c)
        <then_branch = t () => (float[N,2] p) {{ p = Sub(a, x) }}, else_branch = e () => (float[N,2] q) {{ q = Neg(a) }}> }}"""
    )
    insert_behind(model, {("", "x"): ten_times}, {})
    assert [value.name for value in model.graph.input] == ["x", "c"]
    assert (all_outputs(model, x=FED, c=np.array(True))[0] == 10 * FED).all(), "also those in a branch"
    both = parser.parse_model(f"{OPSETS} g (float[N] x) => (float[N] x) {{ }}")
    with pytest.raises(ModelError, match="'x' is an input and an output of the graph at once; choose another tensor"):
        insert_behind(both, {("", "x"): ten_times}, {})


LOOP = f"""{OPSETS} g (float[N,2] x) => (float[N,2] y) <int64 n = {{3}}, bool c = {{1}}> {{
    y = Loop (n, c, x) <body = b (int64 i, bool k, float[N,2] s) => (bool k2, float[N,2] t)
        {{ k2 = Identity(k) t = Neg(s) }}> }}"""
SCAN = f"""{OPSETS} g (float[2] x, float[3,2] rows) => (float[2] y) {{
    y = Scan (x, rows) <num_scan_inputs = 1, body = b (float[2] s, float[2] row) => (float[2] t) {{ t = Add(s, row) }}> }}"""


def body_of(model: onnx.ModelProto) -> str:
    node = model.graph.node[0]
    return f"{node.op_type}#0.body::"


def test_in_a_loop_the_iteration_is_at_hand() -> None:
    model = parser.parse_model(LOOP)
    insert_behind(model, {(body_of(model), "t"): plus_step}, {})
    value = FED
    for step in range(3):
        value = -value + step
    assert (all_outputs(model, x=FED)[0] == value).all()


def test_a_scan_is_given_a_state_that_counts() -> None:
    model = parser.parse_model(SCAN)
    insert_behind(model, {(body_of(model), "t"): plus_step}, {})
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert (all_outputs(model, x=FED[0], rows=rows)[0] == FED[0] + rows.sum(0) + 0 + 1 + 2).all()


def test_a_tensor_that_is_not_there_is_named() -> None:
    model = parser.parse_model(LOOP)
    for place in (("", "none"), ("Loop#0.body::", "none"), ("", "t")):
        with pytest.raises(ModelError, match=f"no tensor '{''.join(place)}' in the graph to inject into; inline local"):
            insert_behind(model, {place: ten_times}, {})


def test_names_that_are_taken_are_passed_over() -> None:
    model = parser.parse_model(
        f"{OPSETS} g (float[N,2] x) => (float[N,2] y) {{ fault_free = Neg(x) a = Neg(x) b = Mul(a, fault_free) y = Neg(b) }}"
    )
    model.graph.node[0].output[0] = model.graph.node[2].input[1] = "a.fault_free"
    insert_behind(model, {("", "a"): ten_times}, {})
    assert (all_outputs(model, x=FED)[0] == -10 * FED * FED).all()
