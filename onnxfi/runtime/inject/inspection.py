"""Activations of a model, described as plain values: what each layer outputs, its format, shape and steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxfi.faults.models import Flip
from onnxfi.faults.space import FaultSpace, Selector
from onnxfi.graph.dataflow.activation_targets import Activation, activations, select_activations
from onnxfi.graph.model.loading import ModelLike, load, parse
from onnxfi.runtime.data.open_data import data_of
from onnxfi.runtime.engine.ports import inputs_of
from onnxfi.runtime.inject.activations import MADE_UP_SHAPES, of_target
from onnxfi.runtime.inject.neurons import describe_neurons
from onnxfi.runtime.inject.shape_query import complete_by_running, loop_iterations

__all__ = ["inspect_activations"]


def inspect_activations(
    model: ModelLike,
    selector: Selector | None = None,
    *,
    target: str = "activations",
    all: bool = False,
    neurons: str | Path | None = None,
    data: Any = None,
    custom_ops: Sequence[str] = (),
    **selection: Any,
) -> dict[str, Any]:
    """Describe the activations that faults can be injected into, as plain values.

    The selection is that of `inject_activations`. Elements and bits are those of one sample, and of one step where the
    tensor lies in a loop. Shapes and steps that the file leaves open are those of a run.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The model.
    selector : Selector, optional
        The activations; without `include` or `op` the outputs of layers.
    target : {"activations", "inputs"}
        Take computed tensors, or the inputs of the graph alone.
    all : bool
        Take every activation that can have faults, rather than the outputs of layers.
    neurons : str or Path, optional
        Mapping file of spiking layers that no pattern finds.
    data : Data, or all that `open_data` takes, optional
        Samples that are run; made up without it.
    custom_ops : sequence of str
        Libraries of custom operators.
    **selection
        Fields of a selector in place of one: ``include="conv1"``, ``bits="exponent"``, ….

    Returns
    -------
    dict
        Activations in file order, totals, and what is left out by reason, as docs/reference/json.md lists them.

    Raises
    ------
    SelectorError
        If a selection finds nothing.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> found = inspect_activations(load("models/fashion_cnn.onnx"))
    >>> [(row["outputs_of"][0]["layer"], row["target"], row["elements"]) for row in found["activations"]]
    [('conv1', 'relu', 12544), ('conv2', 'relu_1', 6272), ('fc1', 'relu_2', 64), ('fc2', 'logits', 10)]
    """
    model, chosen = load(model), Selector.given(selector, selection)
    data = data_of(data, inputs_of(model.proto))
    stated = activations(model, None if data is None else data.layout)
    rows = complete_by_running(model, parse(model), stated, data, custom_ops)
    made_up = (MADE_UP_SHAPES,) if data is None and rows != stated else ()
    known = of_target(rows, target)
    picked = select_activations(known, chosen, every=all)
    kept = [a for a in picked.activations if a.shape_known]
    space = FaultSpace.over(
        [replace(a.target, structural=False) for a in kept], Flip(), bits=chosen.bits, elements=chosen.elements
    )
    sizes = {t.id: size for t, *size in zip(space.targets, space.element_counts, space.sizes, strict=True)}
    loops = loop_iterations(model, data, custom_ops) if any(a.loop for a in picked.activations) else {}
    spiking = describe_neurons(model, neurons)
    steps, before = _steps_of_neurons(spiking["layers"]), _results_before(rows)
    described = [
        _row(a, sizes, loops)
        | {"neurons": steps.get(a.target.id), "outputs_of": [_result(b) for b in (*_chain(a, before), a)]}
        for a in picked.activations
    ]
    reasons = Counter(a.unsupported_reason for a in known if a.unsupported_reason)
    return {
        "model": model.name,
        "digest": model.digest,
        "activations": described,
        "totals": {
            "activations": len(described),
            **{
                key: None if any(row[key] is None for row in described) else sum(row[key] for row in described)
                for key in ("elements", "bits")
            },
        },
        "unselected": len(known) - reasons.total() - len(described),
        "unsupported": dict(reasons),
        "spiking": spiking["layers"] if target == "activations" else [],
        "notes": [*model.notes, *picked.notes, *spiking["notes"], *made_up],
    }


def _row(a: Activation, sizes: Mapping[str, Sequence[int]], loops: Mapping[str, int]) -> dict[str, Any]:
    """Return an activation as plain values."""
    found = sizes.get(a.target.id, (0, 0)) if a.shape_known else None
    return {
        "target": a.target.id, "layer": a.target.layer, "op": a.target.op, "node": a.target.node,
        "kind": a.target.kind, "dtype": a.target.dtype, "shape": None if a.dims is None else list(a.dims),
        "batch_axis": a.axis, "sample_shape": list(a.target.shape) if a.shape_known else None,
        "elements": None if found is None else found[0], "bits": None if found is None else found[1],
        "loop": a.loop or None, "iterations": loops.get(a.path) if a.loop else None,
        "by_default": a.default,
    }  # fmt: skip


def _results_before(rows: Sequence[Activation]) -> dict[tuple[str, str], list[Activation]]:
    """Return for each activation those that it stands for: the layer before its activation function or QDQ group."""
    found: dict[tuple[str, str], list[Activation]] = {}
    for a in rows:
        if end := a.after or a.quantized:
            found.setdefault((a.path, end), []).append(a)
    return found


def _chain(a: Activation, before: Mapping[tuple[str, str], Sequence[Activation]]) -> list[Activation]:
    """Return the activations that one stands for, from the layer on."""
    return [one for b in before.get((a.path, a.name), ()) for one in (*_chain(b, before), b)]


def _result(a: Activation) -> dict[str, str]:
    return {"layer": a.target.layer, "op": a.target.op, "target": a.target.id}


def _steps_of_neurons(layers: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return by tensor the spiking layer whose membrane potential or spikes it holds, and which step of it."""
    found = {}
    for layer in layers:
        for role in ("membrane", "spike"):
            names = layer[role]
            for step, name in enumerate(names):
                unrolled = not layer["loop"]
                found[str(name)] = {
                    "layer": layer["layer"], "role": role, "step": step if unrolled else None,
                    "steps": len(names) if unrolled else layer["steps"],
                }  # fmt: skip
    return found
