"""The index of a model's graphs, on a model with a loop, a condition and a function, against what its text says."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import pytest
from onnx import helper, parser

from onnxfi.errors import ModelError
from onnxfi.graph.model.graph_index import (
    GraphIndex,
    all_graphs,
    all_nodes,
    captured_names,
    function_key,
    integer,
    integers,
    node_labels,
    read_names,
)
from onnxfi.graph.model.loading import load

TEXT = """<ir_version: 10, opset_import: ["": 21, "own": 1]>
nested (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}>
{
    a = Add (x, w)
    r = Relu (a)
    i = If (c) <
        then_branch = t () => (float[2] t_out) {
            t_in = Mul (r, w)
            t_out = If (c) <
                then_branch = tt () => (float[2] tt_out) { tt_out = Neg (t_in) },
                else_branch = te () => (float[2] te_out) { te_out = Abs (x) } >
        },
        else_branch = e () => (float[2] e_out) <float[2] w2 = {3, 4}> { e_out = Sub (a, w2) } >
    y = own.Twice (i)
}
<domain: "own", opset_import: ["": 21]>
Twice (p) => (q) { q = Add (p, p) }
"""


@pytest.fixture(scope="module")
def index() -> GraphIndex:
    return GraphIndex.of(parser.parse_model(TEXT))


def test_graphs_come_before_those_that_they_hold_and_functions_last(index: GraphIndex) -> None:
    paths = ["", "If#2.then_branch::", "If#2.then_branch::If#1.then_branch::", "If#2.then_branch::If#1.else_branch::"]
    assert [scope.path for scope in index.graphs] == [*paths, "If#2.else_branch::"]
    assert [scope.path for scope in index.scopes] == [*paths, "If#2.else_branch::", "function:own:Twice::"]
    assert [scope.graph.name for scope in index.graphs] == [graph.name for graph in all_graphs(index.proto.graph)]
    assert [[node.label for node in scope.enclosing] for scope in index.graphs] == [
        [], ["If#2"], ["If#2", "If#1"], ["If#2", "If#1"], ["If#2"],
    ]  # fmt: skip
    assert all(index.by_path[path].path == path for path in paths)


def test_a_name_is_that_of_the_innermost_graph_that_has_it(index: GraphIndex) -> None:
    inner = index.by_path["If#2.then_branch::If#1.then_branch::"]
    assert inner.find("t_in") is index.by_path["If#2.then_branch::"].values["t_in"]
    assert inner.find("w") is index.main.values["w"]
    assert inner.find("w2") is None and inner.find("nothing") is None
    assert inner.find("t_in").producer.op == "Mul"  # type: ignore[union-attr]


def test_producers_and_consumers_are_those_of_the_text(index: GraphIndex) -> None:
    main, value = index.main, index.main.values["a"]
    assert main.producers == {"a": 0, "r": 1, "i": 2, "y": 3}
    assert value.producer is main.nodes[0]
    assert [(node.op, node.path) for node in value.consumers] == [("Relu", ""), ("Sub", "If#2.else_branch::")]
    assert main.reads == (("x", "w"), ("a",), ("c", "r", "w", "c", "x", "a"), ("i",))
    assert main.consumers == {"x": (0, 2), "w": (0, 2), "a": (1, 2), "c": (2,), "r": (2,), "i": (3,)}
    assert main.output_names == {"y"} and [value.name for value in main.outputs] == ["y"]
    assert [v.name for v in main.nodes[2].subgraph_outputs] == ["t_out", "e_out"]


def test_only_what_comes_from_around_is_captured(index: GraphIndex) -> None:
    condition = index.proto.graph.node[2]
    assert captured_names(condition) == ["r", "w", "c", "x", "a"]
    assert read_names(condition) == ["c", "r", "w", "c", "x", "a"]
    assert captured_names(index.proto.graph.node[0]) == []


def test_a_function_is_a_scope_of_its_own_and_found_by_its_callers(index: GraphIndex) -> None:
    function = index.functions[function_key("own", "Twice", "")]
    assert index.called(index.main.nodes[3]) is function
    assert index.called(index.main.nodes[0]) is None
    assert function.find("x") is None and function.output_names == {"q"}
    assert function_key("ai.onnx", "Relu", "") == function_key("", "Relu", "")


def test_every_node_is_indexed_once(index: GraphIndex) -> None:
    everywhere = [*all_nodes(index.proto.graph.node), *index.proto.functions[0].node]
    assert sorted(id(node.proto) for node in index.nodes) == sorted(map(id, everywhere))
    assert len(index.nodes) == len(everywhere) == 10


def test_labels_are_different_where_names_repeat() -> None:
    nodes = [onnx.NodeProto(op_type=op, name=name) for op, name in (("Add", "n"), ("Mul", "n"), ("Relu", ""))]
    assert node_labels(nodes) == ["n", "n#1", "Relu#2"]
    assert node_labels([onnx.NodeProto(op_type="Relu", name="Relu#1"), onnx.NodeProto(op_type="Relu")]) == [
        "Relu#1",
        "Relu#1#1",
    ]


def test_a_loop_is_named_with_what_it_holds() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]> g (int64 n, bool c, float[2] x) => (float[2] y) {
        y = Loop (n, c, x) <body = b (int64 i, bool go, float[2] s) => (bool go_on, float[2] s_out) {
            go_on = Identity (go)  s_out = Mul (s, x) }> }"""
    found = GraphIndex.of(parser.parse_model(text))
    assert [scope.loop for scope in found.graphs] == ["", "Loop"]
    assert captured_names(found.proto.graph.node[0]) == ["x"]
    assert found.main.reads == (("n", "c", "x", "x"),)


