"""Roles of stored tensors by data flow: weights, biases, and the scales and zero points of each.

Two passes over the nodes. The first finds quantised words by the definition of each operator's inputs (QDQ, QOperator,
dynamic and weight-only forms), and the scales that a later Mul applies. The second goes from every operator with
weights back to the words in which they are stored. Sources: the ONNX operator list and ONNX Runtime's
ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from onnxfi.faults.quantization import QuantizationScheme
from onnxfi.faults.words import WORDS
from onnxfi.graph.model.byte_source import quoted
from onnxfi.graph.model.graph_index import GraphIndex, Node, Value, integer
from onnxfi.graph.model.stored_tensors import StoredTensor, StoredTensors
from onnxfi.graph.model.weight_dataflow import CONVERSIONS, MOST_STEPS, QDQ, TensorRole, WeightDataflow, broadcast_axes

#: Kind of each input: w weight, b bias, x another operand, s scale and z zero point of the operand before it, . else.
_INPUTS: dict[str, str] = {
    op: kinds
    for kinds, ops in {
        "xszwszszb": "QLinearConv QLinearConvTranspose",
        "wszwszsz": "QLinearMatMul",
        "wszwszbsz": "QGemm",
        "xszxszsz": "QLinearAdd QLinearMul",
        "xszsz": "QLinearSigmoid QLinearLeakyRelu QLinearAveragePool QLinearGlobalAveragePool QLinearSoftmax "
        "QLinearReduceMean",
        ".xszxszsz": "QLinearWhere",
        "wwzz": "MatMulInteger",
        "xwzz": "ConvInteger",
        "wwsszzb": "MatMulIntegerToFloat",
        "xwszb": "DynamicQuantizeMatMul",
        "xwwb....szsz": "DynamicQuantizeLSTM",
        "xwsz.b": "MatMulNBits",
        "w.sz": "GatherBlockQuantized",
        "xwbss.zz": "QAttention",
        "xsz": "DequantizeLinear QuantizeLinear",
        "xwb": "Conv ConvTranspose FusedConv NhwcConv Attention",
        "wwb": "Gemm FusedGemm",
        "ww": "MatMul FusedMatMul Einsum",
        "xwwb...w": "LSTM",
        "xwwb": "GRU RNN",
        "xwb..": "BatchNormalization",
        ".wb": "InstanceNormalization LayerNormalization GroupNormalization SimplifiedLayerNormalization "
        "RMSNormalization",
        "..wbb": "SkipLayerNormalization",
        "..wwwwb": "EmbedLayerNormalization",
        "xw.b": "DeformConv",
        ".w": "PRelu",
        ".b": "BiasGelu FastGelu",
        "w": "Gather",
    }.items()
    for op in ops.split()
}
_QOPERATORS = frozenset(op for op in _INPUTS if op.startswith("QLinear") or op == "QGemm")
#: Operators whose scale is applied later, by a Mul.
_INTEGER = frozenset(("MatMulInteger", "ConvInteger"))
#: Operators after which a stored operand of an Add is a bias.
_PRODUCERS = frozenset(
    (
        *("Conv", "ConvTranspose", "MatMul", "Gemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat"),
        *("QLinearMatMul", "QLinearConv", "DynamicQuantizeMatMul", "MatMulNBits", "FusedMatMul", "Einsum"),
    )
)


def assign_roles(index: GraphIndex, stored: StoredTensors) -> dict[StoredTensor, TensorRole]:
    """Return the role of every stored tensor that has one; notes are added to those of `stored`."""
    flow = WeightDataflow(index, stored)
    for node in flow.nodes:
        if node.op in QDQ or node.op in _QOPERATORS or node.op == "QLinearConcat":
            _assign_linear(flow, node)
        elif node.op in _INTEGER:
            _assign_integer(flow, node)
        elif node.op in _OTHER_OPERATORS:
            _OTHER_OPERATORS[node.op](flow, node)
    for node in flow.nodes:
        _assign_weights(flow, node)
    for node in flow.nodes:
        if node.op in ("Add", "QLinearAdd"):
            _assign_added(flow, node)
    return flow.roles


def _kinds(node: Node) -> str:
    if node.op == "QLinearConcat":
        return "sz" + "xsz" * ((len(node.inputs) - 2) // 3)
    return _INPUTS.get(node.op, "")


def _input(node: Node, position: int) -> Value | None:
    return node.inputs[position] if 0 <= position < len(node.inputs) else None


def _scaled_positions(kinds: str) -> Iterator[int]:
    """Return the positions of operands that a scale follows."""
    return (k for k in range(len(kinds) - 1) if kinds[k] in "xw" and kinds[k + 1] == "s")


def _scheme(
    flow: WeightDataflow,
    name: str,
    shape: tuple[int, ...],
    scale: StoredTensor | None,
    zero_point: StoredTensor | None,
    axis: int,
    block: int = 0,
) -> QuantizationScheme:
    """Return a scheme, and give roles to its scale and zero point; scales that are not stored or misfit are dropped."""
    axis = axis + len(shape) if axis < 0 else axis
    scheme = QuantizationScheme(name, zero_point="" if zero_point is None else zero_point.id)
    if zero_point is not None:
        flow.add_role(zero_point, "zero-point")
    if scale is None:
        return scheme
    flow.add_role(scale, "scale")
    if block:
        scheme = replace(scheme, axes=tuple(range(len(shape))), axis=axis, block=block)
    elif any(n > 1 for n in scale.shape):
        axes = (axis,) if len(scale.shape) == 1 else broadcast_axes(shape, scale.shape)
        scheme = replace(scheme, axes=axes, axis=axis)
    return replace(scheme, scales=(scale.id,)) if scheme.accepts_scales(shape, scale.shape) else scheme


def _assign_linear(flow: WeightDataflow, node: Node) -> None:
    """Assign the roles of QuantizeLinear, DequantizeLinear and QLinear operators: scales follow each operand."""
    kinds = _kinds(node)
    for k, kind in enumerate(kinds):
        parameter = flow.stored_input(node, k) if kind in "sz" else None
        if parameter is not None:
            flow.add_role(parameter, "scale" if kind == "s" else "zero-point")
    for k in _scaled_positions(kinds):
        tensor = _dequantized_table(flow, node) if node.op == "DequantizeLinear" else flow.stored_input(node, k)
        if tensor is None:
            continue
        if node.op == "QuantizeLinear":
            if tensor.word.is_float:
                flow.notes.append(
                    f"{quoted(tensor.id)} is stored as {tensor.word.name} and quantised at run time; "
                    f"onnxfi.graph.passes.fold_quantize.fold_weight_quantize stores the integers"
                )
            continue
        axis, block = _channel_axis(node, k, tensor), integer(node.proto, "block_size", 0)
        name = "QDQ" if node.op == "DequantizeLinear" else "QOperator"
        scale, zero_point = flow.stored_input(node, k + 1), flow.stored_input(node, k + 2)
        flow.add_scheme(tensor, _scheme(flow, name, tensor.shape, scale, zero_point, axis, block))
    at = kinds.find("b")
    bias = flow.stored_input(node, at) if at >= 0 else None
    if bias is not None:  # int32 on the scale of input × weight
        scales = [one for k in _scaled_positions(kinds) if (one := flow.stored_input(node, k + 1)) is not None]
        ids = tuple(one.id for one in scales) if len(scales) == 2 else ()
        wide = any(n > 1 for one in scales for n in one.shape)
        last = len(bias.shape) - 1
        flow.add_scheme(
            bias, QuantizationScheme("QOperator", ids, axes=(last,) if wide else (), axis=last if wide else None)
        )


def _dequantized_table(flow: WeightDataflow, node: Node) -> StoredTensor | None:
    """Return the stored operand of a DequantizeLinear, or that of a Gather of its rows."""
    value = _input(node, 0)
    producer = None if value is None else value.producer
    if producer is not None and producer.op == "Gather":
        return flow.stored_input(producer, 0)
    return flow.stored(value)


def _channel_axis(node: Node, position: int, tensor: StoredTensor) -> int:
    """Return the axis of a weight's output channels."""
    if node.op == "DequantizeLinear":
        return integer(node.proto, "axis", 1)
    if node.op == "QGemm":
        return 0 if integer(node.proto, "transB", 0) else 1
    return 0 if node.op.startswith("QLinearConv") else len(tensor.shape) - (1 if position else 2)


