"""A model pass of one's own. A package offers it in its pyproject.toml:

[project.entry-points."onnxfi.passes"]
limit-outputs = "own_model_pass:LimitOutputs"
"""

from dataclasses import dataclass

import onnx
from onnx import helper

from onnxfi.graph.model.loading import Model
from onnxfi.graph.passes.graph_edit import FreeNames
from onnxfi.graph.passes.model_pass import ModelPass


@dataclass(frozen=True)
class LimitOutputs(ModelPass[None]):
    """The pass that holds the outputs of a model at or below `high`, so that a fault cannot make them larger."""

    high: float = 3.4e38
    name = "limit-outputs"
    again = "added"

    def apply(self, proto: onnx.ModelProto) -> None:
        names = FreeNames(proto)
        limit = names.new("limit")
        value = helper.make_tensor(limit, 1, [], [self.high])
        proto.graph.initializer.append(value)
        made = {name: node for node in proto.graph.node for name in node.output}
        for output in proto.graph.output:
            node, unlimited = made[output.name], names.new(f"{output.name}.unlimited")
            node.output[list(node.output).index(output.name)] = unlimited
            proto.graph.node.append(helper.make_node("Min", [unlimited, limit], [output.name]))

    @classmethod
    def neutral(cls, model: Model) -> "LimitOutputs | None":
        return cls()
