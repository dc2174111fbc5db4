"""Real numbers that stored integers stand for, against numbers by hand, and schemes that say nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import protobuf_reader
import pytest
import quantized_models
from injected_files import inject_flip, run
from onnx import TensorProto, parser
from quantized_models import X, draw, node, tensor

from onnxfi.faults.faultlist import FaultList
from onnxfi.graph.model.loading import Model, load
from onnxfi.runtime.inject.weights import inspect, sample, undo


@pytest.mark.parametrize("make", quantized_models.ALL, ids=lambda make: make.__name__)
def test_a_flip_is_the_one_by_hand_and_the_answer_is_numpys(
    make: Callable[[], quantized_models.OneLayer], tmp_path: Path
) -> None:
    layer = make()
    golden = tmp_path / "golden.onnx"
    onnx.save(layer.model, golden)
    before = protobuf_reader.read(golden)
    np.testing.assert_allclose(run(golden, layer.x), layer.answer(before), atol=layer.tolerance)
    for name, role in layer.roles.items():
        stored = before[name]
        bits = protobuf_reader.LAYOUT[stored.data_type][1]
        target = next(t for t in load(golden).targets if t.id == name)
        assert (target.role, target.scheme and target.scheme.name) == (role, layer.scheme)
        bit, element = (bits - 1 if bits < 32 else 16), stored.words.size // 2
        out, line = inject_flip(golden, tmp_path, f"{name}[{element}]:{bit}")
        after = protobuf_reader.read(out)
        by_hand = before[name].words.copy()
        by_hand[element] ^= np.uint64(1 << bit)
        assert np.array_equal(after[name].words, by_hand)
        assert all(np.array_equal(after[other].words, before[other].words) for other in before if other != name)
        assert (int(line["before"], 16), int(line["after"], 16)) == (stored.words[element], by_hand[element])
        assert line["before_real"] == pytest.approx(layer.real(before, name, element), rel=1e-5, abs=1e-7)
        assert line["after_real"] == pytest.approx(layer.real(after, name, element), rel=1e-5, abs=1e-7)
        answer = run(out, layer.x)
        np.testing.assert_allclose(answer, layer.answer(after), atol=layer.tolerance)
        assert not np.array_equal(answer, run(golden, layer.x))
        undo(load(out), FaultList.open(tmp_path / "faults.jsonl"), tmp_path / "restored.onnx")
        assert (tmp_path / "restored.onnx").read_bytes() == golden.read_bytes()


def test_inspect_shows_scheme_scale_and_axis() -> None:
    rows = {row["target"]: row for row in inspect(load(quantized_models.qlinear_conv().model))["targets"]}
    assert rows["w"]["quantised"] == {
        "scheme": "QOperator", "scale": [0.01, 0.03], "scales": ["ws"], "zero_point": "wz", "axis": 0, "block": None,
        "ways": 1,
    }  # fmt: skip
    assert rows["b"]["quantised"]["scale"] == pytest.approx([1e-4, 3e-4])
    assert rows["xs"]["quantised"] is None and rows["xs"]["role"] == "scale"


def dequantised_twice(second: float, extra: str = "") -> Model:
    return load(parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]> g (float[1,2] x) => (float[1,2] y)
        <int8[2,2] q = {{4, 0, -3, 1}}, float s = {{0.5}}, float t = {{{second}}}>
        {{ a = DequantizeLinear(q, s)  b = DequantizeLinear(q, t)  h = MatMul(x, a)  y = MatMul(h, b) {extra} }}"""
    ))  # fmt: skip


def test_integers_that_are_scaled_in_two_ways_stand_for_no_one_number() -> None:
    model = dequantised_twice(0.25)
    row = inspect(model)["targets"][0]
    assert (row["quantised"]["ways"], row["quantised"]["scale"]) == (2, [0.25, 0.5])
    fault = sample(model, sites=["q[0]:0"]).faults[0]
    assert (fault.before_real, fault.after_real) == (None, None)
    fault = sample(model, sites=["q[1]:0"]).faults[0]  # 0 is the same number by both, 1 is not
    assert (fault.before_real, fault.after_real) == (None, None)
    same = dequantised_twice(0.5)  # by another tensor of the same number
    fault = sample(same, sites=["q[0]:0"]).faults[0]
    assert (fault.before_real, fault.after_real) == (2.0, 2.5)


@pytest.mark.parametrize(
    ("scale", "zero", "axis"),
    [((3,), (3,), 1), ((4,), (3,), 1), ((), (5,), 1), ((4,), (4,), 9), ((0,), (0,), 1), ((2, 2, 2), (), 0)],
)
def test_scales_that_do_not_fit_leave_the_real_number_unknown(
    scale: tuple[int, ...], zero: tuple[int, ...], axis: int
) -> None:
    stored = [
        tensor("w", draw((8, 4), -9, 9), TensorProto.INT8), tensor("s", np.ones(scale), TensorProto.FLOAT),
        tensor("z", np.zeros(zero), TensorProto.INT8),
    ]  # fmt: skip
    nodes = [node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=axis), node("MatMul", ["x", "d"], ["y"])]
    model = load(quantized_models.build(nodes, stored, X))
    assert inspect(model)["targets"][0]["quantised"]["scale"] is None
    assert sample(model, sites=["w[3]:7"]).faults[0].before_real is None
