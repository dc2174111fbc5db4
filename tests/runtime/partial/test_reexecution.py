"""Weights executed again from golden values: every kind of node, several trials at once, one tensor under two names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from campaign_networks import STEPS, Net, flips
from routed_trials import SAMPLES, bench_of, injectable, routed, vectors
from tiny_campaigns import chance

from onnxfi.campaign.execute.trial_executor import PreparedTrial, TrialExecutor
from onnxfi.campaign.execute.weight_routes import faulty_targets
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.faults.trials import concatenate_faults
from onnxfi.runtime.data.sample_outputs import stacked
from onnxfi.runtime.partial.reexecution import FedWeights
from onnxfi.runtime.partial.segmented_model import SegmentedModel


@pytest.mark.slow
@pytest.mark.parametrize("kind", STEPS)
def test_each_kind_of_node_runs_by_a_shorter_route(kind: str, tmp_path: Path) -> None:
    net = Net()
    for step in ("conv", kind, "relu"):
        net.step(step, len(net.values) - 1, 0)
    bench = bench_of(net.model([]), tmp_path)
    assert bench.weights is not None
    plain = [t.id for t in injectable(bench) if routed(bench, flips([t], [(0, 0)]))[1] is None]
    assert plain == []


def test_a_weight_that_is_made_of_itself_alone_runs_by_some_route(tmp_path: Path) -> None:
    w = chance(8, 8, seed=3)
    bench = vectors(tmp_path, "w2 = MatMul(w, w) h = MatMul(x, w2) y = Relu(h)", w=w)
    faults = flips([bench.opened.model.targets[0]], [(9, 30)])
    _, found = routed(bench, faults)
    assert found is None or found.tobytes() == stacked(bench.opened.run(bench.opened.faulty_session(faults))).tobytes()


def test_sessions_with_faulty_weights_do_not_pile_up_where_memory_is_small(tmp_path: Path) -> None:
    net = Net()
    for kind in ("conv", "relu", "conv", "relu", "conv"):
        net.step(kind, len(net.values) - 1, 0)
    campaign = bench_of(net.model([]), tmp_path).opened.campaign
    for kept_bytes in (1 << 30, 0):
        bench = TrialExecutor.open(campaign, kept_bytes=kept_bytes)
        faults = flips(injectable(bench), [(3, 20)] * len(injectable(bench)))
        found = bench.shorter(PreparedTrial(faults, faulty_targets(faults)))
        assert found is not None and bench.weights is not None
        reexecution, injected = found
        segments = len({entry.entry.segment for entry in reexecution.entries})
        outputs = [reexecution.outputs(k, injected) for k, _ in bench.weights.segmented.golden.batches()]
        whole = bench.opened.run(bench.opened.faulty_session(faults))
        assert stacked(outputs).tobytes() == stacked(whole).tobytes()
        assert segments > 1 and len(injected.sessions) == (segments if kept_bytes else 1)


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


def looked_up(folder: Path, *, nodes: str = "e = Gather(table, x)", **campaign: Any) -> TrialExecutor:
    """A network that reads rows 0, 2 and, as -1, 5 of a table of 6, open as a campaign."""
    graph = f"""<ir_version: 10, opset_import: ["": 21]> g (int64[N,3] x) => (float[N,3,8] y)
        {{ {nodes} h = MatMul(e, w) r = Relu(h) z = MatMul(r, v) y = Relu(z) }}"""
    model = onnx.parser.parse_model(graph)
    stored = {"table": chance(6, 8, seed=1), "w": chance(8, 8, seed=2), "v": chance(8, 8, seed=3)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in stored.items())
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "x.npz", x=np.array([[0, 2, 2], [-1, 0, 0], [0, 0, 0], [2, 2, 2]]))
    files = (str(folder / "net.onnx"), str(folder / "x.npz"))
    return TrialExecutor.open(Campaign(*files, single=True, trials=1, batch=2, optimization="off", **campaign))


@pytest.mark.parametrize("nodes", ["e = Gather(table, x)", "a = Gather(table, x) b = Gather(table, x) e = Add(a, b)"])
def test_of_a_table_the_rows_that_are_looked_up_change_answers(nodes: str, tmp_path: Path) -> None:
    bench = looked_up(tmp_path, nodes=nodes)
    [table] = [t for t in bench.opened.model.targets if t.id == "table"]
    golden = stacked(bench.opened.run(bench.opened.session())).tobytes()
    for rows in ((0,), (1,), (2,), (3,), (4,), (5,), (1, 4), (1, 5)):
        faults = concatenate_faults([flips([table], [(8 * row + 3, 30)]) for row in rows])
        kind, found = routed(bench, faults)
        assert found is not None and kind == "partial"
        assert found.tobytes() == stacked(bench.opened.run(bench.opened.faulty_session(faults))).tobytes()
        assert (found.tobytes() == golden) == {0, 2, 5}.isdisjoint(rows)


def test_rows_that_are_not_looked_up_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = looked_up(tmp_path)
    [table] = [t for t in bench.opened.model.targets if t.id == "table"]
    routed(bench, flips([table], [(0, 30)]))
    monkeypatch.setattr(SegmentedModel, "run_from", None)
    assert routed(bench, flips([table], [(8 * 4, 30)]))[1] is not None
    with pytest.raises(TypeError):
        routed(bench, flips([table], [(8 * 5, 30)]))


@pytest.mark.parametrize(
    "nodes", ["a = Gather(table, x) s = ReduceSum(table) e = Add(a, s)", "t = Abs(table) e = Gather(t, x)"]
)
def test_a_table_that_is_read_in_other_ways_too_is_faulty_in_all_rows(nodes: str, tmp_path: Path) -> None:
    bench = looked_up(tmp_path, nodes=nodes)
    [table] = [t for t in bench.opened.model.targets if t.id == "table"]
    for row in (0, 1):
        faults = flips([table], [(8 * row, 30)])
        _, found = routed(bench, faults)
        expected = stacked(bench.opened.run(bench.opened.faulty_session(faults)))
        assert found is None or found.tobytes() == expected.tobytes()


def test_a_weight_that_is_fed_holds_its_faults_no_longer_than_its_segment_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = looked_up(tmp_path)
    [table] = [t for t in bench.opened.model.targets if t.id == "table"]
    faults = flips([table], [(0, 30)])
    found = bench.shorter(PreparedTrial(faults, [table]))
    assert found is not None and isinstance(found[0], FedWeights)
    (fed, injected), own, seen = found, chance(6, 8, seed=1), []
    run_segment = SegmentedModel.run_segment

    def looks(self: SegmentedModel, *given: Any) -> Any:
        seen.append(np.array_equal(fed.tensor, own))
        return run_segment(self, *given)

    monkeypatch.setattr(SegmentedModel, "run_segment", looks)
    fed.outputs(0, injected)
    assert seen and all(seen)


@pytest.mark.slow
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
