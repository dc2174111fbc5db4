"""Attributes of nodes, present and absent."""

import pytest
from onnx import helper

from onnxfi.graph.model.attributes import integer, integers


def test_values_and_defaults() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[0, 1])
    assert (integer(node, "group", 1), integer(node, "axis", 7)) == (2, 7)
    assert (integers(node, "pads", [5]), integers(node, "strides", [5])) == ((0, 1), (5,))
    with pytest.raises(KeyError, match="axis"):
        integer(node, "axis")
