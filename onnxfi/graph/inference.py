"""The types and shapes that follow from a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnxfi.graph.wire import text

if TYPE_CHECKING:
    import onnx


def inferred(proto: onnx.ModelProto, batch: Mapping[str, int] | None = None, size: int = 0) -> onnx.ModelProto:
    """The model with the types that follow from its inputs; what it declares of others may be wrong and is left out.

    With `batch`, inputs by name and the axis along which each holds samples, their size there is taken for `size`.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    _see_through(bare.graph)
    for value in bare.graph.input:
        axis, dims = (batch or {}).get(text(value.name)), value.type.tensor_type.shape.dim
        if axis is not None and axis < len(dims):
            dims[axis].dim_value = size
    try:
        return onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:  # what onnx cannot infer a run may still tell
        return bare


def _see_through(graph: onnx.GraphProto) -> None:
    """Let a fault operator of an armed or faulty model be what it is for types: nothing."""
    for node in graph.node:
        if node.domain == "onnxfi":
            node.op_type, node.domain = "Identity", ""
            del node.input[1:]
            del node.attribute[:]
        for attribute in node.attribute:
            for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                _see_through(body)
