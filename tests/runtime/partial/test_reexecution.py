"""Weights executed again from golden values: every kind of node, several trials at once, one tensor under two names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from campaign_networks import STEPS, Net, flips
from routed_trials import SAMPLES, bench_of, injectable, routed, vectors
from tiny_campaigns import chance

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.runtime.data.sample_outputs import stacked


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
