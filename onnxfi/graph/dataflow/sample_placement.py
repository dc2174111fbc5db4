"""Sample layout: the axis along which each tensor holds its samples, from shapes at two batch sizes and operators.

The samples lie along the dimension that grows with the batch. If it has several rows per sample, or a shape in the
graph is fixed for one batch size, the operators determine the order of the rows: a reshape keeps the order of elements,
a transposition moves the axis, most others keep it. A fault that names a sample is refused in tensors whose sample axis
stays unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnxfi.graph.dataflow.batch_layout import BatchLayout, Dims, SampleAxis, declared_types, tensor_dims
from onnxfi.graph.model.graph_index import integer, integers
from onnxfi.graph.model.protobuf_scan import text

if TYPE_CHECKING:
    import onnx

#: Operators that keep the order of elements.
_RESHAPES = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze"))
#: Operators whose outputs have the sample axis of their inputs, shapes being aligned at their ends.
_ALIGNED = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "AveragePool", "BatchNormalization",
    "BiasGelu", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil",
    "Celu", "Clip", "Conv", "ConvInteger", "ConvTranspose", "Cos", "Cosh", "CumSum", "DequantizeLinear", "Div",
    "Dropout", "DynamicQuantizeMatMul", "Elu", "Equal", "Erf", "Exp", "FastGelu", "Floor", "FusedConv",
    "FusedMatMul", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater",
    "GreaterOrEqual", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "Identity",
    "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "LogSoftmax", "LpNormalization", "LpPool", "MatMul", "MatMulInteger", "MatMulIntegerToFloat",
    "MatMulNBits", "Max", "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "Not",
    "Or", "PRelu", "Pad", "Pow", "QLinearAdd", "QLinearConv", "QLinearMatMul", "QLinearMul", "QuantizeLinear",
    "QuickGelu", "RMSNormalization", "Reciprocal", "Relu", "Resize", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "SimplifiedLayerNormalization", "Sin", "Sinh", "SkipLayerNormalization", "Softmax", "Softplus", "Softsign",
    "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Upsample", "Where", "Xor",
))  # fmt: skip
_PRODUCTS = frozenset(("MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"))
#: Operators whose samples come first in queries, keys, values and outputs, whatever follows.
_ATTENTION = frozenset(("Attention", "GroupQueryAttention", "MultiHeadAttention", "QAttention"))
#: Operators that select rows by their content, so that a position does not identify the sample.
_PICKS = frozenset(("GatherND", "NonZero", "NonMaxSuppression", "Unique", "Compress", "ScatterND"))
#: The same along their axis alone.
_PICKS_ALONG = frozenset(("Gather", "GatherElements", "TopK", "ReverseSequence", "ScatterElements"))

#: The shape of each tensor of a graph at two batch sizes.
Shapes = Mapping[str, tuple[Dims | None, Dims | None]]
#: A batch size that no other dimension is likely to have.
LARGE_BATCH = 10_007

UNKNOWN_AXIS = "the axis of its samples does not follow from the graph"
_MOVED = "the graph selects rows there, which may not be the samples in order"
_MIXED = "a reshape before it puts elements of several samples into one row"
_SEVERAL = "more than one of its axes grows with the batch"
_ORDER = "it has several rows per sample, in an order that does not follow from the graph"


@dataclass(frozen=True)
class SamplePlacement:
    """Position of the samples in one tensor (None: it has none), or the reason why it is unknown.

    `written` is True if a shape in the graph is fixed for one batch size, so that shapes do not show the axis.
    """

    place: SampleAxis | None = None
    unknown_reason: str = ""
    written: bool = False


@dataclass(frozen=True)
class Sizes:
    """Two batch sizes and the shapes of tensors at each, by name: symbols where the first is open (None).

    `symbols` are those of the inputs; among them `batch` stands for the samples.
    """

    sizes: tuple[int | None, int]
    shapes: Shapes = field(default_factory=dict, repr=False)
    symbols: frozenset[str] = frozenset()
    batch: frozenset[str] = frozenset()

    def grown(self, name: str) -> tuple[int, int] | str | None:
        """Return the axis that grows with the batch and its rows per sample, None without one, or why it is unknown."""
        one, other = self.shapes.get(name, (None, None))
        if one is None or other is None or len(one) != len(other):
            return UNKNOWN_AXIS
        rows = [self._rows(a, b) for a, b in zip(one, other, strict=True)]
        if None in rows:
            return UNKNOWN_AXIS
        found = [(axis, many) for axis, many in enumerate(rows) if many]
        return (found[0] if len(found) == 1 else _SEVERAL) if found else None

    def _rows(self, one: int | str | None, other: int | str | None) -> int | None:
        """Return the rows of each sample along a dimension; 0 if it does not grow, None if that is unknown."""
        first, second = self.sizes
        if isinstance(one, str) and one in self.batch and not isinstance(other, int):
            return 1
        if one == other:
            return 0 if isinstance(one, int) or one in self.symbols else None
        if not isinstance(other, int) or other % second or not other:
            return None
        many = other // second
        return many if (first is None and not isinstance(one, int)) or one == many * (first or 0) else None

    def at(self, name: str, *, written: bool) -> Dims | None:
        """Return the shape of a tensor at the second size; at the first where shapes are written for that."""
        return self.shapes.get(name, (None, None))[0 if written else 1]

    def size(self, *, written: bool) -> int:
        """Return the batch size to which `at` gives shapes."""
        return (self.sizes[0] or 0) if written else self.sizes[1]


def graph_placements(
    graph: onnx.GraphProto, layout: BatchLayout, sizes: Sizes, outer: Mapping[str, SamplePlacement]
) -> dict[str, SamplePlacement]:
    """Return the placements of one graph's tensors; `outer` are those of the graphs around it."""
    found = dict(outer)
    for value in graph.input:
        name = text(value.name)
        if outer:  # of a body
            found[name] = _by_shape(sizes.grown(name))
        else:
            axis = layout.batched.get(name)
            found[name] = SamplePlacement(None if axis is None else SampleAxis(axis))
    for tensor in graph.initializer:
        found[text(tensor.name)] = SamplePlacement()
    for node in graph.node:
        for name in map(text, node.output):
            if name:
                found[name] = _Step(node, name, found, sizes).found()
    return found


