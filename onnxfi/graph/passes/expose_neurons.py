"""Neuron exposure: a pass that gives every neuron its own weights, so that faults can be injected into single neurons.

Exporters store one threshold and one leak for a whole layer, and no spike at all. In the exposed model a layer L has

    L/threshold, L/leak, L/synaptic, L/refractory   its parameters, one element per neuron (those that it has)
    L/reset     share of the reset that is applied: 1 is all of it, 0 none
    L/spike     output of a neuron: NaN is the computed one, 0 a dead neuron, 1 a saturated one

as float tensors shaped as the neurons of one sample, and the activations `L/membrane/STEP` (the potential before it is
compared), `L/carried/STEP` (behind that, as the next step gets it) and `L/spike/STEP` (in the body of a loop without
STEP). Outputs stay the same bit for bit until a weight is faulty: the parameters enter the same operations, a spike
times 1 is the spike, and NaN selects the computed value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import ModelError, PassError
from onnxfi.graph.model.graph_index import GraphIndex, all_graphs
from onnxfi.graph.model.neuron_table import NEURON_TABLE_KEY, read_neuron_table
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.passes.graph_edit import GraphEdit, redirect_node
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.spiking.detect_neurons import SpikingLayer, Step, Variable

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class ExposeNeurons(ModelPass[None]):
    """The pass that exposes the neurons of these spiking layers.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load, parse
    >>> from onnxfi.graph.spiking.detect_neurons import find_spiking_layers
    >>> model = load("models/fashion_snn.onnx")
    >>> made, _ = ExposeNeurons(find_spiking_layers(model).layers).run(parse(model))
    >>> [target.id for target in load(made).targets if target.id.startswith("lif3/")]
    ['lif3/threshold', 'lif3/leak', 'lif3/reset', 'lif3/spike']
    """

    layers: tuple[SpikingLayer, ...]
    name = "expose-neurons"

    def requires(self, proto: onnx.ModelProto) -> None:
        """Raise ModelError for a model whose neurons are exposed already, and for layers of unknown shape."""
        if read_neuron_table(proto):
            raise ModelError("the neurons are exposed already; inject into this model as it is")
        for layer in self.layers:
            if layer.shape is None:
                raise ModelError(
                    f"the shape of the neurons of {layer.name!r} cannot be inferred; export it with value_info, or run "
                    f"onnx.shape_inference on it"
                )

    def apply(self, proto: onnx.ModelProto) -> None:
        """Store a weight for each neuron, and let the layers read those."""
        scopes = [(scope.path, scope.graph) for scope in GraphIndex.of(proto).graphs]
        edits = {path: _LayerEdit(graph, proto.graph) for path, graph in scopes}
        rows = [_expose(edits[layer.path], layer) for layer in self.layers]
        for path in sorted(edits, key=lambda p: -p.count("::")):
            edits[path].write()
        _prune(proto, {name for layer in self.layers for v in layer.variables for name in v.origins})
        entry = proto.metadata_props.add()
        entry.key, entry.value = NEURON_TABLE_KEY, json.dumps(rows)
        proto.ir_version = max(proto.ir_version, 4)

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        """Check that every layer has its weights."""
        stored = {t.name for t in after.graph.initializer}
        for row in read_neuron_table(after):
            for weight in row["words"].values():
                if weight not in stored:
                    raise PassError(f"the pass {self.name!r} breaks its contract: {weight!r} is not stored")


class _LayerEdit(GraphEdit):
    """Edit of a graph with spiking layers; weights are stored in the main graph, which bodies can read."""

    def __init__(self, graph: onnx.GraphProto, main: onnx.GraphProto) -> None:
        super().__init__(graph)
        self.main = main

    def put(self, position: int, op: str, inputs: Sequence[str], output: str, layer: str = "") -> None:
        """Insert a node after another; it belongs to that node's module, or to the named layer."""
        from onnx import helper

        node = helper.make_node(op, list(inputs), [output])
        if layer:
            node.name = f"{layer}/exposed-{output.rpartition('/')[2]}"
        elif position >= 0:
            old = self.graph.node[position]
            scope = text(old.name).rpartition("/")[0]
            node.name = f"{scope}/exposed-{output.replace('/', '-')}" if scope else ""
            node.metadata_props.extend(old.metadata_props)
        else:
            node.name = f"/{output.rpartition('/')[0]}/exposed-{output.rpartition('/')[2]}"
        self.put_behind(position, [node])

    def store(self, name: str, value: NDArray[Any]) -> None:
        """Store a tensor in the main graph."""
        from onnx import numpy_helper

        self.main.initializer.append(numpy_helper.from_array(value, name))

    def replace_output(self, old: str, new: str) -> None:
        """Replace an output of a graph by another tensor, under the old name."""
        if old not in self.outputs:
            return
        position, unexposed = self.maker[old], f"{old}/plain"
        self.rename_output(position, old, unexposed)
        self.redirect(old, unexposed)
        for node in self.behind(position):
            redirect_node(node, old, unexposed)
        self.put(position, "Identity", [new], old)
        self.outputs.discard(old)


