"""The parameters under which each model pass keeps the outputs of a model bit for bit, and its effect a second time."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from onnxfi.faults.words import Mask
from onnxfi.graph import passes, protection
from onnxfi.graph.dataflow.activation_targets import Activation, activations
from onnxfi.graph.dataflow.type_inference import infer_types
from onnxfi.graph.model.graph_index import all_nodes
from onnxfi.graph.model.loading import Model, parse
from onnxfi.graph.model.neuron_table import read_neuron_table, step_reads
from onnxfi.graph.passes.expose_neurons import ExposeNeurons
from onnxfi.graph.passes.expose_reads import ExposeReads
from onnxfi.graph.passes.fold_quantize import FoldQuantize
from onnxfi.graph.passes.instrument import ActivationFault, ArmFaults, BakeFaults, check_word_formats
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.passes.node_builder import opset_of
from onnxfi.graph.passes.probes import LOOPS, CountIterations, OutputShapes
from onnxfi.graph.passes.scored_outputs import CountSpikes, MapScores, score_outputs
from onnxfi.graph.protection.checksum import CheckLayers, checkable
from onnxfi.graph.protection.range_restriction import Bounds, FilterNonFinite, Restricted, RestrictRanges, restrictable
from onnxfi.graph.protection.redundant_layers import COMPUTING, Layer, RepeatLayers
from onnxfi.graph.protection.weight_clipping import ClipWeights, find_weights
from onnxfi.graph.spiking.detect_neurons import find_spiking_layers

Rule = Callable[[Model], ModelPass[Any] | None]


def injectable(model: Model) -> tuple[Activation, ...]:
    """Return the activations that an operator can change at the opset of a model."""
    rows = check_word_formats(activations(model), opset_of(model.proto))
    outputs = {o.name for o in model.proto.graph.output}
    return tuple(a for a in rows if not a.unsupported_reason and not (a.target.kind == "input" and a.name in outputs))


def armed(model: Model) -> ArmFaults | None:
    sites = injectable(model)
    return ArmFaults(sites) if sites else None


def baked(model: Model) -> BakeFaults | None:
    """Return the pass with masks that keep every bit, in the first element of all activations."""
    sites = [a for a in injectable(model) if not a.shape_known or a.target.size]
    faults = tuple(ActivationFault(a, 0, Mask(a.target.word.full, 0)) for a in sites)
    return BakeFaults(faults) if faults else None


def exposed(model: Model) -> ExposeNeurons | None:
    layers = () if read_neuron_table(model.proto) else find_spiking_layers(model).layers
    return ExposeNeurons(layers) if layers and all(layer.shape is not None for layer in layers) else None


def reads(model: Model) -> ExposeReads | None:
    return ExposeReads() if read_neuron_table(model.proto) and not step_reads(model.proto) else None


def folded(model: Model) -> FoldQuantize | None:
    quantised = any(node.op_type == "QuantizeLinear" for node in model.proto.graph.node)
    fold = FoldQuantize(None if model.path is None else model.path.parent)
    return fold if quantised and fold.run(parse(model))[1] else None


def counted(model: Model) -> CountIterations | None:
    looped = any(node.op_type in LOOPS for node in all_nodes(model.proto.graph.node))
    return CountIterations() if looped and opset_of(model.proto) >= 9 else None


def shaped(model: Model) -> OutputShapes | None:
    """Return the pass for all activations but those in inner loops, whose number of iterations may vary."""
    loops = {scope.path: sum(node.op in LOOPS for node in scope.enclosing) for scope in model.index.graphs}
    rows = [a for a in activations(model) if a.target.kind != "input" and not a.unsupported_reason]
    ranks = {(a.path, a.name): None if a.dims is None else len(a.dims) for a in rows if loops[a.path] < 2}
    return OutputShapes(ranks) if ranks else None


def spikes(model: Model) -> CountSpikes | None:
    """Return the pass for the first output of numbers that has an axis."""
    for value in infer_types(model.proto).graph.output:
        kind = value.type.tensor_type
        if kind.elem_type in (1, 7, 9, 10, 11) and kind.HasField("shape") and kind.shape.dim:
            return CountSpikes(value.name, 0)
    return None


def unbounded(model: Model) -> tuple[Restricted, ...]:
    """Return the activations of a model with the range of their formats as bounds."""
    rows = [a for a in activations(model) if restrictable(a)] if opset_of(model.proto) >= 11 else []
    return tuple(
        Restricted.of(a, None if a.dims is None else len(a.dims), Bounds.of_format(a.target.dtype)) for a in rows
    )


def restricted(model: Model) -> RestrictRanges | None:
    return RestrictRanges(found) if (found := unbounded(model)) else None


def filtered(model: Model) -> FilterNonFinite | None:
    return FilterNonFinite(found) if (found := unbounded(model)) else None


def repeated(model: Model) -> RepeatLayers | None:
    rows = [a for a in activations(model) if restrictable(a) and a.target.op in COMPUTING and not a.quantized]
    layers = tuple(Layer.of(a) for a in rows) if opset_of(model.proto) >= 13 else ()
    return RepeatLayers(layers) if layers else None


def checked(model: Model) -> CheckLayers | None:
    layers = checkable(model) if opset_of(model.proto) >= 13 else ()
    return CheckLayers(layers, None if model.path is None else model.path.parent) if layers else None


def clipped(model: Model) -> ClipWeights | None:
    weights = find_weights(model) if opset_of(model.proto) >= 12 else ()
    return ClipWeights(weights) if weights else None


#: For each pass its neutral form on a model (None: it finds nothing to do there), and its effect on its own result:
#: `refused` with ModelError, `unchanged`, or `added` (the edit is made again).
RULES: dict[type[ModelPass[Any]], tuple[Rule, str]] = {
    ArmFaults: (armed, "added"),
    BakeFaults: (baked, "added"),
    ExposeNeurons: (exposed, "refused"),
    ExposeReads: (reads, "refused"),
    FoldQuantize: (folded, "unchanged"),
    CountIterations: (counted, "added"),
    OutputShapes: (shaped, "added"),
    CountSpikes: (spikes, "refused"),
    MapScores: (lambda model: MapScores() if score_outputs(model.proto) else None, "unchanged"),
    RestrictRanges: (restricted, "refused"),
    FilterNonFinite: (filtered, "refused"),
    RepeatLayers: (repeated, "refused"),
    CheckLayers: (checked, "refused"),
    ClipWeights: (clipped, "refused"),
}
EVERY_PASS = {one.name: one for one in RULES}


def passes_of_onnxfi() -> Iterator[type[ModelPass[Any]]]:
    """Yield every pass that a module of onnxfi defines."""
    for folder in (passes, protection):
        for module in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}."):
            for one in vars(importlib.import_module(module.name)).values():
                own = inspect.isclass(one) and one.__module__ == module.name and issubclass(one, ModelPass)
                if own and not inspect.isabstract(one):
                    yield one