def model_placements(
    every: Iterable[tuple[str, onnx.GraphProto]], layout: BatchLayout, shapes: Mapping[str, Shapes], sizes: Sizes
) -> dict[str, dict[str, SamplePlacement]]:
    """Return the placements of each graph's tensors by its path; `shapes` are by path and name."""
    found: dict[str, dict[str, SamplePlacement]] = {}
    for path, graph in every:
        around = max((one for one in found if path.startswith(one)), key=len, default=None)
        here = replace(sizes, shapes=shapes.get(path, {}))
        found[path] = graph_placements(graph, layout, here, {} if around is None else found[around])
    return found


def inferred_placements(
    every: Sequence[tuple[str, onnx.GraphProto]], many: Sequence[onnx.GraphProto], layout: BatchLayout
) -> dict[str, dict[str, SamplePlacement]]:
    """Return the placements that follow from the inputs, by path.

    `every` are the graphs of a model with inferred shapes, `many` the same with shapes for `LARGE_BATCH` samples.
    """
    dims = {text(v.name): tensor_dims(v.type) or () for v in every[0][1].input}
    batch = {dims[name][axis] for name, axis in layout.axes if axis < len(dims.get(name, ()))}
    symbols = frozenset(d for each in dims.values() for d in each if isinstance(d, str))
    shapes: dict[str, Shapes] = {}
    for (path, graph), grown in zip(every, many, strict=True):
        other = declared_types(grown)
        shapes[path] = {
            name: (tensor_dims(kind), tensor_dims(other.get(name))) for name, kind in declared_types(graph).items()
        }
    return model_placements(every, layout, shapes, Sizes((layout.fixed, LARGE_BATCH), {}, symbols, symbols & batch))


def _by_shape(grown: tuple[int, int] | str | None) -> SamplePlacement:
    if grown is None:
        return SamplePlacement()
    if isinstance(grown, str):
        return SamplePlacement(unknown_reason=grown)
    return SamplePlacement(SampleAxis(grown[0])) if grown[1] == 1 else SamplePlacement(unknown_reason=_ORDER)


