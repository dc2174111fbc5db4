"""Time in a spiking model: how many steps a loop takes, and which axes count them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from onnxfi.errors import ModelError, closest
from onnxfi.graph.model.graph_index import GraphIndex
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.spiking.pattern_graph import PatternGraph

if TYPE_CHECKING:
    import onnx

    from onnxfi.graph.model.loading import Model
    from onnxfi.graph.spiking.detect_neurons import SpikingLayer, TimeAxis

#: What the output of counts is called, behind the name of the spikes.
_COUNTS = "/counts"
_FLOAT = 1


def trips_of(loop: onnx.NodeProto, pattern: PatternGraph, proto: onnx.ModelProto) -> int | None:
    """How often a loop in this graph runs; None where only a run tells."""
    if loop.op_type == "Loop":
        count = pattern.constant(text(loop.input[0])) if loop.input and loop.input[0] else None
        return None if count is None or count.size != 1 else int(count.reshape(-1)[0])
    sizes = {text(v.name): v.type for v in (*proto.graph.input, *proto.graph.value_info)}
    for name, axis in scanned(loop):
        value = pattern.constant(name)
        if value is not None and value.ndim > axis:
            return int(value.shape[axis])
        dims = sizes[name].tensor_type.shape.dim if name in sizes else []
        if len(dims) > axis and dims[axis].HasField("dim_value"):
            return int(dims[axis].dim_value)
    return None


def scanned(scan: onnx.NodeProto) -> list[tuple[str, int]]:
    """What a Scan goes along: tensors and their axes."""
    kept = {a.name: a for a in scan.attribute}
    number = kept["num_scan_inputs"].i
    axes = list(kept["scan_input_axes"].ints) if "scan_input_axes" in kept else [0] * number
    return list(zip(map(text, scan.input[len(scan.input) - number :]), axes, strict=False))


def time_axes(proto: onnx.ModelProto, layers: Sequence[SpikingLayer]) -> tuple[TimeAxis, ...]:
    """The axes that count the steps of these layers."""
    from onnxfi.graph.spiking.detect_neurons import TimeAxis

    inputs, outputs = ({text(v.name) for v in values} for values in (proto.graph.input, proto.graph.output))
    found: dict[tuple[str, int], TimeAxis] = {}

    def add(tensor: str, axis: int) -> None:
        role = "input" if tensor in inputs else "output" if tensor in outputs else "inside"
        found.setdefault((tensor, axis), TimeAxis(tensor, axis, role))

    steps = {layer.trips for layer in layers if layer.trips and not layer.loop}
    loops = {layer.path for layer in layers if layer.loop}
    pattern = PatternGraph("", proto.graph)
    for tensor, axis, many in _cuts(pattern, inputs):
        if many in steps:
            add(tensor, axis)
    for scope in GraphIndex.of(proto).graphs:
        if scope.path in loops and scope.enclosing[-1].op == "Scan" and len(scope.enclosing) == 1:
            scan = scope.enclosing[-1].proto
            for tensor, axis in scanned(scan):
                if tensor in inputs:
                    add(tensor, axis)
            for tensor, axis in _gathered(scan):
                add(tensor, axis)
    for node in proto.graph.node:
        made = [pattern.maker.get(text(name)) for name in node.input]
        if (
            node.op_type == "Concat"
            and len(made) in steps
            and all(k is not None and proto.graph.node[k].op_type == "Unsqueeze" for k in made)
        ):
            add(text(node.output[0]), next(a.i for a in node.attribute if a.name == "axis"))
    return tuple(found.values())


def _cuts(pattern: PatternGraph, inputs: set[str]) -> list[tuple[str, int, int]]:
    """Inputs that are cut along an axis: the input, the axis, into how many pieces."""
    pieces: dict[tuple[str, int], set[int]] = {}
    for node in pattern.graph.node:
        name = text(node.input[0]) if node.input else ""
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if name not in inputs:
            continue
        if node.op_type == "Gather":
            index = pattern.constant(text(node.input[1]))
            if index is not None and index.size == 1:
                pieces.setdefault((name, axis), set()).add(int(index.reshape(-1)[0]))
        elif node.op_type == "Split":
            pieces[name, axis] = set(range(len(node.output)))
        elif node.op_type == "Slice" and len(node.input) > 3:
            start, along = (pattern.constant(text(node.input[k])) for k in (1, 3))
            if start is not None and along is not None and start.size == along.size == 1:
                pieces.setdefault((name, int(along.reshape(-1)[0])), set()).add(int(start.reshape(-1)[0]))
    return [(name, axis, len(seen)) for (name, axis), seen in pieces.items()]


def _gathered(scan: onnx.NodeProto) -> list[tuple[str, int]]:
    """What a Scan puts out step by step: tensors and their axes."""
    kept = {a.name: a for a in scan.attribute}
    states = len(scan.input) - kept["num_scan_inputs"].i
    names = [text(name) for name in scan.output[states:]]
    axes = list(kept["scan_output_axes"].ints) if "scan_output_axes" in kept else [0] * len(names)
    return [(name, int(np.int64(axis))) for name, axis in zip(names, axes, strict=True) if name]


def spike_count_output(proto: onnx.ModelProto) -> str:
    """The output of counts that `add_spike_counts` made."""
    return text(proto.graph.output[-1].name)


def with_spike_counts(model: Model, output: str | None, axis: int) -> Model:
    """Return the model with spike counts as a further output; its faults and its digest stay its own."""
    from onnxfi.graph.model.loading import load

    return replace(load(add_spike_counts(model, output, axis)), origin=model.digest)


def add_spike_counts(model: Model, output: str | None, axis: int) -> onnx.ModelProto:
    """The model with a further output, its last: spikes that are stacked over time, counted along that axis.

    `output` are the spikes (None: the only output of three dimensions or more). Raises ModelError where there is none,
    where several could be meant, and for an axis that it does not have.

    >>> from onnxfi.graph.model.loading import load
    >>> model = load("tests/graph/spiking/subtract_dynamo.onnx")
    >>> spike_count_output(add_spike_counts(model, "spikes2", 0))
    'spikes2/counts'
    """
    from onnx import helper, numpy_helper

    from onnxfi.graph.dataflow.type_inference import infer_types
    from onnxfi.graph.model.loading import parse
    from onnxfi.graph.passes.bit_arithmetic import opset_of

    if model.external:
        raise ModelError(f"{model.name} has external data, so nothing can be counted in it; write it as one file first")
    proto = parse(model)
    graph = proto.graph
    kinds = {text(o.name): o.type.tensor_type for o in (*infer_types(proto).graph.output, *graph.output)}
    sizes = {name: len(kind.shape.dim) for name, kind in kinds.items() if kind.HasField("shape")}
    ranks = {text(o.name): sizes.get(text(o.name)) for o in graph.output}
    if output is not None and output not in ranks:
        raise ModelError(f"the model has no output {output!r}{closest(output, ranks)}")
    stacked = [output] if output is not None else [name for name, rank in ranks.items() if (rank or 0) > 2]
    if len(stacked) != 1:
        what = "several outputs could" if stacked else "no output is sure to"
        raise ModelError(f"{what} be spikes over time; name one with --output: {', '.join(stacked or ranks)}")
    name, rank = stacked[0], ranks[stacked[0]]
    if rank is not None and axis >= rank:
        raise ModelError(f"time axis {axis} is beyond output {name!r} of {rank} dimensions: axes are 0 to {rank - 1}")
    made, real = name + _COUNTS, name + _COUNTS + "/float"
    graph.node.append(helper.make_node("Cast", [name], [real], f"/time{real}", to=_FLOAT))
    if opset_of(proto) >= 13:
        # The last node but one, so that no other tensor gets another number among the targets.
        value = numpy_helper.from_array(np.array([axis]))
        graph.node.append(helper.make_node("Constant", [], [f"{made}/axis"], f"/time{made}/axis", value=value))
        node = helper.make_node("ReduceSum", [real, f"{made}/axis"], [made], f"/time{made}", keepdims=0)
    else:
        node = helper.make_node("ReduceSum", [real], [made], f"/time{made}", axes=[axis], keepdims=0)
    graph.node.append(node)
    dims = None if rank is None else [None] * (rank - 1)
    graph.output.append(helper.make_tensor_value_info(made, _FLOAT, dims))
    return proto
