"""Uses: which nodes use a stored tensor, and whether the outputs of the model depend on what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from onnxfi.graph.model.protobuf_scan import text

if TYPE_CHECKING:
    from onnxfi.graph.model.targets import _Node as Node
    from onnxfi.graph.model.targets import _Value as Value

#: Operators between a stored word and the layer that it belongs to.
_LOOK_THROUGH = frozenset(("DequantizeLinear", "Cast", "Transpose", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
#: How many of them are looked through one behind the other.
_DEEPEST = 8
#: Inputs of which only the shape or the number format counts.
_NO_NUMBERS = {"Shape": 0, "Size": 0, "EyeLike": 0, "RandomNormalLike": 0, "RandomUniformLike": 0, "CastLike": 1}
#: Domain, name and overload of a function, as a node calls it.
Key = tuple[str, str, str]


def consumers(value: Value) -> list[Node]:
    """The nodes that a stored tensor belongs to, its first user first, looking through what only converts it."""
    found: dict[int, Node] = {}
    seen: set[int] = set()

    def follow(one: Value, depth: int) -> None:
        for node in one.users:
            behind = node.outputs[0] if node.op in _LOOK_THROUGH and depth < _DEEPEST and node.outputs else None
            if behind is None or not behind.users:
                found.setdefault(id(node), node)
            elif id(node) not in seen:
                seen.add(id(node))
                follow(behind, depth + 1)

    follow(value, 0)
    return list(found.values())


def mark_used(outputs: Iterable[Value], functions: Mapping[Key, Sequence[Value]]) -> None:
    """Mark the nodes and values that these outputs depend on; each node is looked at once.

    `functions` are what the model's own functions put out: one is used where a node that calls it is.
    """
    todo = list(outputs)
    while todo:
        value = todo.pop()
        value.used = True
        node = value.maker
        if node is None or node.used:
            continue
        node.used = True
        proto = node.proto
        aside = _NO_NUMBERS.get(node.op, -1) if proto.domain in ("", "ai.onnx") else -1
        todo += [one for k, one in enumerate(node.inputs) if one is not None and k != aside]
        todo += node.bodies
        todo += functions.get(key(proto.domain, proto.op_type, proto.overload), ())


def key(domain: str, name: str, overload: str) -> Key:
    """How a node calls a function, and how a function is called."""
    return "" if domain == "ai.onnx" else text(domain), text(name), text(overload)
