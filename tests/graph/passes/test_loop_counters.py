"""Iterations of loops: faults in named steps, also in branches and scans."""

from __future__ import annotations

import numpy as np
import pytest
from armed_models import armed_and_baked, named, parsed

from onnxfi.errors import SelectorError
from onnxfi.faults.words import Mask
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import load
from onnxfi.graph.passes.fault_inputs import columns
from onnxfi.graph.passes.instrument import ActivationFault, arm

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
        columns(arm(plain, [site]), [ActivationFault(site, 0, NEGATE, first=5, last=5)], trips={site.target.id: 5})
