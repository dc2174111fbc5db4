"""Matrix products: where the channels of an output of Conv, Gemm or MatMul lie, and its groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from onnxfi.graph.dataflow.batch_layout import tensor_dims
from onnxfi.graph.model.graph_index import integer
from onnxfi.graph.model.protobuf_scan import text

if TYPE_CHECKING:
    import onnx

_CONVOLUTIONS = ("Conv", "QLinearConv", "ConvInteger", "FusedConv")
_PRODUCTS = ("Gemm", "MatMul", "QLinearMatMul", "MatMulInteger", "FusedGemm", "FusedMatMul", "QGemm")
_QUANTIZE = "QuantizeLinear"

Producer = Callable[[str], "onnx.NodeProto | None"]


def matrix_product(
    name: str, producer: Producer, types: Mapping[str, onnx.TypeProto], through: frozenset[str]
) -> tuple[int, ...]:
    """Return (axis of the channels, from the end; groups) of an output that a matrix product computes, else ().

    The integer of a QDQ group is the output of the product before it, also behind an operator of `through`.
    """
    node = producer(name)
    if node is not None and node.op_type == _QUANTIZE and node.input:
        node = producer(text(node.input[0]))
        if node is not None and node.op_type in through and node.input:
            node = producer(text(node.input[0]))
    if node is None or not node.output:
        return ()
    if node.op_type in _PRODUCTS:
        return (-1, 1)
    if node.op_type not in _CONVOLUTIONS:
        return ()
    dims = tensor_dims(types.get(text(node.output[0])))
    if dims is None or len(dims) < 3:
        return ()
    channels = dims[1]
    groups = integer(node, "group", 1)
    if not isinstance(channels, int) or groups < 1 or channels % groups:
        return ()
    return (1 - len(dims), groups)
