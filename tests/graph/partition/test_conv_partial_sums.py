"""Convolutions as sums of terms: the terms of all blocks add up to the convolution, and one block is one term."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.conv_partial_sums import (
    ConvSum,
    block_input,
    block_output,
    block_sizes,
    largest_conv_sum,
    partial_sum_model,
)
from onnxfi.graph.partition.subgraph import PartitionGraph, partition_graph
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
SHAPES = {"w": (8, 40, 3, 3), "v": (48, 40, 1, 1), "u": (4, 16, 1, 1), "b": (8,)}
NODES = "c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b) d = Conv(x, v) s = ReduceMean(x)"


def graph(folder: Path, nodes: str = NODES, *, blocks: bool = False) -> PartitionGraph:
    model = parser.parse_model(f"{HEAD} g (float[N,40,7,7] x) => (float[N,8,4,4] c) {{ {nodes} }}")
    rng = np.random.default_rng(3)
    for name, dims in SHAPES.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=dims).astype(np.float32), name))
    onnx.save(model, folder / "m.onnx")
    return partition_graph(load(folder / "m.onnx"), blocks=blocks)


@pytest.mark.parametrize("size", [8, 16, 39, 40])
def test_the_terms_add_up_to_the_convolution(tmp_path: Path, size: int) -> None:
    net = graph(tmp_path)
    one = largest_conv_sum(net, [0, 1, 2], {"x"})
    assert one == ConvSum(0, "x", "c", "w", "b") and one.values == ("x", "c")
    rng = np.random.default_rng(3)
    weight = rng.normal(size=SHAPES["w"]).astype(np.float32)
    x = rng.normal(size=(2, 40, 7, 7)).astype(np.float32)
    part = partial_sum_model(net, one, weight, size)
    session = OrtEngine("cpu").prepare_part(part.data, part.stored)
    starts = range(0, 40, size)
    feeds = {block_input(k): np.ascontiguousarray(x[:, start : start + size]) for k, start in enumerate(starts)}
    terms = session.run(feeds)
    assert list(terms) == [block_output(k) for k in range(len(starts))]
    whole = parser.parse_model(
        f"{HEAD} g (float[N,40,7,7] x, float[8,40,3,3] w) => (float[N,8,4,4] c) "
        "{ c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w) }"
    )
    known = ReferenceEvaluator(whole).run(None, {"x": x, "w": weight})[0]
    np.testing.assert_allclose(sum(terms.values()), known, rtol=1e-4, atol=1e-4)
    changed = session.run(feeds | {block_input(0): feeds[block_input(0)] + 1})
    assert [name for name in terms if not np.array_equal(terms[name], changed[name])] == [block_output(0)]


@pytest.mark.parametrize(
    ("nodes", "taken", "found"),
    [
        (NODES, {"x"}, "w"),
        (NODES, {"s"}, None),
        ("d = Conv(x, v) c = Conv<strides = [2, 2]>(d, w)", {"x", "d"}, "w"),
        ("y = Conv<group = 1>(x, v) c = Relu(y)", {"x"}, "v"),
        ("a = Conv<group = 5>(x, k) c = Relu(a)", {"x"}, None),
        ("a = MatMul(x, x) c = Relu(a)", {"x"}, None),
        ("z = Constant<value = uint8 {3}>() s = Constant<value = float {0.1}>() a = Conv(x, w) q = QuantizeLinear(a, s, z) "
         "c = DequantizeLinear(q, s, z)", {"x"}, None),
    ],
)  # fmt: skip
def test_the_largest_that_can_be_summed_by_blocks(
    tmp_path: Path, nodes: str, taken: set[str], found: str | None
) -> None:
    net = graph(tmp_path, nodes)
    one = largest_conv_sum(net, range(len(net.reads)), taken)
    assert (one and one.weight) == found


def test_an_addition_behind_it_belongs_to_it_where_it_is_not_computed_here(tmp_path: Path) -> None:
    net = graph(tmp_path, "e = Relu(x) a = Conv(x, v) m = Conv(e, v) c = Add(a, m)", blocks=True)
    at = {name: k for name, k in net.makers.items()}
    inside = largest_conv_sum(net, [at["a"], at["c"]], {"x"})
    assert inside is not None and (inside.output, inside.addend) == ("c", "m")
    outside = largest_conv_sum(net, [at["a"], at["m"], at["c"]], {"x"})
    assert outside is not None and (outside.output, outside.addend) == ("a", ""), "the addend differs as well"


def test_blocks_are_smaller_than_what_they_are_blocks_of(tmp_path: Path) -> None:
    net = graph(tmp_path)
    assert block_sizes(net, ConvSum(0, "x", "c", "w", "b")) == (16, 8)
    assert block_sizes(net, ConvSum(1, "x", "d", "v", "")) == (), "one of 1 by 1 is summed by 128 channels"