def _assign_integer(flow: WeightDataflow, node: Node) -> None:
    """Assign the roles of MatMulInteger and ConvInteger, whose scale a later Mul applies."""
    scale = _scale_after(flow, node)
    for k, zero in ((0, 2), (1, 3)):
        zero_point, tensor = flow.stored_input(node, zero), flow.stored_input(node, k)
        if zero_point is not None:
            flow.add_role(zero_point, "zero-point")
        if tensor is not None:
            axis = 0 if node.op == "ConvInteger" else -1
            flow.add_scheme(tensor, _scheme(flow, "dynamic", tensor.shape, scale, zero_point, axis))


def _scale_after(flow: WeightDataflow, node: Node) -> StoredTensor | None:
    """Return the stored factor of the Mul after an integer product, alone or multiplied with the input's scale."""
    value = node.outputs[0] if node.outputs else None
    for _ in range(MOST_STEPS):
        uses = flow.uses.get(value, []) if value is not None else []
        if value is None or not uses:
            return None
        user, position = uses[0]
        if user.op == "Mul":
            other = _input(user, 1 - position)
            if other is not None and other.producer is not None and other.producer.op == "Mul":
                factors = [flow.stored(one) for one in other.producer.inputs]
                for factor in factors:
                    if factor is not None:
                        flow.add_role(factor, "scale")
                return next((one for one in reversed(factors) if one is not None), None)
            return flow.stored(other)
        value = user.outputs[0] if user.outputs and user.op in ("Cast", "Add", "Identity", "Reshape") else None
    return None


