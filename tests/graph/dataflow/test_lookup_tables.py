"""Tables that inputs look up, through operators that keep indices and rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from onnxfi.graph.dataflow.lookup_tables import LookupTable, lookup_tables
from onnxfi.graph.model.graph_index import GraphIndex, Scope


def graph_of(body: str) -> onnx.GraphProto:
    return parser.parse_graph(
        f"g (int64[N,T] ids, float[3] x) => (float[N,T,2] y) <float[3,2] w = {{1,2,3,4,5,6}}> {{ {body} }}"
    )


def main(graph: onnx.GraphProto) -> Scope:
    return GraphIndex.of(helper.make_model(graph)).main


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather(w, ids)",
        "y = Gather<axis = 0>(w, ids)",
        "small = Cast<to = 6>(ids) y = Gather(w, small)",
        "same = Identity(w) wide = Cast<to = 1>(same) y = Gather(wide, ids)",
    ],
)
def test_tables_are_found(body: str) -> None:
    assert lookup_tables(main(graph_of(body))) == (LookupTable("ids", "w", 3),)


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather<axis = 1>(w, ids)",
        "more = Add(ids, ids) y = Gather(w, more)",
        "other = Mul(w, w) y = Gather(other, ids)",
        "y = Gather(x, ids)",
    ],
)
def test_what_is_computed_is_no_table(body: str) -> None:
    assert lookup_tables(main(graph_of(body))) == ()


def test_a_graph_that_reads_itself_ends() -> None:
    graph = graph_of("y = Gather(w, ids)")
    graph.node[0].input[1] = "a"
    graph.node.add(op_type="Identity", input=["b"], output=["a"])
    graph.node.add(op_type="Identity", input=["a"], output=["b"])
    assert lookup_tables(main(graph)) == ()
    assert np.size(graph.node) == 3
