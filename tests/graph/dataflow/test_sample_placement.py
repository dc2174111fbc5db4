"""The axis of the samples in tensors, held against what each sample changes when it runs beside others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser

from onnxfi.graph.dataflow.activation_targets import Activation, activations
from onnxfi.graph.dataflow.batch_layout import SampleAxis
from onnxfi.graph.model.loading import load
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.ports import Array

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def placed(graph: str, **weights: Array) -> dict[str, Activation]:
    """The activations of a model in ONNX's text form, by name."""
    model = parser.parse_model(HEAD + graph)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return {a.name: a for a in activations(load(model))}


def values(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of every node."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    del made.graph.output[:]
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for node in made.graph.node for name in node.output)
    return OrtEngine("cpu", optimization="off").prepare(made.SerializeToString()).run(feeds)


def holds_samples(a: Activation, proto: onnx.ModelProto, feeds: Mapping[str, Array], alone: list[Any]) -> None:
    """Each sample alone gives what it gives at its place among the others."""
    whole = values(proto, feeds)[a.name]
    assert a.place is not None, a.axis_unknown_reason
    first = a.place.first(whole)
    assert first.shape == (len(alone), *a.target.shape), a.name
    assert np.array_equal(a.place.back(first), whole)
    for k, one in enumerate(alone):
        np.testing.assert_allclose(a.place.first(one[a.name])[0], first[k], rtol=1e-5, err_msg=a.name)


STEPS = st.lists(
    st.one_of(
        st.permutations(range(3)).map(lambda order: ("Transpose", order)),
        st.sampled_from([("Flatten", 0), ("Flatten", 1), ("Flatten", 2)]),
        st.sampled_from([("Reshape", "rows"), ("Reshape", "back"), ("Reshape", "split")]),
        st.sampled_from([("Concat", 0), ("Concat", 1), ("Concat", 2), ("Tile", 0), ("Relu", 0), ("Add", 0)]),
    ),
    min_size=1, max_size=7,
)  # fmt: skip


def network(steps: list[Any]) -> onnx.ModelProto:
    """A chain of these steps behind x [N,5,4]; ranks stay 3, a flattened tensor gets an axis of 1 in front."""
    nodes, stored, last = [], [], "x"
    for k, (step, how) in enumerate(steps):
        name, taken, op = f"t{k}", [last], step
        fields: dict[str, Any] = {}
        if op == "Transpose":
            fields["perm"] = list(how)
        elif op == "Flatten":
            nodes.append(helper.make_node("Flatten", [last], [f"{name}f"], axis=how))
            op, taken = "Unsqueeze", [f"{name}f", "zero"]
        elif op == "Reshape":
            taken.append({"rows": "rows", "back": "back", "split": "split"}[how])
        elif op == "Concat":
            taken, fields["axis"] = [last, last], how
        elif op == "Tile":
            taken.append("twice")
        elif op == "Add":
            taken.append("one")
        nodes.append(helper.make_node(op, taken, [name], **fields))
        last = name
    for name, array in {
        "rows": [1, -1, 4], "back": [-1, 5, 4], "split": [2, -1, 2], "zero": [0], "twice": [2, 1, 1],
    }.items():  # fmt: skip
        stored.append(numpy_helper.from_array(np.array(array), name))
    stored.append(numpy_helper.from_array(np.float32(1), "one"))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [info("x", 1, ["N", 5, 4])], [info(last, 1, None)], stored)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


@pytest.mark.slow
@settings(max_examples=60)
@given(STEPS)
@example([("Transpose", [1, 0, 2]), ("Reshape", "back")])  # elements of several samples in one row
@example([("Transpose", [1, 0, 2]), ("Reshape", "back"), ("Relu", 0), ("Transpose", [1, 0, 2])])
def test_each_sample_lies_where_it_is_said_to(steps: list[Any]) -> None:
    proto, x = network(steps), np.random.default_rng(0).normal(size=(3, 5, 4)).astype("f4")
    alone = [values(proto, {"x": x[k : k + 1]}) for k in range(3)]
    chosen = [a for a in activations(load(proto)) if a.target.op and a.target.word.is_float]
    for a in chosen:
        if a.place is not None:
            holds_samples(a, proto, {"x": x}, alone)
        else:
            assert a.axis_unknown_reason, "what comes of x holds samples"


def test_an_axis_that_is_not_found_says_why() -> None:
    mixed = placed("g (float[N,4] x) => (float[N,M] y) { t = Transpose(x) y = MatMul(x, t) }")
    assert mixed["t"].place == SampleAxis(1) and "more than one of its axes" in mixed["y"].axis_unknown_reason
    picked = placed("g (float[N,4] x, int64[N] k) => (float[N,4] y) { g = Gather(x, k) y = Relu(g) }")
    assert "selects rows" in picked["y"].axis_unknown_reason
    found = placed("g (float[N,4] x) => (float[A,B] y) { y = own.unknown(x) }".replace("own.unknown", "Sum"))
    assert found["y"].place == SampleAxis(0)
