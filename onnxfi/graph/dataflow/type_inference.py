"""Types and shapes that onnx infers of a model, and the model at another opset, both in a copy of the process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from onnxfi.errors import IsolationError
from onnxfi.graph.model.graph_index import subgraphs
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.isolated_call import run_isolated

if TYPE_CHECKING:
    import onnx

#: Tensors of more bytes hold no shape.
_SMALL = 1 << 10
#: Memory of a conversion, as a multiple of the model's size.
_COPIES = 8
#: Results for the last models are kept up to this size, without their tensors.
_KEPT_BYTES = 1 << 20


def infer_types(proto: onnx.ModelProto, batch: Mapping[str, int] | None = None, size: int = 0) -> onnx.ModelProto:
    """Return the model with the types that follow from its inputs, without its large tensors.

    Declarations of other values may be wrong and are left out, as are impossible sizes. If onnx refuses the model,
    crashes or does not end, the types are missing. With `batch`, the sample axis of inputs by name, their size there is
    taken to be `size`.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    for tensor in bare.graph.initializer:
        if len(tensor.raw_data) > _SMALL:
            tensor.ClearField("raw_data")
    _simplify(bare.graph)
    for value in bare.graph.input:
        axis, dims = (batch or {}).get(text(value.name)), value.type.tensor_type.shape.dim
        if axis is not None and axis < len(dims):
            dims[axis].dim_value = size
    try:
        if bare.ByteSize() > _KEPT_BYTES:
            return onnx.ModelProto.FromString(run_isolated(lambda: _infer(bare)))
        return onnx.ModelProto.FromString(_known(bare.SerializeToString()))
    except IsolationError:  # a run may find what onnx cannot infer
        return bare


@lru_cache(maxsize=16)
def _known(content: bytes) -> bytes:
    """Return the inferred model; the last results are kept, since several callers need them."""
    return run_isolated(lambda: _infer(content))


def _infer(model: onnx.ModelProto | bytes) -> bytes:
    import onnx

    return onnx.shape_inference.infer_shapes(model, data_prop=True).SerializeToString()


def convert_opset(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the model at a higher opset by onnx's converter; IsolationError with the reason if it fails."""
    import onnx

    def convert() -> bytes:
        return onnx.version_converter.convert_version(proto, opset).SerializeToString()

    return onnx.ModelProto.FromString(run_isolated(convert, spare_bytes=_COPIES * proto.ByteSize()))


def _simplify(graph: onnx.GraphProto) -> None:
    """Replace each fault operator by an Identity, which has the same types, and each size below 0 by an unknown one."""
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_value < 0:
                dim.ClearField("dim_value")
    for node in graph.node:
        if node.domain == "onnxfi":
            node.op_type, node.domain = "Identity", ""
            del node.input[1:]
            del node.attribute[:]
        for _, inner in subgraphs(node):
            _simplify(inner)
