"""From a faulty linear operator to the scores: bounds of all that a fault reaches, and the classes that are certain.

A class is certain where the lowest score that it can have is above the highest of every other: in a tie nothing is. All
rests on golden values that a run gives whose scores are the golden ones bit for bit, and on bounds that hold for every
order of summation (`bounds.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import UnprovableError
from onnxfi.graph.partition.subgraph import PartitionGraph, TensorLocation, array_at
from onnxfi.runtime.proofs.bounds import Floats, ValueBounds
from onnxfi.runtime.proofs.golden_values import LINEAR, Golden
from onnxfi.runtime.proofs.operators import (
    SOFTMAX_MARGIN,
    Average,
    Clip,
    Flatten,
    Linear,
    Normalization,
    Product,
    Rule,
    Sum,
    attributes,
    convolution,
    matrix,
    window,
)

if TYPE_CHECKING:
    import onnx

Classes = NDArray[np.int16]
#: Class of a sample whose class is not certain.
UNKNOWN = -1
#: Linear operators behind the faulty one: behind more of them the bounds are too wide to prove anything.
_DEEPEST = 3
_SAME = frozenset(("Identity", "Dropout"))
_ROWS = 2


@dataclass(frozen=True)
class Path:
    """The rules of all operators behind a linear one, up to the scores.

    Attributes
    ----------
    first : Linear
        The operator itself, whose weights may be faulty.
    rules : tuple of Rule
        The rules of what its output goes through.
    top : int array [samples]
        The golden classes.
    scores : float64 array [samples, classes]
        The golden scores; of a softmax its inputs.
    margin : float
        The difference of two scores below which nothing is certain.
    """

    first: Linear
    rules: tuple[Rule, ...]
    top: Classes
    scores: Floats = field(repr=False)
    margin: float = 0.0

    def classes(self, faulty: ValueBounds) -> Classes:
        """Return the class of each fault and sample ([faults, samples]); −1 where it is not certain."""
        with np.errstate(all="ignore"):
            for rule in self.rules:
                faulty = rule(faulty)
            return self._certain(faulty)

    def _certain(self, scores: ValueBounds) -> Classes:
        low, high = (one.reshape(*scores.live.shape, -1) for one in (scores.low, scores.high))
        golden = np.broadcast_to(self.top, scores.live.shape)
        if scores.channels is not None:  # the others have their golden bits
            own, whole = (low, high), np.broadcast_to(self.scores, (*scores.live.shape, self.scores.shape[-1]))
            low, high = whole.copy(), whole.copy()
            low[..., scores.channels], high[..., scores.channels] = own
        first = low.argmax(-1).astype(np.int16)  # the class that is certain, if one is
        best = np.take_along_axis(low, first[..., None].astype(np.int64), -1)
        others = high.copy()
        np.put_along_axis(others, first[..., None].astype(np.int64), -np.inf, -1)
        certain = best[..., 0] > others.max(-1) + self.margin  # false of a NaN
        certain &= np.isfinite(low).all(-1) & np.isfinite(high).all(-1)
        return np.where(scores.live, np.where(certain, first, UNKNOWN), golden).astype(np.int16)


def path_from(net: PartitionGraph, node: int, golden: Golden, scored: str, top: Classes) -> Path:
    """Return the path from the linear operator of this number; UnprovableError if an operator has no rule."""
    first = linear(net, node, golden)
    rules, name, terms, behind = list[Rule](), net.proto.graph.node[node].output[0], first.product.terms, 0
    margin, before = 0.0, scored
    while name != scored:
        users = net.users.get(name, ())
        if len(users) != 1 or name in net.outputs or margin:
            raise UnprovableError(f"several operators read {name!r}")
        one = net.proto.graph.node[users[0]]
        if one.op_type == "Softmax" and one.output[0] == scored:
            margin, before = SOFTMAX_MARGIN, name
        elif one.op_type in LINEAR:
            behind += 1
            made = linear(net, users[0], golden)
            terms = max(terms, made.product.terms)
            rules.append(made)
        else:
            rules += _rule(net, one, name, golden, terms)
        if behind > _DEEPEST:
            raise UnprovableError(f"more than {_DEEPEST} linear operators lie behind a fault")
        name = one.output[0]
    scores = golden[before].astype(np.float64).reshape(len(top), -1)
    return Path(first, tuple(rules), top, scores, margin)


def linear(net: PartitionGraph, node: int, golden: Golden) -> Linear:
    """Return the rule of a linear operator with stored weights; UnprovableError if there is none."""
    one = net.proto.graph.node[node]
    if one.input[0] not in golden:
        raise UnprovableError(f"no golden values of {one.input[0]!r}")
    weights = _stored(net, one.input[1])
    bias = _stored(net, one.input[2]) if len(one.input) > _ROWS and one.input[2] else None
    inputs = golden[one.input[0]].astype(np.float64)
    product: Product
    if one.op_type == "Conv":
        product = convolution(one, weights)
        if inputs.ndim != weights.ndim:
            raise UnprovableError("no rule for this Conv")
        addend = None if bias is None else bias.reshape(-1, 1, 1)
    else:
        product, addend = matrix(one, weights), bias
        if inputs.ndim != _ROWS or (addend is not None and addend.ndim != 1):
            raise UnprovableError(f"no rule for this {one.op_type}")
    with np.errstate(all="ignore"):  # what is not finite proves nothing
        exact, sums = product(inputs), product.magnitudes(np.abs(inputs))
        if addend is not None:
            exact, sums = exact + addend, sums + np.abs(addend)
    return Linear(inputs, exact, sums, product)


def _stored(net: PartitionGraph, name: str) -> Floats:
    if name not in net.stored:
        raise UnprovableError(f"{name!r} is computed")
    array = array_at(net, TensorLocation(name))
    if array.dtype != np.float32:
        raise UnprovableError(f"{name!r} is not float32")
    return array.astype(np.float64)


def _rule(net: PartitionGraph, node: onnx.NodeProto, name: str, golden: Golden, terms: int) -> Sequence[Rule]:
    """Return the rule of an operator that is not linear, or of a linear one in each element."""
    kind = node.op_type
    if kind in _SAME:
        return ()
    if kind == "Relu":
        return (Clip(),)
    if kind == "Clip":
        low, high = (_stored(net, n) if n else None for n in (*node.input[1:], "", "")[:2])
        return (Clip(-np.inf if low is None else float(low), np.inf if high is None else float(high)),)
    if kind == "MaxPool" and len(node.output) == 1:
        return (window(node),)
    if kind == "GlobalAveragePool":
        return (Average(None),)
    if kind == "AveragePool" and not any((pool := window(node)).pads):
        return (Average(pool),)
    if kind in ("Reshape", "Flatten") and node.output[0] in golden:
        return (Flatten(golden[node.output[0]].shape),)
    if kind == "Add":
        return (_sum(net, node, name, golden, terms),)
    if kind == "BatchNormalization" and len(node.output) == 1:
        return (_normalization(net, node, terms),)
    raise UnprovableError(f"no rule for {kind}")


def _sum(net: PartitionGraph, node: onnx.NodeProto, name: str, golden: Golden, terms: int) -> Sum:
    other = node.input[1] if node.input[0] == name else node.input[0]
    if name == other or not (other in net.stored or other in golden):
        raise UnprovableError("no rule for this Add")
    if other in golden:
        return Sum(golden[other].astype(np.float64), terms)
    return Sum(_stored(net, other), terms, stored=True)


def _normalization(net: PartitionGraph, node: onnx.NodeProto, terms: int) -> Normalization:
    scale, bias, mean, variance = (_stored(net, name) for name in node.input[1:5])
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
        return Normalization(factor, bias - mean * factor, np.abs(bias) + np.abs(mean * factor), terms)


def with_samples(path: Path, samples: NDArray[np.int64] | slice) -> Path:
    """Return the path for some samples, in this order; for a range of them without copying anything."""
    rules = tuple(rule.of_samples(samples) if isinstance(rule, Linear | Sum) else rule for rule in path.rules)
    return replace(
        path,
        first=path.first.of_samples(samples),
        rules=rules,
        top=path.top[samples],
        scores=path.scores[samples],
    )
