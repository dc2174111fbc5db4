"""The data flow of stored tensors: those that an operand reads, and the roles and schemes found so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from onnxfi.faults.quantization import QuantizationScheme
from onnxfi.faults.words import Word
from onnxfi.graph.model.graph_index import GraphIndex, Node, Value
from onnxfi.graph.model.stored_tensors import StoredTensor, StoredTensors

#: Operators that only convert or reshape input 0; those of `_SAME_SHAPE` keep its shape.
_SAME_SHAPE = frozenset(("Cast", "Identity", "Floor", "Round", "Clip"))
CONVERSIONS = _SAME_SHAPE | {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
QDQ = frozenset(("DequantizeLinear", "QuantizeLinear"))
_SLICES = frozenset(("Concat", "Slice", "Split"))
#: The longest chain of operators that is followed.
MOST_STEPS = 8
#: Largest number of stored tensors in one operand.
_MOST_PARTS = 64


@dataclass(frozen=True)
class TensorRole:
    """The role of a stored tensor, the first one and all (`roles`), and its quantization scheme.

    `word` and `shape` are set if its bytes hold several smaller integers.
    """

    role: str = ""
    roles: tuple[str, ...] = ()
    scheme: QuantizationScheme | None = None
    word: Word | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class StoredOperand:
    """The stored tensor that an operand reads: whether its shape is the operand's (`direct`), and how it is scaled."""

    tensor: StoredTensor
    direct: bool = True
    scheme: QuantizationScheme | None = None


