"""Roles by data flow: which stored tensors are weights and biases, which scales and zero points, and of what.

Two passes over the nodes. The first finds quantised words from what each operator's inputs are by its definition
(QDQ, QOperator, dynamic and weight-only forms), and the scales that a later Mul applies. The second goes from every
operator that has weights back to the words in which they are stored. Sources: the ONNX operator list and ONNX
Runtime's ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from onnxfi.faults.quantization import Scheme
from onnxfi.faults.words import WORDS
from onnxfi.graph.model.byte_source import quoted
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.model.weight_dataflow import DEEPEST, QDQ, THROUGH, TensorRole, WeightDataflow, from_right

if TYPE_CHECKING:
    from onnxfi.graph.model.targets import Walk
    from onnxfi.graph.model.targets import _Node as Node
    from onnxfi.graph.model.targets import _Value as Value

#: What each input is: w weight, b bias, x another operand, s scale and z zero point of the operand before it, . else.
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
#: Operators whose scale comes later, in a Mul.
_INTEGER = frozenset(("MatMulInteger", "ConvInteger"))
#: Operators behind which a stored operand of an Add is a bias.
_PRODUCERS = frozenset(
    (
        *("Conv", "ConvTranspose", "MatMul", "Gemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat"),
        *("QLinearMatMul", "QLinearConv", "DynamicQuantizeMatMul", "MatMulNBits", "FusedMatMul", "Einsum"),
    )
)


def assign_roles(walk: Walk) -> dict[int, TensorRole]:
    """The part of every stored tensor that has one, by the number of its draft; notes are added to the walk's."""
    flow = WeightDataflow(walk)
    for node in flow.nodes:
        if node.op in QDQ or node.op in _QOPERATORS or node.op == "QLinearConcat":
            _linear(flow, node)
        elif node.op in _INTEGER:
            _integer(flow, node)
        elif node.op in _LATER:
            _LATER[node.op](flow, node)
    for node in flow.nodes:
        _weights(flow, node)
    for node in flow.nodes:
        if node.op in ("Add", "QLinearAdd"):
            _added(flow, node)
    walk.notes.extend(flow.notes)
    return flow.parts


