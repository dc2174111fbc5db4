"""Cut points: where a model is cut into segments."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import parser

from onnxfi.errors import ModelError
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.partition import cut_points
from onnxfi.graph.partition.cut_points import decision_cut, narrow_cut_points, segments, whole_subgraph
from onnxfi.graph.partition.subgraph import PartitionGraph, partition_graph
from onnxfi.graph.spiking.detect_neurons import SpikingLayers

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
SIGNS = "float[4,4] w = {1,-1,1,1,1,1,-1,1,1,1,1,-1,-1,1,1,1}"
SHIPPED = sorted(Path("models").glob("*.onnx"))


def wired(graph: str, folder: Path) -> PartitionGraph:
    onnx.save(parser.parse_model(HEAD + graph), folder / "m.onnx")
    return partition_graph(load(folder / "m.onnx"))


def places(graph: str, folder: Path) -> list[str]:
    net = wired(graph, folder)
    return [name for (name,) in narrow_cut_points(net, whole_subgraph(net, ()))]


def test_a_residual_network_is_cut_behind_its_blocks(tmp_path: Path) -> None:
    blocks = "".join(
        f"a{k} = MatMul(x{k}, w) b{k} = Relu(a{k}) c{k} = MatMul(b{k}, w) d{k} = Add(c{k}, x{k}) x{k + 1} = Relu(d{k}) "
        for k in range(3)
    )
    graph = f"net (float[N,4] x) => (float[N,4] y) <{SIGNS}> {{ x0 = MatMul(x, w) {blocks} y = MatMul(x3, w) }}"
    assert places(graph, tmp_path) == ["x0", "x1", "x2", "x3"]


def test_where_values_wait_for_the_way_back_it_is_cut_as_well(tmp_path: Path) -> None:
    graph = f"""net (float[N,4] x) => (float[N,4] y) <{SIGNS}>
        {{ a = MatMul(x, w) b = MatMul(a, w) c = MatMul(b, w) d = MatMul(c, w) e = Add(d, b) f = MatMul(e, w)
           g = Add(f, a) y = MatMul(g, w) }}"""
    found = places(graph, tmp_path)
    assert found[0] == "a" and found[-1] == "g"


def test_what_becomes_integers_stays_with_the_operator_before_it(tmp_path: Path) -> None:
    graph = f"""net (float[N,4] x) => (float[N,4] y) <{SIGNS}, float s = {{0.1}}, uint8 z = {{128}}>
        {{ a = MatMul(x, w) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w) }}"""
    net = wired(graph, tmp_path)
    whole = whole_subgraph(net, ())
    assert narrow_cut_points(net, whole) == (("d",),)
    first, second = segments(net, whole, (), narrow_cut_points(net, whole))
    assert first.outputs == second.inputs == ("q",), "the integers go on"


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("m = MatMul(x, w) r = Relu(m) y = ArgMax<axis = 1>(r)", ("r",)),
        ("m = MatMul(x, w) r = Relu(m) k = ArgMax<axis = 1>(r) y = Mul(k, k)", ("r",)),
        ("m = MatMul(x, w) r = Relu(m) y = Cast<to = 7>(r)", ("r",)),
        ("m = MatMul(x, w) r = Relu(m) g = Greater(m, r) y = Where(g, m, x)", ("m", "r")),
        ("m = MatMul(x, w) y = Cast<to = 10>(m)", ()),
        ("g = Greater(x, x) c = Cast<to = 1>(g) y = MatMul(c, w)", ()),  # decided in front of computation
    ],
)
def test_answers_are_decided_behind_all_computation(nodes: str, found: tuple[str, ...], tmp_path: Path) -> None:
    net = wired(f"net (float[4,4] x) => (y) <{SIGNS}> {{ {nodes} }}", tmp_path)
    assert set(decision_cut(net, whole_subgraph(net, ()))) - {"x"} == set(found)


@pytest.mark.parametrize(
    ("behind", "asked"),
    [
        ("m = And(c, o) y = Where(m, x, w)", False),  # a mask, as in attention
        ("n = Cast<to = 1>(c) y = Add(n, x)", True),
        ("y = Where(c, w, x)", True),
    ],
)
def test_spikes_are_looked_for_where_numbers_are_made_of_comparisons(
    behind: str, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = f"net (float[4,4] x, bool[4,4] o) => (float[4,4] y) <{SIGNS}> {{ c = Greater(x, w) {behind} }}"
    onnx.save(parser.parse_model(HEAD + graph), tmp_path / "m.onnx")
    seen: list[Model] = []
    monkeypatch.setattr(cut_points, "find_spiking_layers", lambda model: seen.append(model) or SpikingLayers(()))
    assert cut_points.spike_cut_points(load(tmp_path / "m.onnx")) == ()
    assert bool(seen) == asked


def test_one_operator_is_one_segment(tmp_path: Path) -> None:
    assert places(f"net (float[N,4] x) => (float[N,4] y) <{SIGNS}> {{ y = MatMul(x, w) }}", tmp_path) == []


def test_an_output_that_is_stored_cannot_be_run_in_segments(tmp_path: Path) -> None:
    net = wired(f"net (float[N,4] x) => (float[N,4] y, float[4,4] v) <{SIGNS}> {{ y = Relu(x) v = Abs(w) }}", tmp_path)
    with pytest.raises(ModelError, match="not a function of the inputs"):
        whole_subgraph(net, ())
    assert whole_subgraph(net, ("y",)).outputs == ("y",)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_segments_read_what_earlier_ones_produce_and_produce_all_outputs(file: Path) -> None:
    net = partition_graph(load(file))
    whole = whole_subgraph(net, ())
    at_hand = set(net.inputs)
    found = segments(net, whole, (), narrow_cut_points(net, whole))
    for segment in found:
        assert at_hand.issuperset(segment.inputs)
        at_hand.update(segment.outputs)
    assert at_hand.issuperset(net.outputs)
    assert {k for segment in found for k in segment.nodes} == set(whole.nodes)
