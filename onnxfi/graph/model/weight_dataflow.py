"""The data flow behind roles: who uses a stored tensor, and what is stored behind an operand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxfi.faults.quantization import Scheme
from onnxfi.faults.words import WORDS, Word

if TYPE_CHECKING:
    from onnxfi.graph.model.targets import Walk
    from onnxfi.graph.model.targets import _Node as Node
    from onnxfi.graph.model.targets import _Value as Value

#: Operators that hand on what is stored, on input 0; those of `_SAME` keep its shape.
_SAME = frozenset(("Cast", "Identity", "Floor", "Round"))
THROUGH = _SAME | {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
QDQ = frozenset(("DequantizeLinear", "QuantizeLinear"))
_CUT = frozenset(("Concat", "Slice", "Split"))
DEEPEST = 8
#: Stored tensors that one operand may be put together of.
_MOST_PARTS = 64


@dataclass(frozen=True)
class TensorRole:
    """What a stored tensor is for, first and in all (`roles`).

    `word` and `shape` are there where its bytes hold several smaller integers.
    """

    role: str = ""
    roles: tuple[str, ...] = ()
    scheme: Scheme | None = None
    word: Word | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class StoredOperand:
    """A stored value behind an operand, and what lies between: whether the shape stays, and how it is scaled."""

    value: Value
    direct: bool = True
    scheme: Scheme | None = None


class WeightDataflow:
    """The uses and makers of one walk's values, and the parts found so far."""

    def __init__(self, walk: Walk) -> None:
        self.drafts, self.nodes = walk.drafts, walk.every
        self.parts: dict[int, TensorRole] = {}
        self.uses: dict[int, list[tuple[Node, int]]] = {}
        self._numbers = {draft.name: k for k, draft in enumerate(self.drafts) if draft is not None}
        self.notes: list[str] = []
        # What was looked up, since a hostile graph has exponentially many ways from one value to another.
        self._behind: dict[int, StoredOperand | None] = {}
        self._sources: dict[int, list[StoredOperand]] = {}
        for node in self.nodes:
            for k, value in enumerate(node.inputs):
                if value is not None:
                    self.uses.setdefault(id(value), []).append((node, k))

    def word(self, value: Value) -> Word:
        draft = self.drafts[value.target]
        return draft.word if draft is not None else WORDS["int64"]

    def shape(self, value: Value) -> tuple[int, ...]:
        draft = self.drafts[value.target]
        return draft.shape if draft is not None else ()

    def name(self, value: Value) -> str:
        draft = self.drafts[value.target]
        return draft.name if draft is not None else ""

    def _held(self, name: str) -> tuple[int, ...]:
        number = self._numbers[name]
        part, draft = self.parts.get(number, TensorRole()), self.drafts[number]
        return part.shape or (draft.shape if draft is not None else ())

    def mark(self, value: Value, role: str) -> None:
        """Give a stored value a role; the first one stays its own, where several nodes use it in several."""
        part = self.parts.get(value.target, TensorRole())
        if role and role not in part.roles:
            self.parts[value.target] = replace(part, role=part.role or role, roles=(*part.roles, role))

    def quantised(self, value: Value, scheme: Scheme) -> None:
        """Say how a stored value's integers are meant; the first scheme with scales stays, with others beside it.

        Scales or zero points of shapes that cannot belong to it leave the scale unknown; runtimes refuse such a model.
        """
        part = self.parts.get(value.target, TensorRole())
        shape = part.shape or self.shape(value)
        ids = (*scheme.scales, *((scheme.zero_point,) if scheme.zero_point else ()))
        if not all(scheme.fits(shape, self._held(name)) for name in ids):
            scheme = replace(scheme, scales=())
        part = self.parts.get(value.target, TensorRole())
        if self.word(value).is_float:
            return
        if part.scheme is None or not part.scheme.scales:
            self.parts[value.target] = replace(part, scheme=scheme)
        elif scheme.scales and all(not scheme.means(one) for one in (part.scheme, *part.scheme.others)):
            known = replace(part.scheme, others=(*part.scheme.others, scheme))
            self.parts[value.target] = replace(part, scheme=known)

    def stored(self, value: Value | None, depth: int = 0) -> Value | None:
        """The stored value that an operand is, looking through what only converts or reshapes it."""
        if value is None or depth > DEEPEST:
            return None
        if value.target >= 0:
            return value
        node = value.maker
        if node is None or node.op not in THROUGH or not node.inputs:
            return None
        return self.stored(node.inputs[0], depth + 1)

    def behind(self, value: Value | None, depth: int = 0) -> StoredOperand | None:
        """As `stored`, and also through quantisation, and through a Mul, Div or Sub with another stored value."""
        if value is None or depth > DEEPEST:
            return None
        if depth == 0 and id(value) in self._behind:
            return self._behind[id(value)]
        found = self._trace(value, depth)
        if depth == 0:
            self._behind[id(value)] = found
        return found

    def _trace(self, value: Value, depth: int) -> StoredOperand | None:
        if value.target >= 0:
            return StoredOperand(value)
        node = value.maker
        if node is None or not node.inputs:
            return None
        if node.op in THROUGH or node.op in QDQ:
            found = self.behind(node.inputs[0], depth + 1)
            kept = found is None or node.op in _SAME or node.op in QDQ
            return found if found is None or kept else replace(found, direct=False)
        if node.op in ("Mul", "Sub", "Div") and len(node.inputs) == 2:
            return self._by_hand(node, depth)
        return None

    def sources(self, value: Value | None, depth: int = 0) -> list[StoredOperand]:
        """The stored values that an operand is cut from or put together of; none where a part is computed, or many."""
        if value is None or depth > DEEPEST:
            return []
        if id(value) not in self._sources:
            self._sources[id(value)] = self._look(value, depth)
        return self._sources[id(value)]

    def _look(self, value: Value, depth: int) -> list[StoredOperand]:
        found, maker = self.behind(value), value.maker
        if found is not None:
            return [found]
        if maker is None or maker.op not in _CUT | THROUGH or len(maker.inputs) > _MOST_PARTS:
            return []
        parts = [self.sources(one, depth + 1) for one in (maker.inputs if maker.op == "Concat" else maker.inputs[:1])]
        each = {id(one.value): replace(one, direct=False) for part in parts for one in part}
        return [*each.values()] if all(parts) and len(each) <= _MOST_PARTS else []

    def _by_hand(self, node: Node, depth: int) -> StoredOperand | None:
        """Constants put together by arithmetic: integers with a zero point (Sub) and a scale (Mul)."""
        first = self.behind(node.inputs[0], depth + 1)
        if node.op == "Div":  # a float bias over its scale, before it is rounded
            return first
        second = self.behind(node.inputs[1], depth + 1)
        if first is None or second is None:
            return None
        if self.word(first.value).is_float and not self.word(second.value).is_float and node.op == "Mul":
            first, second = second, first
        if self.word(first.value).is_float or self.word(first.value).bits > 32:
            return None
        scheme, other = first.scheme or Scheme("Cast + Mul"), second.value
        axes = from_right(self.shape(first.value), self.shape(other))
        if node.op == "Sub":
            self.mark(other, "zero-point")
            return replace(first, scheme=replace(scheme, zero_point=self.name(other), axes=axes))
        self.mark(other, "scale")
        if first.direct and second.direct:
            wide = [a for a, n in zip(axes, self.shape(other), strict=True) if n > 1]
            scheme = replace(
                scheme,
                scales=(self.name(other),),
                axes=axes,
                axis=wide[0] if len(wide) == 1 else None,
            )
            if not scheme.fits(self.shape(first.value), self.shape(other)):
                scheme = replace(scheme, scales=())
        return replace(first, scheme=scheme)


def from_right(shape: tuple[int, ...], held: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which a tensor of shape `held` is broadcast."""
    first = len(shape) - len(held)
    return tuple(range(first, len(shape))) if first >= 0 else ()
