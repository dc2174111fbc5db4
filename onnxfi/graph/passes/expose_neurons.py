"""Exposing neurons: a pass that gives every neuron stored words of its own, so that each can be struck alone.

Exporters store one threshold and one leak for a whole layer, and no spike at all. In the exposed model a layer L has

    L/threshold, L/leak, L/refractory   its parameters, an element a neuron (those that it has)
    L/reset     how much of a reset a neuron takes: 1 is all of it, 0 none
    L/spike     what a neuron puts out: NaN is what it computes, 0 is a dead neuron, 1 a saturated one

as float tensors shaped as the neurons of one sample, and `L/membrane/STEP` and `L/spike/STEP` are its values in flight
(in the body of a loop without STEP). Outputs are the same bit for bit until a word is struck: the parameters enter the
same operations, a spike times 1 is the spike, and NaN chooses what was computed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import ModelError
from onnxfi.graph.model.graph_index import GraphIndex, all_graphs, subgraphs
from onnxfi.graph.model.loading import Model, parse
from onnxfi.graph.model.neuron_table import NEURON_TABLE_KEY, read_neuron_table
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.spiking.detect_neurons import SpikingLayer, SpikingLayers, Step, Variable

if TYPE_CHECKING:
    import onnx


def expose(model: Model, found: SpikingLayers) -> onnx.ModelProto:
    """The model with its neurons exposed. Raises ModelError where that is done, or a layer's shape is not known.

    >>> from onnxfi.graph.model.loading import load
    >>> from onnxfi.graph.spiking.detect_neurons import find_spiking_layers
    >>> made = expose(load(model := "models/fashion_snn.onnx"), find_spiking_layers(load(model)))
    >>> [target.id for target in load(made).targets if target.id.startswith("lif3/")]
    ['lif3/threshold', 'lif3/leak', 'lif3/reset', 'lif3/spike']
    """
    proto = parse(model)
    if read_neuron_table(proto):
        raise ModelError(f"{model.name} has its neurons exposed already; strike its words as they are")
    places = {scope.path: scope.graph for scope in GraphIndex.of(proto).graphs}
    edits = {path: _Edit(graph, proto.graph) for path, graph in places.items()}
    rows = []
    for layer in found.layers:
        rows.append(_exposed(edits[layer.path], layer, model.name))
    for path in sorted(edits, key=lambda p: -p.count("::")):
        edits[path].write()
    _prune(proto, {name for layer in found.layers for v in layer.variables for name in v.origins})
    entry = proto.metadata_props.add()
    entry.key, entry.value = NEURON_TABLE_KEY, json.dumps(rows)
    proto.ir_version = max(proto.ir_version, 4)
    return proto


class _Edit:
    """Changes of one graph: nodes to be put first, or behind others."""

    def __init__(self, graph: onnx.GraphProto, top: onnx.GraphProto) -> None:
        self.graph, self.top = graph, top
        self.maker = {text(name): k for k, node in enumerate(graph.node) for name in node.output if name}
        self.first: list[onnx.NodeProto] = []
        self.behind: dict[int, list[onnx.NodeProto]] = {}
        self.outputs = {text(o.name) for o in graph.output}

    def put(self, place: int, op: str, inputs: Sequence[str], output: str, layer: str = "") -> None:
        """Put a node behind one that is there; it counts as of that node's module, or of the layer that is named."""
        from onnx import helper

        node = helper.make_node(op, list(inputs), [output])
        if layer:
            node.name = f"{layer}/exposed-{output.rpartition('/')[2]}"
            self.behind.setdefault(place, []).append(node)
        elif place >= 0:
            old = self.graph.node[place]
            scope = text(old.name).rpartition("/")[0]
            node.name = f"{scope}/exposed-{output.replace('/', '-')}" if scope else ""
            node.metadata_props.extend(old.metadata_props)
            self.behind.setdefault(place, []).append(node)
        else:
            node.name = f"/{output.rpartition('/')[0]}/exposed-{output.rpartition('/')[2]}"
            self.first.append(node)

    def write(self) -> None:
        """Write the nodes in their new order."""
        import onnx

        nodes = [*self.first]
        for k, old in enumerate(self.graph.node):
            copy = onnx.NodeProto()
            copy.CopyFrom(old)
            nodes += [copy, *self.behind.get(k, [])]
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def store(self, name: str, value: NDArray[Any]) -> None:
        """Store a tensor in the main graph, where every body sees it."""
        from onnx import numpy_helper

        self.top.initializer.append(numpy_helper.from_array(value, name))


def _exposed(edit: _Edit, layer: SpikingLayer, name: str) -> dict[str, Any]:
    """Expose one layer; returns its row of the table."""
    if layer.shape is None:
        raise ModelError(
            f"{name}: the shape of the neurons of {layer.name!r} cannot be inferred; export it with value_info, or run "
            f"onnx.shape_inference on it"
        )
    words: dict[str, str] = {}
    for variable in layer.variables:
        words[variable.name] = stored = f"{layer.name}/{variable.name}"
        edit.store(stored, _each(variable, layer))
        for use in variable.uses:
            edit.graph.node[use.node].input[use.input] = stored
    if any(step.resets for step in layer.steps):
        words["reset"] = f"{layer.name}/reset"
        edit.store(words["reset"], np.ones(layer.shape, _dtype(layer)))
    words["spike"] = f"{layer.name}/spike"
    edit.store(words["spike"], np.full(layer.shape, np.nan, _dtype(layer)))
    edit.put(-1, "IsNaN", [words["spike"]], f"{layer.name}/free")
    steps = [_step(edit, layer, step, "" if layer.loop else f"/{k}") for k, step in enumerate(layer.steps)]
    return {
        "layer": layer.name, "kind": layer.kind, "shape": list(layer.shape), "steps": layer.trips, "reset": layer.reset,
        "loop": layer.loop or None, "words": words,
        "membrane": [layer.path + one for one, _ in steps if one], "spike": [layer.path + two for _, two in steps],
    }  # fmt: skip


