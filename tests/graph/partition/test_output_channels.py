"""Output channels: where they are found, they alone change with a fault in their slice of the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnxfi.graph.model.graph_index import integer
from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.output_channels import output_channels
from onnxfi.graph.partition.subgraph import PartitionGraph, partition_graph

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
#: The nodes of a network with a weight `w` of 3 to 5 channels: nodes, shape of x, shapes of the other tensors, found.
NETS: dict[str, tuple[str, tuple[int, ...], dict[str, tuple[int, ...]], tuple[dict[str, int], str, int] | None]] = {
    "Conv": ("y = Conv(x, w, b)", (2, 3, 4, 4), {"w": (5, 3, 1, 1), "b": (5,)}, ({"w": 0, "b": 0}, "y", 1)),
    "elementwise": ("a = Conv(x, w) c = Relu(a) y = Sigmoid(c)", (2, 3, 4, 4), {"w": (5, 3, 2, 2)}, ({"w": 0}, "y", 1)),
    "four behind": (
        "a = Conv(x, w) b = Relu(a) c = Relu(b) d = Relu(c) y = Tanh(d)", (2, 3, 2, 2), {"w": (5, 3, 1, 1)}, ({"w": 0}, "d", 1),
    ),
    "Gemm": ("y = Gemm(x, w, b)", (2, 3), {"w": (3, 5), "b": (5,)}, ({"w": 1, "b": -1}, "y", -1)),
    "transposed": ("y = Gemm<transB = 1>(x, w)", (2, 3), {"w": (5, 3)}, ({"w": 0}, "y", -1)),
    "Transpose": ("t = Transpose(w) y = MatMul(x, t)", (2, 3), {"w": (5, 3)}, ({"w": 0}, "y", -1)),
    "Transpose of images": ("t = Transpose(w) y = MatMul(x, t)", (1, 2, 3), {"w": (3, 3, 5)}, None),
    "one number": ("y = Gemm(x, w, b)", (2, 3), {"w": (3, 5), "b": (1,)}, ({"w": 1}, "y", -1)),
    "MatMul": ("a = MatMul(x, w) y = Relu(a)", (2, 4, 3), {"w": (3, 5)}, ({"w": -1}, "y", -1)),
    "read twice": ("a = MatMul(x, w) b = MatMul(x, w) y = Add(a, b)", (2, 3), {"w": (3, 5)}, None),
    "in groups": ("y = Conv<group = 3>(x, w)", (2, 3, 4, 4), {"w": (6, 1, 1, 1)}, None),
    "the other input": ("y = MatMul(w, x)", (3, 5), {"w": (4, 3)}, None),
    "a row": ("y = MatMul(x, w)", (2, 3), {"w": (3,)}, None),
    "no such operator": ("y = Mul(x, w)", (2, 3), {"w": (2, 3)}, None),
    "added of two": ("a = MatMul(x, w) y = Add(a, x)", (2, 3), {"w": (3, 3)}, ({"w": -1}, "a", -1)),
}  # fmt: skip


def built(name: str, folder: Path) -> tuple[onnx.ModelProto, PartitionGraph]:
    nodes, shape, stored, _ = NETS[name]
    model = parser.parse_model(f"{HEAD} g (float[{','.join(map(str, shape))}] x) => (float y) {{ {nodes} }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    rng = np.random.default_rng(5)
    for one, dims in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=dims).astype(np.float32), one))
    onnx.save(model, folder / "m.onnx")
    return model, partition_graph(load(folder / "m.onnx"))


@pytest.mark.parametrize("name", NETS)
def test_what_is_sliced_and_where_the_channels_come_out(name: str, tmp_path: Path) -> None:
    expected, found = NETS[name][3], output_channels(built(name, tmp_path)[1], "w")
    assert (None if found is None else (dict(found.sliced), found.output, found.axis)) == expected


@pytest.mark.parametrize("name", [name for name, (*_, found) in NETS.items() if found])
def test_a_fault_in_a_slice_changes_its_channel_alone(name: str, tmp_path: Path) -> None:
    model, net = built(name, tmp_path)
    found = output_channels(net, "w")
    assert found is not None
    x = np.random.default_rng(6).normal(size=NETS[name][1]).astype(np.float32)
    model.graph.output[0].name = found.output
    golden = np.moveaxis(ReferenceEvaluator(model).run(None, {"x": x})[0], found.axis, 0)
    assert len(golden) == found.count
    tensor = next(t for t in model.graph.initializer if t.name == "w")
    array = numpy_helper.to_array(tensor).copy()
    channel = found.count - 2
    np.moveaxis(array, found.sliced["w"], 0)[channel] += 1
    tensor.CopyFrom(numpy_helper.from_array(array, "w"))
    faulty = np.moveaxis(ReferenceEvaluator(model).run(None, {"x": x})[0], found.axis, 0)
    same = [np.array_equal(one, other) for one, other in zip(golden, faulty, strict=True)]
    assert same == [k != channel for k in range(found.count)]


def test_scales_of_each_channel_are_sliced_and_stay_constant() -> None:
    net = partition_graph(load("models/fashion_cnn_int8_qdq.onnx"))
    names = [t.name for t in net.proto.graph.initializer if len(t.dims) == 4]
    found = [one for name in names if (one := output_channels(net, name)) is not None]
    assert found and all(one.count in {net.stored[name].dims[axis % len(net.stored[name].dims)]} for one in found
                         for name, axis in one.sliced.items())  # fmt: skip


def test_attributes_have_a_default() -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=3)
    assert (integer(node, "group", 1), integer(node, "axis", -1)) == (3, -1)
