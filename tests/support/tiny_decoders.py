"""Tiny random decoders with a KV cache, in the layouts in which exporters write them: 2 layers, 2 heads of 4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxfi import OrtEngine
from onnxfi.runtime.generation.generation_engine import GenerationEngine, GenerationSession
from onnxfi.runtime.generation.greedy_loop import LoopSettings

#: New tokens of a prompt in tests.
COUNT = 12
VOCABULARY, SIZE, HEADS, LAYERS, POSITIONS = 24, 8, 2, 2, 40
_FLOAT, _INT = TensorProto.FLOAT, TensorProto.INT64
_FIXED = {"two": [2], "first": [0], "split": [0, 0, HEADS, SIZE // HEADS], "joined": [0, 0, SIZE]}


@dataclass
class Writer:
    """Nodes of a graph, and the weights that they read."""

    weights: dict[str, Any]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    suffix: str = ""

    def add(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output."""
        out = name + self.suffix
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"n/{out}", **attributes))
        return out


def weights(seed: int = 0, *, cross: bool = False, numbers: Any = np.float32) -> dict[str, Any]:
    """Return seeded weights by name."""
    random = np.random.default_rng(seed)

    def made(*shape: int, scale: float = 0.6) -> Any:
        return (random.standard_normal(shape) * scale).astype(numbers)

    found = {"wte": made(VOCABULARY, SIZE, scale=1.0), "wpe": made(POSITIONS, SIZE, scale=0.7)}
    for layer in range(LAYERS):
        for kind in ("q", "k", "v", "o", *(("cq", "ck", "cv", "co") if cross else ())):
            found[f"h.{layer}.{kind}"] = made(SIZE, SIZE)
        found[f"h.{layer}.up"], found[f"h.{layer}.down"] = made(SIZE, 2 * SIZE), made(2 * SIZE, SIZE)
        found[f"h.{layer}.gain"] = np.ones(SIZE, numbers)
    return found | {"gain": np.ones(SIZE, numbers)}


def _heads(w: Writer, x: str, weight: str, name: str) -> str:
    split = w.add("Reshape", [w.add("MatMul", [x, weight], f"{name}.flat"), "split"], f"{name}.split")
    return w.add("Transpose", [split], name, perm=[0, 2, 1, 3])


def _attend(w: Writer, q: str, k: str, v: str, mask: str, out: str, name: str) -> str:
    turned = w.add("Transpose", [k], f"{name}.kt", perm=[0, 1, 3, 2])
    scores = w.add("Mul", [w.add("MatMul", [q, turned], f"{name}.qk"), "scale"], f"{name}.scaled")
    if mask:
        scores = w.add("Add", [scores, mask], f"{name}.masked")
    shares = w.add("Softmax", [scores], f"{name}.shares", axis=-1)
    joined = w.add("Transpose", [w.add("MatMul", [shares, v], f"{name}.mixed")], f"{name}.turned", perm=[0, 2, 1, 3])
    flat = w.add("Reshape", [joined, "joined"], f"{name}.joined")
    return w.add("MatMul", [flat, out], f"{name}.out")


