"""Shapes of activations: what a run puts out is what numpy says, also of each iteration and of branches that run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

from onnxfi.graph.model.loading import load, parse
from onnxfi.graph.passes.shape_probes import OutputShapes

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def shapes(text: str, ranks: dict[tuple[str, str], int | None], **feeds: np.ndarray) -> dict[str, np.ndarray]:
    model, names = OutputShapes(ranks).run(parser.parse_model(f"{HEAD} {text}"))
    found = dict(zip([o.name for o in model.graph.output], ReferenceEvaluator(model).run(None, feeds), strict=True))
    return {path + name: found[names[path, name]] for path, name in names}


def test_shapes_are_those_of_the_run() -> None:
    text = "g (float[N,M] x) => (float[M,N] y) { a = Transpose(x) n = ReduceSum<keepdims = 0>(x) y = Relu(a) }"
    x = np.zeros((3, 5), np.float32)
    found = shapes(text, {("", "a"): 2, ("", "n"): 0, ("", "none"): 1}, x=x)
    assert {name: array.tolist() for name, array in found.items()} == {"a": [5, 3], "n": []}


def test_a_loop_gives_a_row_an_iteration() -> None:
    text = """g (float[N] x) => (float[M] y) <int64 n = {3}, bool c = {1}> {
        y = Loop (n, c, x) <body = b (int64 i, bool k, float[A] s) => (bool k2, float[B] t)
            { k2 = Identity(k) t = Concat<axis = 0>(s, s) }> }"""
    found = shapes(text, {("Loop#0.body::", "t"): 1}, x=np.zeros(2, np.float32))
    assert found["Loop#0.body::t"].tolist() == [[4], [8], [16]]


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_that_does_not_run_gives_minus_one(taken: bool) -> None:
    text = """g (float[N] x, bool c) => (float[M] y) { y = If (c)
        <then_branch = t () => (float[P] p) { p = Concat<axis = 0>(x, x) }, else_branch = e () => (float[Q] q) { q = Neg(x) }> }"""
    ranks = {("If#0.then_branch::", "p"): 1, ("If#0.else_branch::", "q"): 1}
    found = shapes(text, ranks, x=np.zeros(3, np.float32), c=np.array(taken))
    assert {name[-1]: array.tolist() for name, array in found.items()} == {
        "p": [6 if taken else -1],
        "q": [-1 if taken else 3],
    }


@pytest.mark.parametrize("file", ["fashion_cnn", "fashion_cnn_int8_qdq"])
def test_the_shapes_of_a_shipped_model_are_those_that_it_declares(file: str) -> None:
    model = load(Path("models") / f"{file}.onnx")
    probe = OutputShapes.neutral(model)
    assert probe is not None and len(probe.ranks) > 5
    probed, names = probe.run(parse(model))
    assert names.keys() == probe.ranks.keys() and len(set(names.values())) == len(names)
    assert [o.name for o in probed.graph.output][: len(model.proto.graph.output)] == [
        o.name for o in model.proto.graph.output
    ]
