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
from typing import Any

from onnxfi.errors import ModelError, closest
from onnxfi.graph.dataflow.activation_targets import Activation, activations
from onnxfi.graph.model.graph_index import GraphIndex
from onnxfi.graph.model.loading import Model, parse
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.spiking.detect_neurons import SpikingLayer, SpikingLayers, Step, Variable, find_spiking_layers
from onnxfi.graph.spiking.pattern_graph import PatternGraph, Use

PARAMETERS = ("threshold", "leak", "synaptic", "refractory")
_KEYS = ("name", "membrane", "spike", *PARAMETERS, "reset")


def mapped_layers(model: Model, rows: Sequence[Mapping[str, Any]]) -> list[SpikingLayer]:
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
        if not isinstance(row, Mapping) or "name" not in row or "spike" not in row:
            raise ModelError(f"a layer of the mapping needs name and spike; given {str(row)[:80]!r}")
        for key in row:
            if key not in _KEYS:
                raise ModelError(f"the mapping of {row['name']!r} has the key {key!r}{closest(str(key), _KEYS)}")
        spikes, membranes = (_tensors(row, key, known) for key in ("spike", "membrane"))
        if membranes and len(membranes) != len(spikes):
            raise ModelError(
                f"the mapping of {row['name']!r} names {len(membranes)} membranes and {len(spikes)} spikes; "
                f"a step has one of each"
            )
        path = spikes[0].path
        if any(a.path != path for a in (*spikes, *membranes)):
            raise ModelError(f"the mapping of {row['name']!r} names tensors of several graphs; a layer lies in one")
        pattern = cones[path]
        reset = str(row.get("reset", "none"))
        if reset not in ("subtract", "zero", "none"):
            raise ModelError(f"the mapping of {row['name']!r} has the reset {reset!r}; give subtract, zero or none")
        potentials = [a.name for a in membranes] or [""] * len(spikes)
        steps = tuple(Step(m, s.name, _read(pattern, m)) for m, s in zip(potentials, spikes, strict=True))
        variables = tuple(_variable(model, pattern, row, key) for key in PARAMETERS if key in row)
        dims = spikes[0].dims or ()
        shape = tuple(n for n in (dims[1:] if len(dims) > 1 else dims) if isinstance(n, int))
        out.append(
            SpikingLayer(
                str(row["name"]), "mapped", path, shape if spikes[0].shape_known and dims else None, steps,
                None if path in loops else len(steps), variables, reset, loops.get(path, ""),
            )
        )  # fmt: skip
    return out


def _read(pattern: PatternGraph, membrane: str) -> tuple[Use, ...]:
    """Return all uses of a membrane potential, since a mapping does not say which are inside the layer."""
    return tuple(use for use in pattern.users.get(text(membrane), []) if membrane and use.input >= 0)


def _tensors(row: Mapping[str, Any], key: str, known: Mapping[str, Activation]) -> list[Activation]:
    given = row.get(key, [])
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if name not in known:
            raise ModelError(
                f"the mapping of {row['name']!r} names the {key} {name!r}, which is not in this model"
                f"{closest(str(name), known)}"
            )
    return [known[name] for name in names]


def _variable(model: Model, pattern: PatternGraph, row: Mapping[str, Any], key: str) -> Variable:
    names = [row[key]] if isinstance(row[key], str) else list(row[key])
    stored = [t.id for t in model.targets]
    uses: list[Use] = []
    value = None
    for name in names:
        value = pattern.constant(str(name).rpartition("::")[2])
        if value is None:
            raise ModelError(
                f"the mapping of {row['name']!r} names the {key} {name!r}, which is not a stored tensor of this model"
                f"{closest(str(name), stored)}"
            )
        uses += [u for u in pattern.users.get(text(str(name).rpartition("::")[2]), []) if u.input >= 0]
    assert value is not None
    return Variable(key, value, tuple(map(str, names)), tuple(uses))


def spiking_layers(model: Model, mapping: Sequence[Mapping[str, Any]] = ()) -> SpikingLayers:
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
