"""Outputs of a quantised model beside those of the float model: how far they lie apart, and when that is too far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from onnxfi.errors import EngineError
from onnxfi.graph.model.loading import load
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Port
from onnxfi.runtime.quantize.quantized_outputs import distance_to_float, relative_error

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
X = np.arange(12, dtype=np.float32).reshape(4, 3)


def product(folder: Path, name: str, factor: float, nodes: str = "y = Mul(x, w)") -> Path:
    model = parser.parse_model(f"{HEAD} g (float[N,3] x) => (float[N,3] y) {{ {nodes} }}")
    model.graph.initializer.append(numpy_helper.from_array(np.array([factor], np.float32), "w"))
    onnx.save(model, folder / name)
    return folder / name


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9), st.floats(-2, 2, width=16))
def test_a_share_of_the_numbers_is_that_far_away(numbers: list[float], share: float) -> None:
    golden = np.array(numbers)
    found = relative_error({"y": golden}, {"y": golden * (1 + share)})
    assert found == pytest.approx(abs(share) if golden.any() else 0.0, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("golden", "found", "distance"),
    [
        ([0.0, 0.0], [0.0, 3.0], 3.0),
        ([np.nan, 4.0], [7.0, 4.0], 0.0),
        ([1.0, 4.0], [np.nan, 4.0], np.inf),
        ([1.0, 4.0], [1.0, 4.0, 0.0], np.inf),
        (["a", "b"], ["c", "d"], 0.0),
        ([1, 2], [3, 4], 0.0),
    ],
)
def test_what_counts_and_how_far_it_lies(golden: list[object], found: list[object], distance: float) -> None:
    assert relative_error({"y": np.array(golden)}, {"y": np.array(found)}) == distance


def test_the_farthest_output_counts() -> None:
    one = {"y": np.array([1.0]), "z": np.array([2.0])}
    assert relative_error(one, {"y": np.array([1.5]), "z": np.array([2.2])}) == 0.5


def test_what_is_made_lies_as_far_away_as_its_weights(tmp_path: Path) -> None:
    model, notes = load(product(tmp_path, "m.onnx", 1.0)), list[str]()
    data = open_data({"x": X}, [Port("x", "float32", ("N", 3))])
    assert distance_to_float(model, product(tmp_path, "q.onnx", 1.25), "dynamic", data, notes) == 0.25
    assert distance_to_float(model, product(tmp_path, "q.onnx", 1.0), "dynamic", None, notes) == 0 and not notes


def test_what_lies_too_far_away_or_does_not_load_is_refused(tmp_path: Path) -> None:
    model, notes = load(product(tmp_path, "m.onnx", 1.0)), list[str]()
    with pytest.raises(EngineError, match="the outputs of what mode static made lie 200% away from the float model's"):
        distance_to_float(model, product(tmp_path, "q.onnx", 3.0), "static", None, notes)
    with pytest.raises(EngineError, match=r"ONNX Runtime refuses what mode static made: .*; leave the node out with"):
        distance_to_float(model, product(tmp_path, "r.onnx", 1.0, "y = NoSuch(x)"), "static", None, notes)


def test_a_float_model_that_does_not_run_is_remarked_on(tmp_path: Path) -> None:
    wrong, notes = load(product(tmp_path, "m.onnx", 1.0, "s = Shape(w) y = Reshape(x, s)")), list[str]()
    data = open_data({"x": X}, [Port("x", "float32", ("N", 3))])
    assert distance_to_float(wrong, product(tmp_path, "q.onnx", 1.0), "fp16", data, notes) is None
    [note] = notes
    assert note.startswith("the outputs were not compared with the float model's, which does not run: ")