def _kinds(node: Node) -> str:
    if node.op == "QLinearConcat":
        return "sz" + "xsz" * ((len(node.inputs) - 2) // 3)
    return _INPUTS.get(node.op, "")


def _attribute(node: Node, name: str, default: int) -> int:
    return next((int(a.i) for a in node.proto.attribute if text(a.name) == name), default)


def _input(node: Node, position: int) -> Value | None:
    return node.inputs[position] if 0 <= position < len(node.inputs) else None


def _triples(kinds: str) -> Iterator[int]:
    """Positions of operands that a scale follows."""
    return (k for k in range(len(kinds) - 1) if kinds[k] in "xw" and kinds[k + 1] == "s")


def _scheme(
    flow: WeightDataflow, name: str, value: Value, scale: Value | None, zero: Value | None, axis: int, block: int = 0
) -> Scheme:
    """A scheme with its scale and zero point marked; without scales where they are not stored or do not fit."""
    kept, none = flow.stored(scale), flow.stored(zero)
    shape = flow.shape(value)
    axis = axis + len(shape) if axis < 0 else axis
    scheme = Scheme(name, zero_point="" if none is None else flow.name(none))
    if none is not None:
        flow.mark(none, "zero-point")
    if kept is None:
        return scheme
    flow.mark(kept, "scale")
    held = flow.shape(kept)
    if block:
        scheme = replace(scheme, axes=tuple(range(len(shape))), axis=axis, block=block)
    elif any(n > 1 for n in held):
        scheme = replace(scheme, axes=(axis,) if len(held) == 1 else from_right(shape, held), axis=axis)
    return replace(scheme, scales=(flow.name(kept),)) if scheme.fits(shape, held) else scheme


def _linear(flow: WeightDataflow, node: Node) -> None:
    """QuantizeLinear, DequantizeLinear and the QLinear operators: scale and zero point stand behind each operand."""
    kinds = _kinds(node)
    for k, kind in enumerate(kinds):
        value = flow.stored(_input(node, k)) if kind in "sz" else None
        if value is not None:
            flow.mark(value, "scale" if kind == "s" else "zero-point")
    for k in _triples(kinds):
        value = _input(node, k)
        value = _gathered(flow, value) if node.op == "DequantizeLinear" else flow.stored(value)
        if value is None:
            continue
        if node.op == "QuantizeLinear":
            if flow.word(value).is_float:
                flow.notes.append(
                    f"{quoted(flow.name(value))} is stored as {flow.word(value).name} and quantised at run time; "
                    f"onnxfi.graph.passes.fold_quantize.fold_weight_quantize stores the integers"
                )
            continue
        axis, block, name = _axis(flow, node, k, value), _attribute(node, "block_size", 0), "QOperator"
        if node.op == "DequantizeLinear":
            name = "QDQ"
        flow.quantised(value, _scheme(flow, name, value, _input(node, k + 1), _input(node, k + 2), axis, block))
    at = kinds.find("b")
    bias = flow.stored(_input(node, at)) if at >= 0 else None
    if bias is not None:  # int32 on the scale of input × weight
        kept = [flow.stored(_input(node, k + 1)) for k in _triples(kinds)]
        scales = tuple(flow.name(value) for value in kept if value is not None)
        wide = any(n > 1 for value in kept if value is not None for n in flow.shape(value))
        axis = len(flow.shape(bias)) - 1
        axes = (axis,) if wide else ()
        flow.quantised(
            bias, Scheme("QOperator", scales if len(scales) == 2 else (), axes=axes, axis=axis if wide else None)
        )


def _gathered(flow: WeightDataflow, value: Value | None) -> Value | None:
    """The stored operand of a DequantizeLinear; rows of a table may be picked from it first."""
    maker = None if value is None else value.maker
    if maker is not None and maker.op == "Gather":
        return flow.stored(_input(maker, 0))
    return flow.stored(value)


def _axis(flow: WeightDataflow, node: Node, position: int, value: Value) -> int:
    """The axis of a weight's channels."""
    if node.op == "DequantizeLinear":
        return _attribute(node, "axis", 1)
    if node.op == "QGemm":
        return 0 if _attribute(node, "transB", 0) else 1
    return 0 if node.op.startswith("QLinearConv") else len(flow.shape(value)) - (1 if position else 2)


def _integer(flow: WeightDataflow, node: Node) -> None:
    """MatMulInteger and ConvInteger: the scale is multiplied in afterwards."""
    scale = _scale_after(flow, node)
    for k, zero in ((0, 2), (1, 3)):
        kept, value = flow.stored(_input(node, zero)), flow.stored(_input(node, k))
        if kept is not None:
            flow.mark(kept, "zero-point")
        if value is not None:
            axis = 0 if node.op == "ConvInteger" else -1
            flow.quantised(value, _scheme(flow, "dynamic", value, scale, _input(node, zero), axis))


def _scale_after(flow: WeightDataflow, node: Node) -> Value | None:
    """The stored factor of the Mul that follows an integer product, alone or multiplied with the input's scale."""
    value = node.outputs[0] if node.outputs else None
    for _ in range(DEEPEST):
        uses = flow.uses.get(id(value), [])
        if value is None or not uses:
            return None
        user, position = uses[0]
        if user.op == "Mul":
            other = _input(user, 1 - position)
            if other is not None and other.maker is not None and other.maker.op == "Mul":
                factors = [flow.stored(one) for one in other.maker.inputs]
                for factor in factors:
                    if factor is not None:
                        flow.mark(factor, "scale")
                return next((one for one in reversed(factors) if one is not None), None)
            return flow.stored(other)
        value = user.outputs[0] if user.outputs and user.op in ("Cast", "Add", "Identity", "Reshape") else None
    return None


def _to_float(flow: WeightDataflow, node: Node) -> None:
    """MatMulIntegerToFloat, DynamicQuantizeMatMul, QAttention: scales and zero points each at their place."""
    wide = node.op == "MatMulIntegerToFloat"
    scale, zero = {"MatMulIntegerToFloat": (3, 5), "DynamicQuantizeMatMul": (2, 3), "QAttention": (4, 7)}[node.op]
    for k in (2, 4) if wide else (3, 6) if node.op == "QAttention" else ():
        value = flow.stored(_input(node, k))
        if value is not None:
            flow.mark(value, "scale" if k in (2, 3) else "zero-point")
    value = flow.stored(_input(node, 1))
    if value is not None:
        flow.quantised(value, _scheme(flow, "dynamic", value, _input(node, scale), _input(node, zero), -1))


def _lstm(flow: WeightDataflow, node: Node) -> None:
    """DynamicQuantizeLSTM: W and R [directions, …, 4 × hidden], scaled by direction, or by it and column."""
    for k, scale in ((1, 8), (2, 10)):
        value, kept = flow.stored(_input(node, k)), flow.stored(_input(node, scale))
        zero = flow.stored(_input(node, scale + 1))
        for other, role in ((kept, "scale"), (zero, "zero-point")):
            if other is not None:
                flow.mark(other, role)
        if value is not None:
            held = () if kept is None else flow.shape(kept)
            axes = (0,) if len(held) == 1 else (0, 2)
            scheme = Scheme(
                "dynamic",
                () if kept is None else (flow.name(kept),),
                "" if zero is None else flow.name(zero),
                axes,
                0 if len(held) == 1 else None,
            )
            flow.quantised(value, scheme if scheme.fits(flow.shape(value), held) else replace(scheme, scales=()))


def _blocks(flow: WeightDataflow, node: Node) -> None:
    """MatMulNBits: several integers in each byte, [N, blocks, block size]; scales [N × blocks]."""
    value, scale, zero = (flow.stored(_input(node, k)) for k in (1, 2, 3))
    bits, block = _attribute(node, "bits", 4), _attribute(node, "block_size", 0)
    if value is None or bits not in (2, 4, 8) or len(flow.shape(value)) != 3 or flow.word(value).name != "uint8":
        return
    rows, blocks, size = flow.shape(value)
    if not rows:
        return
    word, shape = WORDS[f"uint{bits}"], (rows, blocks, size * 8 // bits)
    scheme = Scheme(
        "MatMulNBits",
        () if scale is None else (flow.name(scale),),
        "" if zero is None else flow.name(zero),
        (0, 1),
        block=block,
        offset=1 << (bits - 1),
    )
    flow.parts[value.target] = replace(flow.parts.get(value.target, TensorRole()), word=word, shape=shape)
    if scale is not None:
        flow.mark(scale, "scale")
    if zero is not None:
        flow.mark(zero, "zero-point")
        if flow.word(zero).name == "uint8":
            wide = (rows, math.prod(flow.shape(zero)) // rows * 8 // bits)
            flow.parts[zero.target] = replace(flow.parts[zero.target], word=word, shape=wide)
    flow.quantised(value, scheme)


def _gather_blocks(flow: WeightDataflow, node: Node) -> None:
    value = flow.stored(_input(node, 0))
    if value is not None:
        axis, block = _attribute(node, "quantize_axis", 1), _attribute(node, "block_size", 128)
        found = _scheme(flow, node.op, value, _input(node, 2), _input(node, 3), axis, block)
        flow.quantised(value, found)


_LATER = {
    "MatMulIntegerToFloat": _to_float,
    "DynamicQuantizeMatMul": _to_float,
    "QAttention": _to_float,
    "DynamicQuantizeLSTM": _lstm,
    "MatMulNBits": _blocks,
    "GatherBlockQuantized": _gather_blocks,
}


def _weights(flow: WeightDataflow, node: Node) -> None:
    """The weights and biases of one operator, back to where they are stored."""
    for k, kind in enumerate(_kinds(node)):
        if kind not in "wb":
            continue
        for found in flow.sources(_input(node, k)):
            if found.scheme is not None:
                flow.quantised(found.value, found.scheme)
            part = flow.parts.get(found.value.target, TensorRole())
            if flow.word(found.value).is_float or part.scheme is not None:
                flow.mark(found.value, "weight" if kind == "w" else "bias")


def _added(flow: WeightDataflow, node: Node) -> None:
    """A stored operand that is added to the product of a layer is its bias."""
    first, second = (0, 1) if node.op == "Add" else (0, 3)
    for one, other in ((first, second), (second, first)):
        found, producer = flow.behind(_input(node, one)), _input(node, other)
        for _ in range(DEEPEST):
            maker = None if producer is None else producer.maker
            if maker is None or maker.op in _PRODUCERS:
                break
            scaled = maker.op == "Mul" and _made_by(maker, "Cast")
            producer = _input(maker, 0) if maker.op in THROUGH or maker.op in QDQ or scaled else None
        vector = found is not None and sum(n > 1 for n in flow.shape(found.value)) <= 1  # else a position embedding
        if found is not None and vector and producer is not None and producer.maker is not None:
            flow.mark(found.value, "bias")


def _made_by(node: Node, op: str) -> bool:
    value = _input(node, 0)
    return value is not None and value.maker is not None and value.maker.op == op
