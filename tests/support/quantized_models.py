"""One-layer models of every quantisation scheme, each with what numpy says that it answers, from the file's own words.

Nothing here is of onnxfi: the models are built with `onnx.helper`, and `Scheme.answer` computes from the words that
`reader` finds in a file, by the definitions of the operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from protobuf_reader import Stored

Array = NDArray[Any]
Words = Mapping[str, Stored]
X = np.random.default_rng(7).uniform(-1, 1, (3, 8)).astype(np.float32)
IMAGE = np.random.default_rng(8).uniform(-1, 1, (2, 2, 5, 5)).astype(np.float32)
_CARRIERS = {1: "f4", 2: "u1", 3: "i1", 6: "i4", 10: "f2"}


@dataclass(frozen=True)
class OneLayer:
    """A one-layer model: its stored integers by role, what numpy answers, and what a word stands for."""

    name: str
    model: onnx.ModelProto
    x: Array
    #: Ids of quantised targets and the role that they must have.
    roles: dict[str, str]
    answer: Callable[[Words], Array]
    #: (words, id, element) → the real number.
    real: Callable[[Words, str, int], float]
    scheme: str = "QDQ"
    tolerance: float = 2e-5


def numbers(words: Words, name: str) -> Array:
    """The numbers of a stored tensor, in its shape, by its ONNX type."""
    stored = words[name]
    if stored.data_type in (21, 22):  # uint4, int4
        values = stored.words.astype(np.int64)
        if stored.data_type == 22:
            values = np.where(values > 7, values - 16, values)
    elif stored.data_type == 16:
        values = stored.words.astype(np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    else:
        carrier = np.dtype(_CARRIERS[stored.data_type])
        values = stored.words.astype(f"u{carrier.itemsize}").view(carrier)
    return values.reshape(stored.dims)


def tensor(name: str, values: Any, kind: int) -> TensorProto:
    """An initializer, its words raw."""
    array = np.asarray(values)
    if kind in (TensorProto.INT4, TensorProto.UINT4):
        flat = np.append(array.astype(np.int64).ravel() & 15, np.zeros(array.size % 2, np.int64))
        packed = (flat[::2] | (flat[1::2] << 4)).astype(np.uint8).tobytes()
        return TensorProto(name=name, data_type=kind, dims=array.shape, raw_data=packed)
    if kind == TensorProto.BFLOAT16:
        return TensorProto(
            name=name, data_type=kind, dims=array.shape, raw_data=array.astype(ml_dtypes.bfloat16).tobytes()
        )
    return numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(kind)), name)


def build(
    nodes: list[onnx.NodeProto], stored: list[TensorProto], x: Array, *, opset: int = 17, rank: int = 0
) -> onnx.ModelProto:
    """A model from `x` to `y`, both float32."""
    rank = rank or x.ndim
    ins = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *x.shape[1:]])]
    outs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)]
    graph = helper.make_graph(nodes, "g", ins, outs, stored)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def quantised_input(x: Array, scale: Any, zero: Any) -> Array:
    """QuantizeLinear to uint8, and back: what an integer kernel computes with."""
    q = np.clip(np.rint(x / np.float32(scale)) + int(zero), 0, 255)
    return ((q - int(zero)) * np.float32(scale)).astype(np.float64)


def dynamic_input(x: Array) -> Array:
    """DynamicQuantizeLinear and back."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    zero = np.clip(np.rint(-np.float32(low) / scale), 0, 255)
    return ((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float64)


def convolve(x: Array, w: Array) -> Array:
    """A convolution without padding, in float64."""
    rows, columns = x.shape[2] - w.shape[2] + 1, x.shape[3] - w.shape[3] + 1
    out = np.zeros((len(x), len(w), rows, columns))
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            out += np.einsum("ncyx,oc->noyx", x[:, :, i : i + rows, j : j + columns].astype(np.float64), w[:, :, i, j])
    return out


def draw(shape: tuple[int, ...], low: int, high: int, seed: int = 1) -> Array:
    """Integers to start from."""
    return np.random.default_rng(seed).integers(low, high, shape)


U8, I8, I32, F32 = TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.FLOAT
ACTIVATION = [tensor("xs", 0.01, F32), tensor("xz", 120, U8)]
RESULT = [tensor("ys", 0.05, F32), tensor("yz", 100, U8)]
node = helper.make_node


def along(scale: Array, rank: int, axis: int) -> Array:
    """A scale in the shape that broadcasts along an axis."""
    return scale if scale.size == 1 else scale.reshape([-1 if k == axis else 1 for k in range(rank)])


def affine(words: Words, name: str, scale: Any, zero: Any) -> Array:
    """(integer − zero point) × scale, in float64."""
    return (numbers(words, name).astype(np.float64) - zero) * np.asarray(scale, np.float64)


def requantised(words: Words, y: Array) -> Array:
    """The answer through QuantizeLinear and DequantizeLinear with `ys` and `yz`."""
    return quantised_input(y.astype(np.float32), numbers(words, "ys"), numbers(words, "yz"))


# The schemes


def qdq_matmul() -> OneLayer:
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        node("MatMul", ["d", "wd"], ["y"]),
    ]
    stored = [*ACTIVATION, tensor("w", draw((8, 4), -60, 60), I8), tensor("ws", 0.02, F32), tensor("wz", 3, I8)]

    def weight(w: Words) -> Array:
        return affine(w, "w", numbers(w, "ws"), int(numbers(w, "wz")))

    return OneLayer(
        "qdq matmul", build(nodes, stored, X), X, {"w": "weight"},
        lambda w: quantised_input(X, numbers(w, "xs"), numbers(w, "xz")) @ weight(w),
        lambda w, _, at: float(weight(w).flat[at]),
    )  # fmt: skip


