"""Bodies of loops and branches: edits of the graphs of a model, and numbers that are carried out of bodies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from onnxfi.errors import ModelError
from onnxfi.graph.model.graph_index import GraphIndex, all_nodes, subgraphs
from onnxfi.graph.passes.graph_edit import FreeNames, GraphEdit, add_loop_output
from onnxfi.graph.passes.node_builder import NUMBER, NodeBuilder, opset_of

if TYPE_CHECKING:
    import onnx


def name_nodes_with_bodies(proto: onnx.ModelProto) -> None:
    """Name the nodes that hold graphs by their labels, so that paths stay, whatever nodes come before them."""
    for scope in GraphIndex.of(proto).graphs:
        for node in scope.nodes:
            if next(subgraphs(node.proto), None) is not None:
                node.proto.name = node.label


def edited_graphs(proto: onnx.ModelProto) -> Iterator[tuple[str, GraphEdit]]:
    """Yield the path of each graph of a model with its edit, which is written when the next graph's turn comes.

    Inner graphs come first, as an edit makes those inside it anew. Nodes that hold graphs get names, so that paths
    stay.

    Examples
    --------
    >>> import onnx
    >>> [path for path, _ in edited_graphs(onnx.load("models/fashion_snn_scan.onnx"))]
    ['steps.body::', '']
    """
    name_nodes_with_bodies(proto)
    for scope in reversed(GraphIndex.of(proto).graphs):
        edit = GraphEdit(scope.graph)
        yield scope.path, edit
        edit.write()


def made_by(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the node that computes each value of the graphs of a model, by its path and name."""
    graphs = GraphIndex.of(proto).graphs
    return {node.path + value.name: node.proto for scope in graphs for node in scope.nodes for value in node.outputs}


def result_between(edit: GraphEdit, names: FreeNames, name: str, suffix: str) -> tuple[str, str]:
    """Return the names of a value and of what its readers read instead: a graph output keeps its name after it."""
    if name in edit.outputs:
        value = names.new(f"{name}.un{suffix}")
        edit.rename_output(edit.maker[name], name, value)
        return value, name
    result = names.new(f"{name}.{suffix}")
    edit.redirect(name, result)
    return name, result


def marked(proto: onnx.ModelProto, kind: str) -> list[str]:
    """Return the names of what a protection of a kind holds already, by its marked nodes."""
    start = f"onnxfi/{kind}/"
    return [node.name.removeprefix(start) for node in all_nodes(proto.graph.node) if node.name.startswith(start)]


def check_unprotected(proto: onnx.ModelProto, kind: str, least_opset: int) -> None:
    """Raise ModelError if a model carries a protection of this kind already, or has too low an opset for it."""
    if there := marked(proto, kind):
        raise ModelError(
            f"the model carries the protection {kind} already, as behind {there[0]!r}; protect the unprotected model"
        )
    if opset_of(proto) < least_opset:
        raise ModelError(
            f"the protection {kind} needs opset {least_opset}, the model has {opset_of(proto)}; "
            f"raise it with --opset 13"
        )


def carry_out(
    proto: onnx.ModelProto, path: str, name: str, neutral: NDArray[Any], combine: Literal["ReduceMin", "ReduceSum"]
) -> str:
    """Carry a value of a body ([n], of the type of `neutral`) to the main graph; returns its name there.

    `combine` makes one of the values of all iterations; a branch that is not taken, and a loop without iterations, give
    the neutral value.
    """
    names, opset = FreeNames(proto), opset_of(proto)
    while path:
        inside = GraphIndex.of(proto).by_path[path]
        outer, holder = inside.outer, inside.enclosing[-1]
        assert outer is not None  # a body lies in a graph
        node = holder.proto
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
            g.reduce(combine, every, name=result)
            edit = GraphEdit(outer.graph)
            edit.put_behind(outer.nodes.index(holder), g.nodes)
            edit.write()
        path, name = outer.path, result
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
