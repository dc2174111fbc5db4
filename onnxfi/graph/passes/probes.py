"""Probes: passes that add outputs from which a run shows how often loops run, and shapes that a file leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfi.graph.model.graph_index import GraphIndex, node_labels
from onnxfi.graph.passes.graph_edit import FreeNames, add_loop_state
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.passes.node_builder import NUMBER, NodeBuilder, opset_of

if TYPE_CHECKING:
    import onnx


#: Operators whose bodies run many times, and the opset from which a Scan is written as it is today.
LOOPS = ("Loop", "Scan")
_LEAST_OPSET = 9


@dataclass(frozen=True)
class CountIterations(ModelPass[dict[str, str]]):
    """The pass that adds outputs with the iterations of loops; the largest count, if a loop is inside another.

    Its result is the name of the output by the path of each graph in a loop, that of the nearest loop.
    """

    name = "count-iterations"

    def apply(self, proto: onnx.ModelProto) -> dict[str, str]:
        """Add an output for each loop."""
        from onnx import helper

        proto.ir_version = max(proto.ir_version, 4)
        paths = [scope.path for scope in GraphIndex.of(proto).graphs]
        found = _Counters(proto).count_in(proto.graph, "")
        for name in sorted(set(found.values())):
            proto.graph.output.append(helper.make_tensor_value_info(name, NUMBER["int64"], []))
        around = {path: max((p for p in found if path.startswith(p)), key=len, default="") for path in paths}
        return {path: found[loop] for path, loop in around.items() if loop}


class _Counters:
    """The counters that are inserted into the graphs of one model."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.opset, self.names = opset_of(proto), FreeNames(proto)

    def count_in(self, graph: onnx.GraphProto, path: str) -> dict[str, str]:
        """Insert the counters of a graph; return the name of the count by the path of each loop's body in it."""
        found: dict[str, str] = {}
        nodes = list(graph.node)
        for node, label in zip(nodes, node_labels(nodes), strict=True):
            if node.op_type in LOOPS and self.opset >= _LEAST_OPSET:
                found |= self._loop(graph, node, f"{path}{label}")
            elif node.op_type == "If":
                found |= self._branches(node, f"{path}{label}")
        return found

    def _loop(self, graph: onnx.GraphProto, node: onnx.NodeProto, path: str) -> dict[str, str]:
        """Count the iterations of a loop, and the largest counts of the loops inside it."""
        body = next(a.g for a in node.attribute if a.name == "body")
        inner = self.count_in(body, f"{path}.body::")
        ends = {name: self._state(graph, node, body, name) for name in sorted(set(inner.values()))}
        own = self._state(graph, node, body, "")
        return {f"{path}.body::": own} | {place: ends[name] for place, name in inner.items()}

    def _state(self, graph: onnx.GraphProto, node: onnx.NodeProto, body: onnx.GraphProto, most: str) -> str:
        """Add a state that keeps the largest value of a scalar inside; without a scalar, one that counts."""

        def following(g: NodeBuilder, now: str) -> str:
            return g.add("Where", g.add("Greater", most, now), most, now) if most else g.add("Add", now, g.constant(1))

        _, end, start = add_loop_state(node, body, self.names, self.opset, following)
        zero = graph.initializer.add()  # a node would be counted where nodes have no names
        zero.name, zero.data_type, zero.raw_data = start, NUMBER["int64"], bytes(8)
        return end

    def _branches(self, node: onnx.NodeProto, path: str) -> dict[str, str]:
        """Return the counts of branches as outputs; 0 if the branch does not run."""
        from onnx import helper

        branches: list[Any] = [a.g for a in node.attribute if a.HasField("g")]
        inside = [self.count_in(a.g, f"{path}.{a.name}::") for a in node.attribute if a.HasField("g")]
        found: dict[str, str] = {}
        for own, inner in zip(branches, inside, strict=True):
            for name in sorted(set(inner.values())):
                out = self.names.new(name)
                node.output.append(out)
                for branch in branches:
                    g = NodeBuilder(self.opset)
                    scalar = name if branch is own else g.constant(0, name=self.names.new(f"{name}.none"))
                    branch.node.extend(g.nodes)
                    branch.output.append(helper.make_tensor_value_info(scalar, NUMBER["int64"], []))
                found |= {place: out for place, one in inner.items() if one == name}
        return found


