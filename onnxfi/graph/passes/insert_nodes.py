"""Rewiring: insert nodes behind tensors of a graph and of the bodies inside it, so that every user sees the new value.

A tensor keeps its name behind what is inserted; what its node puts out becomes `NAME.fault_free`. Inside a body the
iteration of the nearest loop is at hand: a Loop has it, a Scan is given a state that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxfi.errors import ModelError
from onnxfi.graph.model.graph_index import captured_names, node_labels, subgraphs
from onnxfi.graph.passes.bit_arithmetic import NUMBER, Nodes, opset_of

if TYPE_CHECKING:
    import onnx

#: Given the value's name, the result's and the iteration's ('' outside loops), append the nodes between the two.
Insert = Callable[[Nodes, str, str, str], None]


@dataclass
class _Edit:
    """One pass over the graphs: where to insert what, and which names are taken."""

    inserts: Mapping[tuple[str, str], Insert]
    types: Mapping[tuple[str, str], onnx.TypeProto]
    used_names: set[str]
    opset: int
    placed: set[tuple[str, str]] = field(default_factory=set)
    #: What value_info says already, at the top.
    said: set[str] = field(default_factory=set)

    def fresh(self, name: str) -> str:
        unique, number = name, 2
        while unique in self.used_names:
            unique, number = f"{name}{number}", number + 1
        self.used_names.add(unique)
        return unique


def edit(
    proto: onnx.ModelProto, inserts: Mapping[tuple[str, str], Insert], types: Mapping[tuple[str, str], onnx.TypeProto]
) -> None:
    """Insert at each (path, name) of a model, which is changed; ModelError where one is not found.

    `types` says what value_info is to tell of both sides.
    """
    state = _Edit(inserts, types, used_names(proto), opset_of(proto))
    graph = proto.graph
    state.said.update(v.name for v in (*graph.value_info, *graph.output, *graph.input))
    _edit_graph(state, proto.graph, "", "")
    missing = [path + name for path, name in inserts if (path, name) not in state.placed]
    if missing:
        raise ModelError(f"{missing[0]!r} was not found in the graph, so it cannot be struck; inline functions first")


def used_names(proto: onnx.ModelProto) -> set[str]:
    """Return all names that a model uses, and what they begin with before a dot: no new name, and no new prefix.

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
    """The names of the nodes and values of a graph and of the bodies in it."""
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


def _edit_graph(state: _Edit, graph: onnx.GraphProto, path: str, step: str) -> None:
    """Insert behind what this graph's nodes put out, and go into their bodies."""
    out: list[onnx.NodeProto] = []
    here = {name for p, name in state.inserts if p == path}
    if not path:
        out += _inputs(state, graph, here, step)
    for node, label in zip(graph.node, node_labels(graph.node), strict=True):
        out += _bodies(state, node, path, label, step)
        out.append(node)
        for k, name in enumerate(node.output):
            if name in here and (path, name) not in state.placed:
                fault_free = state.fresh(f"{name}.fault_free")
                node.output[k] = fault_free
                out += _behind(state, graph, path, name, fault_free, name, step)
    if len(out) > len(graph.node):
        kept = [_clone(n) for n in out]
        del graph.node[:]
        graph.node.extend(kept)


def _clone(node: onnx.NodeProto) -> onnx.NodeProto:
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _behind(
    state: _Edit, graph: onnx.GraphProto, path: str, name: str, value: str, result: str, step: str
) -> list[onnx.NodeProto]:
    """The nodes behind one tensor, and what value_info says of both sides of them."""
    state.placed.add((path, name))
    g = Nodes(state.opset, state.fresh(f"{name}.onnxfi") + ".")
    state.inserts[path, name](g, value, result, step)
    g.nodes[-1].name = state.fresh(f"onnxfi/{name}")
    kind = state.types.get((path, name))
    if kind is not None:
        for one in (value, result):
            if one not in state.said:
                state.said.add(one)
                info = graph.value_info.add()
                info.name = one
                info.type.CopyFrom(kind)
    return g.nodes


def _inputs(state: _Edit, graph: onnx.GraphProto, here: set[str], step: str) -> list[onnx.NodeProto]:
    """Strike graph inputs: the users read another name."""
    out: list[onnx.NodeProto] = []
    outputs = {o.name for o in graph.output}
    for value in list(graph.input):
        if value.name not in here:
            continue
        if value.name in outputs:
            raise ModelError(f"{value.name!r} is input and output of the graph at once, so it cannot be struck")
        struck = state.fresh(f"{value.name}.faulty")
        for node in graph.node:
            _rename(node, value.name, struck)
        out += _behind(state, graph, "", value.name, value.name, struck, step)
    return out


def _rename(node: Any, old: str, new: str) -> None:
    """Let a node and its bodies read another name, except where a body has that name itself."""
    for k, name in enumerate(node.input):
        if name == old:
            node.input[k] = new
    if old not in captured_names(node):
        return
    for _, body in subgraphs(node):
        own = (
            {v.name for v in body.input} | {t.name for t in body.initializer} | {o for n in body.node for o in n.output}
        )
        if old in own:
            continue
        for inner in body.node:
            _rename(inner, old, new)
        for output in body.output:
            if output.name == old:
                output.name = new


def _bodies(state: _Edit, node: onnx.NodeProto, around: str, label: str, step: str) -> list[onnx.NodeProto]:
    """Go into the bodies of a node; returns what must come before it."""
    before: list[onnx.NodeProto] = []
    for name, body in subgraphs(node):
        path = f"{around}{label}.{name}::"
        if not any(p.startswith(path) for p, _ in state.inserts):
            continue
        node.name = label  # so that what lies in it keeps its path, whatever nodes come before it now
        inside = step
        if node.op_type == "Loop":
            inside = body.input[0].name
        elif node.op_type == "Scan":
            inside, start = _counter(state, node, body)
            before.append(start)
        _edit_graph(state, body, path, inside)
    return before


def _counter(state: _Edit, node: onnx.NodeProto, body: onnx.GraphProto) -> tuple[str, onnx.NodeProto]:
    """Give a Scan or Loop a state that counts its iterations: its name inside, and the node that it starts from."""
    now, _, start = carry(node, body, state.fresh, state.opset, lambda g, now: g.add("Add", now, g.constant(1)))
    zero = Nodes(state.opset)
    zero.constant(0, name=start)
    return now, zero.nodes[0]


def carry(
    node: onnx.NodeProto, body: onnx.GraphProto, fresh: Callable[[str], str], opset: int,
    following: Callable[[Nodes, str], str],
) -> tuple[str, str, str]:  # fmt: skip
    """Give a Scan or Loop one more state, an integer, behind its other states.

    `fresh` makes names that are not taken, `following` adds the nodes that make its next value. Returns the names of
    its value inside, of what comes out at the end, and of the start, which is still to be made.
    """
    from onnx import helper

    inside: Any = body
    scans = node.op_type == "Scan"
    scanned = next(a.i for a in node.attribute if a.name == "num_scan_inputs") if scans else 0
    # A Loop takes a trip count and a condition first; its body an iteration and a condition, and puts out a condition.
    states, before = len(body.input) - scanned - (0 if scans else 2), 0 if scans else 2
    start, now = (fresh(f"onnxfi.{n}") for n in ("start", "step"))
    end = fresh(f"{start}.end")
    g = Nodes(opset, f"{now}.")
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
