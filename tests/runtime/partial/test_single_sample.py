"""Faults in one sample: it runs alone where that gives its bits, and with its batch elsewhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from campaign_networks import Net, two_convolutions
from tiny_campaigns import chance, ran, samples, save

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SegmentMismatchError
from onnxfi.runtime.engine.onnx_runtime import OrtSession
from onnxfi.runtime.engine.ports import Array
from onnxfi.runtime.partial.single_sample import SingleSample


@pytest.mark.slow
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


def test_what_mixes_samples_is_not_run_alone(here: Path) -> None:
    save(
        here,
        "net (float[N,4] x) => (float[N,4] y) { a = Relu(x) axes = Constant<value_ints=[0]>() m = ReduceSum<keepdims=1>(a, axes) y = Add(a, m) }",
    )
    bench = TrialExecutor.open(Campaign("g.onnx", samples(here), target="activations", single=True, trials=1, batch=4))
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
    onnx.save(two_convolutions(), "net.onnx")
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
