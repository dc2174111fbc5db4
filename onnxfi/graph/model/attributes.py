"""Attributes of nodes by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxfi.graph.model.protobuf_scan import text

if TYPE_CHECKING:
    import onnx


def integer(node: onnx.NodeProto, name: str, default: int | None = None) -> int:
    """Return an attribute that holds an integer, or the default; KeyError without both.

    >>> from onnx import helper
    >>> conv = helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1])
    >>> integer(conv, "group", 1), integer(conv, "axis", 0), integers(conv, "pads", ())
    (2, 0, (1, 1))
    """
    found = next((int(a.i) for a in node.attribute if text(a.name) == name), default)
    if found is None:
        raise KeyError(name)
    return found


def integers(node: onnx.NodeProto, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """Return an attribute that holds a list of integers; the default where the node has none."""
    return next((tuple(a.ints) for a in node.attribute if text(a.name) == name), tuple(default))
