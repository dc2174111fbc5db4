"""Convolutions as sums of terms, one for each block of input channels.

A fault that changes one input channel changes one term; the other terms keep their golden values. Runtimes sum block by
block, so with blocks of their size the sum has the bits of the convolution.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.graph.model.graph_index import integer
from onnxfi.graph.partition.stripped_tensors import LARGE_BYTES, strip_numbers
from onnxfi.graph.partition.subgraph import PartitionGraph
from onnxfi.graph.partition.subgraph_model import FLOAT, SubgraphModel

#: Number of input channels from which it pays to leave out terms.
_LEAST_CHANNELS = 32


@dataclass(frozen=True)
class ConvSum:
    """A convolution: its node, input, output, stored weights and bias ("": none).

    If the runtime fuses it with the addition after it, the addition is part of it, and the `addend` is summed first.
    """

    node: int
    input: str
    output: str
    weight: str
    bias: str
    addend: str = ""

    @property
    def values(self) -> tuple[str, ...]:
        """Return the activations that it reads and computes."""
        return tuple(filter(None, (self.input, self.addend, self.output)))


def largest_conv_sum(net: PartitionGraph, nodes: Collection[int], taken: Container[str]) -> ConvSum | None:
    """Return the largest convolution among these nodes that reads one of these activations directly."""
    found: list[tuple[int, ConvSum]] = []
    for k in nodes:
        node = net.proto.graph.node[k]
        if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or node.input[0] not in taken:
            continue
        weight, bias = net.stored.get(node.input[1]), node.input[2] if len(node.input) > 2 else ""
        if weight is None or weight.data_type != FLOAT or (bias and bias not in net.stored):
            continue
        # The runtime fuses a convolution with the QuantizeLinear after it.
        users = {net.proto.graph.node[u].op_type for u in net.users.get(node.output[0], ())}
        plain = integer(node, "group", 1) == 1 and "QuantizeLinear" not in users
        if plain and weight.dims[1] >= _LEAST_CHANNELS and node.output[0] not in net.uncut:
            found.append((math.prod(weight.dims), ConvSum(k, node.input[0], node.output[0], node.input[1], bias)))
    return _with_addition(net, nodes, max(found, key=lambda one: one[0])[1]) if found else None


def _with_addition(net: PartitionGraph, nodes: Collection[int], one: ConvSum) -> ConvSum:
    """Return the convolution with the addition after it, where the runtime fuses both.

    The addend must not be computed by these nodes, as it would then be faulty too.
    """
    behind, addend = net.joined.get(one.node, (-1, ""))
    if behind not in nodes or net.makers.get(addend) in nodes:
        return one
    return replace(one, output=net.proto.graph.node[behind].output[0], addend=addend)


def block_sizes(net: PartitionGraph, one: ConvSum) -> tuple[int, ...]:
    """Return the possible numbers of channels that a runtime sums at a time, the likeliest first."""
    dims = net.stored[one.weight].dims
    sizes = (128,) if set(dims[2:]) == {1} else (16, 8)
    return tuple(size for size in sizes if size < dims[1])


def partial_sum_model(net: PartitionGraph, one: ConvSum, weight: NDArray[Any], size: int) -> SubgraphModel:
    """Return a model of the terms of a convolution with this weight, of `size` channels each.

    A block of channels is the input `term_input(number)`, its term the output `term_output(number)`.
    """
    import onnx
    from onnx import helper, numpy_helper

    whole, stored = net.proto, dict[str, NDArray[Any]]()
    made = onnx.ModelProto(ir_version=max(whole.ir_version, 4))
    made.opset_import.extend(whole.opset_import)
    made.graph.name = "terms"
    for number in range(-(-weight.shape[1] // size)):
        node = onnx.NodeProto()
        node.CopyFrom(whole.graph.node[one.node])
        names = block_input(number), f"weight {number}", block_output(number)
        del node.input[:], node.output[:]
        node.input.extend(names[:2])
        node.output.append(names[2])
        node.name = names[2]
        made.graph.node.append(node)
        mine = np.ascontiguousarray(weight[:, number * size : (number + 1) * size])
        made.graph.initializer.append(numpy_helper.from_array(mine, names[1]))
        if mine.nbytes >= LARGE_BYTES:
            strip_numbers(made.graph.initializer[-1], mine.nbytes)
            stored[names[1]] = mine
        shape = [None, mine.shape[1], *[None] * (weight.ndim - 2)]
        made.graph.input.append(helper.make_tensor_value_info(names[0], FLOAT, shape))
        made.graph.output.append(onnx.ValueInfoProto(name=names[2]))
    return SubgraphModel(made.SerializeToString(), stored)


def block_input(number: int) -> str:
    """Return the name of a block of channels."""
    return f"block {number}"


def block_output(number: int) -> str:
    """Return the name of the term of a block."""
    return f"term {number}"
