"""Classes of quantised networks are those of full runs: ties, saturated outputs, sums that leave 32 bits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, load_from_string, numpy_helper
from proved_networks import changed_scores, integer_layer

from onnxfi.errors import UnprovableError
from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.subgraph import partition_graph
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.proofs.golden_values import golden_activations
from onnxfi.runtime.proofs.integer_faults import IntegerProofs, needed_integers, open_integer_proofs
from onnxfi.runtime.proofs.integer_kernels import adds_exactly
from onnxfi.runtime.proofs.propagation import UNKNOWN

SAMPLES, CLASSES = 6, 3


@cache
def largest() -> int:
    """Return the largest weight whose products no kernel of this processor saturates."""
    return 127 if adds_exactly(OrtEngine(provider="cpu"), integer_layer()) else 63


def network(rng: np.random.Generator, coarse: bool) -> bytes:
    """Return a quantised classifier of images [N, 2, 6, 6]; coarse scales make ties and saturated outputs."""
    stored: dict[str, np.ndarray] = {}

    def put(name: str, array: np.ndarray) -> str:
        stored[name] = array
        return name

    def how(name: str, scale: float, zero: int) -> list[str]:
        return [put(f"{name}.s", np.float32(scale)), put(f"{name}.z", np.uint8(zero))]

    def weights(name: str, *shape: int) -> list[str]:
        scale = (2.0 ** rng.integers(-7, -4, shape[0])).astype(np.float32)
        whole = rng.integers(-largest() - 1, largest() + 1, shape).astype(np.int8)
        bias = rng.integers(-(2**13), 2**13, shape[0]).astype(np.int32)
        if name == "w3":  # QGemm takes one scale here
            scale = scale[:1].reshape(())
        zero = np.zeros(scale.shape, np.int8)
        return [put(name, whole), put(f"{name}.s", scale), put(f"{name}.z", zero), put(name.replace("w", "b"), bias)]

    step = 1.0 if coarse else 0.37
    w1, w2, w3 = weights("w1", 3, 2, 3, 3), weights("w2", 4, 3, 2, 2), weights("w3", CLASSES, 16)
    x, h, f, y = how("xq", 0.5, 3), how("h", 16 * step, 100), how("f", 512 * step, 7), how("y", 2.0**16 * step, 128)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *x], ["q"]),
        helper.make_node("QLinearConv", ["q", *x, *w1[:3], *h, w1[3]], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["c1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("QLinearConv", ["p1", *h, *w2[:3], *f, w2[3]], ["c2"]),
        helper.make_node("Flatten", ["c2"], ["flat"]),
        helper.make_node("QGemm", ["flat", *f, *w3, *y], ["g"], transB=1, domain="com.microsoft"),
        helper.make_node("DequantizeLinear", ["g", *y], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString()


def proofs_of(folder: Path, model: bytes, x: np.ndarray, tensor: str) -> IntegerProofs:
    (folder / "m.onnx").write_bytes(model)
    net, engine = partition_graph(load(folder / "m.onnx")), OrtEngine(provider="cpu")
    session = engine.prepare(model)
    scores = session.run({"x": x})["y"]
    needed = needed_integers(net, tensor, "y")
    golden = golden_activations(engine, net, session.inputs, [Batch(0, {"x": x}, None, len(x), len(x))], scores, needed)
    top = scores.argmax(1).astype(np.int16)
    return open_integer_proofs(net, tensor, golden, "y", top, exact=partial(adds_exactly, engine))


def full_run(model: bytes, x: np.ndarray, tensor: str, element: int, number: np.ndarray) -> np.ndarray:
    faulty = load_from_string(model)
    [stored] = [t for t in faulty.graph.initializer if t.name == tensor]
    array = numpy_helper.to_array(stored).copy()
    array.reshape(-1)[element] = number
    stored.CopyFrom(numpy_helper.from_array(array, tensor))
    return OrtEngine(provider="cpu").prepare(faulty.SerializeToString()).run({"x": x})["y"].argmax(1)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 10))])
@pytest.mark.parametrize("tensor", ["w1", "b1", "w2", "b2", "w3", "b3"])
def test_classes_are_those_of_full_runs(tensor: str, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng([seed, 7])
    model = network(rng, coarse=bool(seed % 2))
    x = rng.integers(0, 128, (SAMPLES, 2, 6, 6)).astype(np.float32)
    proofs = proofs_of(tmp_path, model, x, tensor)
    array = numpy_helper.to_array(next(t for t in load_from_string(model).graph.initializer if t.name == tensor))
    every = np.arange(array.size)
    known = 0
    for channel in rng.permutation(np.unique(proofs.channel_of(every)))[: 2 if seed < 2 else 4]:
        elements = np.repeat(rng.permutation(every[proofs.channel_of(every) == channel])[:2], 8 * array.itemsize)
        bits = np.tile(np.arange(8 * array.itemsize), len(elements) // (8 * array.itemsize))
        before = array.reshape(-1)[elements]
        word = f"u{array.itemsize}"
        after = (before.view(word) ^ (np.ones(1, word) << bits.astype(word))).view(array.dtype)
        classes = proofs.classes(elements, before, after)
        for row, element, number in zip(classes, elements, after, strict=True):
            sure = row != UNKNOWN
            known += np.count_nonzero(sure)
            if sure.any():
                assert (row[sure] == full_run(model, x, tensor, int(element), number)[sure]).all(), (element, number)
    assert known or tensor in ("w1", "b1")


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
@pytest.mark.parametrize("tensor", ["w1", "w2", "b2", "w3", "b3"])
def test_several_faults_have_the_classes_of_full_runs(tensor: str, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng([seed, 13])
    model = network(rng, coarse=bool(seed % 2))
    x = rng.integers(0, 128, (SAMPLES, 2, 6, 6)).astype(np.float32)
    proofs = proofs_of(tmp_path, model, x, tensor)
    array = numpy_helper.to_array(next(t for t in load_from_string(model).graph.initializer if t.name == tensor))
    word = f"u{array.itemsize}"
    for _ in range(6):
        elements = np.sort(rng.permutation(array.size)[: rng.integers(2, 6)])
        before = array.reshape(-1)[elements]
        bits = rng.integers(0, 8 * array.itemsize, len(elements)).astype(word)
        after = (before.view(word) ^ (np.ones(1, word) << bits)).view(array.dtype)
        found = proofs.several(elements, before, after)
        if tensor == "w1":  # a convolution lies behind
            assert (found == UNKNOWN).all()
        else:
            sure = found != UNKNOWN
            assert (found[sure] == changed_scores(model, x, tensor, elements, after).argmax(1)[sure]).all()
            assert sure.all() or largest() < 127


def test_a_runtime_that_rounds_otherwise_proves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    model, x = network(rng, coarse=False), rng.integers(0, 128, (SAMPLES, 2, 6, 6)).astype(np.float32)
    (tmp_path / "m.onnx").write_bytes(model)
    net, engine = partition_graph(load(tmp_path / "m.onnx")), OrtEngine(provider="cpu")
    session = engine.prepare(model)
    scores = session.run({"x": x})["y"]
    batch = Batch(0, {"x": x}, None, len(x), len(x))
    golden = golden_activations(engine, net, session.inputs, [batch], scores, needed_integers(net, "w2", "y"))
    name = needed_integers(net, "w3", "y")[0]
    golden[name].reshape(-1)[5] ^= 1
    with pytest.raises(UnprovableError, match="in another way"):
        open_integer_proofs(net, "w2", golden, "y", scores.argmax(1).astype(np.int16), exact=lambda layer: True)
    with pytest.raises(UnprovableError, match="no weight of a quantised operator"):
        needed_integers(net, "h.s", "y")


@pytest.mark.parametrize("tensor", ["w2", "w3", "b3"])
def test_kernels_that_saturate_prove_what_no_pair_of_products_exceeds(tensor: str, tmp_path: Path) -> None:
    """Of 16 bits, as AVX2 adds pairs: what is proved all the same is what exact kernels prove, and no more."""
    rng = np.random.default_rng(5)
    model, x = network(rng, coarse=False), rng.integers(0, 128, (SAMPLES, 2, 6, 6)).astype(np.float32)
    free = replace(proofs_of(tmp_path, model, x, tensor), largest=None)
    outputs = len(free.layers[0].product.weights)
    limited = replace(free, largest=np.where(np.arange(outputs) == 0, -1.0, 64.0))
    for channel in range(2):
        elements = np.flatnonzero(free.channel_of(np.arange(len(free.layers[0].product.weights.ravel()))) == channel)[
            :4
        ]
        elements = elements[:1] if tensor == "b3" else elements
        before, after = np.zeros(len(elements), np.int64), np.array([64, -64, 65, -128][: len(elements)])
        proved, all_ = limited.classes(elements, before, after), free.classes(elements, before, after)
        for row, every, number in zip(proved, all_, after, strict=True):
            known = channel == 1 and (tensor == "b3" or abs(number) <= 64)
            assert row.tolist() == (every.tolist() if known else [UNKNOWN] * SAMPLES)
        assert (limited.several(elements, before, after) == UNKNOWN).all() == (channel == 0 or tensor != "b3")


def test_several_faults_where_sums_saturate_are_left_to_a_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    x = rng.integers(0, 128, (SAMPLES, 2, 6, 6)).astype(np.float32)
    proofs = replace(proofs_of(tmp_path, network(rng, coarse=False), x, "w3"), largest=np.full(CLASSES, 96.0))
    two = np.array([3, 4]), np.array([1, 1], np.int8), np.array([95, 95], np.int8)
    assert (proofs.several(*two) == UNKNOWN).all()
    assert (proofs.several(*(array[:1] for array in two)) != UNKNOWN).all()
