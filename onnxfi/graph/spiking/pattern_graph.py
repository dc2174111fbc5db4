"""One graph as used by the detection of neurons: constants, comparisons, and elementwise ancestors of a value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.graph.model.graph_index import Scope, integer
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.model.stored_tensors import stored_tensors

if TYPE_CHECKING:
    import onnx

#: Elementwise operators between a state and the next one.
ELEMENTWISE = frozenset(
    ["Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Clip", "Neg", "Max", "Min", "Sum", "Not"]
)
_COMPARE = {"Greater": 0, "GreaterOrEqual": 0, "Less": 1, "LessOrEqual": 1}
#: Operators of which every model with spikes has at least one.
MAKES_SPIKES = frozenset(_COMPARE)
#: Operators that make numbers of what these give; see `PatternGraph._number`.
MAKES_NUMBERS = frozenset(("Cast", "Where"))
#: Operators that may process a constant before it is used.
_FOLDED = frozenset((
    "Identity", "Cast", "Clip", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Flatten", "Neg", "Exp", "Log", "Sigmoid",
    "Add", "Sub", "Mul", "Div",
))  # fmt: skip
#: Elements of the largest constant that is computed.
_MOST_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Use:
    """Use of a value: the number of the node in its graph, and of the input (−1: a body captures it)."""

    node: int
    input: int


@dataclass(frozen=True)
class SpikeComparison:
    """Comparison of a membrane potential with a threshold, whose result becomes the number 0 or 1."""

    compare: int
    membrane: str
    threshold: Use
    nodes: frozenset[int]
    spike: str


@dataclass
class PatternGraph:
    """One graph of a model: its producers, each use of a name, and the constants in it."""

    scope: Scope
    outer: PatternGraph | None = None
    _known: dict[str, NDArray[Any] | None] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The path of the graph."""
        return self.scope.path

    @property
    def graph(self) -> onnx.GraphProto:
        """The graph itself."""
        return self.scope.graph

    @property
    def maker(self) -> dict[str, int]:
        """The node that produces each name."""
        return self.scope.producers

    @cached_property
    def users(self) -> dict[str, list[Use]]:
        """The uses of each name; a body that captures it counts as input −1."""
        found: dict[str, list[Use]] = {}
        for k, (node, names) in enumerate(zip(self.graph.node, self.scope.reads, strict=True)):
            for place, name in enumerate(names):
                found.setdefault(name, []).append(Use(k, place if place < len(node.input) else -1))
        return found

    @cached_property
    def _stored(self) -> dict[str, onnx.TensorProto]:
        return {text(name): tensor for name, tensor in stored_tensors(self.graph).items()}

    def constant(self, name: str, depth: int = 0) -> NDArray[Any] | None:
        """Return the value of a name that does not depend on the model's inputs; None for all others."""
        if name not in self._known:
            self._known[name] = None  # a damaged graph may have cycles
            self._known[name] = self._constant(name, depth)
        return self._known[name]

    def _constant(self, name: str, depth: int) -> NDArray[Any] | None:
        from onnx import numpy_helper

        if name in self._stored:
            tensor = self._stored[name]
            small = np.prod([float(n) for n in tensor.dims]) <= _MOST_ELEMENTS
            return np.asarray(numpy_helper.to_array(tensor)) if small and tensor.data_location != 1 else None
        if name not in self.maker:
            here = name in {i.name for i in self.graph.input}
            return None if here or self.outer is None else self.outer.constant(name)
        node = self.graph.node[self.maker[name]]
        if node.op_type not in _FOLDED or depth > 8:
            return None
        given = [self.constant(text(n), depth + 1) if n else None for n in node.input]
        if any(value is None and n for value, n in zip(given, node.input, strict=True)):
            return None
        return _computed(node, {text(n): v for n, v in zip(node.input, given, strict=True) if v is not None})

    def origin(self, name: str) -> str:
        """Return the weight that a constant comes from, through nodes that only convert it."""
        for _ in range(8):
            if name in self._stored or name not in self.maker:
                break
            node = self.graph.node[self.maker[name]]
            live = [text(n) for n in node.input if n]
            if node.op_type not in _FOLDED or not live:
                break
            name = live[0]
        return name

    def factor(self, number: int) -> list[Use]:
        """Return the constant that a node multiplies with; nothing for other nodes."""
        node = self.graph.node[number]
        if node.op_type != "Mul":
            return []
        return [Use(number, k) for k, name in enumerate(node.input) if self.constant(text(name)) is not None]

    def fires(self) -> Iterator[SpikeComparison]:
        """Yield every comparison with a constant whose result becomes a number."""
        for k, node in enumerate(self.graph.node):
            side = _COMPARE.get(node.op_type)
            if side is None or len(node.input) != 2:
                continue
            value, limit = text(node.input[side]), text(node.input[1 - side])
            given = self.constant(limit)
            if given is None or self.constant(value) is not None:
                continue
            spike = self._number(text(node.output[0]))
            if spike is None:
                continue
            maker = self.maker.get(value, -1)
            shifted = self.graph.node[maker] if maker >= 0 else None
            lowered = shifted is not None and shifted.op_type == "Sub" and not given.any()
            if shifted is not None and lowered and self.constant(text(shifted.input[1])) is not None:
                yield SpikeComparison(
                    k, text(shifted.input[0]), Use(maker, 1), frozenset((k, maker, spike[0])), spike[1]
                )
                continue
            yield SpikeComparison(k, value, Use(k, 1 - side), frozenset((k, spike[0])), spike[1])

    def _number(self, truth: str) -> tuple[int, str] | None:
        """Return the node that makes 0 or 1 of a truth value, and its output."""
        for use in self.users.get(truth, []):
            node = self.graph.node[use.node]
            if node.op_type == "Cast" and integer(node, "to", 0) in (1, 10, 11, 16):
                return use.node, text(node.output[0])
            choices = [self.constant(text(n)) for n in node.input[1:]] if node.op_type == "Where" else []
            if use.input == 0 and choices and all(c is not None and np.isin(c, (0, 1)).all() for c in choices):
                return use.node, text(node.output[0])
        return None

    def back(self, name: str, ends: Mapping[str, Any], *, first: bool = True) -> tuple[set[int], set[str]]:
        """Return the elementwise ancestors of a value, and the `ends` and other names at which they begin.

        Comparisons belong to the ancestors, but their own ancestors do not.
        """
        nodes: set[int] = set()
        leaves: set[str] = set()
        todo = [name]
        while todo:
            now = todo.pop()
            if now in ends and not (first and now == name):
                leaves.add(now)
                continue
            maker = self.maker.get(now)
            if maker is None:
                leaves.add(now)
                continue
            node = self.graph.node[maker]
            if maker in nodes or self.constant(now) is not None:
                continue
            if node.op_type in _COMPARE:
                nodes.add(maker)
                before = self.maker.get(text(node.input[_COMPARE[node.op_type]]), -1)
                if before >= 0 and self.graph.node[before].op_type == "Sub":
                    nodes.add(before)
                continue
            if node.op_type not in ELEMENTWISE:
                leaves.add(now)
                continue
            nodes.add(maker)
            todo += [text(n) for n in node.input if n]
        return nodes, leaves

    def between(self, start: str, nodes: set[int]) -> set[int]:
        """Return those of the nodes that change with `start` without a comparison between."""
        reached: set[int] = set()
        todo = [start]
        while todo:
            for use in self.users.get(todo.pop(), []):
                node = self.graph.node[use.node]
                if use.node in nodes and use.node not in reached and node.op_type not in _COMPARE:
                    reached.add(use.node)
                    todo += [text(n) for n in node.output]
        return reached


def _computed(node: onnx.NodeProto, given: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """Return the result of a node on constants; None if onnx's reference does not compute it."""
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    if any(value.size > _MOST_ELEMENTS for value in given.values()):
        return None
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
        for name, value in given.items()
    ]
    output = onnx.ValueInfoProto(name=node.output[0])
    graph = helper.make_graph([node], "constant", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    try:
        found: list[Any] = list(ReferenceEvaluator(model).run(None, dict(given)))
    except Exception:  # onnx's reference does not compute it: not a constant
        return None
    return np.asarray(found[0])
