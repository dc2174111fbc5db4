"""The places of range restriction: activation functions, linear layers of transformers, and what follows them.

Ranger (Chen et al., DSN 2021) restricts activation functions and carries their bounds through the operators that only
move or pool numbers. In transformers the results of linear layers, attention and normalisations are restricted as well
(Global Clipper, 2024), since no activation function stands after most of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxfi.errors import SelectorError, closest
from onnxfi.faults.space import Selector
from onnxfi.graph.dataflow.activation_targets import (
    ACTIVATION_FUNCTIONS,
    LAYER_OPERATORS,
    RANGE_RESTRICTIONS,
    Activation,
    activations,
)
from onnxfi.graph.model.graph_index import Node, Scope, Value
from onnxfi.graph.protection.range_restriction import FORMATS, Bounds, restrictable
from onnxfi.graph.protection.reach import check_names, left_outside

if TYPE_CHECKING:
    from onnxfi.graph.model.loading import Model

_RECURRENT = frozenset(("LSTM", "GRU", "RNN"))
_LINEAR = frozenset(("MatMul", "Gemm", "FusedMatMul", "MatMulNBits"))
_ATTENTION = frozenset(("Attention", "MultiHeadAttention", "GroupQueryAttention"))
_NORMALISED = frozenset((
    "Softmax", "LayerNormalization", "SkipLayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
))  # fmt: skip
_POOLING = frozenset(("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"))
#: Operators that output the numbers of their inputs, or means of them.
_MOVING = frozenset((
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Identity", "Dropout", "Concat",
))  # fmt: skip
_GATES = frozenset(("Sigmoid", "HardSigmoid", "Tanh"))
#: A mean of equal numbers may round beyond them.
_MEAN_MARGIN = 2.0**-10


@dataclass(frozen=True)
class Follower:
    """An activation whose bounds follow from those of the activations that its operator moves or pools."""

    activation: Activation
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Places:
    """The activations to restrict: those whose bounds are measured, and their followers in file order.

    `saturated` are activations that a quantiser or a Clip of the model's own holds in a range already; `outside` is a
    remark on activation functions in functions of the model.
    """

    measured: tuple[Activation, ...]
    followers: tuple[Follower, ...] = ()
    saturated: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()

    def notes(self) -> Iterator[str]:
        """Yield remarks on what is left out."""
        if self.saturated:
            yield (
                f"no gain expected behind {len(self.saturated)} activations, as {self.saturated[0]!r}: a quantiser or "
                f"a Clip of the model's own holds them in a range already, so they are left as they are"
            )
        yield from self.outside


def find_places(model: Model, selector: Selector | None = None, *, extend: bool = True) -> Places:
    """Return the activations to restrict, in the main graph and in the bodies of loops and branches.

    Parameters
    ----------
    model : Model
        The model.
    selector : Selector, optional
        With `include` or `op` the activations that it takes, else the default ones without those that it excludes.
    extend : bool
        Add the activations to which bounds carry over through pooling, concatenation and reshaping.

    Returns
    -------
    Places
        The activations.

    Raises
    ------
    SelectorError
        If the selector names an activation that does not exist or cannot be restricted.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> places = find_places(load("models/fashion_cnn.onnx"))
    >>> [a.name for a in places.measured], [f.activation.name for f in places.followers]
    (['relu', 'relu_1', 'relu_2'], ['max_pool2d', 'max_pool2d_1', 'view'])
    """
    selector, rows = selector or Selector(), activations(model)
    explicit = bool(selector.include or selector.op)
    chosen: list[Activation] = []
    for scope in model.index.graphs:
        here = [a for a in rows if a.path == scope.path]
        names = {a.name for a in here if explicit or _is_default(scope, a)} | (
            set() if explicit else {*_composite_functions(scope), *_linear_results(scope)} - _outputs(scope)
        )
        chosen += [a for a in here if a.name in names and selector.selects(a.target)]
    if explicit:
        _check_names(model, selector, rows, chosen)
    saturated = [_id(a) for a in chosen if _is_quantised(a) or (a.target.op in RANGE_RESTRICTIONS and not explicit)]
    measured = tuple(a for a in chosen if restrictable(a) and _id(a) not in saturated)
    covered = {_id(a) for a in measured}
    followers = (
        [f for scope in model.index.graphs for f in _followers(scope, rows, covered, selector)] if extend else ()
    )
    outside = tuple(left_outside(model, ACTIVATION_FUNCTIONS | _RECURRENT, selector))
    return Places(measured, tuple(followers), tuple(saturated), outside)


def _id(a: Activation) -> str:
    return a.path + a.name


def _outputs(scope: Scope) -> frozenset[str]:
    """Return the values that are scored rather than read on: the outputs of the main graph."""
    return frozenset() if scope.path else scope.output_names


def _is_default(scope: Scope, a: Activation) -> bool:
    """Return whether the default selection takes an activation, or would were it not held in a range already."""
    op = a.target.op
    if _is_quantised(a):
        return op in LAYER_OPERATORS
    mine = ACTIVATION_FUNCTIONS | _RECURRENT | RANGE_RESTRICTIONS
    return op in mine and a.target.dtype in FORMATS and a.name not in _outputs(scope)


def _is_quantised(a: Activation) -> bool:
    """Return whether a quantiser holds an activation in its range: it lies in a QDQ group, or is a narrow integer."""
    return bool(a.quantized) or (a.default and not a.target.word.is_float and a.target.word.bits <= 16)


def _check_names(model: Model, selector: Selector, rows: Sequence[Activation], chosen: list[Activation]) -> None:
    """Raise SelectorError for a name that selects nothing, or only what cannot be restricted."""
    targets = [a.target for a in rows]
    for field in ("include", "op"):
        check_names(model, getattr(selector, field), field, targets, "activation")
    if not any(restrictable(a) for a in chosen):
        able = [_id(a) for a in rows if restrictable(a)]
        raise SelectorError(
            f"the selection takes no activation that can be restricted: of a graph of the model, of the formats "
            f"{', '.join(FORMATS)}{closest('', able)}"
        )


def _composite_functions(scope: Scope) -> Iterator[str]:
    """Find the results of activation functions that exporters write as several nodes: SiLU, Mish, GELU."""
    for node in scope.nodes:
        if node.op == "Mul" and len(node.inputs) == 2:
            pairs = (node.inputs, node.inputs[::-1])
            if any(one is not None and _gates(gate, one) for one, gate in pairs):
                yield node.outputs[0].name
        elif node.op == "Erf":
            yield _end_of_gelu(node).name


def _gates(gate: Value | None, value: Value) -> bool:
    """Return whether a value times this gate is an activation function of the value."""
    maker = None if gate is None else gate.producer
    if maker is None or maker.op not in _GATES or not maker.inputs:
        return False
    read = maker.inputs[0]
    if read is not None and read.producer is not None and read.producer.op == "Softplus":
        read = read.producer.inputs[0]
    return read is value


def _end_of_gelu(erf: Node) -> Value:
    """Return the product after an Erf: (1 + erf(x / √2)) · x · ½ in any order."""
    value = erf.outputs[0]
    for _ in range(3):
        reader = value.consumers[0] if len(value.consumers) == 1 else None
        made = value.producer
        past_product = made is not None and made.op == "Mul"
        if reader is None or reader.op not in ("Add", "Mul") or (past_product and not _scales(reader, value)):
            break
        value = reader.outputs[0]
    return value


def _scales(node: Node, value: Value) -> bool:
    """Return whether a node multiplies this value with a stored number."""
    return node.op == "Mul" and any(i is not None and i is not value and _is_stored(i) for i in node.inputs)


def _is_stored(value: Value) -> bool:
    return value.producer is None or value.producer.op == "Constant"


def _linear_results(scope: Scope) -> Iterator[str]:
    """Find the results of linear layers with their bias, of attention and of normalisations, in a transformer."""
    softmax = (n for n in scope.nodes if n.op == "Softmax")
    attends = any(reader.op in ("MatMul", "Dropout") for n in softmax for reader in n.outputs[0].consumers)
    if not attends and not any(n.op in _ATTENTION for n in scope.nodes):
        return
    for node in scope.nodes:
        if node.op in _NORMALISED:
            yield node.outputs[0].name
        elif node.op in _LINEAR or node.op in _ATTENTION:
            value = _with_bias(node.outputs[0])
            readers = {reader.op for reader in value.consumers}
            if not readers or not readers <= ACTIVATION_FUNCTIONS:
                yield value.name


def _with_bias(value: Value) -> Value:
    """Return the sum of a result and a stored bias, where that is all that reads it; else the result."""
    reader = value.consumers[0] if len(value.consumers) == 1 else None
    if reader is not None and reader.op == "Add":
        others = [i for i in reader.inputs if i is not None and i is not value]
        if others and all(map(_is_stored, others)):
            return reader.outputs[0]
    return value


def _followers(scope: Scope, rows: Sequence[Activation], covered: set[str], selector: Selector) -> Iterator[Follower]:
    """Find the activations of a graph to which bounds carry over, in file order, and add them to those covered."""
    excluding, path = replace(Selector(), exclude=selector.exclude), scope.path
    here = {a.name: a for a in rows if a.path == path}
    for node in scope.nodes:
        if node.op not in _POOLING | _MOVING:
            continue
        read = node.inputs if node.op == "Concat" else node.inputs[:1]
        sources = tuple(path + value.name for value in read if value is not None)
        if not sources or not covered.issuperset(sources):
            continue
        for name in [value.name for value in node.outputs]:
            a = here.get(name)
            free = a is not None and path + name not in covered and name not in _outputs(scope) and not a.quantized
            if a is not None and free and restrictable(a) and excluding.selects(a.target):
                covered.add(path + name)
                yield Follower(a, sources)


def followed_bounds(follower: Follower, known: Mapping[str, Bounds]) -> Bounds:
    """Return the bounds of a follower: those of what it pools, channel by channel, or of all that it moves together.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> pooled = find_places(load("models/fashion_cnn.onnx")).followers[0]
    >>> followed_bounds(pooled, {"relu": Bounds((0.0, 0.0), (1.5, 2.5), 1)}).high
    (1.5, 2.5)
    """
    found = [known[name] for name in follower.sources]
    op = follower.activation.target.op
    if op in _POOLING:
        b = found[0]
        if "Average" not in op:
            return b
        # Padding counts as zeros; the mean of equal numbers may round up.
        low = tuple(min(0.0, x) - _MEAN_MARGIN * abs(x) for x in b.low)
        return replace(b, low=low, high=tuple(max(0.0, x) + _MEAN_MARGIN * abs(x) for x in b.high))
    together = found[0].whole
    for one in found[1:]:
        together = together.union(one)
    return together
