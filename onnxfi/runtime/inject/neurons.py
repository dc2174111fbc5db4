"""Spiking networks: describe their neurons, and expose them so that each can have a fault of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.errors import ModelError
from onnxfi.file_fields import Fields
from onnxfi.graph.model.graph_index import all_nodes
from onnxfi.graph.model.loading import Model, ModelLike, load, parse
from onnxfi.graph.model.neuron_table import read_neuron_table
from onnxfi.graph.passes.expose_neurons import ExposeNeurons
from onnxfi.graph.passes.expose_reads import ExposeReads
from onnxfi.graph.spiking.detect_neurons import SpikingLayer, SpikingLayers, find_spiking_layers
from onnxfi.graph.spiking.pattern_graph import MAKES_SPIKES
from onnxfi.graph.spiking.undetected_neurons import LAYER_FIELDS, spiking_layers
from onnxfi.graph.write.model_file import save_model

if TYPE_CHECKING:
    import onnx

_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class ExposedNeurons:
    """Model with its neurons exposed: a weight of each parameter and of the spike for every neuron."""

    proto: onnx.ModelProto = field(repr=False)
    spiking: SpikingLayers
    out: Path | None

    @property
    def data(self) -> bytes:
        """The exposed model, serialised."""
        return self.proto.SerializeToString(deterministic=True)


def read_mapping(path: str | Path) -> tuple[Fields, ...]:
    """Return the layers of a mapping file (YAML, docs/how-to/spiking.md); ModelError for another one."""
    from onnxfi.runtime.data.untrusted_yaml import load_yaml

    given = load_yaml(path, "mapping", ModelError)
    given = {"version": 1, **given} if isinstance(given, dict) else given
    whole = Fields.of(given, ("version", "layers"), f"mapping {str(path)!r}", ModelError, version=1)
    return whole.each("layers", LAYER_FIELDS, _MOST_LAYERS, "layer")


def expose_neurons(
    model: ModelLike, out: str | Path | None = None, *, neurons: str | Path | None = None, reads: bool = False
) -> ExposedNeurons:
    """Give every neuron of a spiking network weights of its own, and write the model.

    Outputs stay the same bit for bit until a fault is injected.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The spiking network.
    out : str or Path, optional
        The exposed model; without it nothing is written.
    neurons : str or Path, optional
        Mapping file of layers that no pattern finds.
    reads : bool, default: False
        Whether each time step also reads parameters and synapses through an activation of its own, `NAME/read/STEP`,
        for faults of one step.

    Returns
    -------
    ExposedNeurons
        The exposed model, and the layers that were found.

    Raises
    ------
    ModelError
        For a model without spiking layers, with layers of unknown shape, or whose neurons are exposed already.
    OutputError
        If the output cannot be written.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> done = expose_neurons(load("models/fashion_snn.onnx"))
    >>> [(target.id, target.shape) for target in load(done.data).targets if target.layer == "lif3"][-1]
    ('lif3/spike', (10,))
    """
    model = load(model)
    if read_neuron_table(model.proto):
        raise ModelError(f"{model.name} has its neurons exposed already; inject into it as it is")
    found = spiking_layers(model, read_mapping(neurons) if neurons is not None else ())
    made, _ = ExposeNeurons(found.layers).run(parse(model))
    if reads:
        made, _ = ExposeReads().run(made)
    place = None if out is None else Path(out)
    if place is not None:
        save_model(model, made, place)
    return ExposedNeurons(made, found, place)


def with_exposed_neurons(model: Model, neurons: str | Path | None = None) -> Model:
    """Return the model with its neurons exposed, in memory; as it is where they are."""
    return model if read_neuron_table(model.proto) else load(expose_neurons(model, neurons=neurons).data)


def describe_neurons(model: Model, neurons: str | Path | None = None) -> dict[str, Any]:
    """Return the spiking layers of a model as plain values, for `inspect`.

    >>> from onnxfi.graph.model.loading import load
    >>> found = describe_neurons(load("models/fashion_snn.onnx"))
    >>> [(row["layer"], row["neurons"], row["steps"]) for row in found["layers"]]
    [('lif1', 1568, 8), ('lif2', 784, 8), ('lif3', 10, 8)]
    """
    if rows := read_neuron_table(model.proto):
        return {"layers": [_exposed_row(row) for row in rows], "time_axes": [], "notes": []}
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
    """Return the operators of a model's graphs."""
    return {node.op_type for node in all_nodes(proto.graph.node)}


def _row(layer: SpikingLayer) -> dict[str, Any]:
    """Return a layer as plain values."""
    values = {v.name: [float(v.value.min()), float(v.value.max())] if v.value.size else None for v in layer.variables}
    return {
        "layer": layer.name, "kind": layer.kind, "shape": None if layer.shape is None else list(layer.shape),
        "neurons": layer.neurons, "steps": layer.trips, "threshold": values.get("threshold"),
        "leak": values.get("leak"), "synaptic": values.get("synaptic"), "refractory": values.get("refractory"),
        "reset": layer.reset,
        "loop": layer.loop or None, "exposed": False,
        "membrane": [layer.path + s.membrane for s in layer.steps if s.membrane],
        "spike": [layer.path + s.spike for s in layer.steps],
    }  # fmt: skip


def _exposed_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer of the table of an exposed model as plain values."""
    shape: Sequence[int] = row["shape"]
    size = 1
    for n in shape:
        size *= n
    values = dict.fromkeys(("threshold", "leak", "synaptic", "refractory"))
    keys = ("layer", "kind", "shape", "steps", "reset", "loop", "membrane", "spike")
    return {**{key: row[key] for key in keys}, "neurons": size, **values, "exposed": True}
