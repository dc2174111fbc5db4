"""The activations that are restricted by default, in networks whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import parser

from onnxfi.errors import SelectorError
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.protection.placement import find_places, followed_bounds
from onnxfi.graph.protection.range_restriction import Bounds

MODELS = Path(__file__).parents[3] / "models"


def model(graph: str) -> Model:
    return load(parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> g {graph}'))


def test_transformers_are_restricted_behind_linear_layers_and_attention() -> None:
    places = find_places(load(MODELS / "fashion_attention.onnx"))
    names = [a.name for a in places.measured]
    assert names[:6] == ["layer_norm", "linear", "linear_1", "linear_2", "matmul", "softmax"]
    assert names[6:11] == ["matmul_1", "linear_3", "layer_norm_1", "linear_4", "val_50"]
    assert not places.saturated and "logits" not in names


@pytest.mark.parametrize("name", ["qdq", "qoperator"])
def test_quantisers_saturate_already(name: str) -> None:
    places = find_places(load(MODELS / f"fashion_cnn_int8_{name}.onnx"))
    assert not places.measured and len(places.saturated) >= 2
    assert "no gain expected behind" in next(places.notes())


def test_recurrent_layers_are_restricted() -> None:
    assert [a.target.op for a in find_places(load(MODELS / "fashion_gru.onnx")).measured] == ["GRU"]


def test_activation_functions_of_several_nodes_are_found_by_their_last() -> None:
    places = find_places(
        model("""(float[N,4] x, float[4] w) => (float[N,4] y) <float h = {0.5}, float o = {1.0}> {
          a = Mul(x, w)  s = Sigmoid(a)  silu = Mul(s, a)
          p = Softplus(silu)  t = Tanh(p)  mish = Mul(silu, t)
          e = Erf(mish)  f = Add(e, o)  g = Mul(mish, f)  gelu = Mul(g, h)  y = Mul(gelu, w) }""")
    )
    assert [a.name for a in places.measured] == ["s", "silu", "p", "t", "mish", "gelu"]


def test_a_clip_of_the_models_own_is_enough() -> None:
    found = find_places(
        model(
            "(float[N,4] x) => (float[N,4] y) <float l = {0.0}, float h = {6.0}> { a = Clip(x, l, h)  b = Relu(a)  y = Neg(b) }"
        )
    )
    assert [a.name for a in found.measured] == ["b"] and found.saturated == ("a",)


def test_bounds_follow_through_concatenation_pooling_and_reshaping() -> None:
    found = find_places(
        model("""(float[N,2,4,4] x) => (float[N,32] y) {
          a = Relu(x)  b = Tanh(x)  c = Concat<axis = 1>(a, b)  m = MaxPool<kernel_shape = [2,2], strides = [2,2]>(c)
          g = AveragePool<kernel_shape = [1,1]>(a)  h = Concat<axis = 1>(x, a)  f = Flatten(m)  s = Flatten(h)
          t = Flatten(g)  u = Concat<axis = 1>(f, t)  y = MatMul(u, u) }""")
    )
    assert [a.name for a in found.measured] == ["a", "b"]
    assert [f.activation.name for f in found.followers] == ["c", "m", "g", "f", "t", "u"]
    known = {"a": Bounds((0.0, 0.5), (3.0, 2.0), 1), "b": Bounds((-1.0,), (1.0,))}
    for follower in found.followers:
        known[follower.activation.name] = followed_bounds(follower, known)
    assert (known["c"].low, known["c"].high, known["c"].axis) == ((-1.0,), (3.0,), None)
    assert known["m"] == known["c"] and known["f"] == known["c"].whole
    assert known["g"].axis == 1 and known["g"].low[1] <= 0.0 and 3.0 < known["g"].high[0] < 3.01


def test_exclusion_and_inclusion_choose() -> None:
    cnn = load(MODELS / "fashion_cnn.onnx")
    found = find_places(cnn, Selector(exclude=("=relu_1",)))
    assert [a.name for a in found.measured] == ["relu", "relu_2"]
    assert [f.activation.name for f in found.followers] == ["max_pool2d"], "pooled from what is excluded"
    assert [a.name for a in find_places(cnn, Selector(op=("Conv",)), extend=False).measured] == ["conv2d", "conv2d_1"]
    with pytest.raises(SelectorError, match="--include '=rleu' matches no activation of this model; closest: 'relu'"):
        find_places(cnn, Selector(include=("=rleu",)))
    with pytest.raises(SelectorError, match="takes no activation that can be restricted"):
        find_places(load(MODELS / "fashion_cnn_int8_qoperator.onnx"), Selector(include=("max_pool2d_quantized",)))
