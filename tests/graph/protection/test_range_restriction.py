"""Restricted activations against numpy, and faults that the restriction must catch in the optimised graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, parser

from onnxfi.errors import ModelError
from onnxfi.faults.words import Mask
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import load, parse
from onnxfi.graph.passes.instrument import ActivationFault, bake
from onnxfi.graph.protection.range_restriction import Bounds, FilterNonFinite, Restricted, RestrictRanges

ROOT = Path(__file__).parents[3]
SPECIAL = [-0.0, 0.0, np.nan, np.inf, -np.inf, 2.5, -2.5, 0.5, -0.5, 1.0, -1.0, 100.0]
NUMBER = {"float16": 10, "float32": 1, "float64": 11}


def identity(dtype: str, opset: int = 18) -> onnx.ModelProto:
    kind = NUMBER[dtype]
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Neg", ["n"], ["t"]),
        helper.make_node("Abs", ["t"], ["y"]),
    ]
    nodes.append(helper.make_node("Neg", ["t"], ["z"]))
    ports = [helper.make_tensor_value_info(name, kind, ["N", 2, 6]) for name in "xyz"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(proto: onnx.ModelProto, x: Any, outputs: list[str] | None = None) -> Any:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, {session.get_inputs()[0].name: x})


def oracle(x: Any, bounds: Bounds, action: str) -> Any:
    """The definition, element by element."""
    channels = (lambda k: (0, k)[bounds.axis is not None]) if bounds.axis in (None, 1) else None
    assert channels is not None
    out = x.copy()
    for place in np.ndindex(*x.shape):
        c = channels(place[1])
        low, high, middle = bounds.low[c], bounds.high[c], bounds.middle[c]
        v = float(x[place])
        if action == "filter":
            nearest = min(max(0.0, low), high)
            v = v if np.isfinite(v) else nearest
        elif np.isnan(v):
            v = {"clip": v, "zero": 0.0, "average": middle}[action]
        elif not low <= v <= high:
            v = {"clip": min(max(v, low), high), "zero": 0.0, "average": middle}[action]
        out[place] = v
    return out


@pytest.mark.parametrize("dtype", NUMBER)
@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("action", ["clip", "zero", "average", "filter"])
def test_numbers_outside_become_what_the_action_says(dtype: str, opset: int, axis: int | None, action: Any) -> None:
    bounds = Bounds((-1.0,), (2.0,), None, (0.25,)) if axis is None else Bounds((-1.0, 0.5), (2.0, 4.0), 1, (0.25, 1.0))
    one = Restricted("t", dtype, 3, bounds)
    edit = FilterNonFinite((one,)) if action == "filter" else RestrictRanges((one,), action)
    made, names = edit.run(identity(dtype, opset))
    onnx.checker.check_model(made)
    assert names == ("t",)
    x = np.array(SPECIAL, dtype).reshape(1, 2, 6)
    y, z = run(made, x)
    wanted = oracle(x, bounds, action)
    assert np.array_equal(y, np.abs(wanted), equal_nan=True) and np.array_equal(z, -wanted, equal_nan=True)


def test_a_graph_output_keeps_its_name_and_every_reader_sees_the_restriction() -> None:
    made = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N] x, bool c) => (float[N] t, float[N] y) {
        t = Neg(x)  y = If(c)<then_branch = p () => (float[N] a) { a = Identity(t) }, else_branch = q () => (float[N] b) {
        b = Abs(t) }> }"""
    )
    done, _ = RestrictRanges((Restricted("t", "float32", 1, Bounds((-1.0,), (1.0,))),)).run(made)
    session = ort.InferenceSession(done.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.array([-3, 0.5, 7], np.float32)
    assert [v.tolist() for v in session.run(None, {"x": x, "c": np.array(True)})] == [[1, -0.5, -1], [1, -0.5, -1]]
    assert session.run(["y"], {"x": x, "c": np.array(False)})[0].tolist() == [1, 0.5, 1]
    assert "t.unrestricted" in [name for node in done.graph.node for name in node.output]


@pytest.mark.parametrize("action", ["clip", "zero", "average"])
def test_a_fault_is_caught_in_the_optimised_graph(action: Any, tmp_path: Path) -> None:
    """Bit 30 of an activation: the runtime fuses Relu and Clip where no fault lies between, and never moves the fault."""
    model = load(ROOT / "models/fashion_cnn.onnx")
    x = np.load(ROOT / "models/fashion_test.npz")["image"][:8]
    bounds = Bounds((0.0,), (4.0,), None, (0.5,))
    protected, _ = RestrictRanges(
        tuple(Restricted(name, "float32", None, bounds) for name in ("relu", "relu_1")), action
    ).run(parse(model))
    for proto, caught in ((parse(model), False), (protected, True)):
        (site,) = [a for a in activations(load(proto)) if a.name == "relu"]
        faulty = bake(proto, [ActivationFault(site, k, Mask(0xFFFFFFFF, 1 << 30)) for k in range(0, 9000, 300)])
        golden, found = run(proto, x)[0], run(faulty, x)[0]
        assert bool(np.abs(found - golden).max() < 100) is caught
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(protected.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kept = onnx.load(tmp_path / "optimised.onnx").graph.node
    restricting = [n for n in kept if n.op_type in ("Clip", "Where") or any(a.s == b"Clip" for a in n.attribute)]
    assert len(restricting) >= 2, [n.op_type for n in kept]


@pytest.mark.parametrize("level", ["DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"])
def test_a_faulty_weight_is_caught_where_relu_and_clip_are_fused(level: str, tmp_path: Path) -> None:
    """The runtime makes one operator of Conv, Relu and the restriction: what it puts out still lies in the bounds."""
    model = load(ROOT / "models/fashion_cnn.onnx")
    x = np.load(ROOT / "models/fashion_test.npz")["image"][:8]
    proto, _ = RestrictRanges((Restricted("relu", "float32", 4, Bounds((0.0,), (4.0,))),)).run(parse(model))
    weight = next(t for t in proto.graph.initializer if t.name == "conv1.weight")
    words = np.frombuffer(weight.raw_data, np.uint32).copy()
    words[::9] ^= 1 << 30
    weight.raw_data = words.tobytes()
    proto.graph.output.append(helper.make_tensor_value_info("max_pool2d", 1, None))
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    pooled = session.run(["max_pool2d"], {"image": x})[0]
    assert pooled.max() == 4 and pooled.min() >= 0, "4 is reached, so a number was held there"
    kept = onnx.load(tmp_path / "optimised.onnx").graph.node
    fused = not any(n.op_type == "Relu" and "conv2d" in n.input for n in kept)
    assert fused is (level != "DISABLE_ALL"), [n.op_type for n in kept]


@pytest.mark.parametrize(
    ("tensors", "opset", "message"),
    [
        (
            [Restricted("r", "float32", 1, Bounds((0.0,), (1.0,)))],
            17,
            "no activation 'r' in the model; known: 'n', 't'",
        ),
        ([Restricted("t", "float32", 3, Bounds((0.0,), (1.0,)))], 10, "range needs opset 11, the model has 10"),
        ([Restricted("t", "float32", 3, Bounds((2.0,), (1.0,)))], 17, "bounds of 't' are no range of finite numbers"),
        ([Restricted("t", "float32", 3, Bounds((0.0,), (np.inf,)))], 17, "bounds of 't' are no range of finite numb"),
        ([Restricted("t", "float32", 2, Bounds((0.0,) * 2, (1.0,) * 2, 2))], 17, "'t' has no axis 2 of channels"),
    ],
)
def test_impossible_restrictions_are_refused(tensors: list[Restricted], opset: int, message: str) -> None:
    proto = identity("float32", opset)
    for edit in (RestrictRanges(tuple(tensors)), FilterNonFinite(tuple(tensors))):
        with pytest.raises(ModelError, match=message.replace("range needs", "needs")):
            edit.run(proto)


def test_a_restricted_model_is_not_restricted_again() -> None:
    edit = RestrictRanges((Restricted("t", "float32", 3, Bounds((0.0,), (1.0,))),))
    made, _ = edit.run(identity("float32"))
    with pytest.raises(ModelError, match="carries the protection range already, as behind 't'"):
        edit.run(made)
