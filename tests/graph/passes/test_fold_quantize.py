"""Folding a QuantizeLinear over a stored float weight: the runtime's own integers, and the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import protobuf_reader
import pytest
import quantized_models
from onnx import TensorProto
from quantized_models import X, node, tensor

from onnxfi.graph.model.loading import load
from onnxfi.graph.passes.fold_quantize import fold_weight_quantize

KINDS = {"int8": 3, "uint8": 2, "int16": 5, "int4": 22, "uint4": 21}


def trained(kind: int, axis: int | None, block: int = 0, *, constant: bool = False) -> onnx.ModelProto:
    """A weight as quantisation-aware training leaves it: float32, then QuantizeLinear and DequantizeLinear."""
    weight = np.random.default_rng(1).normal(0, 0.4, (8, 4)).astype(np.float32)
    weight.flat[:4] = [9.0, -9.0, 0.05, 0.15]  # beyond the range, and ties
    shape = () if axis is None else (8 // block, 4) if block else ((8, 4)[axis],)
    scale = np.full(shape, 0.1, np.float32) * np.linspace(1, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    zero = np.full(shape, 1 if kind in (3, 5, 22) else 7)
    stored = [tensor("s", scale, 1), tensor("z", zero, kind)]
    given = {} if axis is None else {"axis": axis} | ({"block_size": block} if block else {})
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["wq"], **given),
        node("DequantizeLinear", ["wq", "s", "z"], ["wd"], **given),
        node("MatMul", ["x", "wd"], ["y"]),
    ]
    if constant:
        nodes.insert(0, node("Constant", [], ["w"], value=tensor("w", weight, 1)))
    else:
        stored.append(tensor("w", weight, 1))
    return quantized_models.build(nodes, stored, X, opset=21)


def run(model: bytes, output: str = "y") -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run([output], {"x": X})[0]


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("axis", "block"), [(None, 0), (0, 0), (1, 0), (0, 4)])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_integers_are_the_runtimes_and_the_answers_stay(
    kind: int, axis: int | None, block: int, constant: bool, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(trained(kind, axis, block, constant=constant), path)
    before = path.read_bytes()
    model = load(path)
    assert any("'w' is stored as float32" in note for note in model.notes)
    folded = fold_weight_quantize(model)
    proto = onnx.load_from_string(folded)
    onnx.checker.check_model(proto)
    assert path.read_bytes() == before  # nothing is changed in place
    assert np.array_equal(run(folded), run(before))
    found = load(folded)
    assert not found.notes
    target = next(t for t in found.targets if t.role == "weight")
    assert (target.id, target.dtype, target.scheme and target.scheme.name) == (
        "wq", {v: k for k, v in KINDS.items()}[kind], "QDQ",
    )  # fmt: skip
    if kind in (2, 3):
        shown = onnx.load(path)
        shown.graph.output.append(onnx.helper.make_tensor_value_info("wq", kind, [8, 4]))
        runtimes = run(shown.SerializeToString(), "wq")
        assert np.array_equal(quantized_models.numbers(protobuf_reader.read(folded), "wq"), runtimes)


def test_what_has_nothing_to_fold_stays(tmp_path: Path) -> None:
    made = quantized_models.qdq_matmul().model
    folded = onnx.load_from_string(fold_weight_quantize(load(made)))
    assert folded == made
    assert TensorProto.FLOAT in {t.data_type for t in folded.graph.initializer}
