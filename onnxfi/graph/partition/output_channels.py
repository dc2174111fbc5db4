"""Operators each of whose output channels depends on one slice of their weights.

A fault in a weight of a convolution or a matrix product changes one output channel. A small model computes that channel
and a few others: the operator with golden inputs and slices of its weights, the DequantizeLinear or Transpose nodes
before it, and the elementwise nodes after it that runtimes fuse with it. Tied embeddings are read by such an operator,
and by Gather nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxfi.graph.model.graph_index import integer
from onnxfi.graph.partition.subgraph import PartitionGraph

if TYPE_CHECKING:
    import onnx

#: By operator: the inputs that hold a slice for each output channel, with their axes; and the output's channel axis.
_AXES: Mapping[str, tuple[Mapping[int, int], int]] = {
    "Conv": ({1: 0, 2: 0}, 1),
    "ConvInteger": ({1: 0}, 1),
    "QLinearConv": ({3: 0, 8: 0}, 1),
    "Gemm": ({1: 1, 2: -1}, -1),
    "MatMul": ({1: -1}, -1),
    "MatMulInteger": ({1: -1}, -1),
    "QLinearMatMul": ({3: -1}, -1),
}
#: The input whose size gives the number of channels.
_WEIGHT = {"QLinearConv": 3, "QLinearMatMul": 3}
#: Elementwise operators of one input; further inputs must be single numbers.
_ELEMENTWISE = frozenset((
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSwish", "HardSigmoid", "Elu", "Selu", "Gelu", "Softplus",
    "QuantizeLinear", "Identity",
))  # fmt: skip
_MOST_BEHIND = 3
#: Axes of a matrix.
_MATRIX = 2
#: Smallest number of output channels that are worth a model, and that are computed together.
_LEAST, _LEAST_IN_BLOCKS = 8, 16


@dataclass(frozen=True)
class OutputChannels:
    """The nodes that compute `output` channel by channel.

    Attributes
    ----------
    nodes : tuple of int
        The nodes.
    sliced : mapping of str to int
        The stored tensors that hold a slice for each of the `count` channels, with their axis.
    output : str
        The output, `axis` being its channel axis.
    constant : bool
        Whether some of the tensors are scales, which must be constant for runtimes.
    addend : str
        An activation that is added, of which the same channels are taken ("": none).
    lookups : tuple of int
        The Gather nodes that read rows of the faulty tensor besides.
    """

    nodes: tuple[int, ...]
    sliced: Mapping[str, int]
    output: str
    axis: int
    count: int
    constant: bool = False
    addend: str = ""
    lookups: tuple[int, ...] = ()

    @property
    def least(self) -> int:
        """Return the smallest number of channels that are computed together."""
        return _LEAST_IN_BLOCKS if self.addend else _LEAST


def output_channels(net: PartitionGraph, faulty: str) -> OutputChannels | None:
    """Return the nodes that compute the output channels changed by faults in a weight; None if there is no such group.

    >>> from onnxfi.graph.partition.subgraph import partition_graph
    >>> from onnxfi.graph.model.loading import load
    >>> found = output_channels(partition_graph(load("models/fashion_cnn.onnx")), "conv1.weight")
    >>> found.sliced, found.output, found.axis, found.count
    ({'conv1.weight': 0, 'conv1.bias': 0}, 'relu', 1, 16)
    """
    nodes = net.proto.graph.node
    lookups = tuple(k for k in net.users.get(faulty, ()) if looks_up_rows(net, k, faulty))
    at = _only_user(net, faulty, lookups)
    before: list[int] = []
    if at is not None and (nodes[at].op_type == "DequantizeLinear" or _transposes(net, at)):
        before.append(at)
        at = _only_user(net, nodes[at].output[0])
    if at is None or nodes[at].op_type not in _AXES or nodes[at].domain not in ("", "ai.onnx"):
        return None
    own = _channels_of(net, nodes[at])
    if own is None or faulty not in own.sliced:
        return None
    last, addend = net.joined.get(at, (at, ""))
    if addend and (addend in nodes[at].input or lookups):  # read both as a whole and in slices
        return None
    behind = _behind(net, nodes[last].output[0])
    every = tuple(sorted({*own.nodes, at, last, *behind}))
    output = nodes[behind[-1] if behind else last].output[0]
    return replace(own, nodes=every, output=output, addend=addend, lookups=lookups)


def _only_user(net: PartitionGraph, name: str, but: Sequence[int] = ()) -> int | None:
    users = [k for k in net.users.get(name, ()) if k not in but]
    return users[0] if len(users) == 1 and name not in net.outputs else None


def looks_up_rows(net: PartitionGraph, node: int, name: str) -> bool:
    """Return whether a node gathers rows of a stored tensor, by indices that are computed or fed."""
    one = net.proto.graph.node[node]
    return (
        one.op_type == "Gather"
        and one.domain in ("", "ai.onnx")
        and integer(one, "axis", 0) == 0
        and one.input[0] == name
        and one.input[1] not in net.constant_names
    )


def _transposes(net: PartitionGraph, node: int) -> bool:
    """Return whether a node exchanges the two axes of a stored matrix."""
    one = net.proto.graph.node[node]
    if one.op_type != "Transpose" or one.domain not in ("", "ai.onnx"):
        return False
    tensor = net.stored.get(one.input[0])
    order = next((list(a.ints) for a in one.attribute if a.name == "perm"), [1, 0])
    return tensor is not None and len(tensor.dims) == len(order) == _MATRIX and order == [1, 0]


def _channels_of(net: PartitionGraph, node: onnx.NodeProto) -> OutputChannels | None:
    """Return the channels of a node without the nodes after it; None if a tensor is not stored."""
    axes, axis = _AXES[node.op_type]
    if integer(node, "group", 1) != 1:
        return None
    if node.op_type == "Gemm" and integer(node, "transB", 0):
        axes = {**axes, 1: 0}
    weight = _WEIGHT.get(node.op_type, 1)
    sliced: dict[str, int] = {}
    constants: dict[str, int] = {}
    before: list[int] = []
    count = 0
    for position in (weight, *(p for p in axes if p != weight)):
        name = node.input[position] if position < len(node.input) else ""
        maker, along_axis = net.makers.get(name), axes[position]
        scales: list[str] = []
        if maker is not None and (net.dequantises(maker) or _transposes(net, maker)):
            before.append(maker)
            name, *scales = net.proto.graph.node[maker].input
            if not net.dequantises(maker):
                along_axis = 1 - along_axis % _MATRIX
        tensor = net.stored.get(name)
        if not name or (position != weight and _single(net, name)):
            continue
        if tensor is None or (position == weight and len(tensor.dims) < 2):
            return None
        size = tensor.dims[along_axis]
        count = count or size
        if size not in (count, 1):
            return None
        if size == count:
            sliced[name] = along_axis
        along = integer(net.proto.graph.node[maker], "axis", 1) if maker is not None and scales else 0
        rank = len(tensor.dims)
        for one in scales:
            if not _single(net, one):
                if not _row(net, one, count) or along % rank != axes[position] % rank:
                    return None
                constants[one] = 0
    if node.op_type in _WEIGHT:
        for k, one in enumerate(node.input):
            if k not in (0, *axes) and not _single(net, one):
                if k not in (weight + 1, weight + 2) or not _row(net, one, count):
                    return None
                constants[one] = 0
    return OutputChannels(tuple(before), sliced | constants, node.output[0], axis, count, bool(constants))


def _row(net: PartitionGraph, name: str, count: int) -> bool:
    """Return whether a name is a stored row of `count` numbers."""
    tensor = net.stored.get(name)
    return tensor is not None and list(tensor.dims) == [count]


def _single(net: PartitionGraph, name: str) -> bool:
    """Return whether a name is absent, or a single stored number."""
    tensor = net.stored.get(name)
    return not name or (tensor is not None and list(tensor.dims) in ([], [1]))


def _behind(net: PartitionGraph, name: str) -> list[int]:
    """Return the elementwise nodes after an activation without other consumers."""
    found: list[int] = []
    while len(found) < _MOST_BEHIND and (at := _only_user(net, name)) is not None:
        node = net.proto.graph.node[at]
        single = all(_single(net, n) for n in node.input[1:])
        if (
            node.op_type not in _ELEMENTWISE
            or node.domain not in ("", "ai.onnx")
            or not single
            or node.input[0] != name
        ):
            break
        found.append(at)
        name = node.output[0]
    return found
