"""Bodies of loops and branches: their graphs by path, and numbers that are carried out of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from onnxfi.graph.model.graph_index import node_labels, subgraphs
from onnxfi.graph.passes.bit_arithmetic import NUMBER, NodeBuilder, opset_of
from onnxfi.graph.passes.graph_edit import FreeNames, GraphEdit, add_loop_output

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Inside:
    """A graph inside a node: the graph, the path of the graph around it, and the position of the node there."""

    graph: onnx.GraphProto = field(repr=False)
    outer: str = ""
    position: int = -1


def graphs_by_path(proto: onnx.ModelProto) -> dict[str, Inside]:
    """Return the main graph ("") and the graphs inside its nodes by their paths, outer ones first.

    Examples
    --------
    >>> import onnx
    >>> [*graphs_by_path(onnx.load("models/fashion_snn_scan.onnx"))]
    ['', 'steps.body::']
    """
    found = {"": Inside(proto.graph)}
    waiting = [""]
    while waiting:
        path = waiting.pop(0)
        nodes = found[path].graph.node
        for k, (node, label) in enumerate(zip(nodes, node_labels(nodes), strict=True)):
            for name, body in subgraphs(node):
                found[f"{path}{label}.{name}::"] = Inside(body, path, k)
                waiting.append(f"{path}{label}.{name}::")
    return found


def name_nodes_with_bodies(proto: onnx.ModelProto) -> None:
    """Name the nodes that hold graphs by their labels, so that paths stay, whatever nodes come before them."""
    for inside in graphs_by_path(proto).values():
        for node, label in zip(inside.graph.node, node_labels(inside.graph.node), strict=True):
            if next(subgraphs(node), None) is not None:
                node.name = label


def carry_out(
    proto: onnx.ModelProto, path: str, name: str, neutral: NDArray[Any], combine: Literal["ReduceMin", "ReduceSum"]
) -> str:
    """Carry a value of a body ([n], of the type of `neutral`) to the main graph; returns its name there.

    `combine` makes one of the values of all iterations; a branch that is not taken, and a loop without iterations, give
    the neutral value.
    """
    names, opset = FreeNames(proto), opset_of(proto)
    while path:
        graphs = graphs_by_path(proto)
        inside = graphs[path]
        edit = GraphEdit(graphs[inside.outer].graph)
        node = edit.graph.node[inside.position]
        result = names.new(f"{name}.out")
        if node.op_type == "If":
            for of_branch, branch in subgraphs(node):
                taken = path.endswith(f".{of_branch}::")
                _add_branch_output(branch, name if taken else "", names, neutral, opset)
            node.output.append(result)
        else:
            _declare(inside.graph, name, neutral)
            add_loop_output(node, inside.graph, names.new(f"{name}.every"))
            g = NodeBuilder(opset, names.new(f"{name}.all") + ".")
            every = g.add("Concat", g.constant(neutral[None], str(neutral.dtype)), node.output[-1], axis=0)
            if opset >= (13 if combine == "ReduceSum" else 18):
                g.add(combine, every, g.constant([0]), keepdims=0, name=result)
            else:
                g.add(combine, every, axes=[0], keepdims=0, name=result)
            edit.put_behind(inside.position, g.nodes)
            edit.write()
        path, name = inside.outer, result
    return name


def _add_branch_output(branch: onnx.GraphProto, name: str, names: FreeNames, neutral: NDArray[Any], opset: int) -> None:
    """Let a branch put out this value, or the neutral one."""
    if not name:
        g = NodeBuilder(opset, names.new("onnxfi.not_taken") + ".")
        name = g.constant(neutral, str(neutral.dtype))
        branch.node.extend(g.nodes)
    _declare(branch, name, neutral)


def _declare(graph: onnx.GraphProto, name: str, neutral: NDArray[Any]) -> None:
    from onnx import helper

    graph.output.append(helper.make_tensor_value_info(name, NUMBER[str(neutral.dtype)], list(neutral.shape)))
