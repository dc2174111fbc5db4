"""Proved classes are those of full runs: every fault of small networks, on adversarial weights and inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from proved_networks import changed_scores, faulty_scores, images, network, spoiled

from onnxfi.errors import UnprovableError
from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.subgraph import TensorLocation, array_at, partition_graph
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.proofs.golden_values import golden_activations, needed_activations
from onnxfi.runtime.proofs.propagation import UNKNOWN
from onnxfi.runtime.proofs.weight_faults import WeightProofs, open_proofs

NETWORKS = (("mlp", "w1 b1 w2"), ("softmax", "w1 w2 b2"), ("cnn", "w1 b1 w2 w3 b3"), ("residual", "w1 w3"))


def proofs_of(folder: Path, model: bytes, x: np.ndarray, tensor: str) -> tuple[WeightProofs, np.ndarray]:
    """Return the proofs for a tensor of a model, and the tensor."""
    (folder / "m.onnx").write_bytes(model)
    net = partition_graph(load(folder / "m.onnx"))
    engine = OrtEngine(provider="cpu")
    session = engine.prepare(model)
    scores = session.run({"x": x})["y"]
    batch = Batch(0, {"x": x}, None, len(x), len(x))
    golden = golden_activations(engine, net, session.inputs, [batch], scores, needed_activations(net, tensor, "y"))
    top = np.where(np.isfinite(scores).all(1), scores.argmax(1), UNKNOWN).astype(np.int16)
    return open_proofs(net, tensor, golden, "y", top), array_at(net, TensorLocation(tensor))


def all_faults(stored: np.ndarray, proofs: WeightProofs, rng: np.random.Generator, few: int):
    """Yield elements, bits, and the words before and after, channel by channel, of some elements and all bits."""
    chosen = np.sort(rng.permutation(stored.size)[:few])
    for channel in np.unique(proofs.channel_of(chosen)):
        mine = chosen[proofs.channel_of(chosen) == channel]
        elements, bits = np.repeat(mine, 32), np.tile(np.arange(32), len(mine))
        before = stored.reshape(-1)[elements]
        after = (before.view(np.uint32) ^ (np.uint32(1) << bits.astype(np.uint32))).view(np.float32)
        yield elements, bits, before, after


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 9))])
@pytest.mark.parametrize("kind, tensors", NETWORKS)
def test_certain_classes_are_those_of_full_runs(kind: str, tensors: str, seed: int, tmp_path: Path) -> None:
    few = 2 if seed < 2 else 12
    rng = np.random.default_rng([seed, len(tensors)])
    model = network(kind, rng, 10.0 ** rng.integers(-1, 2))
    if seed:
        model = spoiled(model, rng)
    x = images(kind, rng, 12)
    whole = np.isfinite(OrtEngine(provider="cpu").prepare(model).run({"x": x})["y"]).all(1)
    known = faults = 0
    for tensor in tensors.split():
        try:
            proofs, stored = proofs_of(tmp_path, model, x, tensor)
        except UnprovableError:
            assert (kind, tensor) == ("residual", "w1")  # a runtime may start the sum of w0 with what is added
            continue
        for elements, bits, before, after in all_faults(stored, proofs, rng, few):
            classes = proofs.classes(elements, before, after)
            known, faults = known + np.count_nonzero(classes != UNKNOWN), faults + classes.size
            for one, scores in zip(classes, faulty_scores(model, x, tensor, elements, bits), strict=True):
                finite = np.isfinite(scores).all(1)
                assert (one[~finite & whole] < 0).all(), "a value that is not finite any more is DUE"
                assert (one[one >= 0] == scores.argmax(1)[one >= 0]).all()
    assert seed or known > 0.8 * faults


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 7))])
@pytest.mark.parametrize(
    "kind, tensor", [("mlp", "w1"), ("softmax", "w1"), ("cnn", "w2"), ("cnn", "w3"), ("mlp", "w2")]
)
def test_several_faults_have_the_classes_of_full_runs(kind: str, tensor: str, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng([seed, 11])
    model = network(kind, rng, 10.0 ** rng.integers(-1, 2))
    if seed:
        model = spoiled(model, rng)
    x, known = images(kind, rng, 12), 0
    proofs, stored = proofs_of(tmp_path, model, x, tensor)
    for number in range(8 if seed < 2 else 30):
        elements = np.sort(rng.permutation(stored.size)[: rng.integers(2, 6)])
        before = stored.reshape(-1)[elements]
        bits = rng.integers(0, 32 if number % 2 else 24, len(elements)).astype(np.uint32)
        after = (before.view(np.uint32) ^ (np.uint32(1) << bits)).view(np.float32)
        classes = proofs.several(elements, before, after)
        known += np.count_nonzero(classes != UNKNOWN)
        scores = changed_scores(model, x, tensor, elements, after)
        assert np.isfinite(scores[classes != UNKNOWN]).all()
        assert (classes[classes != UNKNOWN] == scores.argmax(1)[classes != UNKNOWN]).all()
    assert seed or known