@dataclass(frozen=True)
class _Step:
    """One output of a node, with the known facts about its inputs."""

    node: onnx.NodeProto
    name: str
    known: Mapping[str, SamplePlacement]
    sizes: Sizes

    def found(self) -> SamplePlacement:
        """Return the placement of the output."""
        taken = [self.known[name] for name in self._inputs if name in self.known]
        for reason in (_MOVED, _MIXED):
            if any(one.unknown_reason == reason for one in taken):
                return SamplePlacement(unknown_reason=reason)
        if self._picks():
            return SamplePlacement(unknown_reason=_MOVED)
        if self.node.op_type in _ATTENTION and self._place() == SampleAxis(0):
            return SamplePlacement(SampleAxis(0), written=True)
        written = any(one.written for one in taken) or self._broken()
        if written:
            place = self._followed(written=True) if self.sizes.sizes[0] else None
            if place is not None:
                return SamplePlacement(place, written=True)
            return SamplePlacement(unknown_reason=UNKNOWN_AXIS)
        grown = self.sizes.grown(self.name)
        if grown is None and any(one.unknown_reason for one in taken) and self.node.op_type not in ("Shape", "Size"):
            return SamplePlacement(unknown_reason=UNKNOWN_AXIS)
        if isinstance(grown, tuple) and grown[1] == 1 and self._mixes(grown[0]):
            return SamplePlacement(unknown_reason=_MIXED)
        if isinstance(grown, tuple) and grown[1] > 1:
            place = self._followed(written=False)
            if place is not None and (place.axis, place.rows) == grown:
                return SamplePlacement(place)
        return _by_shape(grown)

    @property
    def _inputs(self) -> list[str]:
        return [text(name) for name in self.node.input]

    def _place(self, number: int = 0) -> SampleAxis | None:
        name = self._inputs[number] if number < len(self._inputs) else ""
        return self.known[name].place if name in self.known else None

    def _picks(self) -> bool:
        """Return True if the node selects rows by their content, so that they may not be the samples in order."""
        op, place = self.node.op_type, self._place()
        if place is None:
            return False
        dims = self.sizes.at(self._inputs[0], written=False) or ()
        along = integer(self.node, "batch_axis" if op == "ReverseSequence" else "axis", -1 if op == "TopK" else 0)
        if op == "ReverseSequence":  # time runs along the other of the first two axes
            return place.axis == integer(self.node, "time_axis", 0)
        return op in _PICKS or (op in _PICKS_ALONG and along % max(1, len(dims)) == place.axis)

    def _broken(self) -> bool:
        """Return True if a shape is fixed in the graph for one batch size."""
        if self.node.op_type not in _RESHAPES or self._place() is None:
            return False
        shapes = [self.sizes.at(name, written=False) for name in (self._inputs[0], self.name)]
        totals = [_total(dims) for dims in shapes if dims is not None]
        return len(totals) == 2 and None not in totals and totals[0] != totals[1]

    def _mixes(self, axis: int) -> bool:
        """Return True if a reshape gives each index along this axis elements of several samples.

        As elements keep their order, the distance between two samples must stay the same.
        """
        place = self._place()
        if self.node.op_type not in _RESHAPES or place is None:
            return False
        before, after = (self.sizes.at(name, written=False) for name in (self._inputs[0], self.name))
        if before is None or after is None:
            return False
        strides = _total(before[place.axis + 1 :]), _total(after[axis + 1 :])
        return None not in strides and place.inner * (strides[0] or 0) != strides[1]

    def _followed(self, *, written: bool) -> SampleAxis | None:
        """Return the sample axis of the output that follows from the node and those of its inputs; None: unknown."""
        op, dims = self.node.op_type, self.sizes.at(self.name, written=written)
        if dims is None:
            return None
        shapes = [self.sizes.at(name, written=written) for name in self._inputs]
        if op in _RESHAPES:
            size = self.sizes.size(written=written)
            return reshaped_axis(self._place(), shapes[0], dims, size)
        if op == "Transpose":
            return self._transposed(len(dims))
        if op == "Concat":
            return self._joined(dims)
        if op == "Tile":
            return self._tiled(shapes[0], dims)
        if op in _ALIGNED or (op == "Slice" and len(self._inputs) < 5) or op.startswith("Reduce"):
            return self._aligned(shapes, dims)
        return None

    def _transposed(self, rank: int) -> SampleAxis | None:
        place = self._place()
        order = integers(self.node, "perm", range(rank)[::-1])
        if place is None or place.axis not in order:
            return None
        return SampleAxis(order.index(place.axis), place.outer, place.inner)

    def _joined(self, dims: Dims) -> SampleAxis | None:
        along = integer(self.node, "axis", 0) % max(1, len(dims))
        parts = [self._place(k) for k in range(len(self._inputs))]
        held = [one for one in parts if one is not None]
        if not held or len({(one.axis, one.inner) for one in held}) > 1:
            return None
        first = held[0]
        if along != first.axis:
            return first if all(one == first for one in held) else None
        return SampleAxis(along, sum(one.outer for one in held), first.inner) if len(held) == len(parts) else None

    def _tiled(self, before: Dims | None, dims: Dims) -> SampleAxis | None:
        place = self._place()
        if place is None or before is None or len(before) != len(dims):
            return None
        one, many = before[place.axis], dims[place.axis]
        if not isinstance(one, int) or not isinstance(many, int) or not one or many % one:
            return None
        return SampleAxis(place.axis, place.outer * (many // one), place.inner)

    def _aligned(self, shapes: Sequence[Dims | None], dims: Dims) -> SampleAxis | None:
        """Return the sample axis that all inputs with samples have in the output."""
        found = set()
        for number, shape in enumerate(shapes):
            place = self._place(number)
            if place is None:
                continue
            if shape is None or self._summed(number, place, len(shape)):
                return None
            if self.node.op_type.startswith("Reduce") and len(shape) != len(dims):
                return None
            axis = place.axis + len(dims) - len(shape)
            if not 0 <= axis < len(dims) or dims[axis] != shape[place.axis] or not isinstance(dims[axis], int):
                return None
            found.add(SampleAxis(axis, place.outer, place.inner))
        return found.pop() if len(found) == 1 else None

    def _summed(self, number: int, place: SampleAxis, rank: int) -> bool:
        """Return True if a product sums over the axis of the samples."""
        op = self.node.op_type
        if op == "Gemm":
            return number == 1 or (number == 0 and integer(self.node, "transA", 0) != 0)
        if op in _PRODUCTS:
            return rank < 2 or place.axis == rank - 1 - number % 2
        return op in ("Conv", "ConvTranspose") and number > 0


def reshaped_axis(place: SampleAxis | None, before: Dims | None, after: Dims, size: int) -> SampleAxis | None:
    """Return the sample axis of elements in another shape, in the same order; None if no axis holds the samples.

    >>> reshaped_axis(SampleAxis(1), (5, 8, 6), (40, 6), 8)
    SampleAxis(axis=0, outer=5, inner=1)
    """
    if place is None or before is None or _total(before) != _total(after) or _total(after) is None:
        return None
    behind = _total(before[place.axis + 1 :])
    assert behind is not None
    stride = place.inner * behind  # elements from one sample to the next
    for axis in reversed(range(len(after))):
        step, many = _total(after[axis + 1 :]), after[axis]
        assert step is not None and isinstance(many, int)
        inner = stride // max(1, step)
        if step and stride % step == 0 and inner and many % (inner * size) == 0:
            return SampleAxis(axis, many // (inner * size), inner)
    return None


def _total(dims: Sequence[int | str | None]) -> int | None:
    """Return the elements of a shape; None while it is open."""
    numbers = [d for d in dims if isinstance(d, int)]
    return math.prod(numbers) if len(numbers) == len(dims) else None


def one_at_a_time(dims: Sequence[int | str | None] | None) -> str:
    """Return a further remedy for a value without sample axis: its one row may be that of the only sample.

    >>> one_at_a_time((8, 10))
    ''
    """
    if not dims or dims[0] != 1:
        return ""
    return (
        "; if the model takes one sample at a time, let its inputs say so: "
        "python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name X --input_shape 1,… IN.onnx OUT.onnx"
    )
