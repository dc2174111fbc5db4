"""Range restriction: activations are held to the range that fault-free data has, in plain ONNX operators.

The readers of an activation read `NAME.restricted` in its place, so that its node and its name stay: a fault that is
injected into `NAME` lands before the restriction. A graph output keeps its name after it, and its node outputs
`NAME.unrestricted`. In ONNX Runtime 1.31.1 Clip, Min and Max keep NaN, and Where turns -0 into +0 (measured).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from onnxfi.errors import ModelError, closest
from onnxfi.faults.words import WORDS
from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.passes.graph_edit import FreeNames
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.passes.node_builder import NodeBuilder, opset_of
from onnxfi.graph.protection.loop_and_branch_bodies import check_unprotected, edited_graphs, made_by, result_between

if TYPE_CHECKING:
    from typing import Self

    import onnx

#: Formats that the operators take.
FORMATS = ("float16", "float32", "float64")
#: The least opset: Clip with inputs, Equal of floats.
LEAST_OPSET = 11


@dataclass(frozen=True)
class Bounds:
    """The range of an activation: one number at each end, or one for each channel along `axis`.

    `middle` replaces what leaves the range where that is asked for: the mean of the calibration data.

    Examples
    --------
    >>> Bounds((0.0,), (6.0,)).union(Bounds((-1.0,), (3.0,)))
    Bounds(low=(-1.0,), high=(6.0,), axis=None, middle=(0.0,))
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    axis: int | None = None
    middle: tuple[float, ...] = (0.0,)

    @property
    def whole(self) -> Bounds:
        """The bounds of all channels together."""
        return Bounds((min(self.low),), (max(self.high),), None, (float(np.mean(self.middle)),))

    def union(self, other: Bounds) -> Bounds:
        """Return the bounds of two tensors together, without channels."""
        one, two = self.whole, other.whole
        middle = (one.middle[0] + two.middle[0]) / 2
        return Bounds((min(*one.low, *two.low),), (max(*one.high, *two.high),), None, (middle,))

    def unbounded(self, dtype: str) -> Bounds:
        """Return bounds of the same channels that hold nothing."""
        every = Bounds.of_format(dtype)
        return replace(self, low=every.low * len(self.low), high=every.high * len(self.high))

    @classmethod
    def of_format(cls, dtype: str) -> Bounds:
        """Return the range of all finite numbers of a format.

        >>> Bounds.of_format("float16").high
        (65504.0,)
        """
        largest = float(np.finfo(WORDS[dtype].dtype).max)
        return cls((-largest,), (largest,))


@dataclass(frozen=True)
class Restricted:
    """An activation with its format, its rank (None: not known), the bounds that it gets, and the path of its graph."""

    name: str
    dtype: str
    rank: int | None
    bounds: Bounds
    path: str = ""

    @property
    def id(self) -> str:
        """The name behind the path."""
        return self.path + self.name

    @classmethod
    def of(cls, a: Activation, rank: int | None, bounds: Bounds) -> Restricted:
        """Return an activation with these bounds."""
        return cls(a.name, a.target.dtype, rank, bounds, a.path)

    def constants(self, g: NodeBuilder, *rows: Sequence[float]) -> list[str]:
        """Append numbers as constants of the format: one, or one per channel, shaped to broadcast along the axis."""
        found = []
        for row in rows:
            shape: list[int] = []
            if self.bounds.axis is not None:
                shape = [1] * ((self.rank or 0) - 1 - self.bounds.axis % (self.rank or 1))
                shape.insert(0, len(row))
            found.append(g.constant(np.array(row).reshape(shape), self.dtype))
        return found


@dataclass(frozen=True)
class _BetweenReaders(ModelPass[tuple[str, ...]]):
    """A pass that puts nodes between activations and their readers; its result are the names of the activations.

    `kind` marks the nodes; `suffix` ends the names of the new tensors, and with `un` before it those of what nodes put
    out instead of a graph output.
    """

    tensors: tuple[Restricted, ...]
    kind: ClassVar[str]
    suffix: ClassVar[str]

    def requires(self, proto: onnx.ModelProto) -> None:
        """Refuse a model that is protected already, bounds that are no range, and activations that are not there."""
        for one in self.tensors:
            _check_bounds(one)
        check_unprotected(proto, self.kind, LEAST_OPSET)
        made = made_by(proto)
        for one in self.tensors:
            if one.id not in made:
                raise ModelError(f"no activation {one.id!r} in the model{closest(one.id, made)}")

    def apply(self, proto: onnx.ModelProto) -> tuple[str, ...]:
        """Insert the operators after each activation."""
        names, opset = FreeNames(proto), opset_of(proto)
        for path, edit in edited_graphs(proto):
            for one in [tensor for tensor in self.tensors if tensor.path == path]:
                at = edit.maker[one.name]
                value, result = result_between(edit, names, one.name, self.suffix)
                g = NodeBuilder(opset, names.new(f"{one.name}.{self.kind.replace('-', '_')}") + ".")
                self.restrict(g, one, value, result)
                g.nodes[-1].name = names.new(f"onnxfi/{self.kind}/{one.id}")
                edit.put_behind(at, g.nodes)
        return tuple(one.id for one in self.tensors)

    @abstractmethod
    def restrict(self, g: NodeBuilder, one: Restricted, value: str, result: str) -> None:
        """Append the nodes that make the result of the value of an activation."""

    def unbounded(self) -> Self:
        """Return the same pass with the range of each format as bounds, which inserts the same operators."""
        return replace(self, tensors=tuple(replace(t, bounds=t.bounds.unbounded(t.dtype)) for t in self.tensors))


