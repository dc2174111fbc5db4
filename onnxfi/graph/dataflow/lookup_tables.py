"""Stored tables that inputs of a model look up: embeddings of tokens, of positions, of categories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxfi.graph.model.attributes import integer
from onnxfi.graph.model.protobuf_scan import text

if TYPE_CHECKING:
    import onnx

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


def lookup_tables(graph: onnx.GraphProto) -> tuple[LookupTable, ...]:
    """Return the stored tables that inputs of a graph look up along the first axis, in the order of the nodes.

    >>> from onnx import parser
    >>> graph = parser.parse_graph('''g (int64[N,T] ids) => (float[N,T,2] y)
    ...     <float[3,2] table = {1,2,3,4,5,6}> { y = Gather(table, ids) }''')
    >>> lookup_tables(graph)
    (LookupTable(input='ids', name='table', rows=3),)
    """
    makers = {text(name): node for node in graph.node for name in node.output}
    stored = {text(tensor.name): tensor.dims for tensor in graph.initializer}
    inputs = {text(value.name) for value in graph.input} - stored.keys()
    found = []
    for node in graph.node:
        if text(node.op_type) not in _LOOKUPS or integer(node, "axis", 0) or integer(node, "gather_axis", 0):
            continue
        table = _source(text(node.input[0]), makers, _ROWS_KEPT)
        index = _source(text(node.input[1]), makers, _INDEX_KEPT)
        if table in stored and len(stored[table]) and index in inputs:
            found.append(LookupTable(index, table, int(stored[table][0])))
    return tuple(found)


def _source(name: str, makers: Mapping[str, onnx.NodeProto], kept: tuple[str, ...]) -> str:
    """Return what a value comes from through operators that keep it."""
    seen = set[str]()
    while name in makers and name not in seen and text(makers[name].op_type) in kept:
        seen.add(name)
        name = text(makers[name].input[0])
    return name
