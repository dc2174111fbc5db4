"""Random operators: nodes whose outputs differ from run to run, even with a seed, since a session uses it once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from onnxfi.graph.model.graph_index import GraphIndex, subgraphs
from onnxfi.graph.model.stored_tensors import stored_tensors

if TYPE_CHECKING:
    import onnx

#: Operators that draw random numbers.
RANDOM_OPERATORS = frozenset(
    ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
)
_SAMPLING = ("com.microsoft", "Sampling")
_STANDARD = ("", "ai.onnx")
#: The inputs of Dropout that hold its ratio and training mode.
_RATIO, _TRAINING = 1, 2
_Stored = Mapping[str, "onnx.TensorProto"]


def find_random_node(index: GraphIndex, outputs: Collection[str] = ()) -> str | None:
    """Return the first node that draws random numbers which reach these outputs (all by default); None without one.

    Bodies and local functions count with the node that runs them.

    >>> from onnx import parser
    >>> noisy = parser.parse_model('''<ir_version: 10, opset_import: ["": 21]>
    ...     noisy (float[N] x) => (float[N] y) { n = RandomUniformLike(x) y = Add(x, n) }''')
    >>> find_random_node(GraphIndex.of(noisy))
    "RandomUniformLike ('n')"
    """
    main, functions = index.main, {(f.domain, f.name): f for f in index.proto.functions}
    stored = stored_tensors(main.graph)
    pending, seen = list(outputs) or [output.name for output in main.graph.output], set[int]()
    while pending:
        number = main.producers.get(pending.pop())
        if number is None or number in seen:
            continue
        seen.add(number)
        if (found := next(_random(main.graph.node[number], stored, functions, frozenset()), None)) is not None:
            return found
        pending += main.reads[number]
    return None


def _random(
    node: onnx.NodeProto,
    stored: _Stored,
    functions: Mapping[tuple[str, str], onnx.FunctionProto],
    within: frozenset[tuple[str, str]],
) -> Iterator[str]:
    """Yield the nodes that draw random numbers: this one, and those in its bodies and in the function it calls."""
    domain, kind = node.domain, node.op_type
    if (domain, kind) == _SAMPLING or (
        domain in _STANDARD and (kind in RANDOM_OPERATORS or _is_training_dropout(node, stored))
    ):
        yield f"{kind} ({node.name or next(iter(node.output), '')!r})"
    for _, graph in subgraphs(node):
        known = {**stored, **stored_tensors(graph)}
        for inner in graph.node:
            yield from _random(inner, known, functions, within)
    if (domain, kind) in functions and (domain, kind) not in within:
        called = functions[domain, kind]
        for inner in called.node:
            yield from _random(inner, stored_tensors(called), functions, within | {(domain, kind)})


def _is_training_dropout(node: onnx.NodeProto, stored: _Stored) -> bool:
    """Return True for a Dropout in training mode whose ratio is not known to be 0."""
    if node.op_type != "Dropout":
        return False
    mode, ratio = (_number(node, at, stored) for at in (_TRAINING, _RATIO))
    return bool(mode) and (ratio is None or ratio > 0)


def _number(node: onnx.NodeProto, at: int, stored: _Stored) -> float | None:
    """Return the stored number of an input; None if it is not stored."""
    from onnx import numpy_helper

    tensor = stored.get(node.input[at]) if at < len(node.input) else None
    if tensor is None or tensor.data_location == 1 or list(tensor.dims) not in ([], [1]):
        return None
    return float(numpy_helper.to_array(tensor).reshape(-1)[0])
