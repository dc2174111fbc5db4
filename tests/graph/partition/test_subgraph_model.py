"""Parts: models of some nodes of another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxfi.errors import ModelError
from onnxfi.graph.model.byte_source import StoredArray
from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.subgraph import partition_graph
from onnxfi.graph.partition.subgraph_model import extract_model
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

BLOCK = """
<ir_version: 10, opset_import: ["" : 20]>
block (float[N,16,5,5] v) => (float[N,16,1,1] y) <float[16,16,1,1] w> {
  x = Conv(v, w)
  c = Conv(x, w)
  s = Add(c, x)
  r = Relu(s)
  y = GlobalAveragePool(r)
}
"""
SHAPE = (1, ["N", 16, 5, 5])


def operators(
    folder: Path, nodes: list[int], feeds: list[str], outputs: list[str], *, blocks: bool = True
) -> list[str]:
    """The operators of a part of the block that is fed these images."""
    model = onnx.parser.parse_model(BLOCK)
    model.graph.initializer.append(onnx.helper.make_tensor("w", 1, [16, 16, 1, 1], [0.5] * 256))
    onnx.save(model, folder / "block.onnx")
    part = extract_model(
        partition_graph(load(folder / "block.onnx"), blocks=blocks), nodes, dict.fromkeys(feeds, SHAPE), outputs
    )
    return [node.op_type for node in onnx.ModelProto.FromString(part.data).graph.node]


@pytest.mark.parametrize(
    ("nodes", "feeds", "outputs", "laid"),
    [
        ([1, 2, 3, 4], ["x"], ["y"], 1),
        ([1, 2], ["x"], ["s"], 1),
        ([1, 2], ["x"], ["c", "s"], 0),
        ([2, 3], ["c", "x"], ["r"], 0),
        ([1], ["x"], ["c"], 0),
        ([3, 4], ["s"], ["y"], 1),
        ([4], ["r"], ["y"], 1),
    ],
    ids=str,
)
def test_images_lie_in_blocks_where_that_makes_sums_others(
    tmp_path: Path, nodes: list[int], feeds: list[str], outputs: list[str], laid: int
) -> None:
    found = operators(tmp_path, nodes, feeds, outputs)
    assert found.count("AveragePool") == laid and len(found) == len(nodes) + laid
    assert "AveragePool" not in operators(tmp_path, nodes, feeds, outputs, blocks=False)


def test_a_circle_has_an_end(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(BLOCK)
    model.graph.initializer.append(onnx.helper.make_tensor("w", 1, [16, 16, 1, 1], [0.5] * 256))
    model.graph.node[3].input[0] = "t"
    model.graph.node.append(onnx.helper.make_node("Relu", ["r"], ["t"]))
    onnx.save(model, tmp_path / "circle.onnx")
    part = extract_model(partition_graph(load(tmp_path / "circle.onnx"), blocks=True), [3, 4, 5], {"x": SHAPE}, ["y"])
    assert len(onnx.ModelProto.FromString(part.data).graph.node) == 3


@pytest.mark.parametrize("beside", [False, True], ids=["in the file", "beside it"])
def test_large_tensors_are_read_when_they_are_needed_and_held_once(tmp_path: Path, beside: bool) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((64, 64)).astype(np.float32) for name in "vw"}
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> m (float[N,64] x) => (float[N,64] y) { h = MatMul(x, v) y = MatMul(h, w) }'
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=beside, location="m.data", size_threshold=0)
    net = partition_graph(load(tmp_path / "m.onnx"))
    assert net.proto.ByteSize() < 1000 and [*net.weights] == ["v", "w"]
    parts = [extract_model(net, [1], {"h": (1, ["N", 64])}, ["y"]) for _ in range(2)]
    held = [stored for part in parts for stored in part.stored.values()]
    assert [[*part.stored] for part in parts] == [["w"], ["w"]] and not any(isinstance(one, np.ndarray) for one in held)
    assert all(isinstance(one, StoredArray) and np.array_equal(one.read(), arrays["w"]) for one in held)
    file = tmp_path / ("m.data" if beside else "m.onnx")
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="changed while it was being read"):
        OrtEngine("cpu").prepare_part(parts[0].data, parts[0].stored)
