"""Baked faults that are drawn by sample, steps that are checked in a run, and what is told of fusions and functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxfi.errors import InputError, SelectorError
from onnxfi.faults.space import Selector
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import load, parse
from onnxfi.runtime.data.sources import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.inject.activations import inject_activations, instrument
from onnxfi.runtime.inject.drawn_inputs import draw_fault_inputs
from onnxfi.runtime.inject.fusions import fused, fusions_lost, fusions_note
from onnxfi.runtime.inject.shape_query import complete_by_running, loop_iterations

CNN = "models/fashion_cnn.onnx"
HEAD = '<ir_version: 10, opset_import: ["": 21, "own": 1]>'
LOOP = """net (float[N,3] x) => (float[N,3] y) <int64 turns = {4}, float one = {1}, bool on = {1}> {
    y = Loop (turns, on, x) <body = inside (int64 i, bool go, float[N,3] h) => (bool on_, float[N,3] h_) {
        t = Mul(h, one) h_ = Add(t, one) on_ = Identity(go) }> }"""
RANK = "net (float[N,3] x, int64[R] s) => (float y) { t = Reshape(x, s) u = Relu(t) y = ReduceSum(u) }"
LOCAL = """net (float[N,3] x) => (float[N,3] y) { z = own.twice(x) y = Relu(z) }
    <domain: "own", opset_import: ["": 21]> twice (a) => (b) { c = Add(a, a) b = Abs(c) }"""


def test_one_site_in_each_row_with_a_probability() -> None:
    model = load(CNN)
    every = inject_activations(model, per_sample=1.0, batch=6).inserted
    assert [s.sample for s in sorted(every, key=lambda s: s.sample or 0)] == list(range(6))
    some = {
        s.sample for seed in range(20) for s in inject_activations(model, per_sample=0.3, batch=6, seed=seed).inserted
    }
    many = sum(len(inject_activations(model, per_sample=0.3, batch=6, seed=seed).inserted) for seed in range(20))
    assert some == set(range(6)) and 18 < many < 54, "36 are expected"
    done = inject_activations(model, per_sample=1.0, batch=6)
    assert done.population == inject_activations(model, count=1).population == done.space.size // 6
    with pytest.raises(InputError, match="exactly one of ber, count, sites, per_sample"):
        inject_activations(model, per_sample=0.5, ber=0.1)


def test_a_row_changes_nothing_but_its_own_sample() -> None:
    model, x = load(CNN), np.load("models/fashion_test.npz")
    images = next(iter(open_data("models/fashion_test.npz", OrtEngine("cpu").prepare(CNN).inputs).batches(4))).feeds
    assert len(x.files)
    done = inject_activations(model, per_sample=0.4, batch=4, fault="set:value=nan", seed=1)
    struck = {s.sample for s in done.inserted}
    answers = OrtEngine("cpu").prepare(done.data).run(images)["logits"]
    assert {k for k in range(4) if np.isnan(answers[k]).any()} == struck and struck


def test_a_step_beyond_the_loop_is_refused_where_a_run_tells() -> None:
    model = load(parser.parse_model(HEAD + LOOP))
    data = open_data(None, OrtEngine("cpu").prepare(model_bytes(model)).inputs, limit=2)
    site = "Loop#0.body::t[0]@step={}:31"
    inject_activations(model, sites=[site.format(3)], data=data)
    with pytest.raises(SelectorError, match=r"t\[0\]@step=4: the loop has 4 iterations, steps are 0 to 3"):
        inject_activations(model, sites=[site.format(4)], data=data)
    inject_activations(model, sites=[site.format(4)])


DEEP = """net (float[N,3] x, bool often) => (float[N,3] y) <int64 two = {2}, int64 three = {3}, float one = {1}, bool on = {1}> {
    y = Loop (two, on, x) <body = outer (int64 i, bool go, float[N,3] h) => (bool on_, float[N,3] h_) {
        h_ = If (often) <
            then_branch = yes () => (float[N,3] p) {
                p = Loop (three, on, h) <body = inner (int64 j, bool g, float[N,3] k) => (bool g_, float[N,3] k_) {
                    k_ = Add(k, one) g_ = Identity(g) }> },
            else_branch = no () => (float[N,3] q) { q = Add(h, one) }>
        on_ = Identity(go) }> }"""


@pytest.mark.parametrize("external", [False, True])
def test_turns_are_counted_in_loops_and_branches(tmp_path: Path, external: bool) -> None:
    proto = parser.parse_model(HEAD + DEEP)
    if external:
        proto.graph.node.add(op_type="Add", input=["y", "w"], output=["z"])
        proto.graph.output[0].name = "z"
        proto.graph.initializer.append(numpy_helper.from_array(np.ones((1, 3), np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=external, location="w.bin", size_threshold=0)
    model = load(tmp_path / "m.onnx")
    ports = OrtEngine("cpu").prepare(tmp_path / "m.onnx").inputs
    for often, turns in ((True, 3), (False, 0)):
        np.savez(tmp_path / "d.npz", x=np.ones((2, 3), np.float32), often=np.array(often))
        found = loop_iterations(model, open_data(tmp_path / "d.npz", ports))
        assert found["Loop#0.body::"] == found["Loop#0.body::If#0.else_branch::"] == 2
        assert found["Loop#0.body::If#0.then_branch::Loop#0.body::"] == turns
    site = "Loop#0.body::If#0.then_branch::Loop#0.body::k_[1]@step={}:31"
    with pytest.raises(SelectorError, match="the loop does not run on this data, so it has no step"):
        inject_activations(model, sites=[site.format(0)], data=open_data(tmp_path / "d.npz", ports))


OPEN = """net (float[N,3] x, bool fine, int64[1] wide) => (float[N,M] y) <int64 two = {2}, bool on = {1}, int64[1] rows = {0}> {
    axes = Concat<axis=0>(rows, wide)
    y = If (fine) <
        then_branch = yes () => (float[N,M] p) { a = Reshape(x, axes) p = Relu(a) },
        else_branch = no () => (float[N,M] q) {
            q = Loop (two, on, x) <body = inner (int64 i, bool go, float[N,K] h) => (bool on_, float[N,L] h_) {
                s = Reshape(h, axes) e = Neg(h) h_ = Concat<axis=1>(e, s) on_ = Identity(go) }> }> }"""


def test_shapes_in_bodies_are_those_of_a_run(tmp_path: Path) -> None:
    model = load(parser.parse_model(HEAD + OPEN))
    ports = OrtEngine("cpu").prepare(model_bytes(model)).inputs
    plain = activations(model)
    inside = {a.name: a.shape_known for a in plain if a.path}
    assert not any(inside[name] for name in ("a", "p", "e", "s", "h_"))
    shapes = {}
    for fine in (True, False):
        np.savez(tmp_path / "d.npz", x=np.ones((2, 3), np.float32), fine=np.array(fine), wide=np.array([-1]))
        found = complete_by_running(model, parse(model), plain, open_data(tmp_path / "d.npz", ports))
        shapes[fine] = {a.name: a.target.shape for a in found if a.path and a.shape_known and a.target.word.is_float}
        assert all(a.axis == 0 for a in found if a.path and a.name in shapes[fine])
    assert shapes[True] == {"a": (3,), "p": (3,)}, "the other branch is not taken"
    assert shapes[False] == {"q": (12,)}, "e, s and h_ grow from turn to turn"


def model_bytes(model: Any) -> bytes:
    return bytes(parse(model).SerializeToString())


def test_faults_drawn_anew_are_those_that_a_file_of_its_own_would_have() -> None:
    done = instrument(load(CNN))
    images = next(iter(open_data("models/fashion_test.npz", OrtEngine("cpu").prepare(CNN).inputs).batches(4))).feeds
    session = OrtEngine("cpu").prepare(done.data)
    for per_sample in (0.0, 0.5, 1.0):
        fed = draw_fault_inputs(done.armed, 1, per_sample=per_sample, batch=4, seed=7)
        baked = inject_activations(load(CNN), per_sample=per_sample, batch=4, seed=7).data
        answers = [s.run(f)["logits"] for s, f in ((session, images | fed), (OrtEngine("cpu").prepare(baked), images))]
        assert np.array_equal(*answers, equal_nan=True)
    assert draw_fault_inputs(done.armed, 1, count=5)["onnxfi.site"].shape == (5,)
    with pytest.raises(InputError, match="exactly one of ber, count and per_sample"):
        draw_fault_inputs(done.armed, 1)
    with pytest.raises(SelectorError, match="the shape of 'u' is not known"):
        draw_fault_inputs(instrument(load(parser.parse_model(HEAD + RANK))).armed, 1, count=1)


def test_values_in_local_functions_are_told() -> None:
    done = instrument(load(parser.parse_model(HEAD + LOCAL)))
    assert [a.target.id for a in done.armed.sites] == ["y"]
    assert {why: n for why, n in done.left_out.items() if "local function" in why} == {
        "it lies in a local function; inline those first (onnx.inliner)": 2
    }


def test_what_is_out_of_reach_or_has_no_shape_says_so() -> None:
    model = load(parser.parse_model(HEAD + LOCAL))
    for act in (
        lambda: inject_activations(model, sites=["c[0]:30"]),
        lambda: instrument(model, Selector(include=("=c",))),
        lambda: inject_activations(model, count=1, selector=Selector(include=("=c",))),
    ):
        with pytest.raises(SelectorError, match="'c' lies in the local function 'twice', where no fault can be"):
            act()
    model = load(parser.parse_model(HEAD + RANK))
    with pytest.raises(SelectorError, match=r"the shape of 'u' is not known: give a flat index, as u\[5\]"):
        inject_activations(model, sites=["u[0,1]:30"])
    assert inject_activations(model, sites=["u[5]:30"]).inserted[0].element == 5


def test_fusions_that_are_lost_are_counted() -> None:
    plain = model_bytes(load(CNN))
    before = fused(plain)
    assert before["Conv+Relu"] == 2
    kept, lost = instrument(load(CNN)), instrument(load(CNN), all=True)
    assert fusions_lost(plain, kept.data) == {}
    assert fusions_lost(plain, lost.data)["Conv+Relu"] == (2, 0)
    [told] = fusions_note(plain, lost.data, 12)
    assert told.startswith("fusions of the runtime that are lost: Conv+Relu 2 to 0")
    assert fusions_note(plain, kept.data, 4) == ()
    assert "up to 300 sites" in fusions_note(plain, lost.data, 301)[0]
