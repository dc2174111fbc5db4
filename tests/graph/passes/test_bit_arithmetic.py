"""Bodies of the fault operators: bit planes, formats without a body."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from identity_models import identity, run_words, target
from onnx import helper

from onnxfi.errors import FaultError, ModelError
from onnxfi.faults.words import WORDS, Mask
from onnxfi.graph.passes.bit_arithmetic import body_for, plane_values, planes
from onnxfi.graph.passes.instrument import ActivationFault, bake
from onnxfi.graph.passes.node_builder import NUMBER, NodeBuilder


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint2"])
def test_integers_of_four_and_two_bits(name: str) -> None:
    word = WORDS[name]
    opset = 21 if word.bits == 4 else 25
    wide = "int8" if word.signed else "uint8"
    graph = [
        helper.make_node("Cast", ["x"], ["t"], to=NUMBER[name]),
        helper.make_node("Cast", ["t"], ["y"], to=NUMBER[wide]),
    ]
    x, y = (helper.make_tensor_value_info(n, NUMBER[wide], ["N", 1 << word.bits]) for n in "xy")
    opsets = [helper.make_opsetid("", opset)]
    plain = helper.make_model(helper.make_graph(graph, "g", [x], [y]), ir_version=13, opset_imports=opsets)
    words = np.arange(1 << word.bits, dtype=np.uint64)[None]
    numbers = word.values(words).astype(wide)
    site = target(plain, "t")
    for keep, flip in ((word.full, 1), (word.full & ~2, 0), (word.full & ~2, 2), (0, word.full)):
        faults = [ActivationFault(site, k, Mask(keep, flip)) for k in range(1 << word.bits)]
        found = run_words(bake(plain, faults), {"x": numbers}, WORDS[wide])
        expected = word.values((words & np.uint64(keep)) ^ np.uint64(flip)).astype(wide)
        assert (WORDS[wide].values(found) == expected.ravel()).all()


@given(st.integers(-(2**63), 2**63 - 1), st.sampled_from([1, 4, 8, 16, 32, 64]))
def test_planes_in_the_graph_are_planes_on_the_host(mask: int, bits: int) -> None:
    g = NodeBuilder(17)
    g.add("Identity", planes(g, "x", bits), name="y")
    x = helper.make_tensor_value_info("x", NUMBER["int64"], [1, 1])
    y = helper.make_tensor_value_info("y", NUMBER["bool"], [bits, 1, 1])
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(helper.make_graph(g.nodes, "g", [x], [y]), ir_version=8, opset_imports=opsets)
    given_ = np.array([[mask]])
    expected = plane_values(given_.view(np.uint64), bits)
    assert (run_words(model, {"x": given_}, WORDS["bool"]).reshape(expected.shape) == expected).all()


def test_formats_without_a_body_say_why() -> None:
    for name, why in (("float4_e2m1fn", "no runtime"), ("float8_e8m0fnu", "scales"), ("complex64", "complex")):
        with pytest.raises(ModelError, match=why):
            body_for(WORDS[name], 26)
    with pytest.raises(ModelError, match="need opset 13, the model has 11"):
        body_for(WORDS["bfloat16"], 11)
    with pytest.raises(ModelError, match="needs opset 26"):
        body_for(WORDS["float32"], 18, "native")
    plain = identity(WORDS["int64"], 18, [3])
    with pytest.raises(FaultError, match="value fault on int64"):
        bake(plain, [ActivationFault(target(plain), 0, None, 2.0)])
    with pytest.raises(FaultError, match="no step"):
        bake(plain, [ActivationFault(target(plain), 0, Mask(1, 1), first=1, last=1)])
    with pytest.raises(FaultError, match="no batch axis"):
        bake(plain, [ActivationFault(replace(target(plain), place=None), 0, Mask(1, 1), sample=0)])
