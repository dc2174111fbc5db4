"""Baked faults that are drawn by sample, steps that are checked in a run, and notes on fusions and functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import parser

from onnxfi.errors import InputError, SelectorError
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import load, parse
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.inject.activations import inject_activations, instrument

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


def test_cells_of_a_buffer_that_fail_at_a_voltage_are_faulty_in_every_sample() -> None:
    fault, only = "fault-map:file=examples/hardware/sram_undervolting.json", Selector(include=("=relu_2",))
    found = [
        {
            (s.element, str(s.mask))
            for s in inject_activations(load(CNN), voltage=at, fault=fault, selector=only).inserted
        }
        for at in (0.72, 0.68)
    ]
    assert 0 < len(found[1]) < 80, "some 17 of 4,096 cells are expected"
    assert {element for element, _ in found[0]} <= {element for element, _ in found[1]}
    with pytest.raises(InputError, match="give voltage, not count"):
        inject_activations(load(CNN), count=1, fault=fault)


def test_a_row_changes_nothing_but_its_own_sample() -> None:
    model, x = load(CNN), np.load("models/fashion_test.npz")
    images = next(iter(open_data("models/fashion_test.npz", OrtEngine("cpu").prepare(CNN).inputs).batches(4))).feeds
    assert len(x.files)
    done = inject_activations(model, per_sample=0.4, batch=4, fault="set:value=nan", seed=1)
    injected = {s.sample for s in done.inserted}
    answers = OrtEngine("cpu").prepare(done.data).run(images)["logits"]
    assert {k for k in range(4) if np.isnan(answers[k]).any()} == injected and injected


def test_a_step_beyond_the_loop_is_refused_where_a_run_counts_them() -> None:
    model = load(parser.parse_model(HEAD + LOOP))
    data = open_data(None, OrtEngine("cpu").prepare(model_bytes(model)).inputs, limit=2)
    site = "Loop#0.body::t[0]@step={}:31"
    inject_activations(model, sites=[site.format(3)], data=data)
    with pytest.raises(SelectorError, match=r"t\[0\]@step=4: the loop has 4 iterations, steps are 0 to 3"):
        inject_activations(model, sites=[site.format(4)], data=data)
    inject_activations(model, sites=[site.format(4)])


def model_bytes(model: Any) -> bytes:
    return bytes(parse(model).SerializeToString())


def test_values_in_local_functions_are_reported() -> None:
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
