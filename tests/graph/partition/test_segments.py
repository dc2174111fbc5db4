"""Segments and the paths of faults through them: what is prepared for many tensors is what each one takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from campaign_networks import nets
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.partition.cut_points import narrow_cut_points, whole_subgraph
from onnxfi.graph.partition.route import Route
from onnxfi.graph.partition.segments import Segmentation
from onnxfi.graph.partition.subgraph import partition_graph


@settings(max_examples=40, deadline=None)
@given(model=nets(), half=st.booleans(), late=st.booleans(), blocks=st.booleans())
def test_what_many_routes_take_together_is_what_each_takes(
    model: onnx.ModelProto, half: bool, late: bool, blocks: bool
) -> None:
    held = load(model)
    net = partition_graph(held, blocks=blocks)
    chosen = held.targets[:: 2 if half else 1]
    for ends in ((), narrow_cut_points(net, whole_subgraph(net, ()))):
        routes = Segmentation(held, net, (), ends, late=late, chosen=frozenset(t.id for t in chosen))
        each = {t.id: route for t in chosen if (route := routes.alone(t)) is not None}
        found, taken = routes.prepared
        assert {name: replace(route, entries=()) for name, route in each.items()} == found
        for number in range(len(routes.segments)):
            of_each = {
                n for route in each.values() for entry in route.entries if entry.segment == number for n in entry.inputs
            }
            inside = {name for name, segment in routes.within.items() if segment == number}
            assert taken[number] & inside == of_each & inside


HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def chain(length: int, *, size: int = 1) -> Model:
    """A matrix product, so many additions of stored tensors one after the other, and what is put out."""
    adds = " ".join(f"h{k + 1} = Add(h{k}, b{k})" for k in range(length))
    proto = parser.parse_model(
        f"{HEAD} g (float[N,8] x) => (float[N,8] y) {{ h0 = MatMul(x, w) {adds} y = Relu(h{length}) }}"
    )
    arrays = {"w": np.ones((8, 8), np.float32)} | {f"b{k}": np.ones(size, np.float32) for k in range(length)}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return load(proto)


def test_what_is_prepared_for_many_tensors_looks_at_each_node_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(200)
    routes = Segmentation(model, partition_graph(model), ())
    monkeypatch.setattr(Segmentation, "entries", None)  # what is looked for in one tensor after the other
    assert {f"h{k}" for k in range(200)} <= {name for names in routes.inner for name in names}
    assert not routes.shares(t for t in model.targets if t.id != "w")


def test_what_is_prepared_is_that_for_what_may_be_faulty() -> None:
    model = chain(30, size=8)
    assert Segmentation(model, partition_graph(model), (), chosen=frozenset({"b29"})).inner == (("h29",),)


def test_a_path_leads_from_the_fault_to_the_scored_outputs() -> None:
    model = chain(4, size=8)
    routes = Segmentation(model, partition_graph(model), (), (("h2",),))
    [early, late] = [t for t in model.targets if t.id in ("b1", "b3")]
    assert [routes.within[name] for name in ("h1", "h2", "h3", "y")] == [0, 0, 1, 1]
    assert routes.makers == {"x": -1, "h2": 0, "y": 1}
    [path] = routes.paths([late], Route.PARTIAL)
    [entry] = path.entries
    assert (entry.segment, entry.fed, [*entry.inputs]) == (1, ("b3",), ["h3"]), "it starts at its fault"
    [path] = routes.paths([early], Route.PARTIAL)
    assert [one.segment for one in path.entries] == [0], "what follows is run where it differs"
    whole = routes.rebuilt([early, late])
    assert whole is not None and [one.segment for one in whole.entries] == [0, 1] and whole.rebuilt
    assert not [*routes.paths([late], Route.CHANNEL_DELTA)], "an addition has no channels"


def test_activations_are_fed_where_nothing_else_reaches_them() -> None:
    model = chain(4, size=8)
    routes = Segmentation(model, partition_graph(model), (), (("h2",),))
    assert routes.is_boundary("h2") and not routes.is_boundary("h1")
    assert routes.activation_entries(["h2"]) == (), "at the end of a segment nothing is cut"
    found = routes.activation_entries(["h1", "h3"])
    assert found is not None and [(one.segment, one.fed) for one in found] == [(0, ("h1",)), (1, ())]
    assert [[sub.outputs for sub in one.subgraphs] for one in found] == [[("h2",)], [("h3",), ("y",)]], (
        "the run is split"
    )
    assert routes.activation_entries(["no such tensor"]) is None
