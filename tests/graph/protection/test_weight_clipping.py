"""Weights held to their range: every flip of the top exponent bit is undone, and other large numbers are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnxfi.errors import ModelError
from onnxfi.graph.model.loading import load, parse
from onnxfi.graph.protection.weight_clipping import ClipWeights, WeightRange, find_weights

ROOT = Path(__file__).parents[3]


def held(weight: np.ndarray, low: float, high: float, optimised: Path | None = None) -> np.ndarray:
    """The weight as the runtime computes with it."""
    dtype = weight.dtype.name
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    ports = [helper.make_tensor_value_info(n, kind, [weight.size]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made, _ = ClipWeights((WeightRange("w", dtype, low, high),)).run(proto)
    onnx.checker.check_model(made)
    options = ort.SessionOptions()
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": np.ones(weight.size, dtype)})[0])


@pytest.mark.parametrize(
    ("dtype", "carrier", "bit"), [("float32", np.uint32, 30), ("float16", np.uint16, 14), ("float64", np.uint64, 62)]
)
def test_a_flip_of_the_unused_top_exponent_bit_is_undone(dtype: str, carrier: type, bit: int) -> None:
    weight = np.array([0.7, -0.3, 0.001, 0.99, -0.99, 0.0625], dtype)
    flipped = (weight.view(carrier) ^ carrier(1 << bit)).view(dtype)
    assert np.array_equal(held(weight, -0.99, 0.99), weight)
    assert np.array_equal(held(flipped, -0.99, 0.99), weight)


def test_what_cannot_be_undone_is_held_at_the_bound_and_nan_becomes_0() -> None:
    found = held(np.array([1e3, -7.0, np.nan, np.inf, 2.5], np.float32), -3.0, 3.0)
    assert found.tolist() == [3.0, -3.0, 0.0, 3.0, 2.5]
    below = held(np.array([1.75, -1.5, 0.25], np.float32), -0.5, 0.5)
    assert below.tolist() == [0.5, -0.5, 0.25], "the top exponent bit is not set"


def test_the_runtime_computes_it_once_when_it_loads_the_model(tmp_path: Path) -> None:
    held(np.array([0.5, -0.25], np.float32), -0.5, 0.5, tmp_path / "o.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node] == ["Mul"]


def test_the_range_is_that_of_the_stored_numbers() -> None:
    model = load(ROOT / "models/fashion_cnn.onnx")
    found = {w.name: w for w in find_weights(model)}
    for tensor in parse(model).graph.initializer:
        numbers = numpy_helper.to_array(tensor)
        if tensor.name in found:
            assert (found[tensor.name].low, found[tensor.name].high) == (numbers.min(), numbers.max())
    assert set(found) == {
        f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc1", "fc2") for kind in ("weight", "bias")
    }


def test_a_weight_that_is_not_there_and_one_that_is_held_already_are_refused() -> None:
    proto = parse(load(ROOT / "models/fashion_cnn.onnx"))
    with pytest.raises(ModelError, match=r"no stored weight 'fc3.weight' in the model; closest: 'fc2.weight'"):
        ClipWeights((WeightRange("fc3.weight", "float32", -1, 1),)).run(proto)
    made, _ = ClipWeights((WeightRange("fc2.weight", "float32", -1, 1),)).run(proto)
    with pytest.raises(ModelError, match="carries the protection clip-weights already"):
        ClipWeights((WeightRange("fc2.weight", "float32", -1, 1),)).run(made)


def test_held_weights_stay_weights() -> None:
    model = load(ROOT / "models/fashion_cnn.onnx")
    made, names = ClipWeights(find_weights(model)).run(parse(model))
    before, after = ({t.id: (t.role, t.layer) for t in m.targets} for m in (model, load(made)))
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
