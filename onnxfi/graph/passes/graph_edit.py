"""Edits of graphs: free names, inserted nodes, and redirected consumers of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onnxfi.graph.model.attributes import integer
from onnxfi.graph.model.graph_index import captured_names, defined_names, subgraphs
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.passes.bit_arithmetic import NUMBER, NodeBuilder

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
