"""Insertion of nodes after tensors of a graph and of its bodies, so that every consumer reads the new value.

The new value has the name of the tensor; the output of the tensor's node becomes `NAME.fault_free`. Inside a body the
iteration of the nearest loop is available: a Loop has it, a Scan gets a state that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxfi.errors import ModelError
from onnxfi.graph.model.graph_index import node_labels, subgraphs
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.passes.bit_arithmetic import NodeBuilder, opset_of
from onnxfi.graph.passes.graph_edit import FreeNames, GraphEdit, add_loop_output, add_loop_state

if TYPE_CHECKING:
    import onnx

#: Appends the nodes between a value and its result, given both names and that of the iteration ('' outside loops).
Insert = Callable[[NodeBuilder, str, str, str], None]


@dataclass
class _Insertions:
    """The insertions into one model: those planned, those done, and the types declared in value_info."""

    inserts: Mapping[tuple[str, str], Insert]
    types: Mapping[tuple[str, str], onnx.TypeProto]
    names: FreeNames
    opset: int
    described: set[str]
    made: set[tuple[str, str]] = field(default_factory=set)


def insert_behind(
    proto: onnx.ModelProto, inserts: Mapping[tuple[str, str], Insert], types: Mapping[tuple[str, str], onnx.TypeProto]
) -> None:
    """Insert nodes after each tensor (path, name) of a model, in place; ModelError if one is not found.

    `types` are declared in value_info for the values before and after.
    """
    graph = proto.graph
    described = {v.name for v in (*graph.value_info, *graph.output, *graph.input)}
    state = _Insertions(inserts, types, FreeNames(proto), opset_of(proto), described)
    _insert(state, proto.graph, "", "")
    missing = [path + name for path, name in inserts if (path, name) not in state.made]
    if missing:
        raise ModelError(f"no tensor {missing[0]!r} in the graph to inject into; inline local functions first")


def _insert(state: _Insertions, graph: onnx.GraphProto, path: str, step: str) -> None:
    """Insert after the tensors of one graph, and of its bodies."""
    edit = GraphEdit(graph)
    here = {name for p, name in state.inserts if p == path}
    if not path:
        _insert_behind_inputs(state, edit, here, step)
    for k, (node, label) in enumerate(zip(graph.node, node_labels(graph.node), strict=True)):
        edit.put_before(k, _insert_in_bodies(state, node, path, label, step))
        for name in list(node.output):
            if name in here and (path, name) not in state.made:
                fault_free = state.names.new(f"{name}.fault_free")
                edit.rename_output(k, name, fault_free)
                edit.put_behind(k, _inserted(state, graph, path, name, (fault_free, name), step))
    edit.write()


def _inserted(
    state: _Insertions, graph: onnx.GraphProto, path: str, name: str, between: tuple[str, str], step: str
) -> list[onnx.NodeProto]:
    """Return the nodes between the value and the result of one tensor, and declare the types of both."""
    state.made.add((path, name))
    g = NodeBuilder(state.opset, state.names.new(f"{name}.onnxfi") + ".")
    state.inserts[path, name](g, *between, step)
    g.nodes[-1].name = state.names.new(f"onnxfi/{name}")
    kind = state.types.get((path, name))
    for one in between:
        if kind is not None and one not in state.described:
            state.described.add(one)
            info = graph.value_info.add()
            info.name = one
            info.type.CopyFrom(kind)
    return g.nodes


def _insert_behind_inputs(state: _Insertions, edit: GraphEdit, here: set[str], step: str) -> None:
    """Insert after graph inputs, which keep their names: their consumers read another tensor."""
    for name in [value.name for value in edit.graph.input if value.name in here]:
        if name in edit.outputs:
            raise ModelError(f"{name!r} is an input and an output of the graph at once; choose another tensor")
        faulty = state.names.new(f"{name}.faulty")
        edit.redirect(name, faulty)
        edit.put_behind(-1, _inserted(state, edit.graph, "", name, (name, faulty), step))


def _insert_in_bodies(
    state: _Insertions, node: onnx.NodeProto, around: str, label: str, step: str
) -> list[onnx.NodeProto]:
    """Insert in the bodies of a node; returns the nodes that must come before it."""
    before: list[onnx.NodeProto] = []
    for name, body in subgraphs(node):
        path = f"{around}{label}.{name}::"
        if not any(p.startswith(path) for p, _ in state.inserts):
            continue
        node.name = label  # so that its contents keep their path, whatever nodes come before it now
        inside = step
        if node.op_type == "Loop":
            inside = body.input[0].name
        elif node.op_type == "Scan":
            inside, start = _add_iteration_number(state, node, body)
            before.append(start)
        _insert(state, body, path, inside)
    return before


def _add_iteration_number(
    state: _Insertions, node: onnx.NodeProto, body: onnx.GraphProto
) -> tuple[str, onnx.NodeProto]:
    """Give a Scan a state that numbers its iterations: its name inside, and the node of its first value."""
    now, _, start = add_loop_state(node, body, state.names, state.opset, lambda g, n: g.add("Add", n, g.constant(1)))
    zero = NodeBuilder(state.opset)
    zero.constant(0, name=start)
    return now, zero.nodes[0]


def show_fault_free(proto: onnx.ModelProto, names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Add outputs with the values before inserted nodes, in place; return their names by the id of each tensor.

    `names` are paths and names of tensors with a node behind each. One in the body of a Scan or Loop of the main graph
    has an output with an axis of iterations in front; those of other bodies, and of graph inputs, have none.
    """
    free, found = FreeNames(proto), dict[str, str]()
    made = {text(o): node for node in proto.graph.node for o in node.output}
    loops = dict(zip(node_labels(proto.graph.node), proto.graph.node, strict=True))
    for path, name in names:
        value = f"{name}.fault_free"
        if not path and value in made:
            found[name] = value
        node = loops.get(path.partition(".body::")[0])
        if path.endswith(".body::") and path.count("::") == 1 and node is not None and node.op_type in ("Scan", "Loop"):
            [body] = [body for label, body in subgraphs(node) if label == "body"]
            if any(value == o for inner in body.node for o in inner.output):
                body.output.add().name = value
                add_loop_output(node, body, out := free.new(value))
                found[path + name] = out
    for out in found.values():
        proto.graph.output.add().name = out
    return found
