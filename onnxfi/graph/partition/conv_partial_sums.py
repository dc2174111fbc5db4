"""Sums: convolutions as the sum of terms, one for each block of input channels.

What a fault changes in one channel, the next convolution sees in one term: the others stay golden. Runtimes sum block
by block, so with blocks of their size the sum has the very bits that the convolution gives.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.graph.partition.hollow_model import LARGE_BYTES, hollow
from onnxfi.graph.partition.output_channels import integer
from onnxfi.graph.partition.subgraph import Wiring
from onnxfi.graph.partition.subgraph_model import FLOAT, Part

#: Input channels from which on there is something to be left out.
_LEAST_CHANNELS = 32


@dataclass(frozen=True)
class Sum:
    """A convolution: its node, what it takes and gives, its stored weights and bias ("": none).

    Where the runtime makes it one with an addition behind it, that is meant as well: what is `added` it sums first.
    """

    node: int
    taken: str
    given: str
    weight: str
    bias: str
    added: str = ""

    @property
    def values(self) -> tuple[str, ...]:
        """The values that it takes and gives."""
        return tuple(filter(None, (self.taken, self.added, self.given)))


def largest_sum(wiring: Wiring, nodes: Collection[int], taken: Container[str]) -> Sum | None:
    """The largest convolution among these nodes that takes one of these values as it is."""
    found: list[tuple[int, Sum]] = []
    for k in nodes:
        node = wiring.proto.graph.node[k]
        if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or node.input[0] not in taken:
            continue
        weight, bias = wiring.stored.get(node.input[1]), node.input[2] if len(node.input) > 2 else ""
        if weight is None or weight.data_type != FLOAT or (bias and bias not in wiring.stored):
            continue
        # What is quantised behind it the runtime fuses with it.
        users = {wiring.proto.graph.node[u].op_type for u in wiring.users.get(node.output[0], ())}
        plain = integer(node, "group", 1) == 1 and "QuantizeLinear" not in users
        if plain and weight.dims[1] >= _LEAST_CHANNELS and node.output[0] not in wiring.uncut:
            found.append((math.prod(weight.dims), Sum(k, node.input[0], node.output[0], node.input[1], bias)))
    return _with_addition(wiring, nodes, max(found, key=lambda one: one[0])[1]) if found else None


def _with_addition(wiring: Wiring, nodes: Collection[int], one: Sum) -> Sum:
    """The convolution with the addition behind it, where the runtime makes one of both.

    Only what these nodes do not make themselves: what they make of a struck value is golden no more.
    """
    behind, added = wiring.joined.get(one.node, (-1, ""))
    if behind not in nodes or wiring.makers.get(added) in nodes:
        return one
    return replace(one, given=wiring.proto.graph.node[behind].output[0], added=added)


def blocks(wiring: Wiring, one: Sum) -> tuple[int, ...]:
    """How many channels runtimes may sum at a time there, the likeliest number first."""
    dims = wiring.stored[one.weight].dims
    sizes = (128,) if set(dims[2:]) == {1} else (16, 8)
    return tuple(size for size in sizes if size < dims[1])


def terms(wiring: Wiring, one: Sum, weight: NDArray[Any], size: int) -> Part:
    """A model of the terms of a convolution with this weight, of `size` channels each: a block of them is the input
    `term_input(number)`, its term the output `term_output(number)`."""
    import onnx
    from onnx import helper, numpy_helper

    whole, stored = wiring.proto, dict[str, NDArray[Any]]()
    made = onnx.ModelProto(ir_version=max(whole.ir_version, 4))
    made.opset_import.extend(whole.opset_import)
    made.graph.name = "terms"
    for number in range(-(-weight.shape[1] // size)):
        node = onnx.NodeProto()
        node.CopyFrom(whole.graph.node[one.node])
        names = term_input(number), f"weight {number}", term_output(number)
        del node.input[:], node.output[:]
        node.input.extend(names[:2])
        node.output.append(names[2])
        node.name = names[2]
        made.graph.node.append(node)
        mine = np.ascontiguousarray(weight[:, number * size : (number + 1) * size])
        made.graph.initializer.append(numpy_helper.from_array(mine, names[1]))
        if mine.nbytes >= LARGE_BYTES:
            hollow(made.graph.initializer[-1], mine.nbytes)
            stored[names[1]] = mine
        shape = [None, mine.shape[1], *[None] * (weight.ndim - 2)]
        made.graph.input.append(helper.make_tensor_value_info(names[0], FLOAT, shape))
        made.graph.output.append(onnx.ValueInfoProto(name=names[2]))
    return Part(made.SerializeToString(), stored)


def term_input(number: int) -> str:
    """The name of a block of channels."""
    return f"block {number}"


def term_output(number: int) -> str:
    """The name of its term."""
    return f"term {number}"
