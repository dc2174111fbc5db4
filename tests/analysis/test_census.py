"""The census of a model, held against every bit of every word, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import quantized_models
from onnx import TensorProto, helper, numpy_helper, parser
from word_oracle import effect

from onnxfi.analysis.bit_effects import EFFECTS
from onnxfi.analysis.census import FLIPS, Census, census
from onnxfi.errors import SelectorError
from onnxfi.faults.space import Selector
from onnxfi.graph.model.dequantize import dequantized
from onnxfi.graph.model.loading import Model, load

MANY = """<ir_version: 10, opset_import: ["": 21]> g (float[N,4] x) => (float[N,4] y)
    <int8[2,4] w = {1,2,3,4,5,6,7,-8}, float16[4] h = {1,2,0,4}, bool[4] mask = {1,0,1,0}, float[3,4] f = {1,2,3,4,0,6,7,8,9,10,11,-12},
     double[4] d = {1,2,3,4}, int32[4] i = {70000,-3,0,5}>
    { a = Cast<to = 1>(w) b = ReduceSum(a) c = Cast<to = 1>(h) e = Where(mask, c, b) t = ReduceSum(f)
      k = Cast<to = 1>(d) m = Add(e, t) n = Mul(m, k) q = Cast<to = 1>(i) p = Add(x, n) y = Add(p, q) }"""


def by_hand(model: Model, found: Census) -> None:
    """Hold the flips of each target against those of each word and bit alone."""
    for row in found.targets:
        target = model.targets[model.by_id[row.key]]
        every = np.arange(target.size)
        words = model.words(target, every)
        real = dequantized(model, target, every, words)
        table = np.zeros((target.word.bits, len(EFFECTS)), np.int64)
        for k, bits in enumerate(words.tolist()):
            zero_point = 0
            if real is not None and np.isfinite(real[k]):
                number = int(target.word.values(words[k : k + 1])[0])
                step = next(
                    float(r)
                    for r in dequantized(model, target, every[k : k + 1], words[k : k + 1] ^ np.uint64(1)) - real[k]  # type: ignore[operator]
                )
                zero_point = number - round(float(real[k]) / abs(step))
            for bit in range(target.word.bits):
                table[bit, EFFECTS.index(effect(target.word, bits, bit, zero_point))] += 1
        assert row.flips == tuple(map(tuple, table.tolist())), row.key


def test_the_census_of_every_format_is_that_of_every_bit() -> None:
    model = load(parser.parse_model(MANY))
    found = census(model)
    assert {row.dtype for row in found.targets} == {"int8", "float16", "bool", "float32", "float64", "int32"}
    by_hand(model, found)
    assert found.whole.bits == 8 * 8 + 4 * 16 + 4 + 12 * 32 + 4 * 64 + 4 * 32 == sum(found.whole.totals)


@pytest.mark.parametrize("make", quantized_models.ALL, ids=lambda make: make.__name__)
def test_quantised_integers_count_from_their_zero_points(make: Callable[[], quantized_models.OneLayer]) -> None:
    layer = make()
    model = load(layer.model)
    found = census(model, Selector(include=tuple(f"={name}" for name in layer.roles)))
    by_hand(model, found)
    for row in found.targets:
        assert row.step is None or 0 < row.step[0] <= row.step[1]


@pytest.mark.slow
def test_a_model_is_read_in_chunks_with_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(0, 0.1, 999).astype(np.float32)
    values[::50] = 0
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N,999] x) => (float[N,999] y) { y = Add(x, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(values, "w"))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    whole = census(load(path))
    monkeypatch.setattr("onnxfi.analysis.census.CHUNK_BYTES", 64)
    assert census(load(path)).targets == whole.targets
    assert whole.targets[0].words == 999
    by_hand(load(path), whole)


def test_packed_integers_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).integers(-8, 8, 131)
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N,131] x) => (float[N,131] y) { a = Cast<to = 1>(w) y = Add(x, a) }'
    )
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.INT4, [131], bytes(_packed(values)), raw=True))
    monkeypatch.setattr("onnxfi.analysis.census.CHUNK_BYTES", 8)
    by_hand(load(proto), census(load(proto)))


def _packed(values: Any) -> bytearray:
    data = bytearray(-(-len(values) // 2))
    for k, value in enumerate(values.tolist()):
        data[k // 2] |= (value & 15) << (4 * (k % 2))
    return data


def test_selected_bits_and_elements_alone_count() -> None:
    model = load("models/fashion_cnn.onnx")
    whole = census(model, Selector(include=("conv1.weight",)))
    top = census(model, Selector(include=("conv1.weight",), bits="30"))
    assert top.targets[0].flips[30] == whole.targets[0].flips[30] and top.whole.bits == 144
    assert sum(top.whole.totals) == 144
    halves = [census(model, Selector(include=("conv1.weight",), elements=part)).targets[0] for part in (":8", "8:")]
    summed = np.array(halves[0].flips) + np.array(halves[1].flips)
    assert np.array_equal(summed, np.array(whole.targets[0].flips))
    with pytest.raises(SelectorError, match="matches nothing"):
        census(model, Selector(include=("nothing",)))


def test_the_forecast_is_that_of_independent_draws() -> None:
    found = census(load("models/fashion_cnn.onnx"))
    p = found.whole.totals[0] / found.whole.bits
    assert [found.broken(n) for n in FLIPS] == pytest.approx([1 - (1 - p) ** n for n in FLIPS], rel=1e-12)
    assert found.broken(0) == 0


def test_a_flip_of_a_block_scale_reaches_its_block() -> None:
    model = load(quantized_models.qdq_int4_blocks().model)
    found = census(model)
    integers = next(row for row in found.targets if row.role == "weight")
    scales = next(row for row in found.targets if row.role == "scale")
    assert scales.reach == -(-integers.words // scales.words) > 1 and integers.reach is None
    expected = (
        integers.bits + sum(row.bits * (row.reach or 1) for row in found.targets if row is not integers)
    ) / found.whole.bits
    assert found.whole.reached / found.whole.bits == pytest.approx(expected)


def test_layers_and_formats_sum_to_the_whole() -> None:
    found = census(load("models/fashion_cnn_int8_qdq.onnx"))
    for rows in (found.layers, found.formats):
        assert sum(row.bits for row in rows) == found.whole.bits
        assert np.array_equal(np.sum([row.totals for row in rows], axis=0), found.whole.totals)
    lines = list(found.table())
    assert len(lines) == sum(len(row.flips) for row in found.targets)
    assert sum(line["catastrophic"] for line in lines) == found.whole.totals[0]
