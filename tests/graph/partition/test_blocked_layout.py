"""Images in blocks of channels: which there are, and that a part of a model rounds as the whole does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.subgraph import PartitionGraph, partition_graph
from onnxfi.graph.partition.subgraph_model import extract_model
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

#: A shortcut past a convolution whose bias is added to it, and one whose start was weighted by channel.
NODES = """
  c0 = Conv(x, v)
  b = Reshape(bias, four)
  s0 = Add(c0, b)
  i0 = Identity(s0)
  c1 = Conv(i0, w)
  s1 = Add(c1, b)
  i1 = Identity(s1)
  added = Add(i0, i1)
  m = ReduceMean<keepdims=1>(added, axes)
  g = Conv(m, w)
  h = HardSigmoid(g)
  gated = Mul(added, h)
  c2 = Conv(gated, w)
  s2 = Add(c2, b)
  again = Add(gated, s2)
  y = Relu(again)
"""
IMAGE = (1, ["N", 16, 24, 40])


@pytest.fixture
def net(tmp_path: Path) -> PartitionGraph:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> net (float[N,16,24,40] x) => (float[N,16,24,40] y) {{ {NODES} }}'
    )
    weights = {name: rng.standard_normal((16, 16, 1, 1)).astype(np.float32) / 4 for name in "vw"}
    weights |= {"bias": rng.standard_normal(16).astype(np.float32)}
    constants = {"four": np.array([1, 16, 1, 1]), "axes": np.array([2, 3])}
    arrays = weights | constants
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, tmp_path / "net.onnx")
    return partition_graph(load(tmp_path / "net.onnx"), blocks=True)


def test_in_blocks_is_what_is_made_of_convolutions_alone(net: PartitionGraph) -> None:
    assert net.in_blocks == {"c0", "s0", "i0", "c1", "s1", "i1", "added", "c2", "s2"}
    assert {"four", "b", "w", ""} <= net.constant_names and "x" not in net.constant_names


@pytest.mark.parametrize("cut", ["i0", "gated"])
def test_a_part_rounds_as_the_whole(net: PartitionGraph, cut: str) -> None:
    names = [node.output[0] for node in net.proto.graph.node]
    first = [k for k in range(len(names)) if k <= names.index(cut)]
    rest = [1, *(k for k in range(len(names)) if k > names.index(cut))]
    image = np.random.default_rng(1).standard_normal((4, 16, 24, 40)).astype(np.float32)

    def computed(nodes: list[int], feeds: dict[str, np.ndarray], output: str) -> np.ndarray:
        part = extract_model(net, nodes, dict.fromkeys(feeds, IMAGE), [output])
        return np.asarray(OrtEngine("cpu").prepare_part(part.data, part.stored).run(feeds, [output])[output])

    found = computed(rest, {cut: computed(first, {"x": image}, cut)}, "y")
    assert np.array_equal(found, computed([*range(len(names))], {"x": image}, "y"))
