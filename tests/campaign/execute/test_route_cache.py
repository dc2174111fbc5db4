"""Shortcuts: every route gives what the whole model gives, and a broken one is found out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from campaign_networks import Net, flips
from routed_trials import SAMPLES, bench_of, injectable, routed, vectors
from tiny_campaigns import campaign, chance, ran, save

from onnxfi.campaign.execute.canary import prove
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import RouteError
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.data.sample_outputs import stacked
from onnxfi.runtime.partial.golden_cache import GoldenCache
from onnxfi.tasks.outcomes import GoldenRun


def test_trials_of_one_tensor_have_their_channels_computed_together(here: Path, tmp_path: Path) -> None:
    net = Net()
    for kind in ("conv", "relu", "conv", "skip"):
        net.step(kind, len(net.values) - 1, 1)
    bench = bench_of(net.model([]), tmp_path, trials=40, optimization="all")
    plan = make_plan(bench.opened.campaign, bench.opened.fault_targets)
    golden, _ = bench.golden_runs.run()
    lines = [planned.lines.splitlines() for planned in plan.trials()]
    found = bench.together(plan.header, golden, lines)
    assert len(found) > 20 and {judgement.route for judgement in found.values()} == {"channel-delta"}
    assert found == {k: bench.trial(plan.header, golden, lines[k]) for k in found}


def test_campaigns_end_alike_by_shorter_routes(here: Path) -> None:
    net = Net()
    for kind in ("conv", "relu", "branch", "conv", "skip"):
        net.step(kind, len(net.values) - 1, 1)
    onnx.save(net.model([]), "net.onnx")
    np.savez("x.npz", x=chance(SAMPLES, 16, 4, 4, seed=7))
    given: dict[str, Any] = {"single": True, "trials": 60, "batch": 2, "optimization": "off"}
    fast, whole = (Campaign("net.onnx", "x.npz", route=route, **given) for route in ("auto", "full"))
    one, other = (
        {r.trial: r for r in ran(campaign, here / f"{campaign.engine.route}.db")} for campaign in (fast, whole)
    )
    assert {r.route for r in one.values()} == {"channel-delta"}
    assert {r.route for r in other.values()} == {"full"}
    assert all(r.error is None for r in one.values())
    assert [(r.outcome, r.cause, r.metrics, r.changed) for _, r in sorted(one.items())] == [
        (r.outcome, r.cause, r.metrics, r.changed) for _, r in sorted(other.items())
    ]


#: A normalisation that runtimes fuse where its epsilon is constant, and answers that hide its rounding.
DECIDED = """net (float[N,4,8] x) => (int64[N,4] tokens)
    <float eps = {0.000001}, float two = {2}, float[8] gain = {1,1,1,1,1,1,1,1}, float[8] shift = {90,0,0,0,0,0,0,0}>
    { y = Add(x, x) mean = ReduceMean<axes = [-1]>(y) d = Sub(y, mean) sq = Pow(d, two) var = ReduceMean<axes = [-1]>(sq)
      e = Add(var, eps) sd = Sqrt(e) n = Div(d, sd) g = Mul(n, gain) s = Add(g, shift)
      tokens = ArgMax<axis = 2, keepdims = 0>(s) }"""


def test_numbers_are_compared_in_front_of_decisions(here: Path) -> None:
    """A negative epsilon is refused by the fused operator alone, and tokens are the same with and without it."""
    model = onnx.load(save(here, DECIDED))
    del model.opset_import[:]
    model.opset_import.add().version = 17
    onnx.save(model, here / "g.onnx")
    np.savez(here / "x.npz", x=chance(3, 4, 8, seed=7))
    given: dict[str, Any] = {"model": "g.onnx", "data": "x.npz", "include": "=eps", "exhaustive": True}
    one, other = (
        {r.trial: (r.outcome, r.cause) for r in ran(campaign(route=how, **given), here / f"{how}.db", workers=0)}
        for how in ("auto", "full")
    )
    assert one == other and ("due", "error") in one.values()


def forgetful(self: Any, *_: Any) -> Any:
    return self.tensor


_values = GoldenCache.values


def first_batch(self: GoldenCache, k: int, names: Sequence[str]) -> dict[str, Any]:
    return _values(self, 0, names)


@pytest.fixture
def net_bench(tmp_path: Path) -> tuple[TrialExecutor, GoldenRun]:
    net = Net()
    for at, kind in enumerate(("conv", "relu", "norm")):
        net.step(kind, at, 0)
    bench = bench_of(net.model([]), tmp_path)
    return bench, bench.golden_runs.run()[0]


def test_a_cache_that_forgets_the_fault_is_seen_by_the_canary(
    net_bench: tuple[TrialExecutor, GoldenRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = net_bench
    assert set(prove(bench, injectable(bench))["routes"]) == {"partial", "channel-delta"}
    monkeypatch.setattr("onnxfi.runtime.partial.reexecution.FaultyWords.__enter__", forgetful)
    with pytest.raises(RouteError, match="is seen by the whole model, and not by the shorter route"):
        prove(bench, injectable(bench))


def test_a_cache_that_keeps_another_batch_is_seen_by_its_golden_run(
    net_bench: tuple[TrialExecutor, GoldenRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, golden = net_bench
    target = next(t for t in injectable(bench) if len(t.shape) == 4)
    faults = flips([target], [(0, 3)])
    assert bench.weights is not None
    bench.weights.run(faults, Route.CHANNEL_DELTA, golden)
    monkeypatch.setattr(bench.weights.segmented.golden, "budget_bytes", 0)
    bench.weights.segmented.golden.release()
    monkeypatch.setattr(GoldenCache, "values", first_batch)
    with pytest.raises(RouteError, match="another golden run than the whole model"):
        bench.weights.run(faults, Route.CHANNEL_DELTA, golden)


@pytest.mark.parametrize("optimization", ["off", "all"])
@pytest.mark.parametrize(
    "kinds",
    [
        ("conv", "relu", "conv", "skip", "norm"),
        pytest.param(("depthwise", "norm", "constant", "conv"), marks=pytest.mark.slow),
    ],
)
def test_what_is_masked_is_what_the_faulty_file_alone_says(
    kinds: tuple[str, ...], optimization: str, here: Path
) -> None:
    net = Net()
    for kind in kinds:
        net.step(kind, len(net.values) - 1, 1)
    onnx.save(net.model([]), "net.onnx")
    np.savez("x.npz", x=chance(6, 16, 4, 4, seed=7))
    given: dict[str, Any] = {"single": True, "bits": "0-2", "trials": 80, "batch": 4, "optimization": optimization}
    one, other = (
        {
            r.trial: (r.outcome, r.metrics)
            for r in ran(Campaign("net.onnx", "x.npz", route=route, **given), here / route)
        }
        for route in ("auto", "full")
    )
    assert one == other and len({outcome for outcome, _ in one.values()}) == 2


def test_routes_are_prepared_for_what_may_be_faulty(tmp_path: Path) -> None:
    nodes = [f"h{k + 1} = Add(h{k}, b{k})" for k in range(30)]
    bias = {f"b{k}": chance(8, seed=k) for k in range(30)}
    vectors(tmp_path, "h0 = MatMul(x, w)", *nodes, "y = Relu(h30)", w=chance(8, 8, seed=3), **bias)
    files = (str(tmp_path / "net.onnx"), str(tmp_path / "x.npz"))
    bench = TrialExecutor.open(Campaign(*files, single=True, trials=1, include=("=b29",), optimization="off"))
    assert bench.weights is not None and bench.segmentation is not None
    assert bench.segmentation.inner == (("h29",),)
    other = flips([t for t in bench.opened.model.targets if t.id == "b3"], [(2, 25)])
    _, found = routed(bench, other)  # what is not made ready runs all the same
    assert found is None or found.tobytes() == stacked(bench.opened.run(bench.opened.faulty_session(other))).tobytes()