def decoder_nodes(w: Writer, *, past: bool, cross: bool = False, encode: bool = True) -> dict[str, str]:
    """Write a decoder; return the names of its outputs by the names that a file gives them."""
    found = dict[str, str]()
    embedded = w.add("Gather", ["wte", "input_ids"], "embedded")
    h = w.add("Add", [embedded, w.add("Gather", ["wpe", "position_ids"], "placed")], "begun")
    length = w.add("Shape", ["input_ids"], "length", start=1, end=2)
    if past:
        length = w.add(
            "Add", [length, w.add("Shape", [f"past_key_values.0.{_part(cross)}key"], "held", start=2, end=3)], "total"
        )
    ends = w.add("Squeeze", [length, "first"], "count")
    every = w.add("Range", ["zero", ends, "one"], "every")
    own = w.add("Unsqueeze", ["position_ids", "two"], "own")
    seen = w.add("Unsqueeze", [w.add("LessOrEqual", [every, own], "seen"), "onto"], "visible")
    mask = w.add("Where", [seen, "nothing", "hidden"], "mask")
    for layer in range(LAYERS):
        name = f"h.{layer}"
        x = w.add("LayerNormalization", [h, f"{name}.gain"], f"{name}.norm", axis=-1)
        q, k, v = (_heads(w, x, f"{name}.{one}", f"{name}.{one}.heads") for one in "qkv")
        if past:
            k = w.add("Concat", [f"past_key_values.{layer}.{_part(cross)}key", k], f"{name}.keys", axis=2)
            v = w.add("Concat", [f"past_key_values.{layer}.{_part(cross)}value", v], f"{name}.values", axis=2)
        found[f"present.{layer}.{_part(cross)}key"], found[f"present.{layer}.{_part(cross)}value"] = k, v
        h = w.add("Add", [h, _attend(w, q, k, v, mask, f"{name}.o", f"{name}.self")], f"{name}.after")
        if cross:
            q = _heads(w, h, f"{name}.cq", f"{name}.cq.heads")
            k, v = f"past_key_values.{layer}.encoder.key", f"past_key_values.{layer}.encoder.value"
            if encode:
                k, v = (
                    _heads(w, "encoder_hidden_states", f"{name}.{one}", f"{name}.{one}.heads") for one in ("ck", "cv")
                )
                found[f"present.{layer}.encoder.key"], found[f"present.{layer}.encoder.value"] = k, v
            h = w.add("Add", [h, _attend(w, q, k, v, "", f"{name}.co", f"{name}.cross")], f"{name}.crossed")
        up = w.add("Relu", [w.add("MatMul", [h, f"{name}.up"], f"{name}.wide")], f"{name}.active")
        h = w.add("Add", [h, w.add("MatMul", [up, f"{name}.down"], f"{name}.narrow")], f"{name}.end")
    last = w.add("LayerNormalization", [h, "gain"], "norm", axis=-1)
    found["logits"] = w.add("MatMul", [last, w.add("Transpose", ["wte"], "wte.t", perm=[1, 0])], "scores")
    return found


def _part(cross: bool) -> str:
    return "decoder." if cross else ""


