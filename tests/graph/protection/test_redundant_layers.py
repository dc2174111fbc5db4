"""Layers that are computed again: outputs stay, the optimiser keeps the copies, and faults in them are seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser

from onnxfi.errors import ModelError, SelectorError
from onnxfi.faults.space import Selector
from onnxfi.faults.words import Mask
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import load, parse
from onnxfi.graph.passes.instrument import ActivationFault, bake
from onnxfi.graph.protection.alarms import ALARM
from onnxfi.graph.protection.checksum import CheckLayers, checkable
from onnxfi.graph.protection.redundant_layers import Layer, RepeatLayers, find_layers

ROOT = Path(__file__).parents[3]
X = np.load(ROOT / "models/fashion_test.npz")["image"][:8]


def run(proto: onnx.ModelProto, optimised: Path | None = None) -> dict[str, Any]:
    options = ort.SessionOptions()
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": X}), strict=True))


def repeated(copies: Literal[2, 3], include: tuple[str, ...] = ()) -> onnx.ModelProto:
    model = load(ROOT / "models/fashion_cnn.onnx")
    return RepeatLayers(find_layers(model, Selector(include=include)), copies).run(parse(model))[0]


@pytest.mark.parametrize("copies", [2, 3])
def test_the_optimiser_does_not_merge_the_copies(copies: Literal[2, 3], tmp_path: Path) -> None:
    run(repeated(copies), tmp_path / "o.onnx")
    kept = Counter(node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node)
    assert kept["Conv"] == kept["Gemm"] == 2 * copies, kept


def test_without_a_guard_the_optimiser_would_merge_them(tmp_path: Path) -> None:
    made = repeated(2)
    guards = {n.output[0]: n.input[0] for n in made.graph.node if n.op_type == "Max" and len(n.input) == 1}
    for node in made.graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = guards.get(name, name)
    run(made, tmp_path / "o.onnx")
    kept = Counter(node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node)
    assert kept["Conv"] == 2 and kept["Gemm"] < 4, kept


def faulty(proto: onnx.ModelProto, name: str, samples: tuple[int, ...]) -> dict[str, Any]:
    (site,) = [a for a in activations(load(proto)) if a.name == name]
    return run(bake(proto, [ActivationFault(site, 5, Mask(0xFFFFFFFF, 1 << 30), sample=s) for s in samples]))


@pytest.mark.parametrize("name", ["conv2d", "conv2d_1", "linear", "conv2d_1.copy"])
def test_a_fault_in_a_layer_or_its_copy_raises_an_alarm_for_its_sample(name: str) -> None:
    made = repeated(2)
    assert run(made)[ALARM].tolist() == [0] * 8
    found = faulty(made, name, (1, 6))
    assert found[ALARM].tolist() == [0, 1, 0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("name", ["conv2d", "conv2d.copy", "linear", "logits.unvoted", "linear.copy2"])
def test_the_majority_overrules_one_fault(name: str) -> None:
    made = repeated(3)
    golden = run(made)["logits"]
    assert golden.tobytes() == run(onnx.load(ROOT / "models/fashion_cnn.onnx"))["logits"].tobytes()
    assert faulty(made, name, (0, 3))["logits"].tobytes() == golden.tobytes()
    assert faulty(made, "relu", (0, 3))["logits"].tobytes() != golden.tobytes(), "no layer that is computed thrice"


def test_alarms_of_two_detectors_add_up() -> None:
    model = load(ROOT / "models/fashion_cnn.onnx")
    made, _ = CheckLayers(checkable(model)).run(repeated(2))
    assert [o.name for o in made.graph.output] == ["logits", ALARM]
    assert faulty(made, "conv2d", (1, 6))[ALARM].tolist() == [0, 2, 0, 0, 0, 0, 2, 0]
    assert faulty(made, "conv2d.copy", (1, 6))[ALARM].tolist() == [0, 1, 0, 0, 0, 0, 1, 0]


def test_a_copy_reads_what_is_computed_and_of_a_format_that_can_be_guarded() -> None:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> g (float[3,N] x, bool[N] c) => (float[2,N] y, float[N] z) <float[2,3] w =
        {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> { y = MatMul(w, x)  z = Cast<to = 1>(c) }"""
    )
    made, _ = RepeatLayers((Layer("y", "float32", False),)).run(proto)
    copy = next(node for node in made.graph.node if "y.copy" in node.output)
    assert copy.input[0] == "w" and copy.input[1] != "x", "the stored one would be copied when the model is loaded"
    with pytest.raises(ModelError, match="'z' cannot be computed again: Cast reads no computed numbers of float16"):
        RepeatLayers((Layer("z", "float32", False),)).run(proto)


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("name", ["fashion_cnn", "fashion_attention"])
def test_no_level_of_optimisation_merges_copies(name: str, level: str, tmp_path: Path) -> None:
    model = load(ROOT / f"models/{name}.onnx")
    counts = []
    for copies in (1, 2, 3):
        proto = parse(model) if copies == 1 else RepeatLayers(find_layers(model), copies).run(parse(model))[0]
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(tmp_path / "o.onnx")
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kept = (node.op_type.removeprefix("Fused") for node in onnx.load(tmp_path / "o.onnx").graph.node)
        counts.append(sum(op in ("Conv", "Gemm", "MatMul") for op in kept))
    assert counts == [counts[0], 2 * counts[0], 3 * counts[0]]


def test_what_cannot_be_computed_again_is_refused() -> None:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> g (float[N,3] x, bool c) => (float[N,3] y, float[N,3] z) {
        y = RandomNormalLike(x)  t = Neg(x)  z = If(c)<then_branch = p () => (float[N,3] a) { a = Abs(t) },
        else_branch = q () => (float[N,3] b) { b = Neg(t) }> }"""
    )
    for name, message in (
        ("y", "RandomNormalLike draws random numbers"),
        ("z", "If holds a graph; leave it out with --exclude"),
        ("w", "no layer 'w'"),
    ):
        with pytest.raises(ModelError, match=message):
            RepeatLayers((Layer(name, "float32", True),)).run(proto)
    made, _ = RepeatLayers((Layer("t", "float32", True),)).run(proto)
    with pytest.raises(ModelError, match="carries the protection duplicate already"):
        RepeatLayers((Layer("t", "float32", True),)).run(made)
    foreign = onnx.ModelProto()
    foreign.CopyFrom(proto)
    foreign.graph.output[0].name = foreign.graph.node[0].output[0] = ALARM
    with pytest.raises(ModelError, match=r"has an output 'onnxfi.alarm' of another meaning; give it another name"):
        RepeatLayers((Layer("t", "float32", True),)).run(foreign)
    model = load(ROOT / "models/fashion_cnn.onnx")
    with pytest.raises(SelectorError, match="--include '=conv3' matches no layer of this model; closest: 'conv2d'"):
        find_layers(model, Selector(include=("=conv3",)))
