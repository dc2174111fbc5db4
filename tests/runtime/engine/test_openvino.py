"""OpenVINO alone: what it would compute otherwise is refused, and it reports nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from offered_engines import needs_openvino
from onnx import helper, parser

from onnxfi import engine_of, load
from onnxfi.errors import DataError, EngineError
from onnxfi.runtime.inject.activations import instrument

HEADER = '<ir_version: 9, opset_import: ["": 19]>'


def graph(text: str) -> onnx.ModelProto:
    return parser.parse_model(f"{HEADER} {text}")


@pytest.fixture
def openvino() -> None:
    needs_openvino()


@pytest.mark.usefixtures("openvino")
def test_openvino_refuses_integers_that_it_would_clip() -> None:
    session = engine_of("openvino").prepare(
        graph("g (int64[N] x) => (int64[N] y) { y = Add(x, x) }").SerializeToString()
    )
    assert session.run({"x": np.array([3])})["y"].tolist() == [6]
    with pytest.raises(DataError, match="OpenVINO computes int64 as int32; input 'x' holds numbers beyond that"):
        session.run({"x": np.array([1 << 40])})
    double = engine_of("openvino").prepare(
        graph("g (double[N] x) => (double[N] y) { y = Add(x, x) }").SerializeToString()
    )
    assert double.note == "OpenVINO, CPU; float64 is computed as float32"


@pytest.mark.usefixtures("openvino")
def test_openvino_reports_nothing_to_its_maker(tmp_path: Path) -> None:
    program = (
        "import sys; from onnxfi import engine_of; from onnxfi.runtime.engine.protocols import smallest_model;"
        "engine_of('openvino').prepare(smallest_model());"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert (ran.stdout, os.listdir(tmp_path)) == ("[]\n", []), "no identifier is left in the home folder"


def test_openvino_that_is_not_installed_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxfi.runtime.engine.openvino.is_installed", lambda: False)
    with pytest.raises(EngineError, match=r"^openvino is not installed; pip install 'onnxfi\[openvino\]'$"):
        engine_of("openvino").prepare(b"")
    assert engine_of("openvino").version == "openvino, not installed"


@pytest.mark.usefixtures("openvino")
def test_formats_that_numpy_lacks_go_in_and_out_of_openvino() -> None:
    import ml_dtypes

    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["x", "x"], ["y"])], "g", [value("x", 16, ["N"])], [value("y", 16, ["N"])]
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    x = np.array([1.5, -3], ml_dtypes.bfloat16)
    assert engine_of("openvino").prepare(model.SerializeToString()).run({"x": x})["y"].tolist() == [3, -6]


@pytest.mark.usefixtures("openvino")
def test_openvino_refuses_a_model_whose_faults_are_fed() -> None:
    done = instrument(
        load(graph("g (float[N,3] x) => (float[N,3] y) { a = Neg(x) y = Abs(a) }").SerializeToString()), all=True
    )
    with pytest.raises(EngineError, match=r"OpenVINO refuses the model: .*Gather") as caught:
        engine_of("openvino").prepare(done.data)
    assert "\n" not in str(caught.value)
