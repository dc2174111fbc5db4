"""Checksums over layers: silent on clean data, loud on faults that are larger than rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from pass_contract import external

from onnxfi.errors import ModelError
from onnxfi.faults.words import Mask
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import load, parse
from onnxfi.graph.passes.instrument import ActivationFault, bake
from onnxfi.graph.protection.alarms import ALARM
from onnxfi.graph.protection.checksum import CheckLayers, checkable
from onnxfi.graph.protection.redundant_layers import Layer

ROOT = Path(__file__).parents[3]
X = np.load(ROOT / "models/fashion_test.npz")["image"]


def run(proto: onnx.ModelProto, x: Any) -> dict[str, Any]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {session.get_inputs()[0].name: x}), strict=True)
    )


def checked(name: str = "fashion_cnn") -> onnx.ModelProto:
    model = load(ROOT / f"models/{name}.onnx")
    return CheckLayers(checkable(model)).run(parse(model))[0]


@pytest.mark.parametrize("name", ["fashion_cnn", "fashion_cnn_fp16", "fashion_attention"])
def test_clean_data_raises_no_alarm(name: str) -> None:
    assert not run(checked(name), X[:500])[ALARM].any()


def test_names_that_are_no_text_are_names() -> None:
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) '
        "<float[2,2] wWw = {1,2,3,4}> { y = MatMul(x, wWw) }"
    )
    assert [layer.id for layer in checkable(load(made.SerializeToString().replace(b"wWw", b"w\xffw")))] == ["y"]


def test_large_faults_in_results_are_found_in_their_sample() -> None:
    made = checked()
    for layer in ("conv2d", "conv2d_1", "linear"):
        (site,) = [a for a in activations(load(made)) if a.name == layer]
        faulty = bake(made, [ActivationFault(site, 7, Mask(0xFFFFFFFF, 1 << 30), sample=2)])
        assert run(faulty, X[:4])[ALARM].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("value", [1e6, -3.0, np.nan, np.inf])
def test_faults_in_weights_are_found_since_their_sums_are_stored(value: float) -> None:
    made = checked()
    golden = run(made, X[:8])["logits"]
    for tensor in made.graph.initializer:
        if tensor.name in ("conv1.weight", "fc2.weight"):
            numbers = numpy_helper.to_array(tensor).copy()
            numbers.flat[3] = value
            faulty = onnx.ModelProto()
            faulty.CopyFrom(made)
            (other,) = [t for t in faulty.graph.initializer if t.name == tensor.name]
            other.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
            found = run(faulty, X[:8])
            changed = ~(np.abs(found["logits"] - golden).max(axis=1) < 0.01)
            assert changed.any() and found[ALARM][changed].all(), "a weight that meets a 0 changes nothing"


def gemm(**attributes: Any) -> onnx.ModelProto:
    rng = np.random.default_rng(8)
    weight = rng.normal(size=(5, 6) if attributes.get("transB") else (6, 5)).astype(np.float32)
    tensors = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(rng.normal(size=5).astype(np.float32), "b"),
    ]
    ports = [helper.make_tensor_value_info(n, 1, ["N", k]) for n, k in (("x", 6), ("y", 5))]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], **attributes)], "g", ports[:1], ports[1:], tensors
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"transB": 1, "alpha": -3.0}])
def test_products_of_every_form_sum_to_the_same(attributes: Any) -> None:
    made, _ = CheckLayers((Layer("y", "float32", True),)).run(gemm(**attributes))
    x = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32) * 100
    assert not run(made, x)[ALARM].any()


def grouped(group: int, channels: int, kernel: tuple[int, ...], dtype: int = 1) -> onnx.ModelProto:
    """A convolution of 6 channels in groups, with a bias."""
    rng, kind = np.random.default_rng(group), helper.tensor_dtype_to_np_dtype(dtype)
    tensors = [
        numpy_helper.from_array(rng.normal(size=(channels, 6 // group, *kernel)).astype(kind), "w"),
        numpy_helper.from_array(rng.normal(size=channels).astype(kind), "b"),
    ]
    spatial = len(kernel)
    sizes = (("x", 6, [9 if dtype == 10 else 7] * spatial), ("y", channels, [None] * spatial))
    ports = [helper.make_tensor_value_info(n, dtype, ["N", k, *rest]) for n, k, rest in sizes]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=group, pads=[1, 0] * spatial, name="grouped")
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "channels", "kernel"), [(6, 6, (3, 2)), (6, 12, (3,)), (3, 9, (3, 2)), (2, 8, (3,)), (1, 4, (3, 2))]
)
def test_convolutions_in_groups_have_a_checksum_for_each(group: int, channels: int, kernel: tuple[int, ...]) -> None:
    proto = grouped(group, channels, kernel)
    made, _ = CheckLayers(checkable(load(proto))).run(proto)
    x = 100 * np.random.default_rng(1).normal(size=(20, 6, *[7] * len(kernel))).astype(np.float32)
    clean = run(made, x)
    assert not clean[ALARM].any() and clean["y"].tobytes() == run(proto, x)["y"].tobytes()
    (site,) = [a for a in activations(load(made)) if a.name == "y"]
    faulty = bake(made, [ActivationFault(site, 11, Mask(0xFFFFFFFF, 1 << 29), sample=3)])
    assert np.flatnonzero(run(faulty, x)[ALARM]).tolist() == [3]
    weight = next(t for t in made.graph.initializer if t.name == "w")
    numbers = numpy_helper.to_array(weight).copy()
    numbers.flat[-1] += 3
    weight.CopyFrom(numpy_helper.from_array(numbers, "w"))
    assert run(made, x)[ALARM].all(), "the sum that is stored is that of the weights before"


def test_convolutions_in_groups_of_half_floats_are_checked_within_their_rounding() -> None:
    proto = grouped(3, 6, (3, 3), 10)
    made, _ = CheckLayers(checkable(load(proto))).run(proto)
    assert not run(made, np.random.default_rng(2).normal(size=(50, 6, 9, 9)).astype(np.float16))[ALARM].any()


def test_external_data_is_read_where_it_lies(tmp_path: Path) -> None:
    model = external(tmp_path, onnx.load(ROOT / "models/fashion_cnn.onnx"))
    with pytest.raises(ModelError, match="lies in external data, whose folder is not known"):
        CheckLayers(checkable(model)).run(parse(model))
    made, _ = CheckLayers(checkable(model), tmp_path).run(parse(model))
    assert "conv1.weight" in {t.name for t in made.graph.initializer if t.external_data}


def test_layers_without_a_checksum_are_refused_with_the_reason() -> None:
    proto = gemm(transA=1)
    with pytest.raises(ModelError, match="'y' has no checksum: its input is transposed"):
        CheckLayers((Layer("y", "float32", True),)).run(proto)
    attention = parse(load(ROOT / "models/fashion_attention.onnx"))
    with pytest.raises(ModelError, match="'matmul' has no checksum: its weights or bias are computed"):
        CheckLayers((Layer("matmul", "float32", True),)).run(attention)
