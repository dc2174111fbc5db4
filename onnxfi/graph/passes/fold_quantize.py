"""Folding: weights that are stored as floats behind a QuantizeLinear become the integers that it would put out.

Quantisation-aware training leaves such models. What a device keeps in memory are the integers, so that is what a
fault must hit; the runtime's answers stay the same, since it computes the same integers when it loads the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import ModelError
from onnxfi.faults.words import WORDS, Word
from onnxfi.graph.model.graph_index import subgraphs
from onnxfi.graph.model.loading import Model
from onnxfi.graph.model.stored_tensors import DATA_TYPES

if TYPE_CHECKING:
    import onnx

_OUTPUT_TYPE = {word.name: number for number, word in DATA_TYPES.items()}


def fold_weight_quantize(model: Model) -> bytes:
    """The model with the integers of its stored, quantised weights in place of the floats; as it is where none are.

    Looks at the main graph. The integers are QuantizeLinear's: x / scale in float32, rounded half to even, plus the
    zero point, held at the ends of the range.

    >>> from onnx import parser
    >>> from onnxfi.graph.model.loading import load
    >>> made = parser.parse_model('''<ir_version: 10, opset_import: ["": 21]> g (float[1,2] x) => (float[1,1] y)
    ...   <float[2,1] w = {1.0, -0.3}, float s = {0.5}, int8 z = {0}>
    ...   { q = QuantizeLinear(w, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(x, d) }''')
    >>> folded = load(fold_weight_quantize(load(made)))
    >>> folded.words(folded.targets[2], np.arange(2)).tolist(), folded.targets[2].role, folded.targets[2].dtype
    ([2, 255], 'weight', 'int8')
    """
    import onnx

    path = model.path
    proto = onnx.load(path) if path is not None else onnx.load_from_string(model.source.data or b"")
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    constants = {
        n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t")
    }
    known = stored | constants
    folded: set[str] = set()
    for node in [*graph.node]:
        values = [known.get(name) for name in node.input]
        if node.op_type != "QuantizeLinear" or any(v is None for v in values) or node.output[0] in folded:
            continue
        if DATA_TYPES[known[node.input[0]].data_type].is_float:
            tensor = _integers(node, [known[name] for name in node.input])
            graph.initializer.append(tensor)
            graph.node.remove(node)
            folded.add(node.output[0])
    if not folded:
        return proto.SerializeToString(deterministic=True)
    _sweep(graph)
    return proto.SerializeToString(deterministic=True)


def _integers(node: onnx.NodeProto, values: list[onnx.TensorProto]) -> onnx.TensorProto:
    """What a QuantizeLinear puts out, as a tensor of its output's name."""
    import onnx

    x, scale = (np.asarray(onnx.numpy_helper.to_array(v), np.float32) for v in values[:2])
    numbers = {a.name: int(a.i) for a in node.attribute if a.HasField("i")}
    word = _word(node, numbers, values)
    zero: Any = 0
    if len(values) > 2:
        zero = np.asarray(onnx.numpy_helper.to_array(values[2])).astype(np.float32)
    axis, block = numbers.get("axis", 1), numbers.get("block_size", 0)
    scale, zero = (_spread(np.asarray(a, np.float32), x.shape, axis, block) for a in (scale, zero))
    with np.errstate(all="ignore"):
        words = word.words(np.rint(x / scale).astype(np.float64) + zero)
    data = bytearray(word.size_bytes(x.size))
    if word.bits >= 8:
        data = bytearray(words.astype(word.carrier).tobytes())
    else:
        for position, one in enumerate(words.ravel().tolist()):
            word.write(data, position, one)
    tensor = onnx.TensorProto(name=node.output[0], data_type=_OUTPUT_TYPE[word.name], raw_data=bytes(data))
    tensor.dims.extend(x.shape)
    return tensor


def _word(node: onnx.NodeProto, numbers: dict[str, int], values: list[onnx.TensorProto]) -> Word:
    number = values[2].data_type if len(values) > 2 else numbers.get("output_dtype", 0)
    word = DATA_TYPES[number] if number else WORDS["uint8"]
    if word.is_float:
        raise ModelError(f"{node.output[0]!r} is quantised to {word.name}; only integers are folded")
    return word


def _spread(held: NDArray[np.float32], shape: tuple[int, ...], axis: int, block: int) -> NDArray[np.float32]:
    """A scale or zero point in the shape of the tensor: one, one a channel, or one a block."""
    if held.size == 1:
        return held.reshape(())
    if block:
        return np.repeat(held, block, axis=axis).take(range(shape[axis]), axis)
    return held.reshape([-1 if k == axis % len(shape) else 1 for k in range(len(shape))])


def _sweep(graph: onnx.GraphProto) -> None:
    """Take out stored tensors that nothing uses any more, and their inputs."""
    used = {value.name for value in graph.output} | _names(graph)
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in used]:
        graph.node.remove(node)
    gone = {tensor.name for tensor in graph.initializer if tensor.name not in used}
    for field in (graph.initializer, graph.input):
        for item in [item for item in field if item.name in gone]:
            field.remove(item)  # type: ignore[arg-type]


def _names(graph: onnx.GraphProto) -> set[str]:
    """Every name that a node of this graph or of one inside it reads."""
    found: set[str] = set()
    for node in graph.node:
        found |= set(node.input)
        for _, inner in subgraphs(node):
            found |= _names(inner) | {value.name for value in inner.output}
    return found
