"""Shapes of activations: a pass that adds them as outputs, so that a run shows those that a file leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.graph_index import node_labels
from onnxfi.graph.passes.bit_arithmetic import NUMBER, NodeBuilder, opset_of
from onnxfi.graph.passes.graph_edit import FreeNames
from onnxfi.graph.passes.loop_counters import LOOPS
from onnxfi.graph.passes.model_pass import ModelPass

if TYPE_CHECKING:
    import onnx

    from onnxfi.graph.model.loading import Model

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
    again = "added"

    def apply(self, proto: onnx.ModelProto) -> dict[ScopedName, str]:
        """Add an output for each tensor that is found."""
        shapes = _Shapes(proto, self.ranks)
        found = shapes.read_in(proto.graph, "")
        for place, (name, loops) in found.items():
            proto.graph.output.append(shapes.declaration(name, place, loops))
        return {place: name for place, (name, _) in found.items()}

    @classmethod
    def neutral(cls, model: Model) -> OutputShapes | None:
        """Return the pass for all activations but those in inner loops, whose number of iterations may vary."""
        loops = {scope.path: sum(node.op in LOOPS for node in scope.enclosing) for scope in model.index.graphs}
        rows = [
            a for a in activations(model) if a.target.kind != "input" and not a.unsupported_reason and loops[a.path] < 2
        ]
        return cls({(a.path, a.name): None if a.dims is None else len(a.dims) for a in rows}) if rows else None


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
