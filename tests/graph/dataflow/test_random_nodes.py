"""Random operators: found wherever they reach an output, in bodies and functions, and not where they drop nothing."""

from __future__ import annotations

import pytest
from onnx import parser

from onnxfi.graph.dataflow.random_nodes import RANDOM_OPERATORS, find_random_node
from onnxfi.graph.model.graph_index import GraphIndex

HEAD = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1, "own": 1]>'
FUNCTION = '<domain: "own", opset_import: ["": 21]> {name} (a) => (b) {{ {body} }}'


def found(nodes: str, *functions: str, outputs: tuple[str, ...] = ()) -> str | None:
    model = parser.parse_model(f"{HEAD} g (float[N] x, bool c) => (float[N] y) {{ {nodes} }}")
    model.functions.extend(map(parser.parse_function, functions))
    return find_random_node(GraphIndex.of(model), outputs)


@pytest.mark.parametrize("op", sorted(RANDOM_OPERATORS))
def test_every_random_operator_is_one_of_its_own_domain_alone(op: str) -> None:
    assert found(f"n = {op}(x) y = Add(x, n)") == f"{op} ('n')"
    assert found(f"n = own.{op}(x) y = Add(x, n)") is None, "another domain, another operator"


def test_the_first_that_reaches_the_outputs_is_named() -> None:
    two = "n = RandomUniformLike(x) m = RandomNormalLike(x) y = Add(x, m)"
    assert found(two) == "RandomNormalLike ('m')", "nothing reads the other"
    assert found(two, outputs=("n",)) == "RandomUniformLike ('n')"
    assert found(two, outputs=("x",)) is None
    assert found("n = com.microsoft.Sampling(x) y = Add(x, n)") == "Sampling ('n')"


def test_bodies_count_with_the_node_that_runs_them() -> None:
    body = (
        "y = If (c) <then_branch = t () => (float[N] a) {{ {} }}, else_branch = e () => (float[N] b) {{ b = Neg(x) }}>"
    )
    assert found(body.format("n = RandomUniformLike(x) a = Add(x, n)")) == "RandomUniformLike ('n')"
    assert found(body.format("a = Neg(x)")) is None


def test_functions_count_where_they_are_called_and_may_call_themselves() -> None:
    noisy = FUNCTION.format(name="noisy", body="n = RandomNormalLike(a) b = Add(a, n)")
    outer = FUNCTION.format(name="outer", body="b = own.noisy(a)")
    assert found("y = own.outer(x)", noisy, outer) == "RandomNormalLike ('n')"
    assert found("y = Neg(x)", noisy, outer) is None
    assert found("y = own.circle(x)", FUNCTION.format(name="circle", body="b = own.circle(a)")) is None


@pytest.mark.parametrize(
    ("ratio", "training", "is_random"),
    [
        ("r = Constant<value = float {0.5}>()", "t = Constant<value = bool {1}>()", True),
        ("r = Constant<value = float {0.5}>()", "t = Constant<value = bool {0}>()", False),
        ("r = Constant<value = float {0.0}>()", "t = Constant<value = bool {1}>()", False),
        ("r = Constant<value = float[1] {0.5}>()", "t = Constant<value = bool[1] {1}>()", True),
        ("r = ReduceMax<keepdims = 0>(x)", "t = Constant<value = bool {1}>()", True),
        ("r = ReduceMax<keepdims = 0>(x)", "t = Constant<value = bool {0}>()", False),
    ],
)
def test_a_dropout_is_random_where_it_may_drop_in_training(ratio: str, training: str, is_random: bool) -> None:
    assert (found(f"{ratio} {training} y = Dropout(x, r, t)") is not None) == is_random
    assert found("y = Dropout(x)") is None