def _assign_to_float(flow: WeightDataflow, node: Node) -> None:
    """Assign the roles of MatMulIntegerToFloat, DynamicQuantizeMatMul and QAttention."""
    scale, zero = {"MatMulIntegerToFloat": (3, 5), "DynamicQuantizeMatMul": (2, 3), "QAttention": (4, 7)}[node.op]
    for k in {"MatMulIntegerToFloat": (2, 4), "QAttention": (3, 6)}.get(node.op, ()):
        parameter = flow.stored_input(node, k)
        if parameter is not None:
            flow.add_role(parameter, "scale" if k in (2, 3) else "zero-point")
    tensor = flow.stored_input(node, 1)
    if tensor is not None:
        parameters = flow.stored_input(node, scale), flow.stored_input(node, zero)
        flow.add_scheme(tensor, _scheme(flow, "dynamic", tensor.shape, *parameters, -1))


def _assign_lstm(flow: WeightDataflow, node: Node) -> None:
    """Assign the roles of DynamicQuantizeLSTM: W and R [directions, …, 4 × hidden], scaled by direction or column."""
    for k, at in ((1, 8), (2, 10)):
        tensor, scale, zero_point = (flow.stored_input(node, j) for j in (k, at, at + 1))
        for parameter, role in ((scale, "scale"), (zero_point, "zero-point")):
            if parameter is not None:
                flow.add_role(parameter, role)
        if tensor is not None:
            held = () if scale is None else scale.shape
            axes, axis = ((0,), 0) if len(held) == 1 else ((0, 2), None)
            scheme = QuantizationScheme("dynamic", _ids(scale), "".join(_ids(zero_point)), axes, axis)
            flow.add_scheme(tensor, scheme if scheme.accepts_scales(tensor.shape, held) else replace(scheme, scales=()))


