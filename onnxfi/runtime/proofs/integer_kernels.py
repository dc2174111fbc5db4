"""Exact and saturating sums of products of 8-bit numbers in the kernels of a runtime.

Processors with AVX2 and no VNNI add pairs of products of an unsigned and a signed number in 16 bits, which saturate: of
255 · 127 + 255 · 127 = 64,770 there remain 32,767. ONNX Runtime uses that instruction (`vpmaddubsw`), and advises
weights of 7 bits for these processors (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import EngineError
from onnxfi.graph.model.graph_index import GraphIndex
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.runtime.proofs.bounds import Floats
from onnxfi.runtime.proofs.operators import Convolution
from onnxfi.runtime.proofs.quantised_layers import Quantisation, QuantisedLayer

if TYPE_CHECKING:
    import onnx

#: The largest sum of a pair of products that 16 bits hold, and the largest 8-bit number, as kernels take activations.
_PAIR, _LARGEST = 2**15 - 1, 255
#: Operators on whole numbers, and those of the QDQ form, which a runtime makes one of them.
_INTEGER = frozenset((
    "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul", "QAttention",
))  # fmt: skip
_QUANTISED = _INTEGER | {"DequantizeLinear"}
#: Inputs of the convolution that stands for all.
_INPUTS = 64
#: Outputs of a layer that are tried, and the quantised output of the largest sum.
_OUTPUTS, _FULL = 8, 100.0


def adds_exactly(engine: Engine, layer: QuantisedLayer) -> bool:
    """Return whether an engine adds up the products of a layer exactly, tried with the largest numbers there are.

    The layer that is run has the operator, the formats and the shape of this one, and the largest and smallest
    weights and inputs.
    """
    weights, inputs = _extremes(layer)
    product = layer.product
    if isinstance(product, Convolution):
        product = Convolution(weights.astype(np.float64), dilations=product.dilations)
        sums = product(inputs - float(layer.taken.zero))
    else:
        sums = (inputs - float(layer.taken.zero)) @ weights.T.astype(np.float64)
    scale = np.float32(max(np.abs(sums).max(), 1.0) / _FULL)
    found = engine.prepare(_model(layer, weights, inputs, scale).SerializeToString()).run({"x": _read(layer, inputs)})
    return bool(np.abs(found["y"] - np.rint(sums / scale) * scale).max() <= 1.5 * scale)  # a tie may go either way


def integer_sums(engine: Engine, net: GraphIndex) -> str | None:
    """Return `exact` or `saturating`, as an engine adds up products of uint8 activations and int8 weights.

    None for a model without quantised operators, and where the engine does not run such a sum alone.
    """
    operators = {node.op for node in net.nodes}
    if not operators & _QUANTISED:
        return None
    scale = Quantisation(np.float32(1), 0, 0, _LARGEST)
    kernel = Convolution(np.ones((_OUTPUTS, _INPUTS, 1, 1)))
    zeros, ones = np.zeros(_OUTPUTS), np.ones(_OUTPUTS, np.float32)
    operator = "QLinearConv" if operators & _INTEGER else "Conv"
    layer = QuantisedLayer("q", "out", "w", "", kernel, zeros, ones, scale, scale, operator=operator, dtype="int8")
    try:
        return "exact" if adds_exactly(engine, layer) else "saturating"
    except EngineError:
        return None


def largest_weights(layer: QuantisedLayer) -> Floats:
    """Return how large a faulty weight of each output may be with no pair of products beyond 16 bits ([outputs]).

    −1 where pairs of the stored weights may be beyond them.
    """
    stored = np.abs(layer.product.weights).reshape(len(layer.product.weights), -1).max(1)
    left = np.floor(_PAIR / _LARGEST) - stored
    return np.where(left >= stored, left, -1.0)


def _extremes(layer: QuantisedLayer) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return weights and quantised inputs of a layer, each the largest or the smallest of its format."""
    shape = layer.product.weights.shape
    dtype = np.dtype(layer.dtype)
    ends = np.iinfo(dtype)
    weights = np.empty((min(shape[0], _OUTPUTS), *shape[1:]), dtype)
    weights[::2], weights[1::2] = ends.max, ends.min
    window = shape[2:]
    if isinstance(layer.product, Convolution):
        window = tuple(d * (k - 1) + 2 for d, k in zip(layer.product.dilations, window, strict=True))
    inputs = np.empty((2, shape[1], *window))
    inputs[0], inputs[1] = layer.taken.highest, layer.taken.lowest
    return weights, inputs


def _read(layer: QuantisedLayer, inputs: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the float inputs that become these quantised ones at a scale of 1."""
    return np.asarray((inputs - layer.taken.zero).astype(np.float32))


def _model(layer: QuantisedLayer, weights: NDArray[Any], inputs: NDArray[Any], scale: np.float32) -> onnx.ModelProto:
    """Return a model of one layer in the form of this one, with all scales 1 but that of its output."""
    from onnx import TensorProto, helper, numpy_helper

    kind = np.int8 if layer.taken.lowest < 0 else np.uint8
    stored = {
        "one": np.float32(1), "zero": np.array(layer.taken.zero, kind), "w": weights, "wz": np.zeros((), weights.dtype),
        "scale": scale, "middle": np.array(0 if kind is np.int8 else 128, kind),
    }  # fmt: skip
    is_matrix = layer.operator in ("Gemm", "QGemm")
    how = {"transB": 1} if is_matrix else {"dilations": list(getattr(layer.product, "dilations", (1, 1)))}
    quantised, given = ["q", "one", "zero"], ["scale", "middle"]
    nodes = [helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"])]
    if layer.operator == "QLinearConv":
        nodes.append(helper.make_node(layer.operator, [*quantised, "w", "one", "wz", *given], ["out"], **how))
    elif layer.operator == "QGemm":
        names = [*quantised, "w", "one", "wz", "", *given]
        nodes.append(helper.make_node(layer.operator, names, ["out"], domain="com.microsoft", **how))
    else:
        nodes += [
            helper.make_node("DequantizeLinear", quantised, ["a"]),
            helper.make_node("DequantizeLinear", ["w", "one", "wz"], ["b"]),
            helper.make_node(layer.operator, ["a", "b"], ["c"], **how),
            helper.make_node("QuantizeLinear", ["c", *given], ["out"]),
        ]
    nodes.append(helper.make_node("DequantizeLinear", ["out", *given], ["y"]))
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=9)
