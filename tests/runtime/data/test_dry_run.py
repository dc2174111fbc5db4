"""Models that crash ONNX Runtime end a copy of the process, which is reported in one line; others run as before."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import EngineError
from onnxfi.graph.model.loading import load
from onnxfi.runtime.data import dry_run as module
from onnxfi.runtime.data.dry_run import dry_run
from onnxfi.runtime.data.open_data import Data, open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.ports import Port
from onnxfi.runtime.quantize.quantize import quantize
from onnxfi.runtime.quantize.recipe import QuantisationRecipe
from onnxfi.tasks.evaluation import evaluate

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are not copied here")

#: The smallest int32 divided by -1 is a signal of the processor, which no kernel of ONNX Runtime looks for.
WHEN_OPENED = "q = Div(least, minus) f = Cast<to = 1>(q) y = Add(z, f)"
WHEN_RUN = "c = Cast<to = 6>(x) d = Sub(c, c) e = Add(d, minus) q = Div(least, e) f = Cast<to = 1>(q) y = Add(z, f)"
BY_DATA = "c = Cast<to = 6>(x) e = Neg(c) q = Div(least, e) f = Cast<to = 1>(q) y = Add(z, f)"


def crashing(nodes: str) -> onnx.ModelProto:
    return parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y)
        <float[2,2] w = {{1, 0, 0, 1}}, int32[1] least = {{-2147483648}}, int32[1] minus = {{-1}}>
        {{ z = MatMul(x, w) {nodes} }}"""
    )


def ones() -> Data:
    return open_data({"x": np.ones((3, 2), np.float32)}, [Port("x", "float32", ("N", 2))])


@pytest.mark.parametrize("nodes", [WHEN_OPENED, WHEN_RUN])
def test_a_model_that_crashes_the_runtime_is_reported_in_one_line(tmp_path: Path, nodes: str) -> None:
    file = tmp_path / "m.onnx"
    onnx.save(crashing(nodes), file)
    line = r"^onnxruntime\S* \S+ crashes \(SIGFPE\) when it opens or runs '.*m\.onnx'; look for .*$"
    with pytest.raises(EngineError, match=line):
        evaluate(file, ones())
    with pytest.raises(EngineError, match="when it opens or runs the model;"):
        evaluate(file.read_bytes(), ones())
    with pytest.raises(EngineError, match=line):
        TrialExecutor.open(Campaign(str(file), single=True))
    with pytest.raises(EngineError, match=line):
        quantize(load(file), QuantisationRecipe("dynamic"), tmp_path / "q.onnx")
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_a_sample_of_the_data_is_run(tmp_path: Path) -> None:
    """Made-up inputs below 1 are divided by as 0, which the kernel refuses; only 1 crashes it."""
    file = tmp_path / "m.onnx"
    onnx.save(crashing(BY_DATA), file)
    dry_run(OrtEngine(provider="cpu"), file)
    with pytest.raises(EngineError, match="crashes"):
        evaluate(file, ones())


def test_the_runtime_says_why_it_refuses_a_model(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(b"no model")
    dry_run(OrtEngine(provider="cpu"), file)
    dry_run(OrtEngine(provider="cpu"), tmp_path / "none.onnx")
    with pytest.raises(EngineError, match="refuses the model"):
        OrtEngine(provider="cpu").prepare(file)


def test_a_model_is_run_once_in_a_process_and_by_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[object] = []
    monkeypatch.setattr(module, "run_isolated", lambda call, **limits: copies.append(limits) or b"")
    small = crashing("y = Relu(z)").SerializeToString()
    for model in (small, small, crashing("y = Abs(z)").SerializeToString()):
        dry_run(OrtEngine(provider="cpu"), model)
    assert len(copies) == 2
    dry_run(OrtEngine(provider="cpu", threads=2), small)
    dry_run(OrtEngine(provider="cpu"), small, ones())
    assert len(copies) == 4, "another engine, or data of one's own, is another run"
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    dry_run(OrtEngine(provider="cpu"), crashing("y = Neg(z)").SerializeToString())
    assert len(copies) == 4


def test_what_passed_is_not_kept_in_memory() -> None:
    data = ones()
    dry_run(OrtEngine(provider="cpu"), crashing("y = Ceil(z)").SerializeToString(), data)
    kept = weakref.ref(data)
    del data
    gc.collect()
    assert kept() is None


def test_what_ends_a_quantiser_ends_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantisers call onnx's inference, which stops the process on some models."""
    monkeypatch.setattr("onnxfi.runtime.quantize.backends.dynamic", lambda *given, **named: os.abort())
    file = tmp_path / "m.onnx"
    onnx.save(crashing("y = Relu(z)"), file)
    with pytest.raises(EngineError, match=r"^the quantiser refuses the model: it ended with SIGABRT$"):
        quantize(load(file), QuantisationRecipe("dynamic"), tmp_path / "q.onnx")
    assert os.listdir(tmp_path) == ["m.onnx"]
