"""The reference engine: what it reads of a model, and every refusal in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxfi.errors import EngineError, ModelError
from onnxfi.runtime.engine.reference import ReferenceEngine

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
X = np.array([1, -2], np.float32)


def model(text: str, **stored: np.ndarray) -> bytes:
    made = parser.parse_model(f"{HEAD} {text}")
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    return made.SerializeToString()


def test_initializers_that_are_inputs_may_be_fed_and_need_not_be() -> None:
    session = ReferenceEngine().prepare(model("g (float[2] x, float[2] w) => (float[2] y) { y = Mul(x, w) }", w=X))
    assert ([p.name for p in session.inputs], [p.name for p in session.overridable]) == (["x"], ["w"])
    assert session.run({"x": X})["y"].tolist() == [1, 4]
    assert session.run({"x": X, "w": 2 * X})["y"].tolist() == [2, 8]


def test_outputs_are_those_that_are_asked_for() -> None:
    session = ReferenceEngine().prepare(model("g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x) z = Abs(x) }"))
    assert session.run({"x": X}, ["z"]).keys() == {"z"} and session.run({"x": X}, []) == {}
    with pytest.raises(EngineError, match="the model has no output 'none'; known: 'y', 'z'"):
        session.run({"x": X}, ["none"])


def test_outputs_that_are_no_tensors_are_listed_apart() -> None:
    session = ReferenceEngine().prepare(
        model("g (float[2] x) => (float[2] y, seq(float[2]) s) { y = Neg(x) s = SequenceConstruct(x, y) }")
    )
    assert [port.name for port in session.outputs] == ["y"] and session.non_tensors.keys() == {"s"}
    assert session.run({"x": X}).keys() == {"y"}


def test_types_that_a_model_leaves_open_are_inferred() -> None:
    proto = parser.parse_model(f"{HEAD} g (float[N,2] x) => (float[N,2] y) {{ y = Cast<to = 7>(x) }}")
    proto.graph.output[0].ClearField("type")
    [port] = ReferenceEngine().prepare(proto.SerializeToString()).outputs
    assert (port.dtype, port.shape) == ("int64", ("N", 2))


def test_files_with_external_data_are_read(tmp_path: Path) -> None:
    proto = onnx.ModelProto.FromString(model("g (float[2] x) => (float[2] y) { y = Mul(x, w) }", w=X))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert ReferenceEngine().prepare(tmp_path / "m.onnx").run({"x": X})["y"].tolist() == [1, 4]


def test_refusals_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a file; give the path of an \.onnx file"):
        ReferenceEngine().prepare(tmp_path / "none.onnx")
    for wrong in (b"no model", model("g (float[2] x) => (float[2] y) { y = NoSuch(x) }")):
        with pytest.raises(EngineError, match=r"^the reference evaluator refuses the model: ") as refused:
            ReferenceEngine().prepare(wrong)
        assert "\n" not in str(refused.value)
    session = ReferenceEngine().prepare(model("g (float[A] x, float[B] z) => (float[C] y) { y = Add(x, z) }"))
    with pytest.raises(EngineError, match=r"^the reference evaluator failed on this batch: ") as failed:
        session.run({"x": X, "z": np.zeros(3, np.float32)})
    assert "\n" not in str(failed.value)


def test_numbers_that_are_not_finite_are_answers_and_no_warnings() -> None:
    session = ReferenceEngine().prepare(model("g (float[2] x) => (float[2] y) { y = Sub(x, x) }"))
    assert np.isnan(session.run({"x": np.array([np.nan, np.inf], np.float32)})["y"]).all()


def test_the_version_is_that_of_the_package() -> None:
    assert ReferenceEngine().version == f"onnx {onnx.__version__}"