def _constants(numbers: Any) -> dict[str, Any]:
    scale = numbers((SIZE // HEADS) ** -0.5)
    numbered = {name: np.array(value, np.int64) for name, value in {**_FIXED, "onto": [1], "zero": 0, "one": 1}.items()}
    return numbered | {"scale": np.array(scale), "nothing": np.array(numbers(0)), "hidden": np.array(numbers(-1e4))}


def _ports(names: Sequence[str], kind: int, length: str) -> Iterator[Any]:
    for name in names:
        yield helper.make_tensor_value_info(name, kind, ["N", HEADS, length, SIZE // HEADS])


def _model(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[Any], outputs: Sequence[Any], stored: dict[str, Any]
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in stored.items()]
    graph = helper.make_graph(list(nodes), "decoder", list(inputs), list(outputs), tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def decoder(
    *, past: bool = True, cross: bool = False, encode: bool = True, seed: int = 0, numbers: Any = np.float32
) -> onnx.ModelProto:
    """Return a decoder with a cache as input (`past`), behind an encoder (`cross`) that it has not seen (`encode`)."""
    w, kind = Writer({}), helper.np_dtype_to_tensor_dtype(np.dtype(numbers))
    outputs = decoder_nodes(w, past=past, cross=cross, encode=encode)
    w.nodes += [helper.make_node("Identity", [made], [name], name=f"n/out/{name}") for name, made in outputs.items()]
    inputs = [helper.make_tensor_value_info(name, _INT, ["N", "T"]) for name in ("input_ids", "position_ids")]
    if cross and encode:
        inputs.append(helper.make_tensor_value_info("encoder_hidden_states", kind, ["N", "S", SIZE]))
    if past:
        parts = ("decoder.key", "decoder.value") if cross else ("key", "value")
        inputs += _ports([f"past_key_values.{n}.{one}" for n in range(LAYERS) for one in parts], kind, "P")
    if cross and not encode:
        inputs += _ports(
            [f"past_key_values.{n}.encoder.{one}" for n in range(LAYERS) for one in ("key", "value")], kind, "S"
        )
    ends = [helper.make_tensor_value_info("logits", kind, ["N", "T", VOCABULARY])]
    ends += _ports([name for name in outputs if name != "logits"], kind, "U")
    return _model(w.nodes, inputs, ends, weights(seed, cross=cross, numbers=numbers) | _constants(numbers))


def merged(seed: int = 0) -> onnx.ModelProto:
    """Return a merged decoder: an `If` over `use_cache_branch`, its weights in the outer graph."""
    branches = []
    for past, suffix in ((True, ".past"), (False, ".none")):
        w = Writer({}, suffix=suffix)
        outputs = decoder_nodes(w, past=past)
        ends = [helper.make_tensor_value_info(made, _FLOAT, None) for made in outputs.values()]
        branches.append(helper.make_graph(w.nodes, f"branch{suffix}", [], ends))
    names = list(outputs)
    node = helper.make_node(
        "If", ["use_cache_branch"], names, name="n/if", then_branch=branches[0], else_branch=branches[1]
    )
    inputs = [helper.make_tensor_value_info(name, _INT, ["N", "T"]) for name in ("input_ids", "position_ids")]
    inputs.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
    inputs += _ports([f"past_key_values.{n}.{one}" for n in range(LAYERS) for one in ("key", "value")], _FLOAT, "P")
    ends = [helper.make_tensor_value_info("logits", _FLOAT, ["N", "T", VOCABULARY])]
    ends += _ports([name for name in names if name != "logits"], _FLOAT, "U")
    return _model([node], inputs, ends, weights(seed) | _constants(np.float32))


def encoder(seed: int = 5) -> onnx.ModelProto:
    """Return an encoder: what it makes of a token depends on the tokens before it."""
    w = Writer({})
    embedded = w.add("Gather", ["table", "input_ids"], "embedded")
    summed = w.add("CumSum", [embedded, "axis"], "summed")
    w.add("Tanh", [summed], "last_hidden_state")
    table = np.random.default_rng(seed).standard_normal((VOCABULARY, SIZE)).astype(np.float32)
    return _model(
        w.nodes,
        [helper.make_tensor_value_info("input_ids", _INT, ["N", "T"])],
        [helper.make_tensor_value_info("last_hidden_state", _FLOAT, ["N", "T", SIZE])],
        {"table": table, "axis": np.array(1, np.int64)},
    )


#: Numbers of a frame of speech, frames, and the positions that an encoder makes of them.
BANDS, FRAMES, HEARD = 5, 14, 7


def speech_encoder(seed: int = 6) -> onnx.ModelProto:
    """Return an encoder of speech: one position for two frames."""
    w = Writer({})
    frames = w.add("Transpose", ["input_features"], "frames", perm=[0, 2, 1])
    mixed = w.add("MatMul", [frames, "mix"], "mixed")
    halved = w.add("Slice", [mixed, "first", "last", "axis", "two"], "halved")
    w.add("Tanh", [halved], "last_hidden_state")
    ends = {name: np.array([n], np.int64) for name, n in (("first", 0), ("last", FRAMES), ("axis", 1), ("two", 2))}
    mix = np.random.default_rng(seed).standard_normal((BANDS, SIZE)).astype(np.float32)
    return _model(
        w.nodes,
        [helper.make_tensor_value_info("input_features", _FLOAT, ["N", BANDS, FRAMES])],
        [helper.make_tensor_value_info("last_hidden_state", _FLOAT, ["N", HEARD, SIZE])],
        {"mix": mix, **ends},
    )


def speech(count: int = 3, seed: int = 2) -> Any:
    """Return prompts of speech, [count, bands, frames]."""
    return np.random.default_rng(seed).standard_normal((count, BANDS, FRAMES)).astype(np.float32)


def prompts(count: int = 3, length: int = 6, seed: int = 1, *, prefix: int = 0) -> Any:
    """Return prompts [count, length], the later ones shorter, with the same first `prefix` tokens."""
    random = np.random.default_rng(seed)
    found = random.integers(1, VOCABULARY, (count, length))
    found[:, :prefix] = found[0, :prefix]
    for row in range(1, count):
        found[row, max(prefix + 1, length - row) :] = -1
    return found


def saved(folder: Path, name: str, model: onnx.ModelProto) -> Path:
    """Write a model into a folder and return its path."""
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return path


def longhand(model: onnx.ModelProto, prompt: Any, count: int, encoded: Any = None) -> list[int]:
    """Generate without a cache: the whole text runs through a decoder of prompts for each token. The oracle."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    text = [int(token) for token in prompt if token >= 0]
    begun = len(text)
    for _ in range(count):
        fed = {"input_ids": np.array([text]), "position_ids": np.arange(len(text))[None]}
        if encoded is not None:
            fed["encoder_hidden_states"] = encoded
        text.append(int(session.run(["logits"], fed)[0][0, -1].argmax()))
    return text[begun:]


def opened(model: Any, files: dict[str, str] | None = None, **how: Any) -> GenerationSession:
    """Open a decoder, or the file of one, with its loop."""
    engine = GenerationEngine(OrtEngine(provider="cpu"), LoopSettings(**{"tokens": COUNT, **how}), files or {})
    return engine.prepare(model if isinstance(model, str) else model.SerializeToString())
