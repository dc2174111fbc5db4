"""Paths to the scores: what is certain, and what has no path."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from onnxfi.errors import UnprovableError
from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.subgraph import PartitionGraph, partition_graph
from onnxfi.runtime.proofs.bounds import ValueBounds
from onnxfi.runtime.proofs.propagation import UNKNOWN, path_from, with_samples

HEAD = '<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 0, 0, 1}> '


def graph_of(folder, body: str) -> PartitionGraph:
    """Return the graph of a model of two scores."""
    (folder / "m.onnx").write_bytes(parser.parse_model(HEAD + body).SerializeToString())
    return partition_graph(load(folder / "m.onnx"))


def test_a_class_is_certain_above_all_others_only(tmp_path) -> None:
    x = np.array([[1, 0], [0.5, 0.5], [0, 1]], np.float32)
    golden = {"x": x, "y": x}
    path = path_from(graph_of(tmp_path, "{ y = MatMul(x, w) }"), 0, golden, "y", np.array([0, 0, 1], np.int16))
    for change, found in ((0.0, [[0, UNKNOWN, 1]]), (2.0, [[0, 0, 0]]), (1.0, [[0, 0, UNKNOWN]])):
        added = np.full((1, 3, 1), change)
        entry = path.first.entry(added, added, np.ones_like(added), np.array([0]))
        assert path.classes(entry).tolist() == found
    some = with_samples(path, np.array([2, 2]))
    assert some.classes(some.first.entry(added[:, :2], added[:, :2], added[:, :2], np.array([1]))).tolist() == [[1, 1]]
    assert with_samples(path, slice(1, 3)).top.tolist() == [0, 1]
    dead = ValueBounds(added * np.nan, added * np.nan, np.zeros((1, 3), np.bool_), np.array([0]))
    assert path.classes(dead).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    "body, why",
    [
        ("{ h = MatMul(x, w) a = Sin(h) y = Identity(a) }", "no rule for Sin"),
        ("{ h = MatMul(x, w) a = Relu(h) b = Relu(h) y = Add(a, b) }", "several operators read 'h'"),
        ("{ h = Gemm<alpha = 2.0>(x, w) y = Relu(h) }", "no rule for this Gemm"),
    ],
)
def test_what_has_no_rule_is_named(body: str, why: str, tmp_path) -> None:
    golden = {name: np.ones((2, 2), np.float32) for name in "xhaby"}
    with pytest.raises(UnprovableError, match=why):
        path_from(graph_of(tmp_path, body), 0, golden, "y", np.zeros(2, np.int16))
