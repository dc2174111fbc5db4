"""Outputs that show facts of a run: iterations of loops, also in branches and scans, and shapes of tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from armed_models import armed_and_baked, named, parsed
from onnx import parser
from onnx.reference import ReferenceEvaluator
from pass_rules import shaped

from onnxfi.errors import SelectorError
from onnxfi.faults.words import Mask
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import load, parse
from onnxfi.graph.passes.fault_inputs import check_iteration
from onnxfi.graph.passes.instrument import ActivationFault, arm
from onnxfi.graph.passes.probes import OutputShapes

FULL = 0xFFFFFFFF


NEGATE = Mask(FULL, 1 << 31)


LOOP = """
g (float[N,3] x) => (float[N,3] y, float[T,N,3] each) {
  count = Constant<value_int=4>()
  yes = Cast<to=9>(count)
  y, each = Loop(count, yes, x) <body = b (int64 i, bool c, float[N,3] s) => (bool co, float[N,3] so, float[N,3] out) {
    co = Identity(c)
    one = Constant<value_float=1.0>()
    t = Add(s, one)
    so = Identity(t)
    out = If(c) <then_branch = th () => (float[N,3] o) { u = Identity(t)  o = Identity(u) },
                 else_branch = el () => (float[N,3] p) { p = Neg(t) }>
  }>
}"""


SCAN = """
g (float[5,2] x) => (float[2] last, float[5,2] each) {
  zero = Constant<value_floats=[0.0, 0.0]>()
  last, each = Scan<num_scan_inputs=1, body = b (float[2] s, float[2] v) => (float[2] so, float[2] out) {
    so = Add(s, v)
    out = Identity(so)
  }>(zero, x)
}"""


def test_in_a_loop_the_named_steps_are_faulty() -> None:
    plain = parsed(LOOP)
    body = next(a.path for a in activations(load(plain)) if a.name == "t")
    site = named(plain, f"{body}t")
    assert site.loop == "Loop"
    armed = arm(plain, [site])
    assert armed.inputs[-2:] == ("onnxfi.first", "onnxfi.last")
    x = np.zeros((2, 3), np.float32)
    one = armed_and_baked(plain, armed, [ActivationFault(site, 1, NEGATE, first=1, last=1)], {"x": x})
    assert one["each"][:, 0, 1].tolist() == [1, -2, -1, 0]
    assert one["each"][:, 0, 0].tolist() == [1, 2, 3, 4]
    late = armed_and_baked(plain, armed, [ActivationFault(site, 1, NEGATE, first=2)], {"x": x})
    assert late["each"][:, 1, 1].tolist() == [1, 2, -3, 2]
    # Of two faults on one element, one in every step and one in a step, both are present in that step.
    two = [
        ActivationFault(site, 0, Mask(FULL & ~(1 << 31), 1 << 31), sample=0),
        ActivationFault(site, 0, NEGATE, first=1, last=1),
    ]
    mixed = armed_and_baked(plain, armed, two, {"x": x}, batch=2)
    assert mixed["each"][:, 0, 0].tolist() == [-1, 0, -1, -0.0]


def test_in_a_branch_inside_a_loop() -> None:
    plain = parsed(LOOP)
    site = next(a for a in activations(load(plain)) if a.name == "u")
    assert site.loop == "Loop" and site.path.count("::") == 2
    found = armed_and_baked(
        plain, arm(plain, [site]), [ActivationFault(site, 2, NEGATE, first=3, last=3)], {"x": np.zeros((1, 3), "f4")}
    )
    assert found["each"][:, 0, 2].tolist() == [1, 2, 3, -4]


def test_a_scan_counts_its_iterations() -> None:
    plain = parsed(SCAN)
    site = next(a for a in activations(load(plain)) if a.name == "so")
    assert site.loop == "Scan"
    x = np.ones((5, 2), np.float32)
    found = armed_and_baked(plain, arm(plain, [site]), [ActivationFault(site, 1, NEGATE, first=2, last=2)], {"x": x})
    assert found["each"][:, 1].tolist() == [1, 2, -3, -2, -1]
    assert found["each"][:, 0].tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(SelectorError, match="the loop has 5 iterations"):
        check_iteration(ActivationFault(site, 0, NEGATE, first=5, last=5), 5)


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
    probe = shaped(model)
    assert probe is not None and len(probe.ranks) > 5
    probed, names = probe.run(parse(model))
    assert names.keys() == probe.ranks.keys() and len(set(names.values())) == len(names)
    assert [o.name for o in probed.graph.output][: len(model.proto.graph.output)] == [
        o.name for o in model.proto.graph.output
    ]
