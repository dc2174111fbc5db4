"""Nodes that a pass adds to a model: a builder of them, their constants, and the opset that decides their form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfi.faults.words import WORDS
from onnxfi.graph.model.stored_tensors import DATA_TYPES

if TYPE_CHECKING:
    import onnx

#: The number of each word in TensorProto.DataType.
NUMBER: dict[str, int] = {word.name: number for number, word in DATA_TYPES.items()}


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the default opset of a model; 0 if it imports none."""
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)


@dataclass
class NodeBuilder:
    """Builder of the nodes of a function or graph: `add` appends one and returns the name of its output."""

    opset: int
    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    #: Constants by their bytes, each added once.
    known: dict[bytes, str] = field(default_factory=dict)

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append a node; its output is `name`, or a new name after its operator."""
        from onnx import helper

        made = name or f"{self.prefix}{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [made], **attributes))
        return made

    def constant(self, values: Any, word: str = "int64", name: str = "") -> str:
        """Append a constant tensor of this format, once."""
        value = tensor(values, word)
        key = value.SerializeToString(deterministic=True)
        if name or key not in self.known:
            self.known[key] = self.add("Constant", name=name, value=value)
        return self.known[key]

    def cast(self, value: str, word: str, **attributes: Any) -> str:
        """Convert to another format."""
        return self.add("Cast", value, to=NUMBER[word], **attributes)

    def reduce(self, op: str, value: str, axis: int = 0, *, keepdims: int = 0, name: str = "") -> str:
        """Reduce one axis; the axes are an input from opset 13 on of ReduceSum, and from 18 on of other operators."""
        if self.opset < (13 if op == "ReduceSum" else 18):
            return self.add(op, value, axes=[axis], keepdims=keepdims, name=name)
        return self.add(op, value, self.constant([axis]), keepdims=keepdims, name=name)

    def reshape(self, value: str, shape: str, name: str = "") -> str:
        """Reshape; a zero in the shape is a size where the opset has `allowzero`."""
        zero = {"allowzero": 1} if self.opset >= 14 else {}
        return self.add("Reshape", value, shape, name=name, **zero)

    def restore(self, value: str, shape: str, name: str = "") -> str:
        """Reshape a tensor back; a dimension of 0 is left to be inferred below opset 14."""
        if self.opset < 14:
            shape = self.add("Sub", shape, self.cast(self.add("Equal", shape, self.constant(0)), "int64"))
        return self.reshape(value, shape, name)


def tensor(values: Any, word: str = "int64") -> onnx.TensorProto:
    """Return numbers as a TensorProto of this format."""
    from onnx import helper

    array = np.asarray(values).astype(WORDS[word].dtype)
    return helper.make_tensor("", NUMBER[word], array.shape, array.tobytes(), raw=True)