class WeightDataflow:
    """The stored tensors that the nodes of a model read, and the roles found so far."""

    def __init__(self, index: GraphIndex, stored: StoredTensors) -> None:
        self.nodes, self.by_value, self.notes = index.nodes, stored.by_value, stored.notes
        self.roles: dict[StoredTensor, TensorRole] = {}
        self.uses: dict[Value, list[tuple[Node, int]]] = {}
        self._by_id = {tensor.id: tensor for tensor in stored.tensors}
        # Results are kept, since a hostile graph has exponentially many ways from one value to another.
        self._operands: dict[Value, StoredOperand | None] = {}
        self._parts: dict[Value, list[StoredOperand]] = {}
        for node in self.nodes:
            for k, value in enumerate(node.inputs):
                if value is not None:
                    self.uses.setdefault(value, []).append((node, k))

    def _shape_of(self, name: str) -> tuple[int, ...]:
        tensor = self._by_id[name]
        return self.role(tensor).shape or tensor.shape

    def role(self, tensor: StoredTensor) -> TensorRole:
        """Return what is known of a tensor's role."""
        return self.roles.get(tensor, TensorRole())

    def add_role(self, tensor: StoredTensor, role: str) -> None:
        """Add a role of a tensor; the first one is its main role."""
        known = self.role(tensor)
        if role and role not in known.roles:
            self.roles[tensor] = replace(known, role=known.role or role, roles=(*known.roles, role))

    def add_scheme(self, tensor: StoredTensor, scheme: QuantizationScheme) -> None:
        """Add the quantization of a tensor's integers; the first scheme with scales is the main one.

        Scales or zero points of shapes that cannot belong to it leave the scale unknown; runtimes refuse such a model.
        """
        known = self.role(tensor)
        shape = known.shape or tensor.shape
        ids = (*scheme.scales, *((scheme.zero_point,) if scheme.zero_point else ()))
        if not all(scheme.accepts_scales(shape, self._shape_of(name)) for name in ids):
            scheme = replace(scheme, scales=())
        if tensor.word.is_float:
            return
        if known.scheme is None or not known.scheme.scales:
            self.roles[tensor] = replace(known, scheme=scheme)
        elif scheme.scales and all(not scheme.equivalent_to(one) for one in (known.scheme, *known.scheme.others)):
            several = replace(known.scheme, others=(*known.scheme.others, scheme))
            self.roles[tensor] = replace(known, scheme=several)

    def stored(self, value: Value | None, depth: int = 0) -> StoredTensor | None:
        """Return the stored tensor of an operand, past nodes that only convert or reshape it."""
        if value is None or depth > MOST_STEPS:
            return None
        if value in self.by_value:
            return self.by_value[value]
        node = value.producer
        if node is None or node.op not in CONVERSIONS or not node.inputs:
            return None
        return self.stored(node.inputs[0], depth + 1)

    def stored_input(self, node: Node, position: int) -> StoredTensor | None:
        """Return the stored tensor that an input of a node is; None if it has no such input."""
        return self.stored(node.inputs[position]) if 0 <= position < len(node.inputs) else None

    def operand(self, value: Value | None, depth: int = 0) -> StoredOperand | None:
        """Return the same as `stored`, also past quantisation and a Mul, Div or Sub with another stored tensor."""
        if value is None or depth > MOST_STEPS:
            return None
        if depth == 0 and value in self._operands:
            return self._operands[value]
        found = self._trace(value, depth)
        if depth == 0:
            self._operands[value] = found
        return found

    def _trace(self, value: Value, depth: int) -> StoredOperand | None:
        if value in self.by_value:
            return StoredOperand(self.by_value[value])
        node = value.producer
        if node is None or not node.inputs:
            return None
        if node.op in CONVERSIONS or node.op in QDQ:
            found = self.operand(node.inputs[0], depth + 1)
            kept = found is None or node.op in _SAME_SHAPE or node.op in QDQ
            return found if found is None or kept else replace(found, direct=False)
        if node.op in ("Mul", "Sub", "Div") and len(node.inputs) == 2:
            return self._arithmetic(node, depth)
        if node.op == "Where" and len(node.inputs) == 3:  # a weight with some of its numbers replaced by one
            return self._replaced(node, depth)
        return None

    def _replaced(self, node: Node, depth: int) -> StoredOperand | None:
        """Return the one stored tensor of more than one number between which and a number a Where chooses."""
        found = [self.operand(value, depth + 1) for value in node.inputs[1:]]
        large = {one.tensor: one for one in found if one is not None and math.prod(one.tensor.shape) > 1}
        return next(iter(large.values())) if len(large) == 1 else None

    def operands(self, value: Value | None, depth: int = 0) -> list[StoredOperand]:
        """Return the stored tensors of a sliced or concatenated operand; [] if a part of it is computed."""
        if value is None or depth > MOST_STEPS:
            return []
        if value not in self._parts:
            self._parts[value] = self._trace_parts(value, depth)
        return self._parts[value]

    def _trace_parts(self, value: Value, depth: int) -> list[StoredOperand]:
        found, node = self.operand(value), value.producer
        if found is not None:
            return [found]
        if node is None or node.op not in _SLICES | CONVERSIONS or len(node.inputs) > _MOST_PARTS:
            return []
        parts = [self.operands(one, depth + 1) for one in (node.inputs if node.op == "Concat" else node.inputs[:1])]
        each = {one.tensor: replace(one, direct=False) for part in parts for one in part}
        return [*each.values()] if all(parts) and len(each) <= _MOST_PARTS else []

    def _arithmetic(self, node: Node, depth: int) -> StoredOperand | None:
        """Return integers whose zero point (Sub) and scale (Mul) other nodes apply."""
        first = self.operand(node.inputs[0], depth + 1)
        if node.op == "Div":  # a float bias over its scale, before it is rounded
            return first
        second = self.operand(node.inputs[1], depth + 1)
        if first is None or second is None:
            return None
        if first.tensor.word.is_float and not second.tensor.word.is_float and node.op == "Mul":
            first, second = second, first
        if first.tensor.word.is_float or first.tensor.word.bits > 32:
            return None
        scheme, other = first.scheme or QuantizationScheme("Cast + Mul"), second.tensor
        axes = broadcast_axes(first.tensor.shape, other.shape)
        if node.op == "Sub":
            self.add_role(other, "zero-point")
            return replace(first, scheme=replace(scheme, zero_point=other.id, axes=axes))
        self.add_role(other, "scale")
        if first.direct and second.direct:
            wide = [a for a, n in zip(axes, other.shape, strict=True) if n > 1]
            scheme = replace(
                scheme,
                scales=(other.id,),
                axes=axes,
                axis=wide[0] if len(wide) == 1 else None,
            )
            if not scheme.accepts_scales(first.tensor.shape, other.shape):
                scheme = replace(scheme, scales=())
        return replace(first, scheme=scheme)


def broadcast_axes(shape: tuple[int, ...], held: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of a tensor of this shape along which one of shape `held` lies when it is broadcast."""
    first = len(shape) - len(held)
    return tuple(range(first, len(shape))) if first >= 0 else ()
