"""The verbs on spiking networks: describe their neurons, and expose them so that each can be struck alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.errors import InputError, ModelError
from onnxfi.graph.model.graph_index import all_nodes
from onnxfi.graph.model.loading import Model, load, parse
from onnxfi.graph.model.neuron_table import read_neuron_table
from onnxfi.graph.passes.expose_neurons import ExposeNeurons
from onnxfi.graph.spiking.detect_neurons import SpikingLayer, SpikingLayers, find_spiking_layers
from onnxfi.graph.spiking.neuron_mapping import spiking_layers
from onnxfi.graph.spiking.pattern_graph import MAKES_SPIKES
from onnxfi.graph.write.model_file import save_model

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class ExposedNeurons:
    """A model with its neurons exposed: a word of each parameter and of the spike for every neuron."""

    proto: onnx.ModelProto = field(repr=False)
    spiking: SpikingLayers
    out: Path | None

    @property
    def data(self) -> bytes:
        """The exposed model, serialised."""
        return self.proto.SerializeToString(deterministic=True)


def read_mapping(path: str | Path) -> list[Mapping[str, Any]]:
    """The layers that a mapping file (YAML, docs/how-to/spiking.md) says; InputError for what is none."""
    from onnxfi.runtime.data.yaml_file import load_yaml

    said = load_yaml(path, "mapping")
    layers = said.get("layers") if isinstance(said, dict) else None
    if not isinstance(layers, list) or not layers or set(said) - {"layers", "version"}:
        raise InputError(f"the mapping {str(path)!r} needs a list `layers:`, and nothing else but `version: 1`")
    if said.get("version", 1) != 1:
        raise InputError(f"the mapping {str(path)!r} has version {said['version']!r}; this onnxfi knows 1")
    return layers


def expose_neurons(model: Model, out: str | Path | None = None, *, neurons: str | Path | None = None) -> ExposedNeurons:
    """Give every neuron of a spiking network stored words of its own, and write the model (None: nowhere).

    `neurons` is a mapping file for layers that no pattern finds. Golden stays the same bit for bit. Raises ModelError
    for a model without spiking layers, or whose neurons are exposed already.

    >>> from onnxfi.graph.model.loading import load
    >>> done = expose_neurons(load("models/fashion_snn.onnx"))
    >>> [(target.id, target.shape) for target in load(done.data).targets if target.layer == "lif3"][-1]
    ('lif3/spike', (10,))
    """
    if read_neuron_table(model.proto):
        raise ModelError(f"{model.name} has its neurons exposed already; strike its words as they are")
    found = spiking_layers(model, read_mapping(neurons) if neurons is not None else ())
    made, _ = ExposeNeurons(found.layers).run(parse(model))
    place = None if out is None else Path(out)
    if place is not None:
        save_model(model, made, place)
    return ExposedNeurons(made, found, place)


def with_exposed_neurons(model: Model, neurons: str | Path | None = None) -> Model:
    """The model with its neurons exposed, in memory; as it is where they are."""
    return model if read_neuron_table(model.proto) else load(expose_neurons(model, neurons=neurons).data)


def describe(model: Model, neurons: str | Path | None = None) -> dict[str, Any]:
    """The spiking layers of a model as plain values: what `inspect` says of them.

    >>> from onnxfi.graph.model.loading import load
    >>> found = describe(load("models/fashion_snn.onnx"))
    >>> [(row["layer"], row["neurons"], row["steps"]) for row in found["layers"]]
    [('lif1', 1568, 8), ('lif2', 784, 8), ('lif3', 10, 8)]
    """
    if rows := read_neuron_table(model.proto):
        return {"layers": [_told(row) for row in rows], "time_axes": [], "notes": []}
    if not MAKES_SPIKES & operators(model.proto) and neurons is None:
        return {"layers": [], "time_axes": [], "notes": []}
    try:
        found = spiking_layers(model, read_mapping(neurons)) if neurons is not None else find_spiking_layers(model)
    except ModelError as error:
        if neurons is not None:
            raise
        return {"layers": [], "time_axes": [], "notes": [str(error)]}
    return {
        "layers": [_row(layer) for layer in found.layers],
        "time_axes": [{"tensor": a.tensor, "axis": a.axis, "role": a.role} for a in found.axes],
        "notes": list(found.notes),
    }


def operators(proto: onnx.ModelProto) -> set[str]:
    """The operators of a model's graphs."""
    return {node.op_type for node in all_nodes(proto.graph.node)}


def _row(layer: SpikingLayer) -> dict[str, Any]:
    values = {v.name: [float(v.value.min()), float(v.value.max())] if v.value.size else None for v in layer.variables}
    return {
        "layer": layer.name, "kind": layer.kind, "shape": None if layer.shape is None else list(layer.shape),
        "neurons": layer.neurons, "steps": layer.trips, "threshold": values.get("threshold"),
        "leak": values.get("leak"), "refractory": values.get("refractory"), "reset": layer.reset,
        "loop": layer.loop or None, "exposed": False,
        "membrane": [layer.path + s.membrane for s in layer.steps if s.membrane],
        "spike": [layer.path + s.spike for s in layer.steps],
    }  # fmt: skip


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    shape: Sequence[int] = row["shape"]
    size = 1
    for n in shape:
        size *= n
    values = dict.fromkeys(("threshold", "leak", "refractory"))
    keys = ("layer", "kind", "shape", "steps", "reset", "loop", "membrane", "spike")
    return {**{key: row[key] for key in keys}, "neurons": size, **values, "exposed": True}
