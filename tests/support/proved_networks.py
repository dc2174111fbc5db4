"""Small classifiers with adversarial numbers, and the full run of every fault in them: the truth for proofs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.proofs.operators import Convolution, Matrix
from onnxfi.runtime.proofs.quantised_layers import Quantisation, QuantisedLayer

Floats = NDArray[np.float32]
CLASSES = 4


def network(kind: str, rng: np.random.Generator, scale: float) -> bytes:
    """Return a classifier of images [N, 2, 6, 6] or rows [N, 12], with weights of this scale."""
    stored: dict[str, Floats] = {}

    def put(name: str, *shape: int) -> str:
        stored[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
        return name

    nodes = {
        "mlp": lambda: [
            ("Gemm", ["x", put("w1", 6, 12), put("b1", 6)], "h", {"transB": 1}),
            ("Relu", ["h"], "a", {}),
            ("MatMul", ["a", put("w2", 6, CLASSES)], "m", {}),
            ("Add", ["m", put("b2", CLASSES)], "y", {}),
        ],
        "softmax": lambda: [
            ("Gemm", ["x", put("w1", 12, 6), put("b1", 6)], "h", {}),
            ("Clip", ["h", "zero", "six"], "a", {}),
            ("Gemm", ["a", put("w2", 6, CLASSES), put("b2", CLASSES)], "m", {}),
            ("Softmax", ["m"], "y", {}),
        ],
        "cnn": lambda: [
            ("Conv", ["x", put("w1", 3, 2, 3, 3), put("b1", 3)], "h", {"pads": [1, 1, 1, 1]}),
            ("Relu", ["h"], "a", {}),
            ("MaxPool", ["a"], "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Conv", ["p", put("w2", 4, 3, 2, 2)], "h2", {"strides": [1, 1]}),
            ("Relu", ["h2"], "a2", {}),
            ("Flatten", ["a2"], "f", {}),
            ("Gemm", ["f", put("w3", CLASSES, 16), put("b3", CLASSES)], "y", {"transB": 1}),
        ],
        "residual": lambda: [
            ("Conv", ["x", put("w0", 3, 2, 1, 1)], "s", {}),
            ("Conv", ["s", put("w1", 3, 3, 3, 3)], "h", {"pads": [1, 1, 1, 1]}),
            ("BatchNormalization", ["h", put("g", 3), put("o", 3), put("mean", 3), "variance"], "n", {}),
            ("Add", ["n", "s"], "r", {}),
            ("Relu", ["r"], "a", {}),
            ("GlobalAveragePool", ["a"], "p", {}),
            ("Flatten", ["p"], "f", {}),
            ("Gemm", ["f", put("w3", CLASSES, 3), put("b3", CLASSES)], "y", {"transB": 1}),
        ],
    }[kind]()
    stored |= {
        "zero": np.float32(0),
        "six": np.float32(6),
        "variance": np.abs(rng.standard_normal(3)).astype(np.float32) + 0.1,
    }
    used = {name for _, inputs, _, _ in nodes for name in inputs}
    shape = ["N", 12] if kind in ("mlp", "softmax") else ["N", 2, 6, 6]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [out], **given) for op, inputs, out, given in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def spoiled(model: bytes, rng: np.random.Generator) -> bytes:
    """Return the model with some weights that are adversarial: equal rows, subnormal, huge, infinite or NaN."""
    import onnx

    proto = onnx.ModelProto.FromString(model)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.ndim < 2 and tensor.name not in ("b1", "b2", "b3"):
            continue
        flat = array.reshape(-1)
        some = rng.integers(0, flat.size, 2)
        flat[some] = rng.choice([0.0, -0.0, 1e-42, 1.5, -1.0, 1e30, 3e38], 2).astype(np.float32)
        if rng.random() < 0.15:
            flat[some[0]] = rng.choice([np.inf, np.nan])
        if array.ndim == 2 and rng.random() < 0.5:
            array[0] = array[1]  # ties
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto.SerializeToString()


def images(kind: str, rng: np.random.Generator, samples: int) -> Floats:
    """Return inputs, half of them not below zero, with exact zeros."""
    shape = (samples, 12) if kind in ("mlp", "softmax") else (samples, 2, 6, 6)
    found = rng.standard_normal(shape).astype(np.float32)
    found[: samples // 2] = np.maximum(found[: samples // 2], 0)
    found[0] = 0
    return found


def faulty_scores(
    model: bytes, x: Floats, tensor: str, elements: NDArray[np.int64], bits: NDArray[np.int64]
) -> Iterator[Floats]:
    """Yield the scores of the whole model with one flipped bit at a time."""
    import onnx

    proto = onnx.ModelProto.FromString(model)
    [held] = [one for one in proto.graph.initializer if one.name == tensor]
    golden = numpy_helper.to_array(held).copy()
    for element, bit in zip(elements.tolist(), bits.tolist(), strict=True):
        array = golden.copy()
        array.reshape(-1).view(np.uint32)[element] ^= np.uint32(1 << bit)
        held.CopyFrom(numpy_helper.from_array(array, tensor))
        yield OrtEngine(provider="cpu").prepare(proto.SerializeToString()).run({"x": x})["y"]


def changed_scores(model: bytes, x: Floats, tensor: str, elements: NDArray[np.int64], values: Floats) -> Floats:
    """Return the scores of the whole model with other numbers in some elements of a tensor."""
    import onnx

    proto = onnx.ModelProto.FromString(model)
    [held] = [one for one in proto.graph.initializer if one.name == tensor]
    array = numpy_helper.to_array(held).copy()
    array.reshape(-1)[elements] = values
    held.CopyFrom(numpy_helper.from_array(array, tensor))
    return OrtEngine(provider="cpu").prepare(proto.SerializeToString()).run({"x": x})["y"]


def integer_layer(operator: str = "QLinearConv", dtype: str = "int8", zero: int = 3, lowest: int = 0) -> QuantisedLayer:
    """Return a quantised layer of this form, whose stored weights are 60, but for one of 100 in its last output."""
    matrix = operator in ("Gemm", "QGemm")
    weights = np.full((3, 12) if matrix else (3, 4, 2, 3), 60.0)
    weights[2].flat[1] = -100.0
    product = Matrix(weights) if matrix else Convolution(weights, strides=(2, 1), pads=(1, 1, 0, 1), dilations=(1, 2))
    scale = Quantisation(np.float32(1), zero, lowest, lowest + 255)
    return QuantisedLayer(
        "q", "out", "w", "", product, np.zeros(3), np.ones(3, np.float32), scale, scale, operator=operator, dtype=dtype
    )