def qdq_conv_per_channel() -> OneLayer:
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        node("DequantizeLinear", ["b", "bs"], ["bd"], axis=0),
        node("Conv", ["d", "wd", "bd"], ["c"]),
        node("QuantizeLinear", ["c", "ys", "yz"], ["cq"]),
        node("DequantizeLinear", ["cq", "ys", "yz"], ["y"]),
    ]
    scales = np.array([0.02, 0.01, 0.03], np.float32)
    stored = [
        *ACTIVATION, *RESULT, tensor("w", draw((3, 2, 3, 3), -60, 60), I8), tensor("ws", scales, F32),
        tensor("wz", [0, 0, 0], I8), tensor("b", [400, -900, 1500], I32), tensor("bs", scales * np.float32(0.01), F32),
    ]  # fmt: skip

    def of(w: Words, name: str) -> Array:
        held = numbers(w, "ws" if name == "w" else "bs")
        return affine(w, name, along(held, 4 if name == "w" else 1, 0), 0)

    def answer(w: Words) -> Array:
        x = quantised_input(IMAGE, numbers(w, "xs"), numbers(w, "xz"))
        return requantised(w, convolve(x, of(w, "w")) + of(w, "b").reshape(1, -1, 1, 1))

    return OneLayer(
        "qdq conv per channel", build(nodes, stored, IMAGE), IMAGE, {"w": "weight", "b": "bias"}, answer,
        lambda w, name, at: float(of(w, name).flat[at]), tolerance=0.051,  # one step of the output, where it ties
    )  # fmt: skip


def qdq_int4_blocks() -> OneLayer:
    nodes = [
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0, block_size=4),
        node("MatMul", ["x", "wd"], ["y"]),
    ]
    scales = np.linspace(0.1, 0.5, 8).reshape(2, 4)
    stored = [
        tensor("w", draw((8, 4), -8, 8), TensorProto.INT4), tensor("ws", scales, F32),
        tensor("wz", np.arange(8).reshape(2, 4) - 4, TensorProto.INT4),
    ]  # fmt: skip

    def weight(w: Words) -> Array:
        scale, zero = (np.repeat(numbers(w, name), 4, axis=0) for name in ("ws", "wz"))
        return affine(w, "w", scale, zero)

    return OneLayer(
        "qdq int4 blocks", build(nodes, stored, X, opset=21), X, {"w": "weight"}, lambda w: X @ weight(w),
        lambda w, _, at: float(weight(w).flat[at]),
    )  # fmt: skip


def qlinear_conv() -> OneLayer:
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("QLinearConv", ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["c"]),
        node("DequantizeLinear", ["c", "ys", "yz"], ["y"]),
    ]
    stored = [
        *ACTIVATION, *RESULT, tensor("w", draw((3, 2, 3, 3), -60, 60), I8),
        tensor("ws", [0.02, 0.01, 0.03], F32), tensor("wz", [0, 0, 0], I8), tensor("b", [400, -900, 1500], I32),
    ]  # fmt: skip

    def of(w: Words, name: str) -> Array:
        held = numbers(w, "ws").astype(np.float64)
        return affine(w, name, along(held, 4, 0) if name == "w" else held * float(numbers(w, "xs")), 0)

    def answer(w: Words) -> Array:
        x = quantised_input(IMAGE, numbers(w, "xs"), numbers(w, "xz"))
        return requantised(w, convolve(x, of(w, "w")) + of(w, "b").reshape(1, -1, 1, 1))

    return OneLayer(
        "QLinearConv", build(nodes, stored, IMAGE), IMAGE, {"w": "weight", "b": "bias"}, answer,
        lambda w, name, at: float(of(w, name).flat[at]), "QOperator", 0.051,
    )  # fmt: skip


