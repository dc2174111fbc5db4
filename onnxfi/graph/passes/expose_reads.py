"""Read exposure: a pass that lets each time step of a spiking network read stored tensors by tensors of its own.

A stored threshold, leak or synapse is one word for all steps, so a fault in it is permanent. After this pass a tensor W
that the steps read has an activation for each of them, `W/read/STEP` (in the body of a loop `W/read`), and a fault
there is what one step reads wrong. Each is the stored tensor as it is, so outputs stay the same bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxfi.errors import ModelError, PassError
from onnxfi.graph.model.graph_index import GraphIndex
from onnxfi.graph.model.neuron_table import READS_KEY, read_neuron_table, step_reads
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.passes.graph_edit import GraphEdit
from onnxfi.graph.passes.model_pass import ModelPass

if TYPE_CHECKING:
    import onnx


#: Numbers of the formats of thresholds, leaks and weights: float32, float16, float64, bfloat16, int8, uint8.
_NUMBERS = frozenset((1, 10, 11, 16, 3, 2))
#: A node and the number of its input that reads a tensor.
_Use = tuple[int, int]


@dataclass(frozen=True)
class ExposeReads(ModelPass[None]):
    """The pass that exposes what each step of an exposed spiking network reads.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load, parse
    >>> from onnxfi.runtime.inject.neurons import expose_neurons
    >>> made, _ = ExposeReads().run(parse(load(expose_neurons(load("models/fashion_snn.onnx")).data)))
    >>> sorted(step_reads(made))[:4], step_reads(made)["fc.weight"][5]
    (['conv2.bias', 'conv2.weight', 'fc.bias', 'fc.weight'], 'fc.weight/read/5')
    """

    name = "expose-reads"

    def requires(self, proto: onnx.ModelProto) -> None:
        """Raise ModelError for a model whose neurons are not exposed, and for one whose reads are."""
        if not read_neuron_table(proto):
            raise ModelError("the neurons are not exposed; expose them first")
        if step_reads(proto):
            raise ModelError("what steps read is exposed already; inject into this model as it is")

    def apply(self, proto: onnx.ModelProto) -> None:
        """Give each step a tensor of its own for what it reads."""
        rows, found = read_neuron_table(proto), dict[str, list[str]]()
        words = {name: (row["layer"], role) for row in rows for role, name in row["words"].items()}
        stored = {t.name for t in proto.graph.initializer if t.data_type in _NUMBERS}
        for scope in GraphIndex.of(proto).graphs:
            of_body = [row for row in rows if _path(row) == scope.path]
            if not of_body:
                continue
            edit = GraphEdit(scope.graph)
            own = {t.name for t in scope.graph.initializer if t.data_type in _NUMBERS}
            uses = _uses(scope.graph, {name for name in stored | own if words.get(name, ("", ""))[1] != "spike"})
            if of_body[0]["loop"]:
                steps: dict[str, dict[int, list[_Use]]] = {name: {0: one} for name, one in uses.items()}
            else:
                steps = _by_step(scope.graph, of_body, uses, words)
            for name, groups in steps.items():
                found[name] = [
                    scope.path + _put(edit, name, one, "" if of_body[0]["loop"] else f"/{k}", words.get(name, ("",))[0])
                    for k, one in groups.items()
                ]
            edit.write()
        entry = proto.metadata_props.add()
        entry.key, entry.value = READS_KEY, json.dumps(found)

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        """Check that some step reads something of its own."""
        if not step_reads(after):
            raise PassError(f"the pass {self.name!r} found no tensor that several steps read")


def _path(row: Mapping[str, Any]) -> str:
    """Return the path of the graph that holds the neurons of a layer."""
    head, mark, _ = str(row["spike"][0]).rpartition("::")
    return head + mark


def _uses(graph: onnx.GraphProto, names: set[str]) -> dict[str, list[_Use]]:
    """Return the uses of tensors by nodes of one graph, in the order of the nodes."""
    found: dict[str, list[_Use]] = {}
    for k, node in enumerate(graph.node):
        for at, name in enumerate(map(text, node.input)):
            if name in names:
                found.setdefault(name, []).append((k, at))
    return found


def _by_step(
    graph: onnx.GraphProto, rows: Sequence[Mapping[str, Any]], uses: Mapping[str, list[_Use]],
    words: Mapping[str, tuple[str, str]],
) -> dict[str, dict[int, list[_Use]]]:  # fmt: skip
    """Return the uses of each tensor that several steps of an unrolled network read, by step.

    A node belongs to the first step whose spikes depend on it, in the layer of the parameter, or in any layer. Behind
    the last spikes that is not known: a word of a neuron is read in the last step there, another tensor in as many
    steps as it has uses.
    """
    maker = {text(name): k for k, node in enumerate(graph.node) for name in node.output if name}
    trips = max(len(row["spike"]) for row in rows)
    of_layer = {
        row["layer"]: _steps_of_nodes(graph, maker, [row["spike"][k : k + 1] for k in range(trips)]) for row in rows
    }
    of_any = _steps_of_nodes(graph, maker, [[s for row in rows for s in row["spike"][k : k + 1]] for k in range(trips)])
    found: dict[str, dict[int, list[_Use]]] = {}
    for name, mine in uses.items():
        word = name in words
        known = of_layer[words[name][0]] if word else of_any
        groups: dict[int, list[_Use]] = {}
        for k, use in enumerate(mine):
            step = known.get(use[0])
            if step is None and not word and len(mine) == trips:
                step = k
            groups.setdefault(trips - 1 if step is None else step, []).append(use)
        if len(groups) > 1:
            found[name] = dict(sorted(groups.items()))
    return found


def _steps_of_nodes(
    graph: onnx.GraphProto, maker: Mapping[str, int], spikes: Sequence[Sequence[str]]
) -> dict[int, int]:
    """Return the first step whose spikes depend on a node, by the number of the node."""
    found: dict[int, int] = {}
    for step, names in enumerate(spikes):
        todo = [maker[name] for name in names if name in maker]
        while todo:
            k = todo.pop()
            if k not in found:
                found[k] = step
                todo += [maker[name] for name in map(text, graph.node[k].input) if name in maker]
    return found


def _put(edit: GraphEdit, name: str, uses: Sequence[_Use], suffix: str, layer: str) -> str:
    """Insert a copy of a stored tensor before its first use, and let these uses read it; return its name."""
    from onnx import helper

    made, first = f"{name}/read{suffix}", edit.graph.node[uses[0][0]]
    node = helper.make_node("Identity", [name], [made])
    scope = f"/{layer}" if layer else text(first.name).rpartition("/")[0]
    node.name = f"{scope}/read-{name.replace('/', '-')}{suffix.replace('/', '-')}" if scope else ""
    if not layer:
        node.metadata_props.extend(first.metadata_props)
    edit.put_before(uses[0][0], [node])
    for k, at in uses:
        edit.graph.node[k].input[at] = made
    return made