@dataclass(frozen=True)
class RestrictRanges(_BetweenReaders):
    """The pass that holds activations to bounds; its result are their names.

    `action` says what becomes of a number outside: it is held at the bound (`clip`), becomes 0 (`zero`), or the mean of
    the calibration data (`average`). A NaN passes `clip`, and counts as outside for the others.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load, parse
    >>> model = load("models/fashion_cnn.onnx")
    >>> relu = Restricted("relu", "float32", 4, Bounds((0.0,), (4.0,)))
    >>> made, restricted = RestrictRanges((relu,)).run(parse(model))
    >>> [(n.op_type, n.output[0]) for n in made.graph.node if "relu.restricted" in (*n.input, *n.output)]
    [('Clip', 'relu.restricted'), ('MaxPool', 'max_pool2d')]
    """

    action: Literal["clip", "zero", "average"] = "clip"
    name = "restrict-ranges"
    kind, suffix = "range", "restricted"

    def restrict(self, g: NodeBuilder, one: Restricted, value: str, result: str) -> None:
        """Append the operators that hold one activation to its bounds."""
        low, high = one.constants(g, one.bounds.low, one.bounds.high)
        if self.action == "clip":
            _hold(g, one, value, low, high, result)
            return
        # Equal is false for NaN, and where the number was held: one comparison finds all that is outside.
        inside = g.add("Equal", _hold(g, one, value, low, high), value)
        middle = one.bounds.middle if self.action == "average" else [0.0] * len(one.bounds.low)
        g.add("Where", inside, value, *one.constants(g, middle), name=result)


@dataclass(frozen=True)
class FilterNonFinite(_BetweenReaders):
    """The pass that replaces NaN and infinities in activations; its result are their names.

    They become the number of the range that is nearest to 0; all other numbers stay, also those outside the range.
    """

    name = "filter-non-finite"
    kind, suffix = "nan-filter", "finite"

    def restrict(self, g: NodeBuilder, one: Restricted, value: str, result: str) -> None:
        """Append the operators that replace NaN and infinities of one activation."""
        nearest = [min(max(0.0, low), high) for low, high in zip(one.bounds.low, one.bounds.high, strict=True)]
        # A number minus itself is 0, but for NaN and infinities: three operators find and replace both.
        (number,) = one.constants(g, nearest)
        g.add("Where", g.add("IsNaN", g.add("Sub", value, value)), number, value, name=result)


def _hold(g: NodeBuilder, one: Restricted, value: str, low: str, high: str, name: str = "") -> str:
    """Append what holds a value between two bounds; Clip takes numbers, so that channels take Max and Min.

    ONNX Runtime's Clip of opset 11 knows float32 alone.
    """
    if one.bounds.axis is None and g.opset >= 12:
        return g.add("Clip", value, low, high, name=name)
    return g.add("Min", g.add("Max", value, low), high, name=name)


def restrictable(a: Activation) -> bool:
    """Return whether the operators take an activation: computed in a graph of the model, in a format of theirs."""
    return not a.unsupported_reason and a.target.dtype in FORMATS and a.target.kind == "activation"


def _check_bounds(one: Restricted) -> None:
    """Raise ModelError if bounds are no range of finite numbers."""
    low, high = (np.array(ends, np.float64) for ends in (one.bounds.low, one.bounds.high))
    if not np.isfinite([low, high]).all() or (low > high).any():
        raise ModelError(f"the bounds of {one.name!r} are no range of finite numbers: {low.min():g} to {high.max():g}")
    if one.bounds.axis is not None and not 0 <= one.bounds.axis < (one.rank or 0):
        raise ModelError(f"{one.name!r} has no axis {one.bounds.axis} of channels; give one bound for the whole tensor")
