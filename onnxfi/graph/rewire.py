"""Rewiring: insert nodes behind tensors of a graph and of the bodies inside it, so that every user sees the new value.

A tensor keeps its name behind what is inserted; what its node puts out becomes `NAME.golden`. Inside a body the
iteration of the nearest loop is at hand: a Loop has it, a Scan is given a state that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxfi.errors import ModelError
from onnxfi.graph.activations import captured, labels
from onnxfi.graph.bodies import NUMBER, Nodes, opset_of

if TYPE_CHECKING:
    import onnx

#: Given the value's name, the result's and the iteration's ('' outside loops), append the nodes between the two.
Insert = Callable[[Nodes, str, str, str], None]


@dataclass
class _Edit:
    """One pass over the graphs: where to insert what, and which names are taken."""

    inserts: Mapping[tuple[str, str], Insert]
    types: Mapping[tuple[str, str], onnx.TypeProto]
    taken: set[str]
    opset: int
    placed: set[tuple[str, str]] = field(default_factory=set)
    #: What value_info says already, at the top.
    said: set[str] = field(default_factory=set)

    def fresh(self, name: str) -> str:
        unique, number = name, 2
        while unique in self.taken:
            unique, number = f"{name}{number}", number + 1
        self.taken.add(unique)
        return unique


def edit(
    proto: onnx.ModelProto, inserts: Mapping[tuple[str, str], Insert], types: Mapping[tuple[str, str], onnx.TypeProto]
) -> None:
    """Insert at each (path, name) of a model, which is changed; ModelError where one is not found.

    `types` says what value_info is to tell of both sides.
    """
    state = _Edit(inserts, types, set(_names(proto.graph)), opset_of(proto))
    graph = proto.graph
    state.said.update(v.name for v in (*graph.value_info, *graph.output, *graph.input))
    _edit_graph(state, proto.graph, "", "")
    missing = [path + name for path, name in inserts if (path, name) not in state.placed]
    if missing:
        raise ModelError(f"{missing[0]!r} was not found in the graph, so it cannot be struck; inline functions first")


def _names(graph: Any) -> Iterator[str]:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from node.input
        yield from node.output
        for attribute in node.attribute:
            for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _names(body)


def _edit_graph(state: _Edit, graph: onnx.GraphProto, path: str, step: str) -> None:
    """Insert behind what this graph's nodes put out, and go into their bodies."""
    out: list[onnx.NodeProto] = []
    here = {name for p, name in state.inserts if p == path}
    if not path:
        out += _inputs(state, graph, here, step)
    for node, label in zip(graph.node, labels(graph.node), strict=True):
        out += _bodies(state, node, f"{path}{label}", step)
        out.append(node)
        for k, name in enumerate(node.output):
            if name in here and (path, name) not in state.placed:
                golden = state.fresh(f"{name}.golden")
                node.output[k] = golden
                out += _behind(state, graph, path, name, golden, name, step)
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
        struck = state.fresh(f"{value.name}.struck")
        for node in graph.node:
            _rename(node, value.name, struck)
        out += _behind(state, graph, "", value.name, value.name, struck, step)
    return out


def _rename(node: Any, old: str, new: str) -> None:
    """Let a node and its bodies read another name, except where a body has that name itself."""
    for k, name in enumerate(node.input):
        if name == old:
            node.input[k] = new
    if old not in captured(node):
        return
    for attribute in node.attribute:
        for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            own = {v.name for v in (*body.input, *body.initializer)} | {o for n in body.node for o in n.output}
            if old in own:
                continue
            for inner in body.node:
                _rename(inner, old, new)
            for output in body.output:
                if output.name == old:
                    output.name = new


def _bodies(state: _Edit, node: onnx.NodeProto, label: str, step: str) -> list[onnx.NodeProto]:
    """Go into the bodies of a node; returns what must come before it."""
    before: list[onnx.NodeProto] = []
    for attribute in node.attribute:
        bodies = [attribute.g] if attribute.HasField("g") else []
        for k, body in enumerate([*bodies, *attribute.graphs]):
            path = f"{label}.{attribute.name}" + (f"#{k}" if len(attribute.graphs) > 1 else "") + "::"
            if not any(p.startswith(path) for p, _ in state.inserts):
                continue
            inside = step
            if node.op_type == "Loop":
                inside = body.input[0].name
            elif node.op_type == "Scan":
                inside, start = _counter(state, node, body)
                before.append(start)
            _edit_graph(state, body, path, inside)
    return before


def _counter(state: _Edit, node: onnx.NodeProto, body: onnx.GraphProto) -> tuple[str, onnx.NodeProto]:
    """Give a Scan a state that counts its iterations; returns its name inside, and the node that it starts from."""
    from onnx import helper

    inside: Any = body
    scanned = next(a.i for a in node.attribute if a.name == "num_scan_inputs")
    states = len(node.input) - scanned
    start, now, after = (state.fresh(f"onnxfi.{n}") for n in ("start", "step", "next"))
    node.input.insert(states, start)
    node.output.insert(states, state.fresh("onnxfi.steps"))
    for values, name in ((inside.input, now), (inside.output, after)):
        values.insert(states, helper.make_tensor_value_info(name, NUMBER["int64"], []))
    g = Nodes(state.opset, f"{after}.")
    g.add("Add", now, g.constant(1), name=after)
    body.node.extend(g.nodes)
    zero = Nodes(state.opset)
    zero.constant(0, name=start)
    return now, zero.nodes[0]
