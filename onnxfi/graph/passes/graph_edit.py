"""Edits of graphs: free names, redirected consumers of a tensor, and nodes inserted after tensors, also in bodies.

`insert_behind` keeps the name of a tensor for the new value; the output of the tensor's node becomes `NAME.fault_free`.
Inside a body the iteration of the nearest loop is available: a Loop has it, a Scan gets a state that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxfi.errors import ModelError
from onnxfi.graph.model.graph_index import captured_names, defined_names, integer, node_labels, subgraphs
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.passes.node_builder import NUMBER, NodeBuilder, opset_of

if TYPE_CHECKING:
    import onnx


def used_names(proto: onnx.ModelProto) -> set[str]:
    """Return all names that a model uses, and their prefixes before a dot; new names and prefixes must differ.

    >>> import onnx
    >>> {"conv1", "conv1.weight", "relu"} <= used_names(onnx.load("models/fashion_cnn.onnx"))
    True
    """
    found = set[str]()
    for name in set(names_in(proto.graph)):
        found.add(name)
        found.update(name[:k] for k, letter in enumerate(name) if letter == ".")
    return found


def names_in(graph: Any) -> Iterator[str]:
    """Yield the names of the nodes and tensors of a graph and of the bodies in it."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield value.name
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        yield node.name
        yield from node.input
        yield from node.output
        for _, body in subgraphs(node):
            yield from names_in(body)


class FreeNames:
    """The names that a model uses, from which new ones differ."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._used = used_names(proto)
        self._next: dict[str, int] = {}

    def new(self, name: str) -> str:
        """Return this name, or the first of `name2`, `name3`, … that is free, and mark it as used."""
        unique, number = name, self._next.get(name, 2)
        while unique in self._used:
            unique, number = f"{name}{number}", number + 1
        self._used.add(unique)
        self._next[name] = number
        return unique


class GraphEdit:
    """Edit of one graph: nodes are collected and inserted together, so that positions are those before the edit.

    Position −1 is the start of the graph.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.maker = {text(name): k for k, node in enumerate(graph.node) for name in node.output if name}
        self.outputs = {text(o.name) for o in graph.output}
        self._before: dict[int, list[onnx.NodeProto]] = {}
        self._behind: dict[int, list[onnx.NodeProto]] = {}

    def put_before(self, position: int, nodes: Sequence[onnx.NodeProto]) -> None:
        """Insert nodes before the node at a position."""
        self._before.setdefault(position, []).extend(nodes)

    def put_behind(self, position: int, nodes: Sequence[onnx.NodeProto]) -> None:
        """Insert nodes after the node at a position, and after those inserted there already."""
        self._behind.setdefault(position, []).extend(nodes)

    def behind(self, position: int) -> Sequence[onnx.NodeProto]:
        """Return the nodes inserted after a position."""
        return self._behind.get(position, [])

    def rename_output(self, position: int, old: str, new: str) -> None:
        """Give an output of the node at a position another name."""
        node = self.graph.node[position]
        for k, name in enumerate(node.output):
            if name == old:
                node.output[k] = new
        self.maker[new] = position

    def redirect(self, old: str, new: str, kept: Container[tuple[int, int]] = ()) -> None:
        """Let the original nodes and their bodies read another tensor, except for the inputs in `kept`.

        `kept` are pairs of a position and the number of an input.
        """
        for k, node in enumerate(self.graph.node):
            redirect_node(node, old, new, [at for at in range(len(node.input)) if (k, at) in kept])

    def write(self) -> None:
        """Write the nodes in their new order."""
        import onnx

        if not self._before and not self._behind:
            return
        nodes = [*self._behind.get(-1, [])]
        for k, old in enumerate(self.graph.node):
            copy = onnx.NodeProto()
            copy.CopyFrom(old)
            nodes += [*self._before.get(k, []), copy, *self._behind.get(k, [])]
        del self.graph.node[:]
        self.graph.node.extend(nodes)


def redirect_node(node: Any, old: str, new: str, kept: Container[int] = ()) -> None:
    """Let a node and its bodies read another tensor, except bodies that define that name themselves."""
    for k, name in enumerate(node.input):
        if name == old and k not in kept:
            node.input[k] = new
    if old not in captured_names(node):
        return
    for _, body in subgraphs(node):
        if old in defined_names(body):
            continue
        for inner in body.node:
            redirect_node(inner, old, new)
        for output in body.output:
            if output.name == old:
                output.name = new


def add_loop_state(
    node: onnx.NodeProto, body: onnx.GraphProto, names: FreeNames, opset: int,
    following: Callable[[NodeBuilder, str], str],
) -> tuple[str, str, str]:  # fmt: skip
    """Add an integer state to a Scan or Loop, after its other states.

    `following` adds the nodes that compute its next value. Returns the names of its value inside, of its final value,
    and of its initial value, which the caller has to produce.
    """
    from onnx import helper

    inside: Any = body
    scans = node.op_type == "Scan"
    scanned = integer(node, "num_scan_inputs") if scans else 0
    # A Loop takes a trip count and a condition first; its body an iteration and a condition, and returns a condition.
    states, before = len(body.input) - scanned - (0 if scans else 2), 0 if scans else 2
    start, now = (names.new(f"onnxfi.{n}") for n in ("start", "step"))
    end = names.new(f"{start}.end")
    g = NodeBuilder(opset, f"{now}.")
    after = following(g, now)
    body.node.extend(g.nodes)
    while len(node.input) < before + states:
        node.input.append("")
    node.input.insert(before + states, start)
    while len(node.output) < states:
        node.output.append("")
    node.output.insert(states, end)
    for values, name, at in ((inside.input, now, before + states), (inside.output, after, states + bool(before))):
        values.insert(at, helper.make_tensor_value_info(name, NUMBER["int64"], []))
    return now, end, start


def add_loop_output(node: onnx.NodeProto, body: onnx.GraphProto, out: str) -> None:
    """Give a Scan or Loop an output of all iterations of the last output of its body, which the caller has added."""
    states = len(body.output) - (node.op_type == "Loop") - 1  # a Loop's body returns a condition first
    node.output.extend([""] * (states - len(node.output)))
    node.output.append(out)
    for attribute in node.attribute:  # a Scan may say for each stacked output where its iterations lie
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.append(0)


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