def qlinear_matmul() -> OneLayer:
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("QLinearMatMul", ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["m"]),
        node("DequantizeLinear", ["m", "ys", "yz"], ["y"]),
    ]
    stored = [
        *ACTIVATION, *RESULT, tensor("w", draw((8, 4), -60, 60), I8), tensor("ws", [0.02, 0.01, 0.03, 0.04], F32),
        tensor("wz", [0, 0, 0, 0], I8),
    ]  # fmt: skip

    def answer(w: Words) -> Array:
        x = quantised_input(X, numbers(w, "xs"), numbers(w, "xz"))
        return requantised(w, x @ affine(w, "w", numbers(w, "ws"), 0))

    return OneLayer(
        "QLinearMatMul", build(nodes, stored, X), X, {"w": "weight"}, answer,
        lambda w, _, at: float(affine(w, "w", numbers(w, "ws"), 0).flat[at]), "QOperator", 0.051,
    )  # fmt: skip


def qgemm() -> OneLayer:
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("QGemm", ["q", "xs", "xz", "w", "ws", "wz", "b", "ys", "yz"], ["m"], domain="com.microsoft", transB=1),
        node("DequantizeLinear", ["m", "ys", "yz"], ["y"]),
    ]
    stored = [
        *ACTIVATION, *RESULT, tensor("w", draw((4, 8), -60, 60), I8), tensor("ws", [0.02, 0.01, 0.03, 0.04], F32),
        tensor("wz", [0, 0, 0, 0], I8), tensor("b", [400, -900, 1500, 70], I32),
    ]  # fmt: skip

    def of(w: Words, name: str) -> Array:
        held = numbers(w, "ws").astype(np.float64)
        return affine(w, name, along(held, 2, 0) if name == "w" else held * float(numbers(w, "xs")), 0)

    def answer(w: Words) -> Array:
        x = quantised_input(X, numbers(w, "xs"), numbers(w, "xz"))
        return requantised(w, x @ of(w, "w").T + of(w, "b"))

    return OneLayer(
        "QGemm", build(nodes, stored, X), X, {"w": "weight", "b": "bias"}, answer,
        lambda w, name, at: float(of(w, name).flat[at]), "QOperator", 0.051,
    )  # fmt: skip


def qlinear_add() -> OneLayer:
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("QLinearMatMul", ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["m"]),
        node("QLinearAdd", ["m", "ys", "yz", "b", "bs", "bz", "ys", "yz"], ["a"], domain="com.microsoft"),
        node("DequantizeLinear", ["a", "ys", "yz"], ["y"]),
    ]
    stored = [
        *ACTIVATION, *RESULT, tensor("w", draw((8, 4), -60, 60), I8), tensor("ws", 0.02, F32), tensor("wz", 0, I8),
        tensor("b", [10, 200, 90, 130], U8), tensor("bs", 0.01, F32), tensor("bz", 128, U8),
    ]  # fmt: skip

    def of(w: Words, name: str) -> Array:
        return affine(w, name, numbers(w, f"{name}s"), int(numbers(w, f"{name}z")))

    def answer(w: Words) -> Array:
        x = quantised_input(X, numbers(w, "xs"), numbers(w, "xz"))
        return requantised(w, requantised(w, x @ of(w, "w")) + of(w, "b"))

    return OneLayer(
        "QLinearAdd", build(nodes, stored, X), X, {"w": "weight", "b": "bias"}, answer,
        lambda w, name, at: float(of(w, name).flat[at]), "QOperator", 0.101,
    )  # fmt: skip


def matmul_integer() -> OneLayer:
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "w", "z", "wz"], ["i"]),
        node("Cast", ["i"], ["f"], to=1),
        node("Mul", ["s", "ws"], ["scale"]),
        node("Mul", ["f", "scale"], ["m"]),
        node("Add", ["m", "b"], ["y"]),
    ]
    stored = [
        tensor("w", draw((8, 4), 0, 255), U8), tensor("ws", 0.02, F32), tensor("wz", 117, U8),
        tensor("b", [1, 2, 3, 4], F32),
    ]  # fmt: skip

    def weight(w: Words) -> Array:
        return affine(w, "w", numbers(w, "ws"), int(numbers(w, "wz")))

    return OneLayer(
        "MatMulInteger", build(nodes, stored, X), X, {"w": "weight"},
        lambda w: dynamic_input(X) @ weight(w) + numbers(w, "b"), lambda w, _, at: float(weight(w).flat[at]), "dynamic",
        1e-4,
    )  # fmt: skip