def _dtype(layer: SpikingLayer) -> Any:
    return layer.variables[0].value.dtype if layer.variables else np.float32


def _each(variable: Variable, layer: SpikingLayer) -> NDArray[Any]:
    """A parameter with an element a neuron."""
    assert layer.shape is not None
    value = variable.value
    while value.ndim > len(layer.shape) and value.shape[0] == 1:
        value = value[0]
    try:
        return np.broadcast_to(value, layer.shape).copy()
    except ValueError:
        raise ModelError(
            f"the {variable.name} of {layer.name!r} has the shape {list(variable.value.shape)}, which does not go with "
            f"its neurons, {list(layer.shape)}"
        ) from None


def _step(edit: _Edit, layer: SpikingLayer, step: Step, tail: str) -> tuple[str, str]:
    """Expose one step; returns the names of its membrane potential and its spikes."""
    graph, name = edit.graph, layer.name
    inner = {(use.node, use.input): text(graph.node[use.node].input[use.input]) for use in step.inner}
    inner |= {(use.node, use.input): text(graph.node[use.node].input[use.input]) for use in step.resets}
    membrane = f"{name}/membrane{tail}" if step.membrane else ""
    if step.membrane:
        place = edit.maker.get(step.membrane, -1)
        # An Identity of its own: what makes the first potential may be the current of every step.
        edit.put(place, "Identity", [step.membrane], membrane, f"{name}/membrane")
        for (number, k), held in inner.items():
            if held == step.membrane:
                graph.node[number].input[k] = membrane
        _hand_on(edit, step.membrane, membrane)
    spike, fired = f"{name}/spike{tail}" if tail else f"{name}/spiking", step.spike
    place = edit.maker[fired]
    edit.put(place, "Where", [f"{name}/free", fired, f"{name}/spike"], spike, f"{name}/spike")
    kept = {at for at, held in inner.items() if held == fired}
    for k, node in enumerate(graph.node):
        for position, held in enumerate(node.input):
            if held == fired and (k, position) not in kept:
                node.input[position] = spike
        _rename_captured(node, fired, spike)
    _hand_on(edit, fired, spike)
    for use in step.resets:
        held = text(graph.node[use.node].input[use.input])
        graph.node[use.node].input[use.input] = _gain(edit, layer, held, tail)
    return membrane, spike


def _gain(edit: _Edit, layer: SpikingLayer, held: str, tail: str) -> str:
    """A reset signal times how much of it each neuron takes."""
    out = f"{layer.name}/{held.replace('/', '_')}{tail}/taken"
    place = edit.maker.get(held, -1)
    if not any(out in node.output for node in edit.behind.get(place, [])):
        edit.put(place, "Mul", [held, f"{layer.name}/reset"], out)
    return out


def _hand_on(edit: _Edit, old: str, new: str) -> None:
    """Let a graph that puts out a value put out the new one, under the old name."""
    if old not in edit.outputs:
        return
    place = edit.maker[old]
    node = edit.graph.node[place]
    plain = f"{old}/plain"
    for k, name in enumerate(node.output):
        if name == old:
            node.output[k] = plain
    edit.maker[plain] = place
    for other in [*edit.graph.node, *edit.behind.get(place, [])]:
        for k, name in enumerate(other.input):
            if name == old:
                other.input[k] = plain
    edit.put(place, "Identity", [new], old)
    edit.outputs.discard(old)


def _rename_captured(node: Any, old: str, new: str) -> None:
    """Let the bodies of a node read another name."""
    for _, body in subgraphs(node):
        own = (
            {v.name for v in body.input} | {t.name for t in body.initializer} | {o for n in body.node for o in n.output}
        )
        for inner in body.node if old not in own else ():
            for k, name in enumerate(inner.input):
                if name == old:
                    inner.input[k] = new
            _rename_captured(inner, old, new)


def _prune(proto: onnx.ModelProto, origins: set[str]) -> None:
    """Drop the parameters of whole layers that nothing uses any more, and what only converted them."""
    for graph in reversed(list(all_graphs(proto.graph))):
        gone = True
        while gone:
            used = _used(proto)
            dead = [n for n in graph.node if _converts(n, origins) and not any(o in used for o in n.output)]
            for node in dead:
                origins |= set(node.input)
                graph.node.remove(node)
            gone = bool(dead)
        used = _used(proto)
        for k in reversed(range(len(graph.initializer))):
            if graph.initializer[k].name in origins and graph.initializer[k].name not in used:
                del graph.initializer[k]


def _converts(node: onnx.NodeProto, origins: set[str]) -> bool:
    if node.op_type == "Constant":
        return node.output[0] in origins
    return bool(node.input) and any(name in origins for name in node.input) and node.op_type in ("Identity", "Clip")


def _used(proto: onnx.ModelProto) -> set[str]:
    names = set()
    for graph in all_graphs(proto.graph):
        names |= {text(o.name) for o in graph.output} | {text(n) for node in graph.node for n in node.input if n}
    return names
