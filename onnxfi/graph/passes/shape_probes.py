"""Shapes of values: a copy of a model that also puts them out, so that a run can tell them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onnxfi.graph.model.graph_index import node_labels, subgraphs
from onnxfi.graph.passes.bit_arithmetic import NUMBER, Nodes, opset_of
from onnxfi.graph.passes.insert_nodes import used_names
from onnxfi.graph.passes.loop_counters import LOOPS

if TYPE_CHECKING:
    import onnx

#: A value: the path of its graph, and its name there.
Place = tuple[str, str]


class _Probing:
    """One pass over the graphs of a model, which is changed: whose shapes are wanted, and which names are taken."""

    def __init__(self, proto: onnx.ModelProto, ranks: Mapping[Place, int | None]) -> None:
        self.opset, self.used_names, self.ranks = opset_of(proto), used_names(proto), ranks
        self.paths = {path for path, _ in ranks}

    def fresh(self) -> str:
        name = f"onnxfi.shape.{len(self.used_names)}"
        while name in self.used_names:
            name += "_"
        self.used_names.add(name)
        return name

    def graph(self, graph: onnx.GraphProto, path: str) -> dict[Place, str]:
        """Add to a graph the shapes of what is wanted in it and in its bodies; their names there."""
        found: dict[Place, str] = {}
        nodes, g = list(graph.node), Nodes(self.opset)
        for node, label in zip(nodes, node_labels(nodes), strict=True):
            if node.op_type in LOOPS or node.op_type == "If":
                found |= self._node(node, f"{path}{label}")
            for name in node.output:
                if (path, name) in self.ranks:
                    found[path, name] = g.add("Shape", name, name=self.fresh())
        graph.node.extend(g.nodes)
        return found

    def _node(self, node: onnx.NodeProto, path: str) -> dict[Place, str]:
        """Put the shapes inside a node out of it: of a loop one row an iteration, of an untaken branch -1."""
        from onnx import helper

        bodies = {f"{path}.{name}::": graph for name, graph in subgraphs(node)}
        inside = {
            place: self.graph(body, place)
            for place, body in bodies.items()
            if any(p.startswith(place) for p in self.paths)
        }
        found: dict[Place, str] = {}
        for mine, shapes in inside.items():
            for place, name in shapes.items():
                found[place] = self.fresh()
                node.output.append(found[place])
                for other, body in bodies.items():
                    told, g = name, Nodes(self.opset)
                    if other != mine:
                        told = g.constant([-1] * (self.ranks[place] or 1), name=self.fresh())
                        body.node.extend(g.nodes)
                    body.output.append(helper.make_tensor_value_info(told, NUMBER["int64"], None))
        return found


def add_shape_outputs(
    proto: onnx.ModelProto, ranks: Mapping[Place, int | None]
) -> tuple[onnx.ModelProto, dict[Place, str]]:
    """A copy of a model that also puts out the shapes of these values; the names of those outputs.

    `ranks` gives each value's rank, None where it is open. What comes out has the shape last; before it an axis for
    each loop around the value, and -1 where a branch was not taken.
    """
    import onnx
    from onnx import helper

    made: Any = onnx.ModelProto()
    made.CopyFrom(proto)
    found = _Probing(made, ranks).graph(made.graph, "")
    for name in found.values():
        made.graph.output.append(helper.make_tensor_value_info(name, NUMBER["int64"], None))
    return made, found


__all__ = ["Place", "add_shape_outputs"]