def _assign_blocks(flow: WeightDataflow, node: Node) -> None:
    """Assign the roles of MatMulNBits: several integers per byte, [N, blocks, block size]; scales [N × blocks]."""
    tensor, scale, zero_point = (flow.stored_input(node, k) for k in (1, 2, 3))
    bits, block = integer(node.proto, "bits", 4), integer(node.proto, "block_size", 0)
    if tensor is None or bits not in (2, 4, 8) or len(tensor.shape) != 3 or tensor.word.name != "uint8":
        return
    rows, blocks, size = tensor.shape
    if not rows:
        return
    word, shape = WORDS[f"uint{bits}"], (rows, blocks, size * 8 // bits)
    scheme = QuantizationScheme(
        "MatMulNBits", _ids(scale), "".join(_ids(zero_point)), (0, 1), block=block, offset=1 << (bits - 1)
    )
    flow.roles[tensor] = replace(flow.role(tensor), word=word, shape=shape)
    if scale is not None:
        flow.add_role(scale, "scale")
    if zero_point is not None:
        flow.add_role(zero_point, "zero-point")
        if zero_point.word.name == "uint8":
            wide = (rows, math.prod(zero_point.shape) // rows * 8 // bits)
            flow.roles[zero_point] = replace(flow.role(zero_point), word=word, shape=wide)
    flow.add_scheme(tensor, scheme)


def _ids(tensor: StoredTensor | None) -> tuple[str, ...]:
    return () if tensor is None else (tensor.id,)


def _assign_gather_blocks(flow: WeightDataflow, node: Node) -> None:
    tensor, scale, zero_point = (flow.stored_input(node, k) for k in (0, 2, 3))
    if tensor is not None:
        axis, block = integer(node.proto, "quantize_axis", 1), integer(node.proto, "block_size", 128)
        flow.add_scheme(tensor, _scheme(flow, node.op, tensor.shape, scale, zero_point, axis, block))


_OTHER_OPERATORS = {
    "MatMulIntegerToFloat": _assign_to_float,
    "DynamicQuantizeMatMul": _assign_to_float,
    "QAttention": _assign_to_float,
    "DynamicQuantizeLSTM": _assign_lstm,
    "MatMulNBits": _assign_blocks,
    "GatherBlockQuantized": _assign_gather_blocks,
}


def _assign_weights(flow: WeightDataflow, node: Node) -> None:
    """Assign the roles of one operator's weights and biases."""
    for k, kind in enumerate(_kinds(node)):
        if kind not in "wb":
            continue
        for found in flow.operands(_input(node, k)):
            if found.scheme is not None:
                flow.add_scheme(found.tensor, found.scheme)
            part = flow.role(found.tensor)
            if found.tensor.word.is_float or part.scheme is not None:
                flow.add_role(found.tensor, "weight" if kind == "w" else "bias")


def _assign_added(flow: WeightDataflow, node: Node) -> None:
    """Make a stored operand that is added to the product of a layer its bias."""
    first, second = (0, 1) if node.op == "Add" else (0, 3)
    for one, other in ((first, second), (second, first)):
        found, producer = flow.operand(_input(node, one)), _input(node, other)
        for _ in range(MOST_STEPS):
            maker = None if producer is None else producer.producer
            if maker is None or maker.op in _PRODUCERS:
                break
            scaled = maker.op == "Mul" and _made_by(maker, "Cast")
            producer = _input(maker, 0) if maker.op in CONVERSIONS or maker.op in QDQ or scaled else None
        vector = found is not None and sum(n > 1 for n in found.tensor.shape) <= 1  # else a position embedding
        if found is not None and vector and producer is not None and producer.producer is not None:
            flow.add_role(found.tensor, "bias")


def _made_by(node: Node, op: str) -> bool:
    value = _input(node, 0)
    return value is not None and value.producer is not None and value.producer.op == op
