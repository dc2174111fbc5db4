"""Stored tables that inputs of a model look up: embeddings of tokens, of positions, of categories."""

from __future__ import annotations

from dataclasses import dataclass

from onnxfi.graph.model.graph_index import Scope, integer
from onnxfi.graph.model.protobuf_scan import text

_LOOKUPS = ("Gather", "GatherBlockQuantized")
#: Operators that leave the numbers of their first input as they are, or are those of a table's rows.
_INDEX_KEPT = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_ROWS_KEPT = ("Cast", "Identity", "DequantizeLinear")


@dataclass(frozen=True)
class LookupTable:
    """A table with `rows` rows, whose name is `name`, that the numbers of an input look up."""

    input: str
    name: str
    rows: int


def lookup_tables(scope: Scope) -> tuple[LookupTable, ...]:
    """Return the stored tables that inputs of a graph look up along the first axis, in the order of the nodes.

    >>> from onnx import parser
    >>> from onnxfi.graph.model.graph_index import GraphIndex
    >>> model = parser.parse_model('''<ir_version: 10, opset_import: ["": 20]> g (int64[N,T] ids) => (float[N,T,2] y)
    ...     <float[3,2] table = {1,2,3,4,5,6}> { y = Gather(table, ids) }''')
    >>> lookup_tables(GraphIndex.of(model).main)
    (LookupTable(input='ids', name='table', rows=3),)
    """
    graph = scope.graph
    stored = {text(tensor.name): tensor.dims for tensor in graph.initializer}
    inputs = {text(value.name) for value in graph.input} - stored.keys()
    found = []
    for node in graph.node:
        if text(node.op_type) not in _LOOKUPS or integer(node, "axis", 0) or integer(node, "gather_axis", 0):
            continue
        table = _source(text(node.input[0]), scope, _ROWS_KEPT)
        index = _source(text(node.input[1]), scope, _INDEX_KEPT)
        if table in stored and len(stored[table]) and index in inputs:
            found.append(LookupTable(index, table, int(stored[table][0])))
    return tuple(found)


def _source(name: str, scope: Scope, kept: tuple[str, ...]) -> str:
    """Return what a value comes from through operators that keep it."""
    seen = set[str]()
    while name in scope.producers and name not in seen:
        node = scope.graph.node[scope.producers[name]]
        if text(node.op_type) not in kept:
            break
        seen.add(name)
        name = text(node.input[0])
    return name
