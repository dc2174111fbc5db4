"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxfi.errors import SelectorError
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.dataflow.batch_layout import SampleAxis
from onnxfi.graph.model.loading import load, parse
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.inject.activations import inject_activations
from onnxfi.runtime.inject.shape_query import complete_by_running, loop_iterations


def test_runs_find_shapes_that_the_file_leaves_open() -> None:
    graph = """g (float[N,L,4] x) => (float[A,B] y) <int64[2] s = {-1,4}, int64 zero = {0}> {
        r = Reshape(x, s) t = Transpose<perm=[1,0,2]>(x) m = Greater(r, f) n = NonZero(m) y = Relu(r) }"""
    model = parser.parse_model(HEAD + graph)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "f"))
    opened = load(model)
    ports = OrtEngine("cpu").prepare(model.SerializeToString()).inputs
    data = open_data({"x": np.random.default_rng(0).normal(size=(4, 6, 4)).astype("f4")}, ports)
    found = {a.name: a for a in complete_by_running(opened, parse(opened), activations(opened), data)}
    assert (found["y"].place, found["y"].target.shape) == (SampleAxis(0, inner=6), (6, 4))
    assert (found["t"].place, found["t"].target.shape) == (SampleAxis(1), (6, 4))
    assert found["n"].unsupported_reason and not found["n"].shape_known


HEAD = '<ir_version: 10, opset_import: ["": 21, "own": 1]>'


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