def test_a_model_is_indexed_once() -> None:
    model = load("models/fashion_cnn.onnx")
    assert model.index.proto is model.proto
    assert [node.op for node in model.index.nodes] == [node.op_type for node in model.proto.graph.node]


def test_a_damaged_model_is_indexed_as_far_as_it_says() -> None:
    proto = onnx.ModelProto()
    proto.graph.node.add(op_type="Add", input=["", "nowhere"], output=["", "y"])
    proto.graph.output.add(name="missing")
    found = GraphIndex.of(proto)
    assert found.main.nodes[0].inputs == [None, None]
    assert [value.name for value in found.main.nodes[0].outputs] == ["y"]
    assert found.main.outputs == [] and found.main.producers == {"y": 0}


def test_values_and_defaults() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[0, 1])
    assert (integer(node, "group", 1), integer(node, "axis", 7)) == (2, 7)
    assert (integers(node, "pads", [5]), integers(node, "strides", [5])) == ((0, 1), (5,))
    with pytest.raises(KeyError, match="axis"):
        integer(node, "axis")


OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]


def calling(*calls: Sequence[str], graph: str = "") -> onnx.ModelProto:
    """A model of functions f0, f1, … that run these one behind the other; the graph calls the last one."""
    functions = []
    for k, names in enumerate(calls):
        values = ["a", *(f"v{n}" for n in range(1, len(names))), "b"]
        nodes = [
            helper.make_node(name, [values[n]], [values[n + 1]], domain="" if name == "Relu" else "f")
            for n, name in enumerate(names)
        ]
        functions.append(helper.make_function("f", f"f{k}", ["a"], ["b"], nodes, OPSETS))
    x, y = (helper.make_tensor_value_info(name, 1, ["N", 4]) for name in "xy")
    node = helper.make_node(graph or f"f{len(calls) - 1}", ["x"], ["y"], domain="f")
    made = helper.make_graph([node], "g", [x], [y])
    return helper.make_model(made, functions=functions, opset_imports=OPSETS, ir_version=8)


def doubling(times: int) -> onnx.ModelProto:
    return calling(["Relu"], *([f"f{k}", f"f{k}"] for k in range(times)))


def test_functions_that_unfold_without_measure_are_refused() -> None:
    assert load(doubling(18)).name
    with pytest.raises(ModelError, match=r"^the model: its local functions unfold to more than 262,144 nodes"):
        load(doubling(30))
    unused = doubling(30)
    unused.graph.node[0].op_type = "f3"
    assert load(unused).name, "what nothing calls is not unfolded"


def test_a_function_that_calls_itself_is_refused() -> None:
    for made in (calling(["Relu", "f0"]), calling(["f1"], ["f0"])):
        with pytest.raises(ModelError, match="a local function calls itself"):
            load(made)


def test_functions_call_each_other_to_a_depth() -> None:
    chain = [["Relu"], *([f"f{k}"] for k in range(300))]
    assert load(calling(*chain, graph="f90")).name
    for made in (calling(*chain), calling(*chain, [f"f{k}" for k in reversed(range(301))])):
        with pytest.raises(ModelError, match="call each other more than 100 deep"):
            load(made)