#: The path of a graph, and the name of a tensor there.
ScopedName = tuple[str, str]


@dataclass(frozen=True)
class OutputShapes(ModelPass[dict[ScopedName, str]]):
    """The pass that adds outputs with the shapes of tensors, given with their ranks (None if the rank is open).

    Its result is the names of those outputs. The last axis of an output is the shape, after an axis for each loop
    around the tensor; −1 if a branch did not run. A loop inside another must have the same number of iterations each
    time.
    """

    ranks: Mapping[ScopedName, int | None]
    name = "output-shapes"

    def apply(self, proto: onnx.ModelProto) -> dict[ScopedName, str]:
        """Add an output for each tensor that is found."""
        shapes = _Shapes(proto, self.ranks)
        found = shapes.read_in(proto.graph, "")
        for place, (name, loops) in found.items():
            proto.graph.output.append(shapes.declaration(name, place, loops))
        return {place: name for place, (name, _) in found.items()}


class _Shapes:
    """The Shape nodes that are inserted into the graphs of one model."""

    def __init__(self, proto: onnx.ModelProto, ranks: Mapping[ScopedName, int | None]) -> None:
        self.opset, self.names, self.ranks = opset_of(proto), FreeNames(proto), ranks
        self.paths = {path for path, _ in ranks}

    def read_in(self, graph: onnx.GraphProto, path: str) -> dict[ScopedName, tuple[str, int]]:
        """Add to a graph the shapes of tensors in it and in its bodies.

        Returns the name of each, and the number of loops of this graph around the tensor.
        """
        found: dict[ScopedName, tuple[str, int]] = {}
        nodes, g = list(graph.node), NodeBuilder(self.opset)
        for node, label in zip(nodes, node_labels(nodes), strict=True):
            if node.op_type in LOOPS or node.op_type == "If":
                found |= self._read_in_bodies(node, f"{path}{label}")
            for name in node.output:
                if (path, name) in self.ranks:
                    found[path, name] = g.add("Shape", name, name=self.names.new("onnxfi.shape")), 0
        graph.node.extend(g.nodes)
        return found

    def _read_in_bodies(self, node: onnx.NodeProto, path: str) -> dict[ScopedName, tuple[str, int]]:
        """Return the shapes inside a node as outputs: one row per iteration, −1 for a branch that does not run."""
        bodies = {f"{path}.{a.name}::": a.g for a in node.attribute if a.HasField("g")}
        inside = {
            body_path: self.read_in(body, body_path)
            for body_path, body in bodies.items()
            if any(p.startswith(body_path) for p in self.paths)
        }
        found: dict[ScopedName, tuple[str, int]] = {}
        for own, shapes in inside.items():
            for place, (name, loops) in shapes.items():
                out = self.names.new("onnxfi.shape")
                found[place] = out, loops + (node.op_type in LOOPS)
                node.output.append(out)
                for other, body in bodies.items():
                    shape, g = name, NodeBuilder(self.opset)
                    if other != own:
                        rank = self.ranks[place]
                        row = np.full((0,) * loops + (1 if rank is None else rank,), -1)
                        shape = g.constant(row, name=self.names.new("onnxfi.shape"))
                        body.node.extend(g.nodes)
                    body.output.append(self.declaration(shape, place, loops))
        return found

    def declaration(self, name: str, place: ScopedName, loops: int) -> onnx.ValueInfoProto:
        """Return the declaration of an output with the shape of a tensor inside a number of loops."""
        from onnx import helper

        return helper.make_tensor_value_info(name, NUMBER["int64"], [*[None] * loops, self.ranks[place]])
