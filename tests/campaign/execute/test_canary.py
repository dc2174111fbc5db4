"""The canary: it must be seen, in every part and target, and is not fooled by outputs that vary."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_campaigns import campaign, ran, save, tables

from onnxfi.campaign.execute.canary import changes_answer, notices, prove, set_exponents
from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.execute.route_cache import open_segments
from onnxfi.campaign.execute.trial_executor import EXECUTORS, PreparedTrial, TrialExecutor
from onnxfi.campaign.plan.plan import write_plan
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import plan, run
from onnxfi.errors import CampaignError, RouteError
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.partial.segmented_model import SegmentedModel


def meta(store: Path, key: str) -> Any:
    with Store.open(store) as opened:
        return opened.get(key)


UNREACHED = """net (float[N,4] x) => (float[N,3] y, float[N,4] z) <float[4] far = {1,2,3,4}, float[1,3] near = {1,2,3}>
    { z = Mul(x, far) s = ReduceSum(x, axes) y = Mul(s, near) axes = Constant<value_ints = [1]>() }"""


def test_the_canary_must_be_seen(here: Path) -> None:
    save(here, UNREACHED)
    both = campaign(model="g.onnx", output="y", single=True, trials=20, bits="exponent")
    ran(both, here / "s.db")
    assert meta(here / "s.db", "canary") == {"seen": "near", "unseen": ["far"], "routes": {"partial": "near"}}
    with pytest.raises(
        CampaignError, match="no canary was seen: all exponent bits set in far changed nothing in"
    ) as raised:
        run(campaign(model="g.onnx", output="y", single=True, trials=5, include="far"), here / "t.db")
    assert "select other targets, or score another --output" in str(raised.value)


def test_the_canary_covers_every_part_of_a_mix_and_the_targets_of_a_list(here: Path) -> None:
    save(here, UNREACHED)
    parts = (dict(count=1, include=("far",)), dict(count=1, include=("near",)))
    ran(campaign(model="g.onnx", output="y", mix=parts, repeat=2), here / "s.db")
    assert meta(here / "s.db", "canary") == {"seen": "near", "unseen": ["far"], "routes": {"partial": "near"}}
    write_plan(plan(campaign(model="g.onnx", data=None, single=True, trials=2, include="far"))[0], "far.jsonl")
    with pytest.raises(CampaignError, match="no canary was seen"):
        run(campaign(model="g.onnx", output="y", faults="far.jsonl"), here / "t.db")


def test_the_canary_is_not_fooled_by_outputs_whose_shape_varies(here: Path) -> None:
    save(
        here,
        """net (float[N,4] x) => (float[M,2] found) <float[4] far = {1,2,3,4}, float zero = {0}>
        { z = Mul(x, far) above = Greater(x, zero) at = NonZero(above) t = Transpose(at) found = Cast<to = 1>(t) }""",
    )
    with pytest.raises(CampaignError, match="no canary was seen"):
        run(campaign(model="g.onnx", data=None, batch=2, include="=far"), here / "s.db")


@pytest.mark.parametrize(
    ("target", "include", "workers"), [("weights", "=weight", 0), ("weights", "=weight", 1), ("activations", "=z", 0)]
)
def test_the_canary_is_looked_for_in_further_batches(here: Path, target: str, include: str, workers: int) -> None:
    """As in images without a detection, at the front of the data."""
    save(
        here,
        """net (float[1,2] x) => (float[M,1] boxes, float[M] scores) <float[2] weight = {1,2}, float[1] zero = {0}>
        { z = Mul(x, weight) s = ReduceSum<keepdims = 0>(z, axes) axes = Constant<value_ints = [1]>()
          above = Greater(x, zero) sum = ReduceSum<keepdims = 0>(x, axes) found = Greater(sum, zero)
          scores = Compress(s, found) boxes = Unsqueeze(scores, axes) }""",
    )
    x = np.ones((6, 2), np.float32)
    x[:3] = -1
    np.savez(here / "d.npz", x=x)
    given = campaign(model="g.onnx", batch=1, target=target, all=target == "activations", include=include, trials=4)
    found = ran(given, here / "s.db", workers=workers)
    assert len(found) == 4 and meta(here / "s.db", "canary")["seen"]
    np.savez(here / "d.npz", x=-np.abs(x))
    with pytest.raises(CampaignError, match="no canary was seen"):
        run(given, here / "t.db", workers=workers)


def test_the_whole_model_is_not_opened_beside_its_segments(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = campaign(single=True, trials=2, target=("weights", "activations"))
    seen, asked = changes_answer, list[bool]()
    monkeypatch.setattr(
        "onnxfi.campaign.execute.canary.changes_answer",
        lambda executor, target, batches: bool(asked.append(executor.is_segmented)) or seen(executor, target),
    )
    executor = TrialExecutor.open(given)
    found = prove(executor, executor.opened.fault_targets.targets)
    assert len(found["routes"]) > 1 and asked == [False], "the first canary alone needs the whole model"


def test_segments_of_a_large_model_are_closed_before_it_runs_as_a_whole(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxfi.campaign.plan.open_model.LARGE_BYTES", 1)
    executor, whole = TrialExecutor.open(campaign(), kept_bytes=1), OpenCampaign.faulty_session
    target, asked = executor.opened.model.targets[0], list[bool]()
    monkeypatch.setattr("onnxfi.campaign.execute.canary.shown", lambda *_: False)
    monkeypatch.setattr(
        OpenCampaign, "faulty_session", lambda self, faults: asked.append(executor.is_segmented) or whole(self, faults)
    )
    assert executor.weights is not None and executor.is_segmented
    with pytest.raises(RouteError, match="not by the shorter route"):
        notices(executor, target)
    golden = executor.golden_runs.run()[0]
    trial = PreparedTrial(set_exponents(target), [target])
    assert executor.weights is not None
    assert EXECUTORS[Route.FULL](executor, trial, golden).outcome != "masked"
    assert asked == [False, False]


def test_a_large_model_is_open_in_one_process_at_a_time(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = campaign(single=True, trials=4)
    ran(given, here / "whole.db")
    monkeypatch.setattr("onnxfi.campaign.plan.open_model.LARGE_BYTES", 1)
    opened = list[int]()
    monkeypatch.setattr("onnxfi.campaign.execute.trial_executor.open_segments", lambda *how: opened.append(1))
    ran(given, here / "s.db", workers=1, kept_bytes=1)
    assert not opened, "the segments are the worker's alone"
    assert tables(here / "s.db") == tables(here / "whole.db")


def test_segments_are_closed_here_before_workers_open_theirs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxfi.campaign.plan.open_model.LARGE_BYTES", 1)
    made = list[weakref.ref[SegmentedModel]]()

    def opens(*how: Any) -> SegmentedModel:
        made.append(weakref.ref(found := open_segments(*how)))
        return found

    monkeypatch.setattr("onnxfi.campaign.execute.trial_executor.open_segments", opens)
    gc.disable()  # what waits for it is still held
    try:
        running = run(campaign(trials=4), here / "s.db", workers=1, kept_bytes=1, worker_memory_bytes=1 << 30)
        assert [one() for one in made] == [None]
    finally:
        gc.enable()
    assert len(list(running)) == 4
