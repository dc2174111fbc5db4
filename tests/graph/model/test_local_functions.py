"""Local functions: what they unfold to is bounded before anything unfolds them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import pytest
from onnx import helper

from onnxfi.errors import ModelError
from onnxfi.graph.model.loading import load

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]


def calling(*calls: Sequence[str], graph: str = "") -> onnx.ModelProto:
    """A model of functions f0, f1, … that run these one behind the other; the graph calls the last one."""
    functions = []
    for k, names in enumerate(calls):
        values = ["a", *(f"v{n}" for n in range(1, len(names))), "b"]
        nodes = [
            helper.make_node(name, [values[n]], [values[n + 1]], domain="" if name == "Relu" else "f")
            for n, name in enumerate(names)
        ]
        functions.append(helper.make_function("f", f"f{k}", ["a"], ["b"], nodes, OPSETS))
    x, y = (helper.make_tensor_value_info(name, 1, ["N", 4]) for name in "xy")
    node = helper.make_node(graph or f"f{len(calls) - 1}", ["x"], ["y"], domain="f")
    made = helper.make_graph([node], "g", [x], [y])
    return helper.make_model(made, functions=functions, opset_imports=OPSETS, ir_version=8)


def doubling(times: int) -> onnx.ModelProto:
    return calling(["Relu"], *([f"f{k}", f"f{k}"] for k in range(times)))


def test_functions_that_unfold_without_measure_are_refused() -> None:
    assert load(doubling(18)).name
    with pytest.raises(ModelError, match=r"^the model: its local functions unfold to more than 262,144 nodes"):
        load(doubling(30))
    unused = doubling(30)
    unused.graph.node[0].op_type = "f3"
    assert load(unused).name, "what nothing calls is not unfolded"


def test_a_function_that_calls_itself_is_refused() -> None:
    for made in (calling(["Relu", "f0"]), calling(["f1"], ["f0"])):
        with pytest.raises(ModelError, match="a local function calls itself"):
            load(made)


def test_functions_call_each_other_to_a_depth() -> None:
    chain = [["Relu"], *([f"f{k}"] for k in range(300))]
    assert load(calling(*chain, graph="f90")).name
    for made in (calling(*chain), calling(*chain, [f"f{k}" for k in reversed(range(301))])):
        with pytest.raises(ModelError, match="call each other more than 100 deep"):
            load(made)
