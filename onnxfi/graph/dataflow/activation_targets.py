"""Activations as targets: computed tensors into which faults can be injected.

An activation's id is its path and tensor name, as for stored tensors. Its elements are counted within one sample if it
has a batch axis, else in the whole tensor. Number format and shape come from shape inference, or from a run if
inference leaves them open (`with_observed_facts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxfi.errors import SelectorError, closest
from onnxfi.faults.space import Selector, Target
from onnxfi.faults.words import WORDS, Word
from onnxfi.graph.dataflow.batch_layout import (
    BatchLayout,
    Dims,
    SampleAxis,
    declared_types,
    graph_batch_layout,
    tensor_dims,
)
from onnxfi.graph.dataflow.channel_axis import matrix_product
from onnxfi.graph.dataflow.sample_placement import LARGE_BATCH, UNKNOWN_AXIS, SamplePlacement, inferred_placements
from onnxfi.graph.dataflow.type_inference import infer_types
from onnxfi.graph.model.graph_index import Scope, all_graphs
from onnxfi.graph.model.neuron_table import neuron_shapes
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.model.stored_tensors import DATA_TYPES, StoredTensors, WordLocation
from onnxfi.graph.model.targets import ComputedValue, computed_values

if TYPE_CHECKING:
    import onnx

    from onnxfi.graph.model.loading import Model

_UNKNOWN = WORDS["float32"]
#: Activation functions: the output of a layer is taken after them.
ACTIVATION_FUNCTIONS = frozenset((
    "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish",
    "Softplus", "Softsign", "Tanh", "ThresholdedRelu", "FastGelu", "QuickGelu", "BiasGelu",
))  # fmt: skip
#: Range restrictions, as in ReLU6 and protections: a fault is injected before them, so that they act on it.
RANGE_RESTRICTIONS = frozenset(("Clip",))
#: Operators whose outputs are selected by default.
LAYER_OPERATORS = ACTIVATION_FUNCTIONS | RANGE_RESTRICTIONS | frozenset((
    "Conv", "ConvTranspose", "ConvInteger", "DeformConv", "Gemm", "MatMul", "MatMulInteger", "MatMulNBits", "Einsum",
    "QLinearConv", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "FusedConv",
    "FusedMatMul", "FusedGemm", "Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention", "LSTM", "GRU",
    "RNN", "BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization",
    "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "LpNormalization",
    "MeanVarianceNormalization", "LRN", "Softmax", "LogSoftmax",
))  # fmt: skip
_RECURRENT = frozenset(("LSTM", "GRU", "RNN"))


@dataclass(frozen=True)
class Activation:
    """Computed tensor: its target, and the facts that follow from the graph.

    Attributes
    ----------
    dims
        Whole shape with the batch axis; None if the rank is open.
    place
        Axis of its samples; None if it has none, or if it is unknown for the reason in `axis_unknown_reason`.
    loop
        Nearest loop around it (`Loop`, `Scan`).
    default
        True if it is selected by default.
    after
        Tensor that is selected in its place: the output of the activation function after it, or of a normalisation
        that the runtime folds into the convolution.
    unrestricted
        Tensor that is selected in its place: the input of the range restriction that produces it.
    quantized
        Integer tensor of its QDQ group.
    unsupported_reason
        Reason why it cannot be a target.
    shape_inferred
        True if the shape follows from the inputs, rather than from a declaration or from one run.
    """

    target: Target
    path: str
    name: str
    dims: Dims | None = None
    place: SampleAxis | None = None
    axis_unknown_reason: str = ""
    loop: str = ""
    default: bool = False
    after: str = ""
    unrestricted: str = ""
    quantized: str = ""
    unsupported_reason: str = ""
    shape_inferred: bool = False

    @property
    def axis(self) -> int | None:
        """The batch axis, None if it has none."""
        return None if self.place is None else self.place.axis

    @property
    def no_axis_message(self) -> str:
        """The reason for no batch axis, in messages."""
        return (
            f"no batch axis that is known ({self.axis_unknown_reason})" if self.axis_unknown_reason else "no batch axis"
        )

    @property
    def shape_known(self) -> bool:
        """True if every dimension of a sample is known, so that elements can be counted."""
        return self.dims is not None and all(isinstance(n, int) for k, n in enumerate(self.dims) if k != self.axis)


def activations(model: Model, layout: BatchLayout | None = None) -> tuple[Activation, ...]:
    """Return the activations of a model in file order: graph inputs, then the outputs of nodes.

    `layout` says which inputs hold samples along which axis; without one, the file does.

    >>> from onnxfi.graph.model.loading import load
    >>> [a.target.id for a in activations(load("models/fashion_cnn.onnx")) if a.default][:2]
    ['relu', 'relu_1']
    """
    inferred, index = infer_types(model.proto), model.index
    graphs = [*all_graphs(inferred.graph)]
    scopes = {
        scope.path: _TypedScope(scope, declared_types(graph)) for scope, graph in zip(index.graphs, graphs, strict=True)
    }
    layout = layout or graph_batch_layout(inferred.graph)
    many = [*all_graphs(infer_types(model.proto, layout.batched, LARGE_BATCH).graph)]
    paths = [scope.path for scope in index.graphs]
    placements = inferred_placements([*zip(paths, graphs, strict=True)], many, layout)
    declared = _declared(model.proto.graph)
    rows = [
        _activation(scopes[value.path], value, placements[value.path], declared)
        for value in computed_values(index, StoredTensors.find(index, model.records, _no_location))
        if value.path in scopes
    ]
    rows = [of_single_sample_model(a) if layout.fixed == 1 else a for a in rows]
    return with_neuron_axes(model, _unique(_placed(rows, scopes)))


def inputs_by_default(rows: Iterable[Activation]) -> list[Activation]:
    """Return the activations; a graph input is a target of its own, also before a QDQ group, and taken by default."""
    return [replace(a, default=True, quantized="") if a.target.kind == "input" else a for a in rows]


def _no_location(*_: object) -> WordLocation:
    return WordLocation(0, (), 0)


def of_single_sample_model(a: Activation) -> Activation:
    """Return an activation of a model that takes one sample at a time: all its rows are of that sample."""
    if a.place is not None or not a.dims:
        return a
    rows = a.dims[0]
    place = SampleAxis(0, inner=rows) if isinstance(rows, int) and rows else None
    if place is None:
        return a
    return replace(a, place=place, axis_unknown_reason="", target=replace(a.target, shape=sample_shape(a.dims, place)))


def with_neuron_axes(model: Model, rows: Sequence[Activation]) -> tuple[Activation, ...]:
    """Return the activations, those of exposed neurons with samples along the first axis."""
    known = neuron_shapes(model.proto)
    return tuple(
        replace(a, place=SampleAxis(0), axis_unknown_reason="", target=replace(a.target, shape=shape))
        if (shape := known.get(a.target.id)) is not None and a.place is None and a.dims and a.dims[1:] == shape
        else a
        for a in rows
    )


def _declared(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    return {text(v.name): v.type for v in (*graph.value_info, *graph.output) if v.HasField("type")}


@dataclass(frozen=True)
class _TypedScope:
    """Graph with the inferred types of its values by name."""

    scope: Scope
    types: Mapping[str, onnx.TypeProto]

    def producer(self, name: str) -> onnx.NodeProto | None:
        """Return the node that produces a value; None for inputs and stored values."""
        number = self.scope.producers.get(name)
        return None if number is None else self.scope.graph.node[number]

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """Return the only consumer of a value that is not a graph output; None if there is another number of them."""
        numbers = self.scope.consumers.get(name, ())
        alone = len(numbers) == 1 and name not in self.scope.output_names
        return self.scope.graph.node[numbers[0]] if alone else None


def _activation(
    facts: _TypedScope,
    value: ComputedValue,
    placements: Mapping[str, SamplePlacement],
    declared: Mapping[str, onnx.TypeProto],
) -> Activation:
    path, name, op = value.path, value.name, value.op
    kind = facts.types.get(name)
    sure = tensor_dims(kind) is not None
    stated = tensor_dims(declared.get(name)) if not path else None
    if not path and not sure:
        kind = declared.get(name, kind)
    word, why = _word(kind)
    dims = tensor_dims(kind)
    if dims is not None and stated is not None and len(stated) == len(dims):
        known = tuple(
            s if isinstance(s, int) and not isinstance(d, int) else d for d, s in zip(dims, stated, strict=True)
        )
        sure, dims = sure and known == dims, known
    producer = facts.producer(name)
    found = placements.get(name, SamplePlacement(unknown_reason=UNKNOWN_AXIS))
    place = found.place if dims is not None and found.place is not None and found.place.axis < len(dims) else None
    axis_unknown_reason = found.unknown_reason or (UNKNOWN_AXIS if place is not found.place else "")
    structural = not value.is_data and word.name in ("int64", "int32", "bool") and not why
    target = Target(
        path + name, word, sample_shape(dims, place), "activation" if op else "input", op, value.node, value.layer,
        structural, gemm=matrix_product(name, facts.producer, facts.types, ACTIVATION_FUNCTIONS) if op else (),
    )  # fmt: skip
    default = op in LAYER_OPERATORS and not structural and not why and _is_result(producer, name)
    return Activation(
        target,
        path,
        name,
        dims,
        place,
        axis_unknown_reason,
        facts.scope.loop,
        default,
        unsupported_reason=why,
        shape_inferred=sure,
    )


def _is_result(maker: onnx.NodeProto | None, name: str) -> bool:
    """Return True for the result of a node: no mask, and no output for training, as of BatchNormalization."""
    return maker is None or maker.op_type in _RECURRENT or text(maker.output[0]) == name


def _word(kind: onnx.TypeProto | None) -> tuple[Word, str]:
    if kind is None or kind.WhichOneof("value") is None:
        return _UNKNOWN, "its type is not known"
    if not kind.HasField("tensor_type"):
        return _UNKNOWN, f"it is a {kind.WhichOneof('value').removesuffix('_type').replace('_', ' ')}, no tensor"
    number = kind.tensor_type.elem_type
    if number == 0:
        return _UNKNOWN, "its type is not known"
    if number not in DATA_TYPES:
        return _UNKNOWN, "it holds text" if number == 8 else f"it has the unknown number format {number}"
    return DATA_TYPES[number], ""


def sample_shape(dims: Dims | None, place: SampleAxis | None) -> tuple[int, ...]:
    """Return the shape of one sample; () while a dimension is open."""
    rest = (dims or ()) if place is None else place.shape(dims or ())
    return tuple(n for n in rest if isinstance(n, int)) if all(isinstance(n, int) for n in rest) else ()


def placed_after_run(model: Model, rows: Sequence[Activation]) -> tuple[Activation, ...]:
    """Return activations whose formats a run has shown, with the tensors that stand for them."""
    scopes = {scope.path: _TypedScope(scope, {}) for scope in model.index.graphs}
    return tuple(_placed([*rows], scopes))


def _placed(rows: list[Activation], found: Mapping[str, _TypedScope]) -> list[Activation]:
    """Find the tensor that is selected in place of each value: after its activation function, or its integer."""
    out = []
    known = {(a.path, a.name) for a in rows if not a.unsupported_reason}
    moved: dict[tuple[str, str], tuple[str, str]] = {}
    for a in rows:
        facts = found[a.path]
        after = _followed(facts, a.name, ACTIVATION_FUNCTIONS)
        quantized = _group(facts, a.name)
        before = _unrestricted(facts, a.name) if a.target.op in RANGE_RESTRICTIONS else ""
        row = replace(
            a,
            after=after if after != a.name and (a.path, after) in known else "",
            unrestricted=before if before in facts.scope.producers and (a.path, before) in known else "",
            quantized=quantized if (a.path, quantized) in known else "",
        )
        out.append(row)
        end = _group(facts, _followed(facts, after, ACTIVATION_FUNCTIONS | RANGE_RESTRICTIONS)) or after
        if a.target.op in RANGE_RESTRICTIONS:
            end = _group(facts, a.name) or row.unrestricted
        if a.default and end != a.name and (a.path, end) in known:
            moved[a.path, a.name] = (a.path, end)
    ends = set(moved.values())
    return [replace(a, default=((a.path, a.name) in ends or a.default) and (a.path, a.name) not in moved) for a in out]


def _followed(facts: _TypedScope, name: str, operators: frozenset[str]) -> str:
    """Return the last tensor of a chain of such operators after a tensor, each the only consumer of the previous."""
    for _ in range(8):
        user = facts.only_consumer(name)
        if user is None or not _joins(facts, name, user, operators) or text(user.input[0]) != name or not user.output:
            break
        name = text(user.output[0])
    return name


def _unrestricted(facts: _TypedScope, name: str) -> str:
    """Return the tensor before the range restrictions that make a tensor, or the integer of its QDQ group."""
    for _ in range(8):
        maker = facts.producer(name)
        if maker is None or maker.op_type not in RANGE_RESTRICTIONS or not maker.input:
            break
        name = text(maker.input[0])
    return _group(facts, name) or name


def _joins(facts: _TypedScope, name: str, user: onnx.NodeProto, operators: frozenset[str]) -> bool:
    """Return whether a node is one of these operators, or a normalisation that is folded into the Conv before it."""
    maker = facts.producer(name)
    folded = user.op_type == "BatchNormalization" and maker is not None and maker.op_type == "Conv"
    return folded or user.op_type in operators


def _group(facts: _TypedScope, name: str) -> str:
    """Return the integer tensor of the QDQ group around this value; '' if there is none."""
    user = facts.only_consumer(name)
    if user is not None and user.op_type == "QuantizeLinear" and text(user.input[0]) == name:
        return text(user.output[0])
    maker = facts.producer(name)
    if maker is not None and maker.op_type == "DequantizeLinear":
        inner = facts.producer(text(maker.input[0]))
        if inner is not None and inner.op_type == "QuantizeLinear":
            return text(maker.input[0])
    return ""


def _unique(rows: Sequence[Activation]) -> tuple[Activation, ...]:
    """Leave out later activations of the same id, as damaged files with repeated names have."""
    seen: set[str] = set()
    out = []
    for a in rows:
        if a.target.id not in seen:
            seen.add(a.target.id)
            out.append(a)
    return tuple(out)


def with_observed_facts(
    a: Activation, word: Word | None, dims: Dims | None, placement: SamplePlacement | None
) -> Activation:
    """Return the activation with facts observed in runs: format, shape (None if it grows), sample axis."""
    known, place, unknown = a.dims if dims is None else dims, a.place, a.axis_unknown_reason
    unsupported = "" if word is not None and "type is not known" in a.unsupported_reason else a.unsupported_reason
    if placement is not None and (place is None or place.axis >= len(known or ())):
        place, unknown = placement.place, placement.unknown_reason
    if unknown and known is not None and None in known and not unsupported:
        unsupported = unknown
    return replace(
        a,
        shape_inferred=False,
        target=replace(a.target, word=word or a.target.word, shape=sample_shape(known, place)),
        dims=known,
        place=place,
        axis_unknown_reason=unknown,
        unsupported_reason=unsupported,
        default=a.default or (bool(a.unsupported_reason) and not unsupported and a.target.op in LAYER_OPERATORS),
    )


@dataclass(frozen=True)
class ActivationSelection:
    """Selected activations in file order, and notes on the selection."""

    activations: tuple[Activation, ...]
    notes: tuple[str, ...] = ()


def select_activations(rows: Sequence[Activation], selector: Selector, *, every: bool = False) -> ActivationSelection:
    """Return the activations that a selector takes; without `include` or `op` the default ones, with `every` all.

    Raises SelectorError if an explicit selection takes none, naming the closest.
    """
    explicit = bool(selector.include or selector.op)
    able = [a for a in rows if not a.unsupported_reason]
    picked = [a for a in able if (every or explicit or a.default) and _keeps(selector, a, every)]
    named = {p[1:] for p in selector.include if p.startswith("=")}
    picked_ids = {(a.path, a.name) for a in picked}
    by_name = {(a.path, a.name): a for a in able}
    notes, out = [], {}
    for a in picked:
        if a.quantized and not every and (a.path, a.quantized) in by_name:
            end = by_name[a.path, a.quantized]
            integer = f"faults are injected into its integer {end.target.id!r} instead"
            notes.append(f"{a.target.id!r} lies in a QDQ group: {integer}")
            out[end.target.id] = end
        elif a.after and not every and a.target.id not in named and (a.path, a.after) in picked_ids:
            continue  # the fault goes after the activation function, so that the runtime still fuses the two
        elif a.unrestricted and not every and a.target.id not in named and (a.path, a.unrestricted) in picked_ids:
            continue  # a fault after a range restriction would escape it
        else:
            out[a.target.id] = a
    order = {a.target.id: k for k, a in enumerate(rows)}
    kept = tuple(sorted(out.values(), key=lambda a: order[a.target.id]))
    if not kept and (explicit or selector != Selector(bits=selector.bits, elements=selector.elements)):
        _raise_nothing_selected(rows, selector)
    return ActivationSelection(kept, tuple(notes))


def _keeps(selector: Selector, a: Activation, every: bool) -> bool:
    return selector.selects(replace(a.target, structural=False) if every else a.target)


def _raise_nothing_selected(rows: Sequence[Activation], selector: Selector) -> None:
    """Raise SelectorError with the reason why an explicit selection takes nothing."""
    for a in rows:
        if a.unsupported_reason and selector.selects(a.target):
            raise SelectorError(f"cannot inject into {a.target.id!r}: {a.unsupported_reason}")
    ids = [name for a in rows for name in (a.target.id, a.target.node, a.target.layer) if name]
    for pattern in selector.include:
        one = Selector(include=(pattern,))
        if not any(one.selects(replace(a.target, structural=False)) for a in rows):
            near = closest(pattern.lstrip("="), ids)
            raise SelectorError(f"--include {pattern!r} matches no activation of this model{near}")
    for pattern in selector.op:
        one = Selector(op=(pattern,))
        if not any(one.selects(replace(a.target, structural=False)) for a in rows):
            near = closest(pattern, [a.target.op for a in rows if a.target.op])
            raise SelectorError(f"--op {pattern!r} matches no node of this model{near}")
    known = sorted({a.target.dtype for a in rows})
    for dtype in selector.dtype:
        if dtype not in known:
            raise SelectorError(f"--dtype {dtype!r} matches no activation of this model; known: {', '.join(known)}")
    hint = "each matches some, but no activation matches all"
    if any(a.target.structural for a in rows):
        hint = "shapes and indices are left out unless --include '=NAME' names them or --all takes everything"
    raise SelectorError(f"no activation matches all selectors together; {hint}")
