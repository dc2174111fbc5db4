"""The index of a model's graphs: producers, consumers, scopes and captured names.

A model holds one main graph, graphs inside nodes (the bodies of loops and the branches of conditions), and functions. A
graph inside a node may read the values of the graphs around it, so a name is resolved in a *scope*. `GraphIndex`
resolves every name once; all questions about producers and consumers go to it (`Model.index`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, cast

from onnxfi.errors import ModelError
from onnxfi.graph.model.protobuf_scan import text

if TYPE_CHECKING:
    import onnx

#: Domain, name and overload of a function, as a node calls it.
FunctionKey = tuple[str, str, str]


def subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Yield the graphs in a node's attributes, each with its name in paths.

    That is the name of the attribute (`then_branch`), with a number where the attribute holds several (`bodies#1`).
    """
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else []
        for k, graph in enumerate([*graphs, *attribute.graphs]):
            yield text(attribute.name) + (f"#{k}" if len(attribute.graphs) > 1 else ""), graph


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield these nodes and those of the graphs inside them, outer nodes first."""
    for node in nodes:
        yield node
        for _, graph in subgraphs(node):
            yield from all_nodes(graph.node)


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes, in the order of `GraphIndex.graphs`."""
    yield graph
    for node in graph.node:
        for _, inner in subgraphs(node):
            yield from all_graphs(inner)


def node_label(node: onnx.NodeProto, number: int) -> str:
    """Return the node's name, or `OpType#k` where it has none (k counts the nodes of its graph in file order)."""
    return text(node.name) or f"{text(node.op_type)}#{number}"


