"""Models of some nodes of another model; large tensors are not copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from onnxfi.graph.model.byte_source import StoredArray
from onnxfi.graph.partition.blocked_layout import keep_blocks
from onnxfi.graph.partition.stripped_tensors import LARGE_BYTES, strip_numbers
from onnxfi.graph.partition.subgraph import PartitionGraph, TensorLocation, at, body, tensor_at

if TYPE_CHECKING:
    import onnx

#: TensorProto's number of float32.
FLOAT = 1
#: Samples, channels, height and width.
_IMAGE_DIMS = 4
#: The type of an input: the number of its element type, and its shape (None: open).
InputType = tuple[int, Sequence[int | str | None] | None]


@dataclass(frozen=True)
class SubgraphModel:
    """A serialised model without its large weights, and these weights or their locations in a file."""

    data: bytes = field(repr=False)
    stored: Mapping[str, NDArray[Any] | StoredArray] = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """Return its size before it is prepared."""
        return len(self.data) + sum(array.nbytes for array in self.stored.values())


def extract_model(
    net: PartitionGraph,
    nodes: Sequence[int],
    feeds: Mapping[str, InputType],
    outputs: Sequence[str],
    lifted: TensorLocation | None = None,
    faulty: Mapping[TensorLocation, NDArray[Any]] | None = None,
) -> SubgraphModel:
    """Return a model of these nodes alone.

    Parameters
    ----------
    net : PartitionGraph
        The graph of the whole model.
    nodes : sequence of int
        The nodes, in file order.
    feeds : mapping of str to InputType
        The inputs; they may be weights of the whole model.
    outputs : sequence of str
        The outputs.
    lifted : TensorLocation, optional
        A tensor inside a body that is fed from outside.
    faulty : mapping of TensorLocation to array, optional
        Faulty weights.
    """
    import onnx
    from onnx import helper, numpy_helper

    whole, keep = net.proto, [k for k in nodes if feeds.keys().isdisjoint(net.proto.graph.node[k].output)]
    made = onnx.ModelProto(ir_version=max(whole.ir_version, 4))
    made.opset_import.extend(whole.opset_import)
    made.functions.extend(whole.functions)
    graph = made.graph
    graph.name = "part"
    for name, (kind, shape) in feeds.items():
        graph.input.append(helper.make_tensor_value_info(name, kind, _declared(net, name, kind, shape)))
    made_here = {name for k in keep for name in whole.graph.node[k].output}.difference(outputs)
    # After a slice of a weight the declared number of channels is wrong, and a runtime fuses less.
    if all(array.shape == tuple(tensor_at(net, where).dims) for where, array in (faulty or {}).items()):
        graph.value_info.extend(net.declared[name] for name in made_here & net.declared.keys())
    graph.node.extend(whole.graph.node[k] for k in keep)
    read = {name for k in keep for name in net.reads[k]} - feeds.keys()
    graph.initializer.extend(t for t in whole.graph.initializer if t.name in read)
    graph.sparse_initializer.extend(t for t in whole.graph.sparse_initializer if t.values.name in read)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    stored: dict[str, NDArray[Any] | StoredArray] = {name: where for name, where in net.weights.items() if name in read}
    for where, array in (faulty or {}).items():
        tensor = _held(graph, keep, where)
        if where.fed in stored and array.nbytes >= LARGE_BYTES:
            del stored[where.fed]
            stored[where.fed] = array
            tensor.dims[:] = array.shape
            strip_numbers(tensor, array.nbytes)
            continue
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        stored.pop(where.fed, None)
    if lifted is not None:
        _lift(graph.node[keep.index(lifted.node)], lifted)
    if net.blocks:
        images = {name for name, (kind, shape) in feeds.items() if kind == FLOAT and len(shape or ()) == _IMAGE_DIMS}
        keep_blocks(graph, images, net.in_blocks, net.constant_names)
    return SubgraphModel(made.SerializeToString(), stored)


def _declared(
    net: PartitionGraph, name: str, kind: int, shape: Sequence[int | str | None] | None
) -> Sequence[int | str | None] | None:
    """Return the shape of an input with the symbols that the model declares, since some fusions compare sizes."""
    declared = net.declared[name].type.tensor_type if name in net.declared else None
    if shape is None or declared is None or declared.elem_type != kind or len(declared.shape.dim) != len(shape):
        return shape
    return [(dim.dim_param or None) if own is None else own for own, dim in zip(shape, declared.shape.dim, strict=True)]


def _held(graph: onnx.GraphProto, nodes: Sequence[int], where: TensorLocation) -> onnx.TensorProto:
    """Return the tensor at a location in a graph of these nodes."""
    if where.node >= 0:
        return at(graph.node[nodes.index(where.node)], where.path)
    for tensor in graph.initializer:
        if tensor.name == where.fed:
            return tensor
    return next(node for node in graph.node if where.fed in node.output).attribute[0].t


def _lift(node: onnx.NodeProto, where: TensorLocation) -> None:
    """Let a body capture a tensor of the outer graph, under the name that it has inside."""
    import onnx

    graph, place = body(node, where.path)
    if place < 0:
        name = graph.node[-1 - place].output[0]
        graph.node[-1 - place].CopyFrom(onnx.NodeProto(op_type="Identity", input=[where.fed], output=[name]))
        return
    name = graph.initializer[place].name
    first = onnx.NodeProto(op_type="Identity", input=[where.fed], output=[name])
    rest = [onnx.NodeProto.FromString(inner.SerializeToString()) for inner in graph.node]
    del graph.node[:]
    graph.node.extend([first, *rest])
    kept = [t for k, t in enumerate(graph.initializer) if k != place]
    del graph.initializer[:]
    graph.initializer.extend(kept)
