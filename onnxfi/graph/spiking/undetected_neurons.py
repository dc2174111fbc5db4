"""Mapping of neurons that are not detected: their tensors by name.

layers:
  - name: lif1                       # what to call it
    membrane: [mem1_0, mem1_1]       # one tensor a step; in the body of a loop one, as steps.body::mem
    spike: [spk1_0, spk1_1]
    threshold: lif1.vth              # stored tensors; each optional
    leak: lif1.tau
    synaptic: lif1.alpha
    refractory: lif1.hold
    reset: zero                      # subtract, zero or none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxfi.errors import ModelError, closest
from onnxfi.file_fields import Fields
from onnxfi.graph.dataflow.activation_targets import Activation, activations
from onnxfi.graph.model.graph_index import GraphIndex
from onnxfi.graph.model.loading import Model, parse
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.spiking.detect_neurons import SpikingLayer, SpikingLayers, Step, Variable, find_spiking_layers
from onnxfi.graph.spiking.pattern_graph import PatternGraph, Use

PARAMETERS = ("threshold", "leak", "synaptic", "refractory")
LAYER_FIELDS = ("name", "membrane", "spike", *PARAMETERS, "reset")


def mapped_layers(model: Model, rows: Sequence[Fields]) -> list[SpikingLayer]:
    """Return the layers of a mapping; ModelError for a key or a tensor that does not exist, with the closest."""
    if not rows:
        return []
    proto = parse(model)
    scopes = GraphIndex.of(proto).graphs
    cones = {scope.path: PatternGraph(scope) for scope in scopes}
    loops = {scope.path: scope.enclosing[-1].op for scope in scopes if scope.enclosing}
    known = {a.target.id: a for a in activations(model)}
    out = []
    for row in rows:
        name, spikes, membranes = row.text("name", "a name"), _tensors(row, "spike", known), []
        if "membrane" in row:
            membranes = _tensors(row, "membrane", known)
            if len(membranes) != len(spikes):
                raise row.fail(f"{len(membranes)} membranes and {len(spikes)} spikes; a step has one of each")
        path = spikes[0].path
        if any(a.path != path for a in (*spikes, *membranes)):
            raise row.fail("it names tensors of several graphs; a layer lies in one")
        pattern = cones[path]
        reset = row.one_of("reset", ("subtract", "zero", "none"), "none")
        potentials = [a.name for a in membranes] or [""] * len(spikes)
        steps = tuple(Step(m, s.name, _read(pattern, m)) for m, s in zip(potentials, spikes, strict=True))
        variables = tuple(_variable(model, pattern, row, key) for key in PARAMETERS if key in row)
        dims = spikes[0].dims or ()
        shape = tuple(n for n in (dims[1:] if len(dims) > 1 else dims) if isinstance(n, int))
        out.append(
            SpikingLayer(
                name, "mapped", path, shape if spikes[0].shape_known and dims else None, steps,
                None if path in loops else len(steps), variables, reset, loops.get(path, ""),
            )
        )  # fmt: skip
    return out


def _read(pattern: PatternGraph, membrane: str) -> tuple[Use, ...]:
    """Return all uses of a membrane potential, since a mapping does not say which are inside the layer."""
    return tuple(use for use in pattern.users.get(text(membrane), []) if membrane and use.input >= 0)


def _tensors(row: Fields, field: str, known: Mapping[str, Activation]) -> list[Activation]:
    names = row.texts(field, "a tensor, or a list of them", alone=True)
    for name in names:
        if name not in known:
            raise row.fail(f"{field} names {name!r}, which is not in this model{closest(name, known)}")
    return [known[name] for name in names]


def _variable(model: Model, pattern: PatternGraph, row: Fields, field: str) -> Variable:
    names, stored = row.texts(field, "a stored tensor, or a list of them", alone=True), [t.id for t in model.targets]
    uses: list[Use] = []
    value = None
    for name in names:
        own = name.rpartition("::")[2]
        value = pattern.constant(own)
        if value is None:
            raise row.fail(f"{field} {name!r}, which is not a stored tensor of this model{closest(name, stored)}")
        uses += [u for u in pattern.users.get(text(own), []) if u.input >= 0]
    assert value is not None
    return Variable(field, value, names, tuple(uses))


def spiking_layers(model: Model, mapping: Sequence[Fields] = ()) -> SpikingLayers:
    """Return the layers of a mapping, and the detected ones; ModelError if there is none.

    >>> from onnxfi.graph.model.loading import load
    >>> spiking_layers(load("models/fashion_cnn.onnx"))
    Traceback (most recent call last):
    onnxfi.errors.ModelError: models/fashion_cnn.onnx has no spiking layer: ...
    """
    found = find_spiking_layers(model)
    described = mapped_layers(model, mapping)
    taken = {step.membrane for layer in described for step in layer.steps} | {layer.name for layer in described}
    rest = [x for x in found.layers if x.name not in taken and not any(s.membrane in taken for s in x.steps)]
    layers = (*described, *rest)
    if not layers:
        raise ModelError(
            f"{model.name} has no spiking layer: no graph has a membrane potential that follows elementwise from "
            f"that of the previous step, and is compared with a constant (a spike); describe other neurons in a "
            f"mapping file (--neurons)"
        )
    return replace(found, layers=layers)
