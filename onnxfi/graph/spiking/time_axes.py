"""Time in a spiking model: the number of steps of a loop, and the axes that count steps."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxfi.graph.model.graph_index import GraphIndex, integer, integers
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.spiking.pattern_graph import PatternGraph

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class TimeAxis:
    """Axis that counts the steps: of an input, of an output, or of an inner tensor that is folded over time."""

    tensor: str
    axis: int
    role: str


def trips_of(loop: onnx.NodeProto, pattern: PatternGraph, proto: onnx.ModelProto) -> int | None:
    """Return the number of iterations of a loop in this graph; None if it depends on the data."""
    if loop.op_type == "Loop":
        count = pattern.constant(text(loop.input[0])) if loop.input and loop.input[0] else None
        return None if count is None or count.size != 1 else int(count.reshape(-1)[0])
    sizes = {text(v.name): v.type for v in (*proto.graph.input, *proto.graph.value_info)}
    for name, axis in scan_inputs(loop):
        value = pattern.constant(name)
        if value is not None and value.ndim > axis:
            return int(value.shape[axis])
        dims = sizes[name].tensor_type.shape.dim if name in sizes else []
        if len(dims) > axis and dims[axis].HasField("dim_value"):
            return int(dims[axis].dim_value)
    return None


def scan_inputs(scan: onnx.NodeProto) -> list[tuple[str, int]]:
    """Return the tensors that a Scan iterates over, and their axes."""
    number = integer(scan, "num_scan_inputs")
    names = [text(name) for name in scan.input[len(scan.input) - number :]]
    return list(zip(names, integers(scan, "scan_input_axes", [0] * len(names)), strict=False))


def time_axes(proto: onnx.ModelProto, steps: Set[int], loops: Set[str]) -> tuple[TimeAxis, ...]:
    """Return the axes that count steps: by their number in an unrolled graph, or of loops with these bodies."""
    inputs, outputs = ({text(v.name) for v in values} for values in (proto.graph.input, proto.graph.output))
    found: dict[tuple[str, int], TimeAxis] = {}

    def add(tensor: str, axis: int) -> None:
        role = "input" if tensor in inputs else "output" if tensor in outputs else "inside"
        found.setdefault((tensor, axis), TimeAxis(tensor, axis, role))

    index = GraphIndex.of(proto)
    pattern = PatternGraph(index.main)
    for tensor, axis, many in _split_inputs(pattern, inputs):
        if many in steps:
            add(tensor, axis)
    for scope in index.graphs:
        if scope.path in loops and scope.enclosing[-1].op == "Scan" and len(scope.enclosing) == 1:
            scan = scope.enclosing[-1].proto
            for tensor, axis in scan_inputs(scan):
                if tensor in inputs:
                    add(tensor, axis)
            for tensor, axis in _scan_outputs(scan):
                add(tensor, axis)
    for node in proto.graph.node:
        made = [pattern.maker.get(text(name)) for name in node.input]
        if (
            node.op_type == "Concat"
            and len(made) in steps
            and all(k is not None and proto.graph.node[k].op_type == "Unsqueeze" for k in made)
        ):
            add(text(node.output[0]), integer(node, "axis"))
    return tuple(found.values())


def _split_inputs(pattern: PatternGraph, inputs: set[str]) -> list[tuple[str, int, int]]:
    """Return the inputs that are split along an axis: the input, the axis, the number of slices."""
    slices: dict[tuple[str, int], set[int]] = {}
    for node in pattern.graph.node:
        name = text(node.input[0]) if node.input else ""
        axis = integer(node, "axis", 0)
        if name not in inputs:
            continue
        if node.op_type == "Gather":
            index = pattern.constant(text(node.input[1]))
            if index is not None and index.size == 1:
                slices.setdefault((name, axis), set()).add(int(index.reshape(-1)[0]))
        elif node.op_type == "Split":
            slices[name, axis] = set(range(len(node.output)))
        elif node.op_type == "Slice" and len(node.input) > 3:
            start, along = (pattern.constant(text(node.input[k])) for k in (1, 3))
            if start is not None and along is not None and start.size == along.size == 1:
                slices.setdefault((name, int(along.reshape(-1)[0])), set()).add(int(start.reshape(-1)[0]))
    return [(name, axis, len(seen)) for (name, axis), seen in slices.items()]


def _scan_outputs(scan: onnx.NodeProto) -> list[tuple[str, int]]:
    """Return the outputs of a Scan with one slice per step, and their axes."""
    states = len(scan.input) - integer(scan, "num_scan_inputs")
    names = [text(name) for name in scan.output[states:]]
    axes = integers(scan, "scan_output_axes", [0] * len(names))
    return [(name, int(np.int64(axis))) for name, axis in zip(names, axes, strict=True) if name]
