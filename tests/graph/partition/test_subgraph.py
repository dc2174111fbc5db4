"""Subgraphs: what a fault can reach, what that needs, and what it is fed, against a search by sets."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import pytest
from campaign_networks import nets
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser
from strategies import TIMES

from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.subgraph import (
    PartitionGraph,
    TensorLocation,
    array_at,
    boundary_tensors,
    half_floats,
    location,
    nodes_needed,
    nodes_reached,
    partition_graph,
    reachable_subgraph,
    reached,
    with_inputs,
)

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def slow_reach(net: PartitionGraph, names: Collection[str]) -> set[int]:
    """The nodes behind these names, by widening a set until nothing is added."""
    nodes, known = net.proto.graph.node, set(names)
    while more := {out for node in nodes if known & set(node.input) for out in node.output} - known:
        known |= more
    return {k for k, node in enumerate(nodes) if known & set(node.input)}


@settings(max_examples=4 * TIMES, deadline=None)
@given(model=nets(), blocks=st.booleans())
def test_what_faults_reach_is_what_a_search_finds(model: onnx.ModelProto, blocks: bool) -> None:
    net = partition_graph(load(model), blocks=blocks)
    weights = sorted(net.stored)
    starts = [([name], []) for name in weights]
    every = range(len(net.reads))
    marks = reached(net, starts, every)
    for number, name in enumerate(weights):
        known = slow_reach(net, [name])
        assert nodes_reached(net, [name], (), every) == known
        assert {k for k, mark in enumerate(marks) if mark >> number & 1} == known
        found = reachable_subgraph(net, [name])
        assert set(found.outputs) == {o for o in net.outputs if net.makers.get(o) in known}
        made = {out for k in found.nodes for out in net.proto.graph.node[k].output}
        read = {one for k in found.nodes for one in net.reads[k] if one} - made - set(net.stored)
        assert read == set(found.inputs), "it is fed what it reads and does not compute"
    union = {one for name in weights for one in with_inputs(net, slow_reach(net, [name]), frozenset())[1]}
    assert boundary_tensors(net, marks) >= union - set(net.inputs)


def test_what_is_needed_ends_at_what_is_fed() -> None:
    net = partition_graph(load(parser.parse_model(
        f"{HEAD} g (float[N] x) => (float[N] y) {{ a = Neg(x) b = Abs(a) c = Relu(x) y = Add(b, c) }}"
    )))  # fmt: skip
    assert nodes_needed(net, ["y"], range(4)) == {0, 1, 2, 3}
    assert nodes_needed(net, ["y"], range(4), {"b"}) == {2, 3}
    assert nodes_needed(net, ["y"], {1, 3}) == {1, 3}
    assert nodes_needed(net, ["x", "y"], range(4), {"y"}) == set()


@pytest.mark.parametrize("outputs", [(), ("z",), ("y",)])
def test_only_what_scored_outputs_need_belongs_to_it(outputs: tuple[str, ...]) -> None:
    model = parser.parse_model(
        f"{HEAD} g (float[N,2] x) => (float[N,2] y, float[N,2] z) {{ a = MatMul(x, w) y = Relu(a) z = Neg(a) }}"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32), "w"))
    found = reachable_subgraph(partition_graph(load(model)), ["w"], outputs=outputs)
    assert found.outputs == (outputs or ("y", "z")) and found.inputs == ("x",)
    assert len(found.nodes) == (2 if outputs else 3)


BODY = f"""{HEAD} g (float[N,2] x, bool c) => (float[N,2] y) {{
    y = If (c) <then_branch = t () => (float[N,2] a) {{ k = Constant<value = float[2] {{1, 2}}>() a = Add(x, k) }},
                else_branch = e () => (float[N,2] b) {{ b = Add(x, w) }}> }}"""


def test_tensors_are_found_at_the_top_and_in_bodies() -> None:
    proto = parser.parse_model(BODY)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([3, 4], np.float32), "w"))
    model = load(proto)
    net = partition_graph(model)
    found = {t.id: location(net, model, t) for t in model.targets}
    assert found.pop("w") == TensorLocation("w")
    [(inside, where)] = found.items()
    assert inside.endswith("::k") and where is not None and where.node == 0 and where.path
    assert array_at(net, where).tolist() == [1, 2] and array_at(net, TensorLocation("w")).tolist() == [3, 4]
    array_at(net, TensorLocation("w"))[:] = 0
    assert array_at(net, TensorLocation("w")).tolist() == [3, 4], "what is given is its own memory"


@pytest.mark.parametrize("kind", ["sparse", "int4", "shape"])
def test_what_cannot_be_fed_has_no_location(kind: str) -> None:
    proto = parser.parse_model(f"{HEAD} g (float[N,4] x) => (float[N,4] y) {{ y = Relu(x) }}")
    if kind == "int4":
        proto.graph.initializer.append(helper.make_tensor("w", onnx.TensorProto.INT4, [2], [1, 2]))
        proto.graph.node.insert(0, helper.make_node("Cast", ["w"], ["f"], to=1))
    elif kind == "shape":
        proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, 4]), "w"))
        proto.graph.node.insert(0, helper.make_node("Reshape", ["x", "w"], ["f"]))
    else:
        values = numpy_helper.from_array(np.ones(2, np.float32), "w")
        indices = numpy_helper.from_array(np.array([0, 3]), "w_at")
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
        proto.graph.node.insert(0, helper.make_node("Add", ["x", "w"], ["f"]))
    model = load(proto)
    net = partition_graph(model)
    assert all(location(net, model, target) is None for target in model.targets)


def test_half_floats_are_no_place_to_cut() -> None:
    text = f"{HEAD} g (float[N] x) => (float[N] y) {{{{ a = Cast<to = {{}}>(x) b = Neg(a) c = Cast<to = 1>(b) y = Relu(c) }}}}"
    half = parser.parse_model(text.format(10))
    assert half_floats(half) == {"a", "b"}
    assert half_floats(parser.parse_model(text.format(1))) == frozenset()
    assert partition_graph(load(half)).uncut == {"a", "b"}
    assert not partition_graph(load(half), halves=True).uncut, "where a runtime keeps 16 bits, any place will do"
