"""Faults drawn again in a file that is injected: those that a file of its own would have."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from onnxfi.errors import InputError, SelectorError
from onnxfi.graph.model.loading import load
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.inject.activations import inject_activations, instrument
from onnxfi.runtime.inject.draw_fault_inputs import draw_fault_inputs

CNN = "models/fashion_cnn.onnx"


HEAD = '<ir_version: 10, opset_import: ["": 21, "own": 1]>'


RANK = "net (float[N,3] x, int64[R] s) => (float y) { t = Reshape(x, s) u = Relu(t) y = ReduceSum(u) }"


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
    with pytest.raises(InputError, match="exactly one of ber, count and per_sample says how many faults"):
        draw_fault_inputs(done.armed, 1)
    with pytest.raises(SelectorError, match="the shape of 'u' is not known"):
        draw_fault_inputs(instrument(load(parser.parse_model(HEAD + RANK))).armed, 1, count=1)
