"""Layers: the source framework's module, as each exporter writes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_models import floats, model, node
from hypothesis import given
from onnx import ModelProto, NodeProto, StringStringEntryProto, helper
from strategies import names

from onnxfi.graph.model.graph_index import node_label
from onnxfi.graph.model.layers import join_scopes, layer_of, module_in_parameter_name, scope_in_name
from onnxfi.graph.model.loading import load

ROOT = Path(__file__).parents[3]
SCOPES, NAMESPACE = "pkg.torch.onnx.name_scopes", "namespace"


def described(name: str = "", **metadata: str) -> NodeProto:
    """A node with metadata; `scopes` and `namespace` are the exporter's two keys."""
    made = node("Conv", ["x", "w"], name=name)
    helper.set_metadata_props(made, {{"scopes": SCOPES}.get(key, key): text for key, text in metadata.items()})
    return made


@pytest.mark.parametrize(
    ("made", "parameter", "layer"),
    [
        # torch.onnx.export(dynamo=True)
        (described("node_conv2d", scopes="['', 'conv1', 'conv2d']", namespace=": M/other: C/op: a"), "", "conv1"),
        (described("n", scopes="['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d_1']"), "", "layer1.0.conv1"),
        (described("node_relu", scopes="['', 'relu']"), "", "node_relu"),
        (described("n", scopes='["", "it\'s", "op"]'), "", "it's"),
        # the namespace alone
        (described("n", namespace=": __main__.Net/layer1: nn.Sequential/0: nn.Conv2d/conv2d: aten"), "", "layer1.0"),
        (described("n", namespace="/conv1/aten.conv2d"), "", "conv1"),
        (described("/fc/Gemm", namespace=": M/aten.linear"), "", "fc"),
        # torch.onnx.export through TorchScript: scopes in node names, each repeating the path above it
        (described("/conv1/Conv"), "", "conv1"),
        (described("/layer1/layer1.0/conv1/Conv"), "onnx::Conv_123", "layer1.0.conv1"),
        (described("/encoder/layer.0/attention/self/MatMul_1"), "", "encoder.layer.0.attention.self"),
        (described("/Relu"), "", "/Relu"),
        # tf2onnx and jax2tf: slashes, and wrappers that are no modules
        (described("model/conv2d_3/Conv2D"), "model/conv2d_3/Conv2D/ReadVariableOp:0", "model/conv2d_3"),
        (described("StatefulPartitionedCall/model/dense/MatMul"), "", "model/dense"),
        (described("PartitionedCall/StatefulPartitionedCall/dense/MatMul"), "", "dense"),
        # a parameter's own dotted name, where the node says nothing
        (described("Conv_7"), "layer1.0.conv1.weight", "layer1.0.conv1"),
        (described("Gemm_1"), "fc.bias", "fc"),
        (described("BatchNormalization_3"), "bn1.running_mean", "bn1"),
        (described("LSTM_0"), "rnn.weight_ih_l0_reverse", "rnn"),
        (described("node_add"), "attn.in_proj_weight", "attn"),
        (described("node_Clip"), "n0.beta", "n0"),
        (described("node_Sub"), "n0.threshold", "n0"),
        # folded into a sibling: the parameter's module; in an unrelated place: the node's
        (described("n", scopes="['', 'block', 'block.norm', 'batch_norm']"), "block.conv.weight", "block.conv"),
        (described("n", scopes="['', 'head', 'linear']"), "body.embed.weight", "head"),
        (described("n", scopes="['', 'head', 'linear']"), "val_11", "head"),
        # nothing says more than the node
        (described("Conv_7"), "onnx::Conv_123", "Conv_7"),
        (described("p2o.Conv.12"), "batch_norm_12.w_0", "p2o.Conv.12"),
    ],
)  # fmt: skip
def test_the_layer_by_each_exporters_names(made: NodeProto, parameter: str, layer: str) -> None:
    assert layer_of(made, node_label(made, 0), parameter) == layer


def test_a_nameless_node_is_its_operator_and_number() -> None:
    made = described()
    assert node_label(made, 12) == "Conv#12"
    assert layer_of(made, node_label(made, 12)) == "Conv#12"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "['']", "['', '']", "not a list", "['a'", "'" * 9000, "[" + "'" * 9000, "[" + "\\'" * 4000, "[" * 9000,
     "['a', 'b']" * 5000, "__import__('os').system('false')", "[f() for x in 'a', 'b']", "\x00\x1b['", "['\\x', 'op']"],
)  # fmt: skip
def test_metadata_of_a_stranger_is_never_run_and_never_fails(text: str) -> None:
    made = described("/fc/Gemm", scopes=text, namespace=text)
    assert isinstance(layer_of(made, "Gemm#0"), str)


def test_metadata_that_is_no_utf8() -> None:
    made = described("/fc/Gemm", scopes="['', 'conv1', 'op']")
    data = made.SerializeToString().replace(b"conv1", b"con\xff1").replace(b"/fc/", b"/f\xfe/")
    assert layer_of(NodeProto.FromString(data), "Gemm#0") == "con\\xff1"
    data = data.replace(SCOPES.encode(), b"\xff" * len(SCOPES))
    assert layer_of(NodeProto.FromString(data), "Gemm#0") == "f\\xfe"


@given(names, names, names)
def test_any_name_gives_some_layer(name: str, scopes: str, parameter: str) -> None:
    made = node("Conv", ["x", "w"], name=name)
    made.metadata_props.append(StringStringEntryProto(key=SCOPES, value=scopes))
    label = node_label(made, 3)
    assert label
    assert layer_of(made, label, parameter)


def test_scopes_and_owners() -> None:
    assert scope_in_name("a") == scope_in_name("") == scope_in_name("/") == ""
    assert join_scopes(["a", "", "a.b", "c"], ".") == "a.b.c"
    assert join_scopes(["a", "ab"], ".") == "a.ab"
    assert (
        module_in_parameter_name("weight")
        == module_in_parameter_name("a.weights")
        == module_in_parameter_name("")
        == ""
    )


def test_layers_of_real_models() -> None:
    def layers(name: str) -> list[str]:
        return list(dict.fromkeys(t.layer for t in load(ROOT / f"models/{name}.onnx").targets if not t.structural))

    assert layers("fashion_cnn") == ["conv1", "conv2", "fc1", "fc2"]
    assert layers("fashion_gru") == ["gru", "fc"]
    assert "blocks.0.attention.query" in layers("fashion_attention")


@pytest.mark.fetched
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("minilm_int8", "inner.encoder.layer.0.attention.self.query"),
        ("smart_turn_int8", "inner.encoder.layers.0.self_attn.v_proj"),
        ("magika", "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/Dense_0"),
    ],
)
def test_layers_of_fetched_models(name: str, layer: str) -> None:
    path = ROOT / f"fetched/{name}.onnx"
    if not path.exists():
        pytest.skip(f"no {path.relative_to(ROOT)}; python scripts/fetch_models.py brings it")
    assert layer in {t.layer for t in load(path).targets}


def test_the_layer_of_a_target_is_its_first_users() -> None:
    made = described("c", scopes="['', 'conv1', 'conv2d']")
    held: ModelProto = model([made, node("Relu", ["y"], ["z"])], [floats("w", 1)])
    assert [(t.id, t.layer, t.node) for t in load(held).targets] == [("w", "conv1", "c")]
