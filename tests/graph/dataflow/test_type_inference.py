"""Types that onnx infers; models that end or exhaust its C++ end a copy of the process only."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxfi import isolated_call
from onnxfi.errors import IsolationError, ModelError
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.dataflow.type_inference import convert_opset, infer_types
from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.subgraph import partition_graph
from onnxfi.runtime.inject.activations import prepare

Size = int | str


def sliced(size: Size, opset: int = 17, number: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A layer, and beside it a Slice of an input of one axis of this size."""
    bounds = [numpy_helper.from_array(np.array([v], np.int64), n) for n, v in (("from", 0), ("to", 2), ("of", 0))]
    return made(
        [
            helper.make_node("Slice", ["e", "from", "to", "of"], ["s"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Relu", ["y"], ["z"]),
        ],
        {"x": ["N", 4], "e": [size]}, {"z": ["N", 4], "s": ["M"]}, bounds, opset, number,
    )  # fmt: skip


def made(
    nodes: Sequence[onnx.NodeProto], inputs: dict[str, list[Size]], outputs: dict[str, list[Size]],
    stored: Sequence[TensorProto] = (), opset: int = 17, number: int = TensorProto.FLOAT,
) -> onnx.ModelProto:  # fmt: skip
    kind = helper.tensor_dtype_to_np_dtype(number)
    weight = numpy_helper.from_array(np.ones((4, 4), kind), "w")
    ports = [[helper.make_tensor_value_info(n, number, s) for n, s in some.items()] for some in (inputs, outputs)]
    graph = helper.make_graph(list(nodes), "g", *ports, [weight, *stored])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def types(proto: onnx.ModelProto) -> dict[str, list[Size]]:
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in infer_types(proto).graph.value_info
    }


@pytest.mark.parametrize("size", [-1, -(1 << 63)])
def test_a_size_below_0_is_an_unknown_one(size: int) -> None:
    """Some releases of onnx take it for a length, and their C++ stops the process."""
    proto = sliced(size)
    assert types(proto) == {"y": ["N", 4]}
    assert [a.target.id for a in activations(load(proto)) if a.default] == ["z"]


def test_memory_of_inference_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size is a number in the file: onnx makes a list of so many entries of it."""
    monkeypatch.setattr(isolated_call, "LIMIT_BYTES", 1 << 27)
    assert types(sliced(1 << 40)) == {}


def test_a_model_that_ends_the_converter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx.version_converter, "convert_version", lambda *given: os.abort())
    with pytest.raises(IsolationError, match="ended with SIGABRT"):
        convert_opset(sliced(4), 21)
    with pytest.raises(ModelError, match="cannot be raised to opset 21: onnx's converter: it ended with SIGABRT"):
        prepare(load(sliced(4)), opset=21)


def test_stale_declarations_of_16_bit_floats_are_no_matter() -> None:
    """Writers that change a graph leave shapes behind: those that contradict what follows from the inputs."""
    proto = made([helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
                 {"x": ["N", 4]}, {"z": ["N", 7]}, number=TensorProto.FLOAT16)  # fmt: skip
    for number, shape in ((TensorProto.FLOAT16, [3, 9, 9]), (TensorProto.FLOAT, ["N", 4])):
        del proto.graph.value_info[:]
        proto.graph.value_info.append(helper.make_tensor_value_info("y", number, shape))
        assert partition_graph(load(proto)).uncut == {"y"}


def test_a_value_of_which_nothing_follows_may_be_of_16_bits() -> None:
    proto = made([helper.make_node("Own", ["x", "w"], ["y"], domain="own"), helper.make_node("Relu", ["y"], ["z"])],
                 {"x": ["N", 4]}, {"z": ["N", 4]}, number=TensorProto.FLOAT16)  # fmt: skip
    assert partition_graph(load(proto)).uncut == {"y"}
