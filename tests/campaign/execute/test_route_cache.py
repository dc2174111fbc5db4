"""Shortcuts: every route gives what the whole model gives, and a broken one is found out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from campaign_networks import STEPS, Net, flips, nets
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from tiny_campaigns import chance, ran, save

from onnxfi.campaign.execute.canary import prove
from onnxfi.campaign.execute.trial_executor import PreparedTrial, TrialExecutor
from onnxfi.campaign.execute.weight_routes import faulty_targets
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import RouteError, SegmentMismatchError
from onnxfi.faults.space import Target
from onnxfi.faults.trials import Faults
from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.data.sample_outputs import stacked
from onnxfi.runtime.engine.onnx_runtime import OrtEngine, OrtSession
from onnxfi.runtime.engine.ports import Array
from onnxfi.runtime.partial.entry_subgraph import EntrySession
from onnxfi.runtime.partial.golden_cache import GoldenCache, SegmentSessions
from onnxfi.runtime.partial.reexecution import golden_outputs
from onnxfi.runtime.partial.segmented_model import SampleRows, SegmentedModel
from onnxfi.runtime.partial.single_sample import SingleSample
from onnxfi.runtime.quantize.quantize import quantize
from onnxfi.runtime.quantize.recipe import Recipe
from onnxfi.tasks.outcomes import GoldenRun

SHIPPED = ("cnn", "attention", "gru", "cnn_fp16", "cnn_int8_qdq", "cnn_int8_qoperator")
#: Those of the core tests: floats, half floats and integers, as they lie and as they are fused.
CORE = (("cnn", "off"), ("gru", "all"), ("cnn_fp16", "off"), ("cnn_int8_qdq", "all"))
SAMPLES = 5


def bench_of(model: onnx.ModelProto, folder: Path, **more: Any) -> TrialExecutor:
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "x.npz", x=chance(more.get("samples", SAMPLES), 16, 4, 4, seed=7))
    given = {"single": True, "trials": 1, "batch": 2, "optimization": "off", **more}
    return TrialExecutor.open(Campaign(str(folder / "net.onnx"), str(folder / "x.npz"), **given))


def routed(bench: TrialExecutor, faults: Faults) -> tuple[str, np.ndarray | None]:
    """Return the route of a trial and its scores; none where that is the whole model."""
    assert bench.weights is not None
    found = bench.shorter(PreparedTrial(faults, faulty_targets(faults)))
    if found is None:
        return "full", None
    reexecution, injected = found
    batches = bench.weights.segmented.golden.batches()
    return reexecution.route, stacked([reexecution.outputs(k, injected) for k, _ in batches])


def injectable(bench: TrialExecutor) -> list[Target]:
    return [t for t in bench.opened.model.targets if t.size and not t.structural]


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


@settings(max_examples=25, deadline=None)
@given(model=nets(), outputs=st.booleans())
def test_the_segments_give_the_bits_of_the_whole_model(
    model: onnx.ModelProto, outputs: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bench = bench_of(model, tmp_path_factory.mktemp("net"), output=None if outputs else model.graph.output[0].name)
    assert bench.weights is not None
    own = [golden_outputs(bench.weights.segmented, k) for k, _ in bench.weights.segmented.golden.batches()]
    assert stacked(own).tobytes() == bench.golden_runs.run()[0].scores.tobytes()


def test_samples_that_are_masked_stop_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    for kind in ("conv", "relu", "conv", "skip", "conv"):
        net.step(kind, len(net.values) - 1, 1)
    bench = bench_of(net.model([]), tmp_path, samples=16, batch=16)
    first = next(t for t in injectable(bench) if len(t.shape) == 4)
    sizes, run = Counter[int](), SegmentedModel.run_segment

    def counted(self: SegmentedModel, number: int, rows: SampleRows, differing: Any) -> Any:
        sizes[self.size(rows)] += 1
        return run(self, number, rows, differing)

    monkeypatch.setattr(SegmentedModel, "run_segment", counted)
    for bit in range(12):
        for element in range(0, first.size, 97):
            faults = flips([first], [(element, bit)])
            _, found = routed(bench, faults)
            assert found is not None
            assert found.tobytes() == stacked(bench.opened.run(bench.opened.faulty_session(faults))).tobytes()
    assert sizes[16] > 3 < sum(n for size, n in sizes.items() if size <= 8), "some trials change few samples, some many"
    assert all(size <= 8 or size == 16 for size in sizes)


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


@pytest.mark.parametrize("kind", STEPS)
def test_each_kind_of_node_runs_by_a_shorter_route(kind: str, tmp_path: Path) -> None:
    net = Net()
    for step in ("conv", kind, "relu"):
        net.step(step, len(net.values) - 1, 0)
    bench = bench_of(net.model([]), tmp_path)
    assert bench.weights is not None
    plain = [t.id for t in injectable(bench) if routed(bench, flips([t], [(0, 0)]))[1] is None]
    assert plain == []


def vectors(folder: Path, *nodes: str, **stored: np.ndarray) -> TrialExecutor:
    """A network over vectors of 8, whose stored tensors lie in one file of external data where they have an offset."""
    graph = f"<ir_version: 10, opset_import: ['': 21]> g (float[N,8] x) => (float[N,8] y) {{ {' '.join(nodes)} }}"
    model = onnx.parser.parse_model(graph.replace("'", '"'))
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    np.savez(folder / "x.npz", x=chance(SAMPLES, 8, seed=7))
    onnx.save(model, folder / "net.onnx")
    files = (str(folder / "net.onnx"), str(folder / "x.npz"))
    return TrialExecutor.open(Campaign(*files, single=True, trials=1, batch=2, optimization="off"))


def test_a_weight_that_is_made_of_itself_alone_runs_by_some_route(tmp_path: Path) -> None:
    w = chance(8, 8, seed=3)
    bench = vectors(tmp_path, "w2 = MatMul(w, w) h = MatMul(x, w2) y = Relu(h)", w=w)
    faults = flips([bench.opened.model.targets[0]], [(9, 30)])
    _, found = routed(bench, faults)
    assert found is None or found.tobytes() == stacked(bench.opened.run(bench.opened.faulty_session(faults))).tobytes()


@pytest.mark.parametrize("names", [("w", "v"), ("v", "w")])
def test_one_weight_under_two_names_is_faulty_under_both(names: tuple[str, str], tmp_path: Path) -> None:
    w = chance(8, 8, seed=3)
    vectors(tmp_path, "h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)", w=w, v=w)
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.initializer.sort(key=lambda t: names.index(t.name))
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL  # type: ignore[assignment]
        tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").write_bytes(w.tobytes())
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    files = (str(tmp_path / "net.onnx"), str(tmp_path / "x.npz"))
    bench = TrialExecutor.open(Campaign(*files, single=True, trials=1, batch=2, optimization="off"))
    [target] = bench.opened.model.targets
    faults = flips([target], [(9, 24)])
    w.reshape(-1).view(np.uint32)[9] ^= 1 << 24
    expected = np.maximum(chance(SAMPLES, 8, seed=7) @ w, 0) @ w
    kind, found = routed(bench, faults)
    np.testing.assert_allclose(
        stacked(bench.opened.run(bench.opened.faulty_session(faults))) if found is None else found, expected, rtol=1e-4
    )
    assert kind == "full"


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


def test_golden_values_beyond_the_budget_are_computed_again(tmp_path: Path) -> None:
    net = Net()
    for at, kind in enumerate(("conv", "relu", "conv")):
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
    segments = range(len(narrow.weights.segmented.segmentation.segments))
    for bench in (wide, narrow):
        segment_sessions = bench.weights.segmented.segment_sessions
        assert segment_sessions.inner(0) is segment_sessions.inner(0)
        opened = [segment_sessions.inner(number) for number in segments]
        assert (segment_sessions.inner(0) is opened[0]) == (bench is wide or len(segments) == 1)


def test_trials_run_batch_by_batch_where_golden_values_do_not_fit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"single": True, "trials": 30, "batch": 5, "optimization": "off"}
    campaign = Campaign("m.onnx", "d.npz", **given)
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


@pytest.mark.parametrize("optimization", ["off", "all"])
def test_a_fault_in_an_activation_of_one_sample_runs_that_sample_alone(
    here: Path, optimization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    for kind in ("conv", "relu", "conv", "skip", "quantised"):
        net.step(kind, len(net.values) - 1, 1)
    onnx.save(net.model([]), "net.onnx")
    np.savez("x.npz", x=chance(20, 16, 4, 4, seed=7))
    given: dict[str, Any] = {"target": "activations", "single": True, "trials": 200, "batch": 8}
    rows, run = Counter[int](), SingleSample.run_together
    monkeypatch.setattr(
        SingleSample, "run_together", lambda self, places, lives: rows.update([len(places)]) or run(self, places, lives)
    )
    one, other = (
        {
            r.trial: r
            for r in ran(Campaign("net.onnx", "x.npz", route=route, optimization=optimization, **given), here / route)
        }
        for route in ("auto", "full")
    )
    assert "single-sample" in {r.route for r in one.values()} and {r.route for r in other.values()} == {"split"}
    assert all(r.error is None for r in one.values())
    assert rows[8] > 3 and sum(n for size, n in rows.items() if size < 8) > 3, (
        "some share a run with many, some with few"
    )
    if optimization == "off":
        found = [{k: (r.outcome, r.metrics) for k, r in some.items()} for some in (one, other)]
        assert found[0] == found[1]
    assert [one[k].outcome for k in sorted(one)] == [other[k].outcome for k in sorted(one)]


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


def test_what_mixes_samples_is_not_run_alone(here: Path) -> None:
    save(
        here,
        "net (float[N,4] x) => (float[N,4] y) { a = Relu(x) axes = Constant<value_ints=[0]>() m = ReduceSum<keepdims=1>(a, axes) y = Add(a, m) }",
    )
    bench = TrialExecutor.open(Campaign("g.onnx", "d.npz", target="activations", single=True, trials=1, batch=4))
    assert bench.weights is not None
    golden, _ = bench.golden_runs.run()
    with pytest.raises(SegmentMismatchError, match="no sample runs alone"):
        bench.activations.run_sample(("a", 2, lambda array: -array), golden)


def test_a_shape_with_as_many_numbers_as_there_are_samples_has_no_rows(here: Path) -> None:
    signs = "float[4,4] w = {1,-1,1,1,1,1,-1,1,1,1,1,-1,-1,1,1,1}"
    save(
        here,
        f"""net (float[N,4] x) => (float[N,4] y) <{signs}>
        {{ s = Shape(x) a = MatMul(x, w) b = Reshape(a, s) c = MatMul(b, w) d = Reshape(c, s) y = MatMul(d, w) }}""",
    )
    np.savez("x.npz", x=chance(6, 4, seed=7))
    given: dict[str, Any] = {"target": "activations", "single": True, "trials": 60, "batch": 2, "optimization": "off"}
    one, other = (
        {r.trial: r for r in ran(Campaign("g.onnx", "x.npz", route=route, **given), here / route)}
        for route in ("auto", "full")
    )
    assert all(r.error is None for r in one.values())
    assert [(one[k].outcome, one[k].metrics) for k in sorted(one)] == [
        (other[k].outcome, other[k].metrics) for k in sorted(one)
    ]


def test_a_run_is_shared_only_where_samples_have_the_bits_that_they_have_in_their_batch(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    for kind in ("conv", "relu", "conv", "relu"):
        net.step(kind, len(net.values) - 1, 1)
    onnx.save(net.model([]), "net.onnx")
    np.savez("x.npz", x=chance(16, 16, 4, 4, seed=7))
    campaign = Campaign("net.onnx", "x.npz", target="activations", single=True, trials=40, batch=8)
    alone = {r.trial: r.metrics for r in ran(replace(campaign, batch=1), here / "alone")}
    runs, run = list[int](), OrtSession.run

    def mixing(self: OrtSession, feeds: Any, wanted: Any = None) -> dict[str, Array]:
        found = run(self, feeds, wanted)
        runs.append(min(map(len, found.values())))
        return found if runs[-1] in (1, 8) else {name: row + np.float32(1e-3) for name, row in found.items()}

    monkeypatch.setattr(OrtSession, "run", mixing)
    results = ran(campaign, here / "mixing")
    assert {r.trial: r.metrics for r in results} == alone and {r.route for r in results} == {"single-sample"}
    assert {2, 4} & set(runs), "it was tried"


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


@pytest.mark.parametrize("kinds", [("conv", "relu", "conv"), ("conv", "conv", "skip", "relu", "conv", "skip")])
def test_convolutions_have_the_bits_of_the_whole_model_also_where_they_are_fused(
    kinds: tuple[str, ...], tmp_path: Path
) -> None:
    net = Net()
    for kind in kinds:
        net.step(kind, len(net.values) - 1, 1)
    bench = bench_of(net.model([]), tmp_path, optimization="all")
    for target in injectable(bench):
        for bit in range(12):
            faults = flips([target], [(97 * bit, bit)])
            name, found = routed(bench, faults)
            assert found is not None and name in ("channel-delta", "rebuilt")
            assert found.tobytes() == stacked(bench.opened.run(bench.opened.faulty_session(faults))).tobytes(), (
                target.id,
                bit,
            )


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


def test_a_route_that_rounds_otherwise_gives_way_to_the_next_longer_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    for kind in ("conv", "relu", "conv", "relu"):
        net.step(kind, len(net.values) - 1, 1)
    onnx.save(net.model([]), "net.onnx")
    np.savez("x.npz", x=chance(6, 16, 4, 4, seed=7))
    campaign = Campaign("net.onnx", "x.npz", single=True, trials=20, batch=4)
    routes = list[set[str]]()
    held, prepared = EntrySession.check_golden, SegmentSessions.prepare

    def unlike(self: EntrySession, rows: SampleRows) -> None:
        if not self.whole:
            raise SegmentMismatchError("rounds another way")
        held(self, rows)

    def nudged(self: SegmentSessions, part: Any) -> Any:
        session = prepared(self, part)
        run = session.run
        return SimpleNamespace(
            inputs=session.inputs, outputs=session.outputs,
            run=lambda feeds, names=None: {k: v * np.float32(1 + 2e-7) for k, v in run(feeds, names).items()},
        )  # fmt: skip

    for patch in ((EntrySession, "check_golden", unlike), (SegmentSessions, "prepare", nudged)):
        with monkeypatch.context() as patched:
            patched.setattr(*patch)
            bench = TrialExecutor.open(campaign)
            golden, _ = bench.golden_runs.run()
            plan = make_plan(campaign, bench.opened.fault_targets)
            lines = [planned.lines.splitlines() for planned in plan.trials()]
            routes.append({bench.trial(plan.header, golden, one).route for one in lines})
    assert routes[0] <= {"channel-delta", "rebuilt"} and "rebuilt" in routes[0] and routes[1] == {"full"}


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
