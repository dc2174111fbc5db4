"""How often loops turn: a copy of a model that counts the iterations of each, also in other loops and branches."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from onnxfi.graph.model.graph_index import GraphIndex, node_labels, subgraphs
from onnxfi.graph.passes.bit_arithmetic import NUMBER, Nodes, opset_of
from onnxfi.graph.passes.insert_nodes import carry, used_names

if TYPE_CHECKING:
    import onnx

#: Operators whose bodies run many times, and the opset from which a Scan is written as it is today.
LOOPS = ("Loop", "Scan")
_LEAST_OPSET = 9


class _Counting:
    """One pass over the graphs of a model, which is changed: what it puts in, and which names are taken."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.opset, self.used_names = opset_of(proto), used_names(proto)

    def fresh(self, name: str) -> str:
        made = next(n for k in count(1) for n in [name if k == 1 else f"{name}{k}"] if n not in self.used_names)
        self.used_names.add(made)
        return made

    def graph(self, graph: onnx.GraphProto, path: str) -> dict[str, str]:
        """Count in a graph: by the path of each loop's body in it, the name of its scalar there."""
        found: dict[str, str] = {}
        nodes = list(graph.node)
        for node, label in zip(nodes, node_labels(nodes), strict=True):
            if node.op_type in LOOPS and self.opset >= _LEAST_OPSET:
                found |= self._loop(graph, node, f"{path}{label}")
            elif node.op_type == "If":
                found |= self._branches(node, f"{path}{label}")
        return found

    def _loop(self, graph: onnx.GraphProto, node: onnx.NodeProto, path: str) -> dict[str, str]:
        """The iterations of a loop, and of those inside it the most."""
        body = next(a.g for a in node.attribute if a.name == "body")
        inner = self.graph(body, f"{path}.body::")
        ends = {name: self._state(graph, node, body, name) for name in sorted(set(inner.values()))}
        own = self._state(graph, node, body, "")
        return {f"{path}.body::": own} | {place: ends[name] for place, name in inner.items()}

    def _state(self, graph: onnx.GraphProto, node: onnx.NodeProto, body: onnx.GraphProto, most: str) -> str:
        """A state that keeps the most of a scalar inside; without one, that counts."""

        def following(g: Nodes, now: str) -> str:
            return g.add("Where", g.add("Greater", most, now), most, now) if most else g.add("Add", now, g.constant(1))

        _, end, start = carry(node, body, self.fresh, self.opset, following)
        zero = graph.initializer.add()  # a node would be counted where nodes have no names
        zero.name, zero.data_type, zero.raw_data = start, NUMBER["int64"], bytes(8)
        return end

    def _branches(self, node: onnx.NodeProto, path: str) -> dict[str, str]:
        """What branches count; 0 where another one is taken."""
        from onnx import helper

        branches = [graph for _, graph in subgraphs(node)]
        inside = [self.graph(graph, f"{path}.{name}::") for name, graph in subgraphs(node)]
        found: dict[str, str] = {}
        for mine, inner in zip(branches, inside, strict=True):
            for name in sorted(set(inner.values())):
                out = self.fresh(name)
                node.output.append(out)
                for branch in branches:
                    g = Nodes(self.opset)
                    told = name if branch is mine else g.constant(0, name=self.fresh(f"{name}.none"))
                    branch.node.extend(g.nodes)
                    branch.output.append(helper.make_tensor_value_info(told, NUMBER["int64"], []))
                found |= {place: out for place, one in inner.items() if one == name}
        return found


def add_iteration_counts(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy of a model that also puts out how often its loops turn; where one is run often, the most.

    Returns it, and by the path of each graph that lies in a loop the name of the output that counts the nearest.
    """
    import onnx
    from onnx import helper

    made = onnx.ModelProto()
    made.CopyFrom(proto)
    made.ir_version = max(made.ir_version, 4)
    found = _Counting(made).graph(made.graph, "")
    for name in sorted(set(found.values())):
        made.graph.output.append(helper.make_tensor_value_info(name, NUMBER["int64"], []))
    paths = [scope.path for scope in GraphIndex.of(proto).graphs]
    around = {path: max((p for p in found if path.startswith(p)), key=len, default="") for path in paths}
    return made, {path: found[loop] for path, loop in around.items() if loop}
