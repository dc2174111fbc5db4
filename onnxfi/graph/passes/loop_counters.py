"""Loop iterations: a pass that counts how often each loop of a model runs, also in other loops and branches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxfi.graph.model.graph_index import GraphIndex, all_nodes, node_labels
from onnxfi.graph.passes.bit_arithmetic import NUMBER, NodeBuilder, opset_of
from onnxfi.graph.passes.graph_edit import FreeNames, add_loop_state
from onnxfi.graph.passes.model_pass import ModelPass

if TYPE_CHECKING:
    import onnx

    from onnxfi.graph.model.loading import Model

#: Operators whose bodies run many times, and the opset from which a Scan is written as it is today.
LOOPS = ("Loop", "Scan")
_LEAST_OPSET = 9


@dataclass(frozen=True)
class CountIterations(ModelPass[dict[str, str]]):
    """The pass that adds outputs with the iterations of loops; the largest count, if a loop is inside another.

    Its result is the name of the output by the path of each graph in a loop, that of the nearest loop.
    """

    name = "count-iterations"
    again = "added"

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

    @classmethod
    def neutral(cls, model: Model) -> CountIterations | None:
        """Return the pass for a model that has loops."""
        looped = any(node.op_type in LOOPS for node in all_nodes(model.proto.graph.node))
        return cls() if looped and opset_of(model.proto) >= _LEAST_OPSET else None


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
