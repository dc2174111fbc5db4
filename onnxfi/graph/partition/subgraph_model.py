"""Parts: a model of some nodes of another, with what they need, and nothing copied that is large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from onnxfi.graph.model.byte_source import StoredArray
from onnxfi.graph.partition.hollow_model import LARGE_BYTES, hollow
from onnxfi.graph.partition.subgraph import ADDS, Home, Wiring, at, body

if TYPE_CHECKING:
    import onnx

#: TensorProto's number of float32.
FLOAT = 1
#: Samples, channels, height and width.
_IMAGE_DIMS = 4
#: A value that is fed: its element type's number, and its shape (None: open).
Feed = tuple[int, Sequence[int | str | None] | None]


@dataclass(frozen=True)
class Part:
    """A model, serialised, and the stored tensors that it names and does not hold, or where they lie."""

    data: bytes = field(repr=False)
    stored: Mapping[str, NDArray[Any] | StoredArray] = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """What it takes before it is prepared."""
        return len(self.data) + sum(array.nbytes for array in self.stored.values())


def extract(
    wiring: Wiring,
    nodes: Sequence[int],
    feeds: Mapping[str, Feed],
    outputs: Sequence[str],
    lifted: Home | None = None,
    faulty: Mapping[Home, NDArray[Any]] | None = None,
) -> Part:
    """A model of these nodes alone; what is fed, also stored tensors, becomes an input.

    `lifted` is a tensor inside a body that is fed from outside, `faulty` are tensors that stand in the place of others.
    """
    import onnx
    from onnx import helper, numpy_helper

    whole, keep = wiring.proto, [k for k in nodes if feeds.keys().isdisjoint(wiring.proto.graph.node[k].output)]
    made = onnx.ModelProto(ir_version=max(whole.ir_version, 4))
    made.opset_import.extend(whole.opset_import)
    made.functions.extend(whole.functions)
    graph = made.graph
    graph.name = "part"
    for name, (kind, shape) in feeds.items():
        graph.input.append(helper.make_tensor_value_info(name, kind, _declared(wiring, name, kind, shape)))
    made_here = {name for k in keep for name in whole.graph.node[k].output}.difference(outputs)
    graph.value_info.extend(wiring.declared[name] for name in made_here & wiring.declared.keys())
    graph.node.extend(whole.graph.node[k] for k in keep)
    read = {name for k in keep for name in wiring.reads[k]} - feeds.keys()
    graph.initializer.extend(t for t in whole.graph.initializer if t.name in read)
    graph.sparse_initializer.extend(t for t in whole.graph.sparse_initializer if t.values.name in read)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    stored: dict[str, NDArray[Any] | StoredArray] = {
        name: where for name, where in wiring.weights.items() if name in read
    }
    for where, array in (faulty or {}).items():
        tensor = _held(graph, keep, where)
        if where.fed in stored and array.nbytes >= LARGE_BYTES:
            del stored[where.fed]
            stored[where.fed] = array
            tensor.dims[:] = array.shape
            hollow(tensor, array.nbytes)
            continue
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        stored.pop(where.fed, None)
    if lifted is not None:
        _lift(graph.node[keep.index(lifted.node)], lifted)
    if wiring.blocks:
        _block(graph, feeds)
    return Part(made.SerializeToString(), stored)


def _declared(
    wiring: Wiring, name: str, kind: int, shape: Sequence[int | str | None] | None
) -> Sequence[int | str | None] | None:
    """The shape of a value that is fed, with the symbols that the model declares for it: some fusions ask whether two
    sizes are the same."""
    said = wiring.declared[name].type.tensor_type if name in wiring.declared else None
    if shape is None or said is None or said.elem_type != kind or len(said.shape.dim) != len(shape):
        return shape
    return [(dim.dim_param or None) if own is None else own for own, dim in zip(shape, said.shape.dim, strict=True)]


def _block(graph: onnx.GraphProto, feeds: Mapping[str, Feed]) -> None:
    """Let a part sum as the whole model does, where images lie in blocks of channels.

    On these a runtime makes one of a convolution and what is added to it, and takes means in another order. So what is
    fed there goes through an operator that runs on blocks and leaves all as it is (but for −0, which becomes 0).
    """
    from onnx import helper

    images = {name for name, (kind, shape) in feeds.items() if kind == FLOAT and len(shape or ()) == _IMAGE_DIMS}
    makers = {name: node for node in graph.node for name in node.output}
    given = {o.name for o in graph.output}

    def fed(name: str) -> str:
        """What a value is made of, by operators that take nothing else."""
        for _ in graph.node:  # in a circle no end would come
            if name not in makers or len(makers[name].input) != 1:
                break
            name = makers[name].input[0]
        return name

    laid = dict[str, str]()
    for node in (node for node in graph.node if node.domain in ("", "ai.onnx")):
        of_convolutions = any(n in makers and makers[n].op_type == "Conv" and n not in given for n in node.input)
        names = [*node.input] if node.op_type in ADDS and of_convolutions else []
        names += [fed(node.input[0])] if node.op_type == "GlobalAveragePool" else []
        laid |= {name: f"{name} in blocks" for name in names if name in images}
    for node in graph.node if laid else ():
        node.input[:] = [laid.get(name, name) for name in node.input]
    for name, other in laid.items():
        graph.node.insert(0, helper.make_node("AveragePool", [name], [other], kernel_shape=[1, 1]))


def _held(graph: onnx.GraphProto, nodes: Sequence[int], where: Home) -> onnx.TensorProto:
    """The tensor at a home in a graph of these nodes."""
    if where.node >= 0:
        return at(graph.node[nodes.index(where.node)], where.path)
    for tensor in graph.initializer:
        if tensor.name == where.fed:
            return tensor
    return next(node for node in graph.node if where.fed in node.output).attribute[0].t


def _lift(node: onnx.NodeProto, where: Home) -> None:
    """Let a body read a tensor from outside, under the name that it has inside."""
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
