"""Folding: float weights before a QuantizeLinear are replaced by its integer outputs.

Quantisation-aware training gives such models. A device stores the integers, so these are the targets of faults. The
runtime's outputs stay the same, since it computes the same integers when it loads the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxfi.errors import ModelError
from onnxfi.faults.words import WORDS, Word
from onnxfi.graph.model.graph_index import integer, read_names
from onnxfi.graph.model.loading import Model, parse
from onnxfi.graph.model.stored_tensors import DATA_TYPES, stored_numbers, stored_tensors
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.passes.node_builder import NUMBER


@dataclass(frozen=True)
class FoldQuantize(ModelPass[tuple[str, ...]]):
    """The pass that folds the quantised weights of the main graph; its result is their names.

    The integers are QuantizeLinear's: x / scale in float32, rounded half to even, plus the zero point, clipped to
    the range. `folder` is the folder of the model's external data.
    """

    folder: Path | None = None
    name = "fold-quantize"

    def apply(self, proto: onnx.ModelProto) -> tuple[str, ...]:
        """Store the integers of each weight, and drop its QuantizeLinear."""
        folded, read = [], set[str]()
        for node, values in list(_quantised_weights(proto.graph)):
            if node.output[0] not in folded:
                proto.graph.initializer.append(_integers(node, values, self.folder))
                read |= set(node.input)
                folded.append(node.output[0])
                proto.graph.node.remove(node)
        _drop_unused(proto.graph, read)
        return tuple(folded)


def fold_weight_quantize(model: Model) -> bytes:
    """Return the model with the integers of its quantised weights in place of the floats.

    Parameters
    ----------
    model : Model
        The model; weights in external data are taken into the result.

    Returns
    -------
    bytes
        The folded model, serialised; the model as it is where nothing is to be folded.

    Examples
    --------
    >>> from onnx import parser
    >>> from onnxfi.graph.model.loading import load
    >>> made = parser.parse_model('''<ir_version: 10, opset_import: ["": 21]> g (float[1,2] x) => (float[1,1] y)
    ...   <float[2,1] w = {1.0, -0.3}, float s = {0.5}, int8 z = {0}>
    ...   { q = QuantizeLinear(w, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(x, d) }''')
    >>> folded = load(fold_weight_quantize(load(made)))
    >>> folded.words(folded.targets[2], np.arange(2)).tolist(), folded.targets[2].role, folded.targets[2].dtype
    ([2, 255], 'weight', 'int8')
    """
    folder = None if model.path is None else model.path.parent
    proto, _ = FoldQuantize(folder).run(parse(model))
    if model.external:
        onnx.load_external_data_for_model(proto, str(folder))
    return proto.SerializeToString(deterministic=True)


def _quantised_weights(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, list[onnx.TensorProto]]]:
    """Find each QuantizeLinear that reads only stored tensors, and those: floats, scale and zero point."""
    stored = stored_tensors(graph)
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and all(name in stored for name in node.input if name):
            values = [stored[name] for name in node.input if name]
            if DATA_TYPES[values[0].data_type].is_float:
                yield node, values


def _integers(node: onnx.NodeProto, values: list[onnx.TensorProto], folder: Path | None) -> onnx.TensorProto:
    """Return the output of a QuantizeLinear as a stored tensor."""
    x, *held = (stored_numbers(value, folder).astype(np.float32) for value in values)
    word = _quantised_format(node, values)
    axis, block = integer(node, "axis", 1), integer(node, "block_size", 0)
    scale, zero = (_broadcast(a, x.shape, axis, block) for a in (*held, np.zeros((), np.float32))[:2])
    with np.errstate(all="ignore"):
        words = word.words(np.rint(x / scale).astype(np.float64) + zero)
    data = bytearray(word.size_bytes(x.size))
    if word.bits >= 8:
        data = bytearray(words.astype(word.carrier).tobytes())
    else:
        for position, one in enumerate(words.ravel().tolist()):
            word.write(data, position, one)
    tensor = onnx.TensorProto(name=node.output[0], data_type=NUMBER[word.name], raw_data=bytes(data))
    tensor.dims.extend(x.shape)
    return tensor


def _quantised_format(node: onnx.NodeProto, values: list[onnx.TensorProto]) -> Word:
    """Return the output format of a QuantizeLinear."""
    number = values[2].data_type if len(values) > 2 else integer(node, "output_dtype", 0)
    word = DATA_TYPES[number] if number else WORDS["uint8"]
    if word.is_float:
        raise ModelError(f"{node.output[0]!r} is quantised to {word.name}; only integers are folded")
    return word


def _broadcast(held: NDArray[np.float32], shape: tuple[int, ...], axis: int, block: int) -> NDArray[np.float32]:
    """Return a scale or zero point in the shape of the tensor: one value, one per channel, or one per block."""
    if held.size == 1:
        return held.reshape(())
    if block:
        return np.repeat(held, block, axis=axis).take(range(shape[axis]), axis)
    return held.reshape([-1 if k == axis % len(shape) else 1 for k in range(len(shape))])


def _drop_unused(graph: onnx.GraphProto, names: set[str]) -> None:
    """Drop those of these stored tensors that have no readers, and the inputs of their names."""
    gone = names - {value.name for value in graph.output} - {name for node in graph.node for name in read_names(node)}
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] in gone]:
        graph.node.remove(node)
    for field in (graph.initializer, graph.input):
        for item in [item for item in field if item.name in gone]:
            field.remove(item)  # type: ignore[arg-type]
