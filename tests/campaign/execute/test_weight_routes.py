"""Routes of faults in weights: the bits of the whole model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from campaign_networks import flips, nets
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from routed_trials import bench_of, injectable, routed
from tiny_campaigns import chance, ran

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.graph.model.loading import load
from onnxfi.runtime.data.sample_outputs import stacked
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.quantize.quantize import quantize
from onnxfi.runtime.quantize.recipe import QuantisationRecipe

SHIPPED = ("cnn", "attention", "gru", "cnn_fp16", "cnn_int8_qdq", "cnn_int8_qoperator")
#: In the core tests: floats, half floats and integers, as they lie and as they are fused.
CORE = (("cnn", "off"), ("gru", "all"), ("cnn_fp16", "off"), ("cnn_int8_qdq", "all"))


@pytest.mark.slow
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


WAYS_OF_BLOCKS: tuple[dict[str, Any], ...] = (
    {"single": True, "trials": 20}, {"ber": (1e-3,), "repeat": 4},
    {"single": True, "trials": 12, "target": "activations"},
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("form", ["qoperator", "qdq"])
def test_weights_in_blocks_of_four_bits_run_by_routes_as_by_the_whole(tmp_path: Path, form: str) -> None:
    """A product of blocks sums in another way where it is cut; an answer that stays leaves every metric as it is."""
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]> g (float[N,16] x) => (float[N,4] y) {
        a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Add(c, x) n = Softmax(d) y = MatMul(n, w3) }""")
    for k, (name, shape) in enumerate({"w1": (16, 32), "w2": (32, 16), "w3": (16, 4)}.items()):
        proto.graph.initializer.append(numpy_helper.from_array(chance(*shape, seed=k), name))
    onnx.save(proto, tmp_path / "m.onnx")
    quantize(
        load(tmp_path / "m.onnx"),
        QuantisationRecipe("weight-only", weights="int4", block=16, format=form),
        tmp_path / "q.onnx",
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
                assert result.metrics["top1"] == 1.0, "the labels are the golden answers"
