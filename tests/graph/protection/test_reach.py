"""Layers in functions: named in the refusal, and said where the default selection leaves them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper, parser
from pass_contract import LOOPS, SCAN, local_function, text

from onnxfi import load, protect
from onnxfi.errors import SelectorError
from onnxfi.faults.space import Selector
from onnxfi.graph.protection.checksum import checkable
from onnxfi.graph.protection.placement import find_places
from onnxfi.graph.protection.reach import outside_tensors
from onnxfi.graph.protection.redundant_layers import find_layers
from onnxfi.graph.protection.weight_clipping import find_weights
from onnxfi.runtime.engine.onnx_runtime import OrtEngine


def test_a_layer_in_a_function_is_refused_by_its_name() -> None:
    model = load(local_function())
    with pytest.raises(SelectorError, match=r"'function:own:twice::b' \(Add\) in a function.*inline_local_functions"):
        find_places(model, Selector(include=("twice::b",)))
    with pytest.raises(SelectorError, match=r"--op 'Add' names 'function:own:twice::b'"):
        find_layers(model, Selector(op=("Add",)))


def test_what_stays_outside_is_said() -> None:
    made = local_function()
    made.functions[0].node[0].op_type = "Tanh"
    del made.functions[0].node[0].input[1]
    (note,) = find_places(load(made)).notes()
    assert note.startswith("'function:own:twice::b' (Tanh) in a function stays without protection; inline functions")
    assert not [*find_places(load(made), Selector(exclude=("b",))).notes()]
    assert not [*find_places(load(text(SCAN))).notes()]
    with pytest.raises(SelectorError, match=r"takes no layer whose results are .*name layers with --include"):
        find_layers(load(text(SCAN)))


def test_weights_of_constant_nodes_belong_to_the_main_graph(tmp_path: Path) -> None:
    """As exporters of other frameworks write them."""
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }'
    )
    w = np.array([[0.5, -1], [0.25, 1.5], [-0.75, 1]], np.float32)
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(w)))
    model = load(proto)
    assert [one.name for one in find_weights(model)] == ["w"] and [one.name for one in checkable(model)] == ["y"]
    done = protect(model, ["clip-weights", "checksum"], tmp_path / "p.onnx")
    assert done.fault_free.changed == 0 and done.notes == ()
    made = load(done.out).proto
    for node in made.graph.node:
        if node.output[0] == "w":
            faulty = w.copy()
            faulty.view(np.uint32)[1, 0] ^= 1 << 30
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(faulty))
    session = OrtEngine(provider="cpu").prepare(made.SerializeToString())
    found = session.run({"x": np.ones((1, 3), np.float32)}, ["y"])["y"]
    assert found.tolist() == w.sum(axis=0, keepdims=True).tolist(), "the top exponent bit is taken back"


def test_tensors_of_functions_are_outside_and_those_of_bodies_are_not() -> None:
    assert [target.id for target in outside_tensors(load(local_function()))] == ["function:own:twice::b"]
    assert outside_tensors(load(text(LOOPS))) == ()
