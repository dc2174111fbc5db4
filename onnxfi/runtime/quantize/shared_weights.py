"""Weights and biases that several nodes share, brought into the form that ONNX Runtime's quantisers expect.

They assume that a tensor has one consumer: the weight of a `Gemm` is transposed in place for each consumer, and a bias
keeps the scale of the first node that is quantised. With two consumers the model would compute something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfi.graph.model.graph_index import all_graphs, defined_names, integer, subgraphs

_BIASED = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True, eq=False)
class _Use:
    """One use of an initializer: input `place` of a node, or of the graph's outputs where `node` is None."""

    owner: onnx.GraphProto
    tensor: onnx.TensorProto
    node: onnx.NodeProto | None
    place: int

    @property
    def transposed(self) -> bool:
        """True if a Gemm reads the tensor as its transposed second operand."""
        node = self.node
        return node is not None and node.op_type == "Gemm" and self.place == 1 and integer(node, "transB", 0) != 0


def transpose_once(model: onnx.ModelProto) -> bool:
    """Give nodes that read a shared weight transposed one transposed copy of it; return whether any did.

    Weights that one node alone reads stay as they are.
    """
    changed = False
    for uses in _by_tensor(model):
        turned = [use for use in uses if use.transposed]
        if not turned or len(uses) == 1:
            continue
        owner, tensor = uses[0].owner, uses[0].tensor
        copy = _copy(model, owner, tensor, "transposed", transposed=True)
        for use in turned:
            _replace(use, copy)
            kept = [a for a in use.node.attribute if a.name != "transB"] if use.node else []
            if use.node:
                del use.node.attribute[:]
                use.node.attribute.extend(kept)
        if len(turned) == len(uses):
            _remove(owner, tensor)
        changed = True
    return changed


def separate_biases(model: onnx.ModelProto) -> bool:
    """Give each node that adds a shared bias a copy of its own; return whether any did."""
    changed = False
    for uses in _by_tensor(model):
        biases = [use for use in uses if use.place == 2 and use.node is not None and use.node.op_type in _BIASED]
        for use in biases[len(biases) == len(uses) :]:
            _replace(use, _copy(model, use.owner, use.tensor, "bias"))
            changed = True
    return changed


def fold_alpha(model: onnx.ModelProto) -> bool:
    """Multiply the weight of each Gemm whose `alpha` is not 1 by it; return whether there was any.

    The integer Gemm scales its bias by alpha as well, which ONNX Runtime's quantiser does not take into account.
    """
    changed = False
    for uses in _by_tensor(model):
        for use in uses:
            node = use.node
            alpha = next((a for a in node.attribute if a.name == "alpha"), None) if node is not None else None
            if alpha is None or node is None or node.op_type != "Gemm" or use.place != 1 or alpha.f == 1:
                continue
            _replace(use, _copy(model, use.owner, use.tensor, "alpha", factor=alpha.f))
            node.attribute.remove(alpha)
            changed = True
    return changed


def drop_twins(graph: onnx.GraphProto) -> None:
    """Keep the first of the nodes, and of the initializers, that a quantiser made once for each reader of a weight."""
    seen: set[str] = set()
    for node in [*graph.node]:
        outputs = {name for name in node.output if name}
        if outputs and outputs <= seen:
            graph.node.remove(node)
        seen |= outputs
    seen = set()
    tensors = [*graph.initializer]
    for k in range(len(tensors) - 1, -1, -1):
        if tensors[k].name in {tensor.name for tensor in tensors[:k]}:
            del graph.initializer[k]


def _by_tensor(model: onnx.ModelProto) -> list[list[_Use]]:
    """Return the uses of each initializer of the main graph and of subgraphs, in the order of the first use."""
    found: dict[int, list[_Use]] = {}
    for use in _uses(model.graph, {}):
        found.setdefault(id(use.tensor), []).append(use)
    return [*found.values()]


def _uses(graph: onnx.GraphProto, outer: dict[str, tuple[onnx.GraphProto, onnx.TensorProto] | None]) -> Iterator[_Use]:
    scope = outer | {value.name: None for value in graph.input}
    scope |= {name: None for node in graph.node for name in node.output}
    scope |= {tensor.name: (graph, tensor) for tensor in graph.initializer}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if (stored := scope.get(name)) is not None:
                yield _Use(*stored, node, place)
        for _, inner in subgraphs(node):
            yield from _uses(inner, scope)
    for place, value in enumerate(graph.output):
        if (stored := scope.get(value.name)) is not None:
            yield _Use(*stored, None, place)


def _copy(
    model: onnx.ModelProto,
    owner: onnx.GraphProto,
    tensor: onnx.TensorProto,
    what: str,
    *,
    transposed: bool = False,
    factor: float = 1,
) -> str:
    """Store a copy of a tensor, times a factor, beside it; return its name, which no value of the model has."""
    taken, name, k = set[str]().union(*map(defined_names, all_graphs(model.graph))), f"{tensor.name}_{what}", 1
    while name in taken:
        name, k = f"{tensor.name}_{what}_{k}", k + 1
    array = numpy_helper.to_array(tensor)
    array = array if factor == 1 else array * array.dtype.type(factor)
    stored = np.ascontiguousarray(array.T if transposed else array)
    owner.initializer.append(numpy_helper.from_array(stored, name))
    return name


def _replace(use: _Use, name: str) -> None:
    if use.node is not None:
        use.node.input[use.place] = name


def _remove(owner: onnx.GraphProto, tensor: onnx.TensorProto) -> None:
    """Drop a stored tensor, also where it is a graph input with a default."""
    owner.initializer.remove(tensor)
    for value in [value for value in owner.input if value.name == tensor.name]:
        owner.input.remove(value)
