"""Activations that `inspect_activations` describes, held against what ONNX Runtime puts out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxfi.errors import InputError, SelectorError
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import load
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.inject.activations import inject_activations
from onnxfi.runtime.inject.inspection import inspect_activations
from onnxfi.runtime.inject.neurons import expose_neurons

MODELS = Path(__file__).parents[3] / "models"


@pytest.mark.parametrize("name", ["fashion_cnn", "fashion_attention", "fashion_gru", "fashion_cnn_int8_qdq"])
def test_shapes_formats_and_elements_are_those_of_the_runtime(name: str) -> None:
    path = MODELS / f"{name}.onnx"
    found = inspect_activations(load(path))
    proto = onnx.load(path)
    names = [row["target"] for row in found["activations"]]
    have = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in have)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    arrays = session.run(names, {session.get_inputs()[0].name: np.zeros((3, 1, 28, 28), np.float32)})
    for row, array in zip(found["activations"], arrays, strict=True):
        assert row["dtype"] == array.dtype.name
        assert (row["elements"], row["bits"]) == (array.size // 3, 8 * array.nbytes // 3)
        assert array.shape[row["batch_axis"]] == 3
        assert math.prod(row["sample_shape"]) == row["elements"]
    assert found["totals"]["bits"] == sum(row["bits"] for row in found["activations"])


def test_a_layer_and_its_activation_function_are_one_row() -> None:
    rows = inspect_activations(load(MODELS / "fashion_cnn.onnx"))["activations"]
    assert [[part["op"] for part in row["outputs_of"]] for row in rows] == [
        ["Conv", "Relu"], ["Conv", "Relu"], ["Gemm", "Relu"], ["Gemm"]
    ]  # fmt: skip
    assert [row["outputs_of"][0]["layer"] for row in rows] == ["conv1", "conv2", "fc1", "fc2"]


def test_the_steps_of_a_loop_and_of_an_unrolled_network_are_said() -> None:
    scan = inspect_activations(load(MODELS / "fashion_snn_scan.onnx"), Selector(include=("lif2_spike",)))
    (row,) = (r for r in scan["activations"] if r["neurons"])
    assert (row["loop"], row["iterations"]) == ("Scan", 8)
    assert row["neurons"] == {"layer": "lif2", "role": "spike", "step": None, "steps": 8}
    flat = inspect_activations(load(MODELS / "fashion_snn.onnx"), all=True)
    steps = [r["neurons"] for r in flat["activations"] if r["neurons"] and r["neurons"]["layer"] == "lif3"]
    assert [n["step"] for n in steps if n["role"] == "spike"] == list(range(8))
    assert {n["steps"] for n in steps} == {8}
    exposed = inspect_activations(load(expose_neurons(load(MODELS / "fashion_snn.onnx")).data), all=True)
    assert {"layer": "lif1", "role": "membrane", "step": 7, "steps": 8} in [
        r["neurons"] for r in exposed["activations"]
    ]


def test_the_rows_are_those_that_inject_draws_from() -> None:
    model = load(MODELS / "fashion_cnn.onnx")
    for target, selector in (("activations", Selector(bits="exponent")), ("inputs", Selector()), ("inputs", None)):
        found = inspect_activations(model, selector, target=target)
        done = inject_activations(model, count=1, selector=selector, target=target)
        assert [row["target"] for row in found["activations"]] == [t.id for t in done.space.targets]
        assert found["totals"]["bits"] == done.population
        if target == "inputs":
            assert [row["target"] for row in found["activations"]] == ["image"]
            assert done.inserted[0].activation.target.kind == "input"


def test_data_shows_a_shape_that_the_file_leaves_open(tmp_path: Path) -> None:
    text = "g (float[N,K] x) => (float[N,K] y) { y = Relu(x) }"
    model = load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>{text}'))
    made_up = inspect_activations(model)
    assert "made-up inputs" in made_up["notes"][-1]
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 7), np.float32))
    ports = OrtEngine(provider="cpu").prepare(model.source.data or b"").inputs
    found = inspect_activations(model, data=open_data(tmp_path / "d.npz", ports))
    assert (found["activations"][0]["elements"], found["notes"]) == (7, [])


def test_what_has_no_known_size_has_no_total(tmp_path: Path) -> None:
    text = "g (float[N,K] x) => (float[N,K] y) { y = Other.Unknown(x) }"
    found = inspect_activations(
        load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17, "Other": 1]>{text}')), target="inputs"
    )
    assert found["activations"][0]["elements"] is None and found["totals"]["bits"] is None


def test_wrong_targets_and_selections_are_refused() -> None:
    model = load(MODELS / "fashion_cnn.onnx")
    with pytest.raises(InputError, match="give activations or inputs"):
        inspect_activations(model, target="outputs")
    with pytest.raises(SelectorError, match=r"'conv1'"):
        inspect_activations(model, Selector(include=("conv1",)), target="inputs")