def node_labels(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """Return the labels of a graph's nodes in paths: `node_label`, made different where names repeat."""
    seen: dict[str, None] = {}
    for k, node in enumerate(nodes):
        label = node_label(node, k)
        while label in seen:
            label += f"#{k}"
        seen[label] = None
    return list(seen)


def defined_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of a graph's own values: inputs, stored tensors and results of nodes."""
    stored = [*graph.initializer, *(tensor.values for tensor in graph.sparse_initializer)]
    found = {text(value.name) for value in graph.input} | {text(tensor.name) for tensor in stored}
    return found.union(text(name) for node in graph.node for name in node.output)


def captured_names(node: onnx.NodeProto) -> list[str]:
    """Return the names that the graphs inside a node read from the graphs around them, each once.

    >>> from onnx import parser
    >>> graph = parser.parse_graph('''g (bool c, float[2] x) => (float[2] y) {
    ...     y = If(c) <then_branch = t () => (float[2] z) { w = Neg(x) z = Add(w, x) },
    ...               else_branch = e () => (float[2] z) { z = Abs(x) }> }''')
    >>> captured_names(graph.node[0])
    ['x']
    """
    found: dict[str, None] = {}
    for _, graph in subgraphs(node):
        own = defined_names(graph)
        read = [name for inner in graph.node for name in read_names(inner)] + [text(o.name) for o in graph.output]
        found |= dict.fromkeys(name for name in read if name and name not in own)
    return list(found)


def read_names(node: onnx.NodeProto) -> list[str]:
    """Return the names that a node reads: its inputs ("" for one that is left out), then what it captures."""
    return [*map(text, node.input), *captured_names(node)]


@dataclass(slots=True, eq=False)
class Value:
    """A value of one scope: its name, the node that produces it, and the nodes that consume it, in file order."""

    name: str
    producer: Node | None = None
    consumers: list[Node] = field(default_factory=list, repr=False)


@dataclass(slots=True, eq=False)
class Node:
    """A node with its inputs (None: left out, or of unknown name) and outputs, and the outputs of the graphs in it."""

    proto: onnx.NodeProto = field(repr=False)
    op: str
    label: str
    scope: Scope = field(repr=False)
    inputs: list[Value | None] = field(default_factory=list, repr=False)
    outputs: list[Value] = field(default_factory=list, repr=False)
    subgraph_outputs: list[Value] = field(default_factory=list, repr=False)

    @property
    def path(self) -> str:
        """The path of the graph that it is in."""
        return self.scope.path


@dataclass(eq=False)
class Scope:
    """One graph: its path (`""` for the main graph), and the scope and the nodes around it, outermost first.

    The scope of a function has its `FunctionProto` as `graph`: nodes and names of outputs, and nothing stored.
    """

    path: str
    graph: onnx.GraphProto = field(repr=False)
    outer: Scope | None = field(default=None, repr=False)
    enclosing: tuple[Node, ...] = field(default=(), repr=False)
    values: dict[str, Value] = field(default_factory=dict, repr=False)
    nodes: list[Node] = field(default_factory=list, repr=False)
    outputs: list[Value] = field(default_factory=list, repr=False)

    def find(self, name: str) -> Value | None:
        """Return the value of a name in this scope; None if neither this graph nor one around it has it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        return None

    @property
    def loop(self) -> str:
        """The operator of the innermost loop around (`Loop`, `Scan`), "" without one."""
        return next((node.op for node in reversed(self.enclosing) if node.op in ("Loop", "Scan")), "")

    @cached_property
    def producers(self) -> dict[str, int]:
        """The number of the node that produces each name of this graph."""
        return {text(name): k for k, node in enumerate(self.graph.node) for name in node.output if name}

    @cached_property
    def reads(self) -> tuple[tuple[str, ...], ...]:
        """By node the names that it reads: its inputs, then the names of this graph that its bodies capture."""
        return tuple(
            (*map(text, node.input), *(name for name in captured_names(node) if self.find(name) is not None))
            for node in self.graph.node
        )

    @cached_property
    def consumers(self) -> dict[str, tuple[int, ...]]:
        """The numbers of the nodes that read each name, themselves or in the graphs inside them, in file order."""
        found: dict[str, list[int]] = {}
        for k, names in enumerate(self.reads):
            for name in dict.fromkeys(names):
                found.setdefault(name, []).append(k)
        return {name: tuple(numbers) for name, numbers in found.items()}

    @cached_property
    def output_names(self) -> frozenset[str]:
        """The names of the graph's outputs."""
        return frozenset(text(o if isinstance(o, str | bytes) else o.name) for o in self.graph.output)


@dataclass(frozen=True, eq=False)
class GraphIndex:
    """All graphs of a model with their names resolved: built once, and never changed.

    Attributes
    ----------
    proto
        The model that is indexed.
    graphs
        The main graph and those inside its nodes, each before those that it holds.
    scopes
        The same, then the functions of the model with the graphs inside them.
    functions
        The scope of each function, by the key with which a node calls it.

    Examples
    --------
    >>> import onnx
    >>> index = GraphIndex.of(onnx.load("models/fashion_cnn.onnx"))
    >>> first = index.main.nodes[0]
    >>> first.op, [node.op for node in first.outputs[0].consumers], index.main.consumers["relu"]
    ('Conv', ['Relu'], (2,))
    """

    proto: onnx.ModelProto = field(repr=False)
    graphs: tuple[Scope, ...] = field(repr=False)
    scopes: tuple[Scope, ...] = field(repr=False)
    functions: dict[FunctionKey, Scope] = field(repr=False)

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> GraphIndex:
        """Index a model."""
        scopes: list[Scope] = []
        functions: dict[FunctionKey, Scope] = {}
        _add_graph(scopes, proto.graph, "", None, ())
        graphs = tuple(scopes)
        for function in proto.functions:
            key = function_key(function.domain, function.name, function.overload)
            path = f"function:{':'.join(filter(None, (text(function.domain), *key[1:])))}::"
            functions[key] = _add_scope(scopes, Scope(path, cast("onnx.GraphProto", function)), function.output)
        return cls(proto, graphs, tuple(scopes), functions)

    @property
    def main(self) -> Scope:
        """The main graph."""
        return self.scopes[0]

    @cached_property
    def by_path(self) -> dict[str, Scope]:
        """The graphs by their paths; the first one where a damaged model repeats a path."""
        return {scope.path: scope for scope in reversed(self.graphs)}

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, in the order of the scopes and of the file."""
        return tuple(node for scope in self.scopes for node in scope.nodes)

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """All values that have a name."""
        return tuple(value for scope in self.scopes for value in scope.values.values())

    def called(self, node: Node) -> Scope | None:
        """Return the function of the model that a node calls; None for an operator."""
        return self.functions.get(function_key(node.proto.domain, node.proto.op_type, node.proto.overload))


def function_key(domain: str, name: str, overload: str) -> FunctionKey:
    """Return the key of a function, the same for its definition and for a node that calls it."""
    return "" if domain == "ai.onnx" else text(domain), text(name), text(overload)


def _add_graph(
    scopes: list[Scope], graph: onnx.GraphProto, path: str, outer: Scope | None, enclosing: tuple[Node, ...]
) -> Scope:
    scope = Scope(path, graph, outer, enclosing)
    stored = [*graph.initializer, *(tensor.values for tensor in graph.sparse_initializer)]
    for name in [*(text(tensor.name) for tensor in stored), *(text(declared.name) for declared in graph.input)]:
        if name:
            scope.values.setdefault(name, Value(name))
    return _add_scope(scopes, scope, [output.name for output in graph.output])


def _add_scope(scopes: list[Scope], scope: Scope, outputs: Sequence[str]) -> Scope:
    """Index the nodes of a scope, results before operands, and then the graphs inside them."""
    scopes.append(scope)
    protos = scope.graph.node
    for proto, label in zip(protos, node_labels(protos), strict=True):
        node = Node(proto, text(proto.op_type), label, scope)
        for name in map(text, proto.output):
            if name:
                value = scope.values.setdefault(name, Value(name))
                value.producer = node
                node.outputs.append(value)
        scope.nodes.append(node)
    for node in scope.nodes:
        node.inputs = [scope.find(text(name)) if name else None for name in node.proto.input]
        for read in node.inputs:
            if read is not None and node not in read.consumers[-1:]:
                read.consumers.append(node)
    for node in scope.nodes:
        for step, graph in subgraphs(node.proto):
            path = f"{scope.path}{node.label}.{step}::"
            inner = _add_graph(scopes, graph, path, scope, (*scope.enclosing, node))
            node.subgraph_outputs += inner.outputs
    scope.outputs = [value for value in (scope.find(text(name)) for name in outputs) if value is not None]
    return scope


def integer(node: onnx.NodeProto, name: str, default: int | None = None) -> int:
    """Return an attribute that holds an integer, or the default; KeyError without both.

    >>> from onnx import helper
    >>> conv = helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1])
    >>> integer(conv, "group", 1), integer(conv, "axis", 0), integers(conv, "pads", ())
    (2, 0, (1, 1))
    """
    found = next((int(a.i) for a in node.attribute if text(a.name) == name), default)
    if found is None:
        raise KeyError(name)
    return found


def integers(node: onnx.NodeProto, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """Return an attribute that holds a list of integers; the default where the node has none."""
    return next((tuple(a.ints) for a in node.attribute if text(a.name) == name), tuple(default))


#: Largest number of nodes after inlining, and deepest nesting of calls.
_MOST_NODES, _DEEPEST = 1 << 18, 100
#: The graph itself, which no function calls.
_GRAPH: FunctionKey = ("", "", "")


def check_unfolded(proto: onnx.ModelProto) -> None:
    """Raise ModelError for a model whose functions inline to more nodes than a runtime can hold, or call themselves.

    If each function calls the next one twice, thirty functions give 2^30 nodes, more than fit in memory.
    """
    functions = {function_key(f.domain, f.name, f.overload): f.node for f in proto.functions}
    if not functions:
        return
    bodies = {
        name: Counter(function_key(node.domain, node.op_type, node.overload) for node in all_nodes(nodes))
        for name, nodes in (*functions.items(), (_GRAPH, proto.graph.node))
    }
    sizes, depths, waiting = dict[FunctionKey, int](), dict[FunctionKey, int](), [_GRAPH]
    begun = set[FunctionKey]()
    while waiting:
        name = waiting[-1]
        called = [one for one in bodies[name] if one in functions]
        left = [one for one in called if one not in sizes]
        if not left:
            sizes[name] = min(sum(n * sizes.get(one, 1) for one, n in bodies[name].items()), _MOST_NODES + 1)
            depths[name] = 1 + max((depths[one] for one in called), default=0)
            begun.discard(name)
            waiting.pop()
            continue
        begun.add(name)
        if not begun.isdisjoint(left):
            raise ModelError("a local function calls itself, through others or not, which no model may do")
        waiting += left
    if sizes[_GRAPH] > _MOST_NODES:
        raise ModelError(
            f"its local functions unfold to more than {_MOST_NODES:,} nodes, which no runtime can open; call fewer "
            f"functions from functions"
        )
    if depths[_GRAPH] > _DEEPEST:
        raise ModelError(
            f"its local functions call each other more than {_DEEPEST} deep; inline them first "
            f"(onnx.inliner.inline_local_functions)"
        )