def conv_integer() -> OneLayer:
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("ConvInteger", ["q", "w", "z", "wz"], ["i"]),
        node("Cast", ["i"], ["f"], to=1),
        node("Mul", ["s", "ws"], ["scale"]),
        node("Mul", ["f", "scale"], ["y"]),
    ]
    stored = [tensor("w", draw((3, 2, 3, 3), 0, 255), U8), tensor("ws", 0.02, F32), tensor("wz", 117, U8)]

    def weight(w: Words) -> Array:
        return affine(w, "w", numbers(w, "ws"), int(numbers(w, "wz")))

    return OneLayer(
        "ConvInteger", build(nodes, stored, IMAGE), IMAGE, {"w": "weight"},
        lambda w: convolve(dynamic_input(IMAGE), weight(w)), lambda w, _, at: float(weight(w).flat[at]), "dynamic",
        1e-4,
    )  # fmt: skip


def dynamic_lstm() -> OneLayer:
    hidden = 4
    inputs = ["s", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"]
    nodes = [
        node("Unsqueeze", ["x", "first"], ["s"]),
        node("DynamicQuantizeLSTM", inputs, ["", "y"], domain="com.microsoft", hidden_size=hidden),
    ]
    stored = [
        tensor("first", [0], TensorProto.INT64), tensor("w", draw((1, 8, 16), -100, 100), I8),
        tensor("r", draw((1, 4, 16), -100, 100), I8), tensor("b", np.linspace(-1, 1, 32).reshape(1, 32), F32),
        tensor("ws", [0.01], F32), tensor("wz", [5], I8), tensor("rs", [0.01], F32), tensor("rz", [0], I8),
    ]  # fmt: skip

    def weight(w: Words, name: str) -> Array:
        return affine(w, name, numbers(w, f"{name}s"), int(numbers(w, f"{name}z")[0]))

    def answer(w: Words) -> Array:
        """One step from a state of zeros: gates i, o, f, c."""
        bias = numbers(w, "b")[0].astype(np.float64)
        gates = dynamic_input(X) @ weight(w, "w")[0] + bias[:16] + bias[16:]
        i, o, _, c = np.split(gates, 4, axis=1)
        cell = np.tanh(c) / (1 + np.exp(-i))
        return (np.tanh(cell) / (1 + np.exp(-o)))[None]

    return OneLayer(
        "DynamicQuantizeLSTM", build(nodes, stored, X, rank=3), X, {"w": "weight"}, answer,
        lambda w, name, at: float(weight(w, name).flat[at]), "dynamic", 1e-4,
    )  # fmt: skip


def cast_mul() -> OneLayer:
    nodes = [
        node("Cast", ["w"], ["wf"], to=1),
        node("Mul", ["wf", "ws"], ["wd"]),
        node("MatMul", ["x", "wd"], ["y"]),
    ]
    stored = [tensor("w", draw((8, 4), -100, 100), I8), tensor("ws", [[0.02, 0.01, 0.03, 0.04]], F32)]
    return OneLayer(
        "Cast + Mul", build(nodes, stored, X), X, {"w": "weight"},
        lambda w: X @ affine(w, "w", numbers(w, "ws"), 0),
        lambda w, _, at: float(affine(w, "w", numbers(w, "ws"), 0).flat[at]), "Cast + Mul",
    )  # fmt: skip


def cast_sub_mul() -> OneLayer:
    nodes = [
        node("Cast", ["w"], ["wf"], to=1),
        node("Cast", ["wz"], ["zf"], to=1),
        node("Sub", ["wf", "zf"], ["wc"]),
        node("Mul", ["wc", "ws"], ["wd"]),
        node("Gemm", ["x", "wd"], ["y"], transB=1),
    ]
    stored = [
        tensor("w", draw((4, 8), 0, 255), U8), tensor("wz", [[120], [130], [140], [128]], U8),
        tensor("ws", [[0.02], [0.01], [0.03], [0.04]], F32),
    ]  # fmt: skip

    def weight(w: Words) -> Array:
        return affine(w, "w", numbers(w, "ws"), numbers(w, "wz").astype(np.float64))

    return OneLayer(
        "Cast, Sub, Mul", build(nodes, stored, X), X, {"w": "weight"}, lambda w: X @ weight(w).T,
        lambda w, _, at: float(weight(w).flat[at]), "Cast + Mul",
    )  # fmt: skip


ALL = (
    qdq_matmul, qdq_conv_per_channel, qdq_int4_blocks, qlinear_conv, qlinear_matmul, qgemm, qlinear_add,
    matmul_integer, conv_integer, dynamic_lstm, cast_mul, cast_sub_mul,
)  # fmt: skip
