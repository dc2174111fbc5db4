"""Checksums over layers (ABFT): the sum of a layer's results over its channels, computed again from summed weights.

For results y_m = Σ w_m x + b_m the sum over m is (Σ w_m) x + Σ b_m, one channel more to compute; a convolution in
groups has one for each. The summed weights are stored beside the weights, so that faults in either are found as well as
faults in results. The two sums differ by rounding alone, at most (n + M) ε (max|x| Σ|w| + Σ|b|) with n products in each
of M sums (of groups the largest Σ); a larger difference, or one that is not a number, raises an alarm. Faults below
that bound are not found.

References
----------
.. [1] K.-H. Huang and J. A. Abraham, Algorithm-based fault tolerance for matrix operations, IEEE TC C-33, 1984.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxfi.errors import ModelError
from onnxfi.faults.words import WORDS
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.graph_index import GraphIndex, integer
from onnxfi.graph.model.loading import Model
from onnxfi.graph.model.stored_tensors import stored_numbers
from onnxfi.graph.passes.graph_edit import FreeNames
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.passes.node_builder import NodeBuilder, opset_of
from onnxfi.graph.protection.alarms import Flag, add_alarm, by_sample
from onnxfi.graph.protection.loop_and_branch_bodies import made_by
from onnxfi.graph.protection.range_restriction import restrictable
from onnxfi.graph.protection.reach import stored_in_reach
from onnxfi.graph.protection.redundant_layers import (
    COMPUTING,
    Layer,
    check_layers,
    edits_of,
)

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class CheckLayers(ModelPass[tuple[str, ...]]):
    """The pass that checks layers with stored weights by a checksum; its result are their names.

    `folder` is where the external data of the model lies.
    """

    layers: tuple[Layer, ...]
    folder: Path | None = None
    name = "check-layers"

    def requires(self, proto: onnx.ModelProto) -> None:
        """Refuse layers that do not exist, or that have no checksum."""
        check_layers(proto, self.layers, "checksum")
        made, graphs = made_by(proto), GraphIndex.of(proto).by_path
        for layer in self.layers:
            if why := unchecked_reason(stored_in_reach(graphs[layer.path]), made[layer.id]):
                raise ModelError(f"{layer.id!r} has no checksum: {why}; leave it out with --exclude")

    def apply(self, proto: onnx.ModelProto) -> tuple[str, ...]:
        """Add the second sums, and what compares them."""
        names, flags, graphs = FreeNames(proto), list[Flag](), GraphIndex.of(proto).by_path
        reach = {path: stored_in_reach(graphs[path]) for path in {layer.path for layer in self.layers}}
        for edit, layer in edits_of(proto, self.layers):
            at, stored = edit.maker[layer.name], reach[layer.path]
            node = edit.graph.node[at]
            arrays = [stored_numbers(stored[name], self.folder).astype(np.float64) for name in node.input[1:3] if name]
            g = NodeBuilder(opset_of(proto), names.new(f"{layer.name}.checksum") + ".")
            flags.append(Flag(_unlike(g, node, layer, arrays), layer.samples, layer.path))
            g.nodes[-1].name = names.new(f"onnxfi/checksum/{layer.name}")
            edit.put_behind(at, g.nodes)
        add_alarm(proto, flags)
        return tuple(layer.id for layer in self.layers)


def checkable(model: Model) -> tuple[Layer, ...]:
    """Return the layers that have a checksum.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> [layer.name for layer in checkable(load("models/fashion_cnn.onnx"))]
    ['conv2d', 'conv2d_1', 'linear', 'logits']
    """
    made, reach = made_by(model.proto), {scope.path: stored_in_reach(scope) for scope in model.index.graphs}
    rows = [Layer.of(a) for a in activations(model) if restrictable(a) and not a.quantized]
    return tuple(one for one in rows if not unchecked_reason(reach[one.path], made[one.id]))


def unchecked_reason(stored: Mapping[str, onnx.TensorProto], node: onnx.NodeProto) -> str:
    """Return why a node's results have no checksum beside these stored tensors; '' if they have one."""
    if node.op_type not in ("Conv", "MatMul", "Gemm"):
        return f"{node.op_type} is neither Conv, MatMul nor Gemm"
    weights = [stored.get(name) for name in node.input[1:3] if name]
    if not weights or any(tensor is None for tensor in weights):
        return "its weights or bias are computed"
    if node.op_type == "Gemm" and integer(node, "transA", 0):
        return "its input is transposed"
    first, *bias = (list(tensor.dims) for tensor in weights if tensor is not None)
    channels = first[0] if node.op_type == "Conv" or integer(node, "transB", 0) else first[-1]
    if node.op_type == "MatMul" and len(first) != 2:
        return "its weights are no matrix"
    return "its bias is not one number per channel" if bias and bias[0] != [channels] else ""


