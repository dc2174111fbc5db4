"""An independent reader of stored numbers: the `onnx` package alone, a traversal of its own, nothing of onnxfi.

It says what a model holds, so that the tests can count which bits an injection changed. Ids follow the grammar of
targets, `PATH::NAME`, where PATH is `node.attribute` steps or `function:NAME`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

#: Words in one element, and bits of a word in the file, by TensorProto.DataType. Strings are no words.
LAYOUT = {
    1: (1, 32), 2: (1, 8), 3: (1, 8), 4: (1, 16), 5: (1, 16), 6: (1, 32), 7: (1, 64), 9: (1, 8), 10: (1, 16),
    11: (1, 64), 12: (1, 32), 13: (1, 64), 14: (2, 32), 15: (2, 64), 16: (1, 16), 17: (1, 8), 18: (1, 8), 19: (1, 8),
    20: (1, 8), 21: (1, 4), 22: (1, 4), 23: (1, 4), 24: (1, 8), 25: (1, 2), 26: (1, 2), 27: (1, 6), 28: (1, 6),
}  # fmt: skip
_PAYLOADS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_SCALARS = {"value_float": "f", "value_int": "i"}
_LISTS = {"value_floats": "floats", "value_ints": "ints"}


@dataclass(frozen=True)
class Stored:
    """One stored tensor or number list: its id, TensorProto.DataType, dims, and its words as integers ([n])."""

    id: str
    data_type: int
    dims: tuple[int, ...]
    words: NDArray[np.uint64] = field(repr=False)
    message: Any = field(repr=False)
    fields: tuple[str, ...] = field(repr=False)


def parse(model: Path | bytes) -> ModelProto:
    """The message, without its external data."""
    return onnx.ModelProto.FromString(model if isinstance(model, bytes) else model.read_bytes())


def read(model: Path | bytes) -> dict[str, Stored]:
    """Everything that a model stores as numbers, by id, in the order of targets."""
    folder = model.parent if isinstance(model, Path) else None
    return {found.id: found for found in stored(parse(model), folder)}


def stored(proto: ModelProto, folder: Path | None) -> list[Stored]:
    """The same of a parsed message, as a list: an id that is there twice shows."""
    found = _graph(proto.graph, "", folder)
    for function in proto.functions:
        name = ":".join(part for part in (function.domain, function.name, function.overload) if part)
        found += _nodes(function.node, f"function:{name}::", {}, folder)
    return found


def _graph(graph: GraphProto, path: str, folder: Path | None) -> list[Stored]:
    last: dict[str, list[Stored]] = {}
    for tensor in graph.initializer:
        last[tensor.name] = _tensor(tensor, path + tensor.name, folder)
    for sparse in graph.sparse_initializer:
        last[sparse.values.name] = _tensor(sparse.values, path + sparse.values.name, folder)
    return _nodes(graph.node, path, last, folder)


def _nodes(nodes: Any, path: str, last: dict[str, list[Stored]], folder: Path | None) -> list[Stored]:
    labelled: dict[str, NodeProto] = {}
    for k, node in enumerate(nodes):
        label = node.name or f"{node.op_type}#{k}"
        label = label if label not in labelled else f"{label}#{k}"
        labelled[label] = node
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            last.pop(node.output[0], None)
            last[node.output[0]] = [s for a in node.attribute for s in _constant(a, path + node.output[0], folder)]
        elif node.domain == "ai.onnx.ml":
            for attribute in node.attribute:
                last[f"\0{label}.{attribute.name}"] = _ml(attribute, f"{path}{label}.{attribute.name}", folder)
    here = [s for group in last.values() for s in group]
    for label, node in labelled.items():
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                here += _graph(attribute.g, f"{path}{label}.{attribute.name}::", folder)
            for k, body in enumerate(attribute.graphs):
                number = f"#{k}" if len(attribute.graphs) > 1 else ""
                here += _graph(body, f"{path}{label}.{attribute.name}{number}::", folder)
    return here


def _constant(attribute: AttributeProto, name: str, folder: Path | None) -> list[Stored]:
    if attribute.name == "value":
        return _tensor(attribute.t, name, folder)
    if attribute.name == "sparse_value":
        return _tensor(attribute.sparse_tensor.values, name, folder)
    return _numbers(attribute, name, (_SCALARS | _LISTS).get(attribute.name, ""))


def _ml(attribute: AttributeProto, name: str, folder: Path | None) -> list[Stored]:
    if attribute.type == AttributeProto.TENSOR:
        return _tensor(attribute.t, name, folder)
    return _numbers(
        attribute, name, {AttributeProto.FLOATS: "floats", AttributeProto.INTS: "ints"}.get(attribute.type, "")
    )


def _numbers(attribute: AttributeProto, name: str, held: str) -> list[Stored]:
    if not held or not (getattr(attribute, held) if held.endswith("s") else attribute.HasField(held)):
        return []
    if held in ("i", "ints"):
        values = [attribute.i] if held == "i" else attribute.ints
        words, data_type = np.array(values, np.int64).view(np.uint64), TensorProto.INT64
    else:
        # Each number is one tag and four bytes; Python's floats would quieten a signalling NaN.
        alone = _only(attribute, held).SerializeToString()
        words = np.frombuffer(alone, np.uint8).reshape(-1, 5)[:, 1:].copy().view("<u4").ravel().astype(np.uint64)
        data_type = TensorProto.FLOAT
    dims = () if held in ("i", "f") else (len(words),)
    return [Stored(name, data_type, dims, words, attribute, (held,))]


def _tensor(tensor: TensorProto, name: str, folder: Path | None) -> list[Stored]:
    if tensor.data_type not in LAYOUT:
        return []
    parts, bits = LAYOUT[tensor.data_type]
    count = int(np.prod(tensor.dims, dtype=object)) * parts
    return [Stored(name, tensor.data_type, tuple(tensor.dims), _words(tensor, folder, bits, count), tensor, _PAYLOADS)]


def _words(tensor: TensorProto, folder: Path | None, bits: int, count: int) -> NDArray[np.uint64]:
    typed = next((name for name in _PAYLOADS[1:] if len(getattr(tensor, name))), None)
    if tensor.data_location == TensorProto.EXTERNAL:
        assert folder is not None
        return _split(_external(tensor, folder, (count * bits + 7) // 8), bits, count)
    if tensor.HasField("raw_data") or typed is None:
        return _split(tensor.raw_data, bits, count)
    if typed in ("float_data", "double_data"):
        return _split(_packed(_only(tensor, typed).SerializeToString()), bits, count)
    numbers = np.array(getattr(tensor, typed), object)
    words = np.array([n & ((1 << 64) - 1) for n in numbers], np.uint64) & np.uint64((1 << max(8, bits)) - 1)
    return words if bits >= 6 else _split(words.astype(np.uint8).tobytes(), bits, count)


def _split(data: bytes, bits: int, count: int) -> NDArray[np.uint64]:
    """Words of `bits` bits, the first in the lowest bits, out of little-endian bytes."""
    if bits >= 8:
        words = np.frombuffer(data, f"<u{bits // 8}").astype(np.uint64)
    else:
        all_bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count * bits].reshape(-1, bits)
        words = (all_bits * (1 << np.arange(bits))).sum(axis=1).astype(np.uint64)
    assert len(words) == count
    return words


def _external(tensor: TensorProto, folder: Path, size_bytes: int) -> bytes:
    entries = {e.key: e.value for e in tensor.external_data}
    with (folder / entries["location"]).open("rb") as stream:
        stream.seek(int(entries.get("offset", 0)))
        return stream.read(int(entries.get("length", size_bytes)))


def _only(message: Any, name: str) -> Any:
    """A copy of a message with one field left."""
    alone = type(message)()
    alone.CopyFrom(message)
    alone.DiscardUnknownFields()
    for held, _ in alone.ListFields():
        if held.name != name:
            alone.ClearField(held.name)
    return alone


def _packed(message: bytes) -> bytes:
    """The payload of a message whose one field is a packed list."""
    at = 1
    while message[at] > 127:
        at += 1
    return message[at + 1 :]


def tensors(message: Any) -> Iterator[TensorProto]:
    """Every tensor anywhere inside a message, targets or not."""
    for found, value in message.ListFields():
        if found.type == found.TYPE_MESSAGE:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from [inner] if isinstance(inner, TensorProto) else tensors(inner)
