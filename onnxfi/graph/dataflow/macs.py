"""Multiply-accumulate operations of the layers of a model, for one sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnxfi.graph.dataflow.activation_targets import Activation, activations
from onnxfi.graph.model.graph_index import Node, integer

if TYPE_CHECKING:
    from onnxfi.graph.model.loading import Model

Dims = tuple[int | str | None, ...]
#: Input that holds the weights, of the operators whose multiplications are counted.
_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "QLinearConv": 3, "QLinearMatMul": 3,
            "ConvInteger": 1, "MatMulInteger": 1}  # fmt: skip


def layer_macs(model: Model) -> dict[str, int]:
    """Return the multiplications of each convolution and product of the main graph in one sample, by its result.

    A layer whose shapes are not known is left out.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> layer_macs(load("models/fashion_cnn.onnx"))
    {'conv2d': 112896, 'conv2d_1': 903168, 'linear': 100352, 'logits': 640}
    """
    rows = {a.name: a for a in activations(model) if not a.path}
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.proto.graph.initializer}
    found: dict[str, int] = {}
    for node in model.index.main.nodes:
        if node.op not in _WEIGHTS or not node.outputs:
            continue
        name = node.outputs[0].name
        if name in rows and rows[name].shape_known and (count := _macs(node, rows, stored)) is not None:
            found[name] = count
    return found


def _macs(node: Node, rows: Mapping[str, Activation], stored: Mapping[str, Dims]) -> int | None:
    """Return the multiplications of a node; None if a shape is not known."""
    at = _WEIGHTS[node.op]
    value = node.inputs[at] if at < len(node.inputs) else None
    dims = None if value is None else stored.get(value.name) or (rows[value.name].dims if value.name in rows else None)
    if dims is None or len(dims) < 2:
        return None
    if node.op == "ConvTranspose":
        read = node.inputs[0]
        outputs = rows[read.name].target.size if read is not None and read.name in rows else None
    else:
        outputs = rows[node.outputs[0].name].target.size
    if "Conv" in node.op:
        each: list[int | str | None] = list(dims[1:])
    else:
        each = [dims[1] if node.op == "Gemm" and integer(node.proto, "transB", 0) else dims[-2]]
    whole = [n for n in each if isinstance(n, int)]
    return None if outputs is None or len(whole) < len(each) else outputs * math.prod(whole)