def _unlike(g: NodeBuilder, node: onnx.NodeProto, layer: Layer, arrays: list[Numbers]) -> str:
    """Append what says for each sample whether the two sums differ by more than rounding."""
    wide = "float64" if layer.dtype == "float64" else "float32"
    weight, bias = arrays[0], arrays[1] if len(arrays) > 1 else np.zeros(0)
    x, y = (name if layer.dtype == wide else g.cast(name, wide) for name in (node.input[0], layer.name))
    groups = integer(node, "group", 1)
    products, channels = _sizes(node, weight)
    check = _checks(g, node, x, weight, bias, wide)
    if groups > 1:
        y = g.add("Reshape", y, g.constant([0, groups, channels // groups, -1]))
        own, check = (
            g.add("ReduceSum", y, g.constant([2]), keepdims=0),
            g.add("Reshape", check, g.constant([0, groups, -1])),
        )
    else:
        own = g.add("ReduceSum", y, g.constant([1 if node.op_type == "Conv" else -1]), keepdims=1)
    apart = g.add("Abs", g.add("Sub", own, check))
    eps = float(np.finfo(WORDS[layer.dtype].dtype).eps) * (products + channels // groups)
    most, least = (float(np.abs(part).reshape(groups, -1).sum(axis=1).max(initial=0)) for part in (weight, bias))
    largest = by_sample(g, g.add("Abs", x), samples=layer.samples)
    scale = g.add("Mul", largest, g.constant(eps * most, wide))
    bound = g.add("Add", scale, g.constant(eps * least + float(np.finfo(wide).tiny), wide))
    within = g.add("LessOrEqual", by_sample(g, apart, samples=layer.samples), bound)
    return g.cast(g.add("Not", within), "float32")  # no comparison of NaN holds


def _sizes(node: onnx.NodeProto, weight: Numbers) -> tuple[int, int]:
    """Return the products in each result, and the channels of results."""
    transposed = node.op_type == "Conv" or integer(node, "transB", 0)
    sums = weight.shape[0] if transposed else weight.shape[-1]
    return weight.size // sums, sums


def _checks(g: NodeBuilder, node: onnx.NodeProto, x: str, weight: Numbers, bias: Numbers, wide: str) -> str:
    """Append the layer with weights summed over its channels, of a convolution over those of each group."""
    if node.op_type == "Conv":
        groups = integer(node, "group", 1)
        summed, biases = weight.reshape(groups, -1, *weight.shape[1:]).sum(axis=1), bias.reshape(groups, -1).sum(axis=1)
        made = g.add("Conv", x, g.constant(summed, wide), *([g.constant(biases, wide)] if bias.size else []))
        g.nodes[-1].attribute.extend(node.attribute)
        return made
    if node.op_type == "MatMul":
        return g.add("MatMul", x, g.constant(weight.sum(axis=-1, keepdims=True), wide))
    rows = weight.T if integer(node, "transB", 0) else weight
    factors = {a.name: a.f for a in node.attribute}
    alpha, beta = (factors.get(name, 1.0) for name in ("alpha", "beta"))
    made = g.add("MatMul", x, g.constant(alpha * rows.sum(axis=1, keepdims=True), wide))
    return g.add("Add", made, g.constant(beta * bias.sum(), wide)) if bias.size else made


def unchecked(model: Model, layers: tuple[Layer, ...]) -> Iterator[str]:
    """Yield the computing layers that are not among these, with the reason."""
    there = {layer.id for layer in layers}
    for scope in model.index.graphs:
        stored = stored_in_reach(scope)
        for node in scope.nodes:
            for value in node.outputs if node.op in COMPUTING else ():
                if scope.path + value.name not in there:
                    yield f"{scope.path + value.name!r} ({unchecked_reason(stored, node.proto) or 'not selected'})"
