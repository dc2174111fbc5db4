"""Weights held to their own range when the runtime loads them.

The operators stand between a stored weight and its readers. What they compute follows from stored tensors alone, so
the runtime computes it once, when it loads the model, and runs as fast as before. Where no weight uses the top exponent
bit, a number that has it set is divided by what that bit multiplies with, which gives the weight back exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from onnxfi.errors import ModelError, closest
from onnxfi.faults.space import Selector
from onnxfi.faults.words import WORDS, Word
from onnxfi.graph.model.graph_index import GraphIndex
from onnxfi.graph.model.loading import Model
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.model.stored_tensors import stored_tensors
from onnxfi.graph.passes.graph_edit import FreeNames
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.passes.node_builder import NodeBuilder, opset_of
from onnxfi.graph.protection.loop_and_branch_bodies import check_unprotected, edited_graphs
from onnxfi.graph.protection.range_restriction import FORMATS

#: The least opset: Clip of every float format.
LEAST_OPSET = 12


@dataclass(frozen=True)
class WeightRange:
    """A stored weight, its format, the range of its numbers, and the path of its graph."""

    name: str
    dtype: str
    low: float
    high: float
    path: str = ""

    @property
    def id(self) -> str:
        """The name behind the path."""
        return self.path + self.name

    @property
    def top_bit_unused(self) -> bool:
        """True if no number has the top exponent bit set: all lie below 2."""
        return max(abs(self.low), abs(self.high)) < 2


@dataclass(frozen=True)
class ClipWeights(ModelPass[tuple[str, ...]]):
    """The pass that holds weights to their range; its result are their names.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load, parse
    >>> model = load("models/fashion_cnn.onnx")
    >>> made, names = ClipWeights((WeightRange("fc2.weight", "float32", -0.5, 0.5),)).run(parse(model))
    >>> [n.op_type for n in made.graph.node if any(name.startswith("fc2.weight") for name in n.input)]
    ['Mul', 'Mul', 'Abs', 'Less', 'Where', 'Clip', 'IsNaN', 'Where', 'Gemm']
    """

    weights: tuple[WeightRange, ...]
    name = "clip-weights"

    def requires(self, proto: onnx.ModelProto) -> None:
        """Refuse weights that do not exist, and a model that has this already."""
        check_unprotected(proto, "clip-weights", LEAST_OPSET)
        stored = _stored(proto)
        for weight in self.weights:
            if weight.id not in stored:
                raise ModelError(f"no stored weight {weight.id!r} in the model{closest(weight.id, stored)}")

    def apply(self, proto: onnx.ModelProto) -> tuple[str, ...]:
        """Insert the operators after each weight."""
        names = FreeNames(proto)
        for path, edit in edited_graphs(proto):
            for weight in [one for one in self.weights if one.path == path]:
                result = names.new(f"{weight.name}.clipped")
                edit.redirect(weight.name, result)
                g = NodeBuilder(opset_of(proto), names.new(f"{weight.name}.clip_weights") + ".")
                _hold(g, weight, result)
                g.nodes[-1].name = names.new(f"onnxfi/clip-weights/{weight.id}")
                edit.put_behind(edit.maker.get(weight.name, -1), g.nodes)
        return tuple(weight.id for weight in self.weights)


def find_weights(model: Model) -> tuple[WeightRange, ...]:
    """Return the float weights and biases that the graphs of a model store, with the range of their numbers.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> [weight.name for weight in find_weights(load("models/fashion_cnn.onnx"))][:2]
    ['conv1.weight', 'conv1.bias']
    """
    stored = _stored(model.proto)
    found = []
    for target in model.targets:
        if target.id in stored and target.role in ("weight", "bias") and target.dtype in FORMATS and target.size:
            values = target.word.values(model.words(target, np.arange(target.size, dtype=np.int64)))
            low, high = float(values.min()), float(values.max())
            if np.isfinite([low, high]).all():
                path, name = stored[target.id]
                found.append(WeightRange(name, target.dtype, low, high, path))
    return tuple(found)


def left_unclipped(model: Model, selector: Selector) -> Iterator[str]:
    """Yield a remark on float weights in functions of the model, which stay as they are."""
    stored = _stored(model.proto)
    found = [
        t.id
        for t in model.targets
        if t.id not in stored and t.role in ("weight", "bias") and t.dtype in FORMATS and selector.selects(t)
    ]
    if found:
        yield (
            f"{len(found):,} weights in functions stay without protection, as {found[0]!r}; inline functions first "
            f"(onnx.inliner.inline_local_functions)"
        )


def _stored(proto: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Return the path and the name of each tensor that a graph of the model stores, by its id."""
    return {
        scope.path + name: (scope.path, name)
        for scope in GraphIndex.of(proto).graphs
        for name in map(text, stored_tensors(scope.graph))
    }


def _hold(g: NodeBuilder, weight: WeightRange, result: str) -> None:
    """Append what holds a weight to its range; a NaN becomes 0."""
    value = weight.name
    if weight.top_bit_unused:
        root = _root(WORDS[weight.dtype])
        less = g.add("Mul", g.add("Mul", value, g.constant(root, weight.dtype)), g.constant(root, weight.dtype))
        unset = g.add("Less", g.add("Abs", value), g.constant(2, weight.dtype))
        value = g.add("Where", unset, value, less)
    ends = (g.constant(end, weight.dtype) for end in (weight.low, weight.high))
    held = g.add("Clip", value, *ends)
    g.add("Where", g.add("IsNaN", held), g.constant(0, weight.dtype), held, name=result)


def _root(word: Word) -> float:
    """Return the square root of the inverse of what the top exponent bit multiplies a number with.

    >>> _root(WORDS["float32"]) == 2.0**-64
    True
    """
    return float(2.0 ** -(1 << (word.bits - word.mantissa - 1 - 2)))
