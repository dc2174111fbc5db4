"""The graph of models/char_gpt.onnx, written from its trained weights; inputs and outputs have the names of Optimum.

A GPT of characters: learned positions, pre-normalised blocks, GELU, an output layer tied to the embedding. It reads
`input_ids`, `attention_mask` (over past and present positions), `position_ids` and `past_key_values.N.key/value`, and
gives `logits` and `present.N.key/value`. Batch, sequence and past length are free; a past of length 0 is an empty
array.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 20, 10
#: Added to the scores of positions that may not be attended to; float16 holds it too.
MASKED = -1e4

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Shape:
    """The sizes of the model."""

    vocabulary: int
    width: int = 96
    layers: int = 4
    heads: int = 4
    positions: int = 256

    @property
    def head_width(self) -> int:
        """The width of one head."""
        return self.width // self.heads


class _Graph:
    """Nodes and stored tensors of a graph, in order; each node is named after the layer that it belongs to."""

    def __init__(self, weights: Weights) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, onnx.TensorProto] = {}
        self.weights = weights

    def node(self, op: str, layer: str, *inputs: str, **attributes: object) -> str:
        """Append a node, and return the name of its output."""
        name = f"{layer}/{op}" if layer else op
        taken = {node.name for node in self.nodes}
        k = 1
        while name in taken:
            name, k = f"{layer}/{op}_{k}", k + 1
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def weight(self, name: str) -> str:
        """Store a trained weight."""
        self.stored[name] = numpy_helper.from_array(np.ascontiguousarray(self.weights[name]), name)
        return name

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Store a constant."""
        self.stored[name] = numpy_helper.from_array(value, name)
        return name

    def linear(self, layer: str, x: str) -> str:
        """Return a matrix product with its bias."""
        product = self.node("MatMul", layer, x, self.weight(f"{layer}.weight"))
        return self.node("Add", layer, product, self.weight(f"{layer}.bias"))

    def norm(self, layer: str, x: str) -> str:
        """Return a layer normalisation."""
        weights = self.weight(f"{layer}.weight"), self.weight(f"{layer}.bias")
        return self.node("LayerNormalization", layer, x, *weights, axis=-1, epsilon=1e-5)


def build(weights: Weights, shape: Shape, *, check: bool = True) -> onnx.ModelProto:
    """Return the model.

    Weights are named as the layers; those of matrix products are [in, out]. One of more than 2 GB cannot be checked.
    """
    g = _Graph(weights)
    tokens = g.node("Gather", "embed_tokens", g.weight("embed_tokens.weight"), "input_ids")
    places = g.node("Gather", "embed_positions", g.weight("embed_positions.weight"), "position_ids")
    x, mask = g.node("Add", "embed", tokens, places), _mask(g)
    for k in range(shape.layers):
        x = g.node("Add", f"layers.{k}.attention", x, _attention(g, k, g.norm(f"layers.{k}.norm1", x), mask, shape))
        wide = g.node("Gelu", f"layers.{k}.mlp", g.linear(f"layers.{k}.mlp.fc1", g.norm(f"layers.{k}.norm2", x)))
        x = g.node("Add", f"layers.{k}.mlp", x, g.linear(f"layers.{k}.mlp.fc2", wide))
    tied = g.node("Transpose", "lm_head", "embed_tokens.weight", perm=[1, 0])
    g.nodes.append(helper.make_node("MatMul", [g.norm("norm", x), tied], ["logits"], name="lm_head/MatMul"))
    graph = helper.make_graph(
        g.nodes, "char_gpt", _inputs(shape), _outputs(shape), list(g.stored.values())
    )  # fmt: skip
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="onnxfi scripts")
    if check:
        onnx.checker.check_model(model, full_check=True)
    return model


def _mask(g: _Graph) -> str:
    """Return what is added to the scores ([batch, 1, sequence, total]): 0 where a position may be attended to."""
    zero, one = g.constant("zero", np.array(0, np.int64)), g.constant("one", np.array(1, np.int64))
    first = g.constant("axis_1", np.array([1], np.int64))
    sequence = g.node("Squeeze", "mask/sequence", g.node("Shape", "mask/sequence", "input_ids", start=1, end=2))
    total = g.node("Squeeze", "mask/total", g.node("Shape", "mask/total", "attention_mask", start=1, end=2))
    key = g.node("Range", "mask/key", zero, total, one)
    query = g.node(
        "Unsqueeze", "mask/query", g.node("Range", "mask", g.node("Sub", "mask", total, sequence), total, one), first
    )
    causal = g.node("LessOrEqual", "mask", key, query)
    kept = g.node("Cast", "mask", "attention_mask", to=TensorProto.BOOL)
    kept = g.node("Unsqueeze", "mask", kept, g.constant("axes_1_2", np.array([1, 2], np.int64)))
    seen = g.node("And", "mask", causal, kept)
    away = g.constant("mask.masked", np.array(MASKED, np.float32))
    return g.node("Where", "mask", seen, g.constant("mask.seen", np.array(0, np.float32)), away)


def _attention(g: _Graph, k: int, x: str, mask: str, shape: Shape) -> str:
    """Return the attention of layer k over past and present positions."""
    layer = f"layers.{k}.attention"
    split = g.constant("heads", np.array([0, 0, shape.heads, shape.head_width], np.int64))

    def heads(name: str) -> str:
        apart = g.node("Reshape", f"{layer}.{name}", g.linear(f"{layer}.{name}", x), split)
        return g.node("Transpose", f"{layer}.{name}", apart, perm=[0, 2, 1, 3])

    query = heads("q_proj")
    for name in ("key", "value"):
        now = heads(f"{name[0]}_proj")
        pair = [f"past_key_values.{k}.{name}", now]
        g.nodes.append(helper.make_node("Concat", pair, [f"present.{k}.{name}"], name=f"{layer}.{name}/Concat", axis=2))
    turned = g.node("Transpose", layer, f"present.{k}.key", perm=[0, 1, 3, 2])
    scale = g.constant("scale", np.array(shape.head_width**-0.5, np.float32))
    scores = g.node("Mul", layer, g.node("MatMul", f"{layer}/scores", query, turned), scale)
    shares = g.node("Softmax", layer, g.node("Add", f"{layer}/masked", scores, mask), axis=-1)
    mixed = g.node("MatMul", f"{layer}/mixed", shares, f"present.{k}.value")
    joined = g.node("Reshape", f"{layer}/joined", g.node("Transpose", f"{layer}/joined", mixed, perm=[0, 2, 1, 3]),
                    g.constant("joined", np.array([0, 0, shape.width], np.int64)))  # fmt: skip
    return g.linear(f"{layer}.o_proj", joined)


def _inputs(shape: Shape) -> list[onnx.ValueInfoProto]:
    whole = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "sequence"]),
    ]
    return whole + _cache("past_key_values", "past", shape)


def _outputs(shape: Shape) -> list[onnx.ValueInfoProto]:
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", shape.vocabulary])
    return [logits, *_cache("present", "total", shape)]


def _cache(prefix: str, length: str, shape: Shape) -> list[onnx.ValueInfoProto]:
    dims = ["batch", shape.heads, length, shape.head_width]
    return [
        helper.make_tensor_value_info(f"{prefix}.{k}.{name}", TensorProto.FLOAT, dims)
        for k in range(shape.layers)
        for name in ("key", "value")
    ]
