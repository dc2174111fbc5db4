"""Small models for the tests, and messages written field by field where onnx would not write them so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from protobuf_reader import LAYOUT

from onnxfi.graph.model.stored_tensors import DATA_TYPES

#: Formats that onnxfi knows.
FORMATS = tuple(sorted(set(LAYOUT) & set(DATA_TYPES)))
#: The typed field of each format, and its number and the width of its numbers (0: varints).
TYPED = {1: ("float_data", 4, 4), 14: ("float_data", 4, 4), 11: ("double_data", 10, 8), 15: ("double_data", 10, 8)}
TYPED |= {7: ("int64_data", 7, 0), 12: ("uint64_data", 11, 0), 13: ("uint64_data", 11, 0)}
SIGNED = (3, 5, 6, 7)


def varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the low ones first; negative ones as 64-bit."""
    number %= 1 << 64
    out = []
    while number > 127:
        out.append(number % 128 + 128)
        number //= 128
    return bytes([*out, number])


def chunk(number: int, payload: bytes) -> bytes:
    """A field of text, bytes, a message or a packed list."""
    return varint(number * 8 + 2) + varint(len(payload)) + payload


def scalar(number: int, value: int) -> bytes:
    """A field of one varint."""
    return varint(number * 8) + varint(value)


def value(name: str, dims: Sequence[int | str | None] | None = None, data_type: int = 1) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, data_type, dims)


def graph(
    nodes: Iterable[NodeProto] = (),
    stored: Iterable[TensorProto] = (),
    *,
    inputs: Iterable[ValueInfoProto | str] = ("x",),
    outputs: Iterable[ValueInfoProto | str] = ("y",),
    **more: Any,
) -> GraphProto:
    ends = [[value(v) if isinstance(v, str) else v for v in some] for some in (inputs, outputs)]
    return helper.make_graph(list(nodes), more.pop("name", "g"), *ends, list(stored), **more)


def model(nodes: Iterable[NodeProto] | GraphProto = (), stored: Iterable[TensorProto] = (), **more: Any) -> ModelProto:
    """A model of IR 10 and opset 20; extra names go to the graph."""
    functions = more.pop("functions", ())
    opsets = [helper.make_opsetid(*o) for o in more.pop("opsets", (("", 20), ("ai.onnx.ml", 4), ("own", 1)))]
    held = nodes if isinstance(nodes, GraphProto) else graph(nodes, stored, **more)
    return helper.make_model(held, ir_version=10, opset_imports=opsets, functions=list(functions))


def node(op: str, inputs: Iterable[str] = (), outputs: Iterable[str] = ("y",), **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def floats(name: str, *dims: int, start: float = 1.0) -> TensorProto:
    """A float32 tensor of different numbers, raw."""
    return onnx.numpy_helper.from_array(
        (np.arange(np.prod(dims, dtype=int)) + np.float32(start)).reshape(dims).astype(np.float32), name
    )


def ints(name: str, values: Any, dtype: str = "int64") -> TensorProto:
    return onnx.numpy_helper.from_array(np.array(values, dtype), name)


def entries(data_type: int, words: Sequence[int]) -> list[int]:
    """The numbers that a typed integer field holds for these words, by the comments of onnx.proto."""
    bits = LAYOUT[data_type][1]
    if bits < 5:
        per = 8 // bits
        padded = [*words, *[0] * (-len(words) % per)]
        return [sum(w << (k * bits) for k, w in enumerate(padded[at : at + per])) for at in range(0, len(padded), per)]
    return [w - (1 << bits) if data_type in SIGNED and w >> (bits - 1) else w for w in words]


def raw(data_type: int, words: Sequence[int]) -> bytes:
    bits = LAYOUT[data_type][1]
    if bits < 8:
        each = np.array(words, np.uint8)[:, None] >> np.arange(bits, dtype=np.uint8) & 1
        return np.packbits(each.ravel(), bitorder="little").tobytes()
    return np.array(words, np.uint64).astype(f"<u{bits // 8}").tobytes()


def tensor_bytes(name: str, data_type: int, dims: Sequence[int], words: Sequence[int], form: str) -> bytes:
    """A serialised TensorProto in one of the forms `raw`, `packed` and `unpacked`."""
    head = b"".join(scalar(1, n) for n in dims) + scalar(2, data_type) + chunk(8, name.encode())
    if form == "raw":
        return head + chunk(9, raw(data_type, words))
    _, number, width = TYPED.get(data_type, ("int32_data", 5, 0))
    parts = [raw(data_type, [w]) if width else varint(n) for w, n in zip(words, words, strict=True)]
    if not width:
        parts = [varint(n) for n in entries(data_type, words)]
    if form == "packed":
        return head + chunk(number, b"".join(parts))
    return head + b"".join(varint(number * 8 + {4: 5, 8: 1, 0: 0}[width]) + part for part in parts)


def model_bytes(*tensors: bytes, behind: bytes = b"", inside: bytes = b"") -> bytes:
    """A model whose graph holds these serialised initializers, each used by an Identity of its own."""
    names = [TensorProto.FromString(tensor).name for tensor in tensors]
    held = graph([node("Identity", [n], [f"y{k}"]) for k, n in enumerate(names)], inputs=(), outputs=())
    body = held.SerializeToString() + b"".join(chunk(5, tensor) for tensor in tensors) + inside
    head = model(graph(inputs=(), outputs=()))
    head.ClearField("graph")
    return head.SerializeToString() + chunk(7, body) + behind