def _expose(edit: _LayerEdit, layer: SpikingLayer) -> dict[str, Any]:
    """Expose one layer; return its row of the table."""
    words: dict[str, str] = {}
    for variable in layer.variables:
        words[variable.name] = stored = f"{layer.name}/{variable.name}"
        edit.store(stored, _by_neuron(variable, layer))
        for use in variable.uses:
            edit.graph.node[use.node].input[use.input] = stored
    assert layer.shape is not None
    dtype = layer.variables[0].value.dtype if layer.variables else np.dtype(np.float32)
    if any(step.resets for step in layer.steps):
        words["reset"] = f"{layer.name}/reset"
        edit.store(words["reset"], np.ones(layer.shape, dtype))
    words["spike"] = f"{layer.name}/spike"
    edit.store(words["spike"], np.full(layer.shape, np.nan, dtype))
    edit.put(-1, "IsNaN", [words["spike"]], f"{layer.name}/free")
    steps = [_expose_step(edit, layer, step, "" if layer.loop else f"/{k}") for k, step in enumerate(layer.steps)]
    for variable in layer.variables:
        _put_factors(edit, layer, variable)
    return {
        "layer": layer.name, "kind": layer.kind, "shape": list(layer.shape), "steps": layer.trips, "reset": layer.reset,
        "loop": layer.loop or None, "words": words,
        **{
            role: [layer.path + names[role] for names in steps if names[role]]
            for role in ("membrane", "carried", "spike")
        },
    }  # fmt: skip


def _put_factors(edit: _LayerEdit, layer: SpikingLayer, variable: Variable) -> None:
    """Multiply values with a parameter of 1 that an exporter left out; a number times 1 is that number."""
    made: dict[str, str] = {}
    for use in variable.factors:
        read = text(edit.graph.node[use.node].input[use.input])
        if read not in made:
            made[read] = f"{layer.name}/{variable.name}-of-{read.replace('/', '_')}"
            # Names of this pass stand behind the node of the value that they name.
            known = {text(o): k for k in (-1, *edit.maker.values()) for node in edit.behind(k) for o in node.output}
            position = edit.maker.get(read, known.get(read, -1))
            edit.put(
                position, "Mul", [read, f"{layer.name}/{variable.name}"], made[read], f"{layer.name}/{variable.name}"
            )
        edit.graph.node[use.node].input[use.input] = made[read]


def _by_neuron(variable: Variable, layer: SpikingLayer) -> NDArray[Any]:
    """Return a parameter with one element per neuron."""
    assert layer.shape is not None
    value = variable.value
    while value.ndim > len(layer.shape) and value.shape[0] == 1:
        value = value[0]
    try:
        return np.broadcast_to(value, layer.shape).copy()
    except ValueError:
        raise ModelError(
            f"the {variable.name} of {layer.name!r} has the shape {list(variable.value.shape)}, which does not fit "
            f"its neurons, {list(layer.shape)}"
        ) from None


def _expose_step(edit: _LayerEdit, layer: SpikingLayer, step: Step, suffix: str) -> dict[str, str]:
    """Expose one step; return the names of its potential, before and behind the comparison, and of its spikes."""
    graph, name = edit.graph, layer.name
    inner = {(u.node, u.input): text(graph.node[u.node].input[u.input]) for u in (*step.inner, *step.resets)}
    membrane = f"{name}/membrane{suffix}" if step.membrane else ""
    handed = bool(layer.loop) and step.membrane in edit.outputs  # a state that the loop carries as it is
    carried = f"{name}/carried{suffix}" if step.membrane and (step.carried or handed) else ""
    if step.membrane:
        position = edit.maker.get(step.membrane, -1)
        # A separate Identity: the producer of the first potential may be the current of every step.
        edit.put(position, "Identity", [step.membrane], membrane, f"{name}/membrane")
        for (number, k), read in inner.items():
            if read == step.membrane:
                graph.node[number].input[k] = membrane
        if carried:
            edit.put(position, "Identity", [membrane], carried, f"{name}/carried")
        for use in step.carried:
            graph.node[use.node].input[use.input] = carried
        edit.replace_output(step.membrane, carried if handed else membrane)
    spike, fired = f"{name}/spike{suffix}" if suffix else f"{name}/spiking", step.spike
    edit.put(edit.maker[fired], "Where", [f"{name}/free", fired, f"{name}/spike"], spike, f"{name}/spike")
    edit.redirect(fired, spike, {at for at, read in inner.items() if read == fired})
    edit.replace_output(fired, spike)
    for use in step.resets:
        read = text(graph.node[use.node].input[use.input])
        graph.node[use.node].input[use.input] = _weighted_reset(edit, layer, read, suffix)
    return {"membrane": membrane, "carried": carried, "spike": spike}


def _weighted_reset(edit: _LayerEdit, layer: SpikingLayer, signal: str, suffix: str) -> str:
    """Return the product of a reset signal and each neuron's share of it."""
    out = f"{layer.name}/{signal.replace('/', '_')}{suffix}/taken"
    position = edit.maker.get(signal, -1)
    if not any(out in node.output for node in edit.behind(position)):
        edit.put(position, "Mul", [signal, f"{layer.name}/reset"], out)
    return out


def _prune(proto: onnx.ModelProto, origins: set[str]) -> None:
    """Drop parameters of whole layers without readers, and the nodes that only converted them."""
    for graph in reversed(list(all_graphs(proto.graph))):
        gone = True
        while gone:
            read = _read(proto)
            dead = [n for n in graph.node if _converts(n, origins) and not any(o in read for o in n.output)]
            for node in dead:
                origins |= set(node.input)
                graph.node.remove(node)
            gone = bool(dead)
        read = _read(proto)
        for k in reversed(range(len(graph.initializer))):
            if graph.initializer[k].name in origins and graph.initializer[k].name not in read:
                del graph.initializer[k]


def _converts(node: onnx.NodeProto, origins: set[str]) -> bool:
    """Return whether a node only converts one of these parameters."""
    if node.op_type == "Constant":
        return node.output[0] in origins
    return bool(node.input) and any(name in origins for name in node.input) and node.op_type in ("Identity", "Clip")


def _read(proto: onnx.ModelProto) -> set[str]:
    """Return the names that nodes of any graph read, and the outputs of graphs."""
    names = set()
    for graph in all_graphs(proto.graph):
        names |= {text(o.name) for o in graph.output} | {text(n) for node in graph.node for n in node.input if n}
    return names
