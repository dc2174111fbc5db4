"""Shortcuts: every route gives what the whole model gives, and a broken one is found out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from campaign_networks import Net, flips, nets
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from routed_trials import SAMPLES, bench_of, injectable, routed, vectors
from tiny_campaigns import chance, ran

from onnxfi.campaign.execute.canary import prove
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import RouteError
from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.data.sample_outputs import stacked
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.partial.golden_cache import GoldenCache
from onnxfi.runtime.quantize.quantize import quantize
from onnxfi.runtime.quantize.recipe import Recipe
from onnxfi.tasks.outcomes import GoldenRun

SHIPPED = ("cnn", "attention", "gru", "cnn_fp16", "cnn_int8_qdq", "cnn_int8_qoperator")
#: Those of the core tests: floats, half floats and integers, as they lie and as they are fused.
CORE = (("cnn", "off"), ("gru", "all"), ("cnn_fp16", "off"), ("cnn_int8_qdq", "all"))


@settings(max_examples=25, deadline=None)
@given(model=nets(), data=st.data())
def test_every_route_gives_the_bits_of_the_whole_model(
    model: onnx.ModelProto, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bench = bench_of(model, tmp_path_factory.mktemp("net"), batch=data.draw(st.sampled_from([2, 5])))
    pick = st.tuples(st.integers(0, 1 << 20), st.integers(0, 63))
    for target in injectable(bench):
        faults = flips([target], [data.draw(pick)])
        name, found = routed(bench, faults)
        if found is not None:
            assert found.tobytes() == stacked(bench.opened.run(bench.opened.faulty_session(faults))).tobytes(), (
                target.id,
                name,
            )
    several = data.draw(st.lists(st.sampled_from(injectable(bench)), min_size=2, max_size=3, unique=True))
    faults = flips(several, [data.draw(pick) for _ in several])
    name, found = routed(bench, faults)
    if found is not None:
        assert found.tobytes() == stacked(bench.opened.run(bench.opened.faulty_session(faults))).tobytes(), name


@settings(max_examples=12, deadline=None)
@given(model=nets(), batch=st.sampled_from([2, 5]), persistence=st.sampled_from(["transient", "permanent"]))
def test_faults_in_activations_have_the_same_outcome_by_every_route(
    model: onnx.ModelProto, batch: int, persistence: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("net")
    given = {"target": "activations", "persistence": persistence, "trials": 12, "batch": batch}
    bench = bench_of(model, folder, **given)
    plan = make_plan(bench.opened.campaign, bench.opened.fault_targets)
    golden, _ = bench.golden_runs.run()
    lines = [planned.lines.splitlines() for planned in plan.trials()]
    found = {k: bench.trial(plan.header, golden, one) for k, one in enumerate(lines)}
    found |= bench.together(plan.header, golden, lines)
    whole = TrialExecutor.open(replace(bench.opened.campaign, route="full"))
    for k, one in enumerate(lines):
        plain = whole.trial(plan.header, golden, one)
        assert (found[k].outcome, found[k].metrics) == (plain.outcome, plain.metrics), (one, found[k].route)


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


@pytest.mark.parametrize(
    ("name", "optimization"),
    [
        pytest.param(name, how, marks=() if (name, how) in CORE else pytest.mark.slow)
        for name in SHIPPED
        for how in ("off", "all")
    ],
)
def test_shipped_models_answer_alike_by_every_route(name: str, optimization: str) -> None:
    files = (f"models/fashion_{name}.onnx", "models/fashion_test.npz")
    bench = TrialExecutor.open(Campaign(*files, single=True, trials=1, samples=20, batch=8, optimization=optimization))
    kinds = set()
    for number, target in enumerate(injectable(bench)):
        # A high bit, and one whose change may or may not survive the rounding.
        for bit in (target.word.bits - 1, number % 4):
            faults = flips([target], [(7919 * (number + 1), bit)])
            kind, found = routed(bench, faults)
            kinds.add(kind)
            if found is None:
                continue
            plain = stacked(bench.opened.run(bench.opened.faulty_session(faults)))
            assert found.tobytes() == plain.tobytes(), (target.id, bit)
    assert kinds - {"full"}


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


@pytest.mark.parametrize("optimization", ["off", "all"])
def test_a_fault_in_an_activation_of_all_samples_runs_what_it_reaches(here: Path, optimization: str) -> None:
    net = Net()
    for kind in ("conv", "relu", "conv", "skip", "norm"):
        net.step(kind, len(net.values) - 1, 1)
    onnx.save(net.model([]), "net.onnx")
    np.savez("x.npz", x=chance(7, 16, 4, 4, seed=7))
    given: dict[str, Any] = {"target": "activations", "persistence": "permanent", "single": True, "trials": 60}
    one, other = (
        {
            r.trial: r
            for r in ran(
                Campaign("net.onnx", "x.npz", route=route, optimization=optimization, batch=4, **given), here / route
            )
        }
        for route in ("auto", "full")
    )
    assert {r.route for r in one.values()} >= {"partial"} and {r.route for r in other.values()} == {"split"}
    assert [one[k].outcome for k in sorted(one)] == [other[k].outcome for k in sorted(one)]
    if optimization == "off":
        assert [one[k].metrics for k in sorted(one)] == [other[k].metrics for k in sorted(one)]


@pytest.mark.parametrize("optimization", ["off", "all"])
def test_a_sweep_over_activations_runs_from_the_first_faulty_one(here: Path, optimization: str) -> None:
    net = Net()
    for kind in ("conv", "relu", "conv", "skip", "norm", "conv"):
        net.step(kind, len(net.values) - 1, 1)
    onnx.save(net.model([]), "net.onnx")
    np.savez("x.npz", x=chance(7, 16, 4, 4, seed=7))
    given: dict[str, Any] = {
        "target": "activations",
        "ber": (1e-5, 1e-4, 1e-3),
        "repeat": 4,
        "optimization": optimization,
    }
    one, other = (
        {r.trial: r for r in ran(Campaign("net.onnx", "x.npz", route=route, batch=4, **given), here / route)}
        for route in ("auto", "full")
    )
    # Cut at all values, what is fused rounds another way than the whole: then the route behind them is not taken.
    taken = "partial" if optimization == "off" else "split"
    assert {r.route for r in one.values()} >= {taken} and {r.route for r in other.values()} == {"split"}
    assert [one[k].outcome for k in sorted(one)] == [other[k].outcome for k in sorted(one)]
    if optimization == "off":
        assert [one[k].metrics for k in sorted(one)] == [other[k].metrics for k in sorted(one)]


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


WAYS_OF_BLOCKS: tuple[dict[str, Any], ...] = (
    {"single": True, "trials": 20}, {"ber": (1e-3,), "repeat": 4},
    {"single": True, "trials": 12, "target": "activations"},
)  # fmt: skip


@pytest.mark.parametrize("form", ["qoperator", "qdq"])
def test_weights_in_blocks_of_four_bits_run_by_routes_as_by_the_whole(tmp_path: Path, form: str) -> None:
    """A product of blocks sums in another way where it is cut; an answer that stays leaves every metric as it is."""
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]> g (float[N,16] x) => (float[N,4] y) {
        a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Add(c, x) n = Softmax(d) y = MatMul(n, w3) }""")
    for k, (name, shape) in enumerate({"w1": (16, 32), "w2": (32, 16), "w3": (16, 4)}.items()):
        proto.graph.initializer.append(numpy_helper.from_array(chance(*shape, seed=k), name))
    onnx.save(proto, tmp_path / "m.onnx")
    quantize(
        load(tmp_path / "m.onnx"), Recipe("weight-only", weights="int4", block=16, format=form), tmp_path / "q.onnx"
    )
    x = chance(12, 16, seed=9)
    golden = OrtEngine("cpu").prepare(tmp_path / "q.onnx").run({"x": x})["y"]
    np.savez(tmp_path / "d.npz", x=x, labels=golden.argmax(1))
    for number, ways in enumerate(WAYS_OF_BLOCKS):
        asked = Campaign(str(tmp_path / "q.onnx"), str(tmp_path / "d.npz"), batch=5, **ways)
        auto, whole = (
            {r.trial: r for r in ran(replace(asked, route=route), tmp_path / f"{route}{number}.db")}
            for route in ("auto", "full")
        )
        for trial, result in auto.items():
            assert (result.outcome, result.changed) == (whole[trial].outcome, whole[trial].changed), result.route
            if asked.scopes[0].target == ("weights",):
                assert result.metrics == whole[trial].metrics, result.route
            if result.outcome == "masked":
                assert result.metrics["top1"] == 1.0, "the labels are golden's answers"
