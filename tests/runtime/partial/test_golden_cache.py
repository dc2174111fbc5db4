"""Golden values between segments: kept within a budget, computed again to the same bits, and another golden run is found out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from campaign_networks import Net, flips
from routed_trials import bench_of, injectable, routed
from tiny_campaigns import mlp, ran, samples

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.runtime.partial.golden_cache import GoldenCache


def test_golden_values_beyond_the_budget_are_computed_again(tmp_path: Path) -> None:
    net = Net()
    for at, kind in enumerate(("conv", "norm", "relu", "conv", "norm")):
        net.step(kind, at, 0)
    campaign = bench_of(net.model([]), tmp_path).opened.campaign
    wide, narrow = (TrialExecutor.open(campaign, kept_bytes=size) for size in (1 << 30, 4096))
    for target in injectable(wide):
        faults = flips([target], [(3, 30)])
        _, one = routed(wide, faults)
        _, other = routed(narrow, faults)
        assert one is not None and other is not None and one.tobytes() == other.tobytes()
    assert wide.weights is not None and narrow.weights is not None
    narrow.weights.segmented.golden.release()
    assert narrow.weights.segmented.golden.kept_bytes <= 2048 < wide.weights.segmented.golden.kept_bytes
    *within, last = range(len(narrow.weights.segmented.segmentation.segments))
    for bench in (wide, narrow):
        segment_sessions = bench.weights.segmented.segment_sessions
        assert segment_sessions.inner(0) is segment_sessions.inner(0)
        opened = [segment_sessions.inner(number) for number in within]
        assert len(within) > 1 and (segment_sessions.inner(0) is opened[0]) == (bench is wide)
        assert segment_sessions.inner(last) is segment_sessions.sessions[last], "nothing within it is read"


def test_trials_run_batch_by_batch_where_golden_values_do_not_fit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"single": True, "trials": 30, "batch": 5, "optimization": "off"}
    campaign = Campaign(mlp(here), samples(here), **given)
    bench, narrow = TrialExecutor.open(campaign), TrialExecutor.open(campaign, kept_bytes=0)
    assert not bench.by_batch and narrow.by_batch
    plan = make_plan(campaign, bench.opened.fault_targets)
    golden, _ = bench.golden_runs.run()
    lines = [planned.lines.splitlines() for planned in plan.trials()]
    runs = Counter[int]()
    fetch = GoldenCache.compute
    monkeypatch.setattr(
        GoldenCache, "compute", lambda self, k, name: runs.update([k] * (name == "x")) or fetch(self, k, name)
    )
    found = narrow.together(plan.header, golden, lines)
    assert runs[1] == runs[2] == 4, "each of four tensors asks once for the values of a batch"
    shared = bench.together(plan.header, golden, lines)
    assert len(found) > 20 and shared == {k: found[k] for k in shared}
    assert found == {k: bench.trial(plan.header, golden, lines[k]) for k in found}
    workers = ran(campaign, here / "s.db", workers=1, kept_bytes=0)
    assert {r.trial: r.metrics for r in workers} == {
        k: bench.trial(plan.header, golden, one).metrics for k, one in enumerate(lines, 1)
    }


def test_sizes_that_a_model_does_not_declare_are_measured(here: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 18]> g (float[N,T,4] x) => (float[N,T,3] y)
        <int64[3] by = {0,-1,2}, int64[3] back = {0,-1,4}, float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7},
         float[4,3] v = {1,2,3,4,5,6,7,8,9,1,2,3}>
        { a = MatMul(x, w) b = Reshape(a, by) c = Relu(b) d = Reshape(c, back) e = MatMul(d, w) y = MatMul(e, v) }"""
    onnx.save(onnx.parser.parse_model(text), here / "m.onnx")
    np.savez("d.npz", x=np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32))
    campaign = Campaign("m.onnx", "d.npz", single=True, trials=3, batch=3, task="deviation")
    wide, narrow = TrialExecutor.open(campaign), TrialExecutor.open(campaign, kept_bytes=4096)
    assert wide.weights is not None
    assert any(None in (port.shape or ()) for port in wide.weights.segmented.segment_sessions.ports.values())
    assert not wide.by_batch and narrow.by_batch
