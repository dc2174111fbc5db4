"""Opening the model of a campaign: once in memory, and beside each other where there is room."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_campaigns import campaign, ran, save, tables

from onnxfi.campaign.execute import canary
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan import open_model
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.workers.process_pool import ProcessPool
from onnxfi.errors import OutputError
from onnxfi.faults.space import Target
from onnxfi.graph.model import byte_source
from onnxfi.graph.model.loading import load
from onnxfi.runtime.engine import onnx_runtime
from onnxfi.runtime.engine.external_initializers import ExternalInitializers


@pytest.mark.parametrize("beside", [False, True], ids=["in the file", "beside it"])
def test_a_large_model_is_opened_from_a_draft_and_answers_alike(
    here: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    plain = campaign(route="full", trials=5)
    small = [(r.outcome, r.metrics) for r in run(plain, here / "small.db")]
    if beside:
        onnx.save(onnx.load("m.onnx"), "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    asked: list[bool] = []
    monkeypatch.setattr(open_model, "LARGE_BYTES", 1)
    monkeypatch.setattr(open_model, "give_back", lambda: asked.append(True))
    monkeypatch.setattr(open_model, "faulty_bytes", lambda *_: pytest.fail("the whole model was put into memory"))
    assert [(r.outcome, r.metrics) for r in run(plain, here / "large.db")] == small and asked


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True], ids=["in the file", "beside it"])
def test_weights_are_held_by_the_runtime_alone(here: Path, monkeypatch: pytest.MonkeyPatch, beside: bool) -> None:
    rng, width, layers = np.random.default_rng(0), 256, 12
    body = " ".join(f"m{k} = MatMul(y{k}, w{k}) y{k + 1} = Relu(m{k})" for k in range(layers))
    save(here, f"net (float[N,{width}] y0) => (float[N,{width}] y{layers}) {{ {body} }}")
    net = onnx.load("g.onnx")
    for k in range(layers):
        weight = rng.standard_normal((width, width)).astype(np.float32) / 16
        net.graph.initializer.append(numpy_helper.from_array(weight, f"w{k}"))
    onnx.save(net, "g.onnx", save_as_external_data=beside, location="g.data", size_threshold=0)
    np.savez("wide.npz", y0=rng.standard_normal((4, width)).astype(np.float32))
    size, loans = layers * width * width * 4, list[ExternalInitializers]()
    monkeypatch.setattr(
        onnx_runtime, "ExternalInitializers", lambda given: loans.append(ExternalInitializers(given)) or loans[-1]
    )
    wanted = campaign(model="g.onnx", data="wide.npz", trials=2 * layers)
    usual = [(r.outcome, r.metrics, r.route) for r in run(wanted, here / "usual.db")]
    loans.clear()
    tracemalloc.start()
    try:
        running, found = run(wanted, here / "tight.db", kept_bytes=size // 4), []
        for result in running:
            found.append((result.outcome, result.metrics, result.route))
            if len(found) == layers:
                read = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, byte_source.__file__)])
    finally:
        tracemalloc.stop()
    assert found == usual and {route for _, _, route in found} != {None}
    lent = sum(array.nbytes for loan in loans for array in loan.arrays)
    assert lent >= size and not any(array.any() for loan in loans for array in loan.arrays if array.nbytes >= 1 << 16)
    assert sum(trace.size for trace in read.traces) <= size // 2, "of what was read, a few that have faults are kept"


@pytest.mark.slow
def test_processes_have_a_model_open_beside_each_other_where_there_is_room(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("m.onnx")
    assert open_model.beside(model, 1), "a small one always"
    monkeypatch.setattr(open_model, "LARGE_BYTES", 1)
    monkeypatch.setattr(open_model, "give_back", lambda: None)
    assert open_model.beside(model, 2 * model.source.size) and not open_model.beside(model, 2 * model.source.size - 1)
    order: list[str] = []
    changes, submit = canary.changes_answer, ProcessPool.submit

    def seen(bench: TrialExecutor, target: Target, *rest: Any) -> Any:
        order.append("here")
        return changes(bench, target, *rest)

    def given(pool: ProcessPool, call: Any, *args: Any) -> Any:
        order.append(call.__name__)
        return submit(pool, call, *args)

    monkeypatch.setattr(canary, "changes_answer", seen)
    monkeypatch.setattr(ProcessPool, "submit", given)
    ran(campaign(trials=4), here / "wide.db", workers=1)
    assert order[0] == "open_early" and {"work", "here"} <= set(order), "beside each other"
    order.clear()
    ran(campaign(trials=4), here / "tight.db", workers=1, kept_bytes=1)
    assert order[1] == "here" and order.count("here") == 1 and "open_early" not in order, "first here, then there alone"
    assert tables(here / "tight.db") == tables(here / "wide.db")


def test_where_there_is_no_room_for_a_draft_bytes_do(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OutputError("cannot write it: No space left on device")

    monkeypatch.setattr(open_model, "LARGE_BYTES", 1)
    monkeypatch.setattr(open_model, "give_back", lambda: None)
    monkeypatch.setattr(open_model, "write_scratch_copy", full)
    assert len([*run(campaign(route="full", trials=2), here / "s.db")]) == 2
