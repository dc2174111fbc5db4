"""Converting, without any framework: what is refused, what is compared, how names and large files are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxfi.converters import conversion, convert
from onnxfi.converters.conversion import Check, Exported, difference_of, write_checked
from onnxfi.errors import ConversionError, InputError, OutputError
from onnxfi.graph.model.loading import load
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

HEAD = '<ir_version: 8, opset_import: ["": 18, "": 18], producer_name: "x">'
GRAPH = "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float[2] b = {5,6}> { t = MatMul(x, w) y = Add(t, b) }"


def exported(**changes: Any) -> Exported:
    proto = parser.parse_model(HEAD + GRAPH)
    weight, bias = np.array([[1, 2], [3, 4]], np.float32), np.array([5, 6], np.float32)
    values: dict[str, Any] = {
        "framework": "torch", "version": "1", "source": "nets:make", "proto": proto,
        "run": lambda feeds: {"y": feeds["x"] @ weight + bias},
    }  # fmt: skip
    return Exported(**values | changes)


# What is missing


def test_the_place_is_looked_at_before_any_work(here: Path) -> None:
    for out, message in (("no/x.onnx", "no folder 'no'"), (".", "is a directory")):
        with pytest.raises(OutputError, match=message):
            conversion.check_output(out)


# Comparing


def test_a_result_that_agrees_is_written_and_reported(here: Path) -> None:
    done = write_checked(exported(), here / "out.onnx", Check())
    assert (done.largest, done.opset, done.layers, done.words) == (0.0, 18, ("MatMul#0", "Add#1"), 6)
    assert done.digest == load(done.out).digest and [p.name for p in here.iterdir()] == ["out.onnx"]
    made_ = onnx.load(done.out)
    assert made_.ir_version == 10 and len(made_.opset_import) == 1 and made_.producer_name == "torch"


@pytest.mark.parametrize(
    "run",
    [
        lambda feeds: {"y": feeds["x"] * np.float32(1.001)},
        lambda feeds: {"y": np.full((len(feeds["x"]), 2), np.nan, np.float32)},
        lambda feeds: {"y": feeds["x"][:1]},
    ],
    ids=["other", "nan", "shape"],
)
def test_beyond_the_tolerance_nothing_is_written(here: Path, run: Any) -> None:
    with pytest.raises(ConversionError, match="output 'y' of the ONNX model differs from torch's"):
        write_checked(exported(run=run), here / "out.onnx", Check())
    assert not list(here.iterdir())


def test_the_tolerance_is_relative_to_the_largest_value(here: Path) -> None:
    weight, bias = np.array([[1, 2], [3, 4]], np.float32), np.array([5, 6], np.float32)
    near = exported(run=lambda feeds: {"y": (feeds["x"] @ weight + bias) * np.float32(1.01)})
    with pytest.raises(ConversionError, match=r"relative 0\.0099"):
        write_checked(near, here / "out.onnx", Check(tolerance=0.005))
    done = write_checked(near, here / "out.onnx", Check(tolerance=0.02))
    assert 0.0098 < done.relative < 0.01 and done.largest > done.relative


def test_a_source_that_fails_on_the_samples(here: Path) -> None:
    def fails(feeds: Any) -> Any:
        raise ValueError("index out of range")

    with pytest.raises(ConversionError, match="torch fails on the sample inputs: index out of range; give --data"):
        write_checked(exported(run=fails), here / "out.onnx", Check())


@pytest.mark.parametrize("values", [{"samples": 0}, {"tolerance": -1.0}, {"tolerance": float("nan")}])
def test_checks_that_say_nothing(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be"):
        Check(**values)


def test_differences() -> None:
    text = np.array(["a", "b"], object)
    assert difference_of(text, np.array(["a", "b"])) == (0.0, 0.0)
    assert difference_of(text, np.array(["a", "c"]))[0] == np.inf
    infinite = np.array([np.inf, 1.0])
    assert difference_of(infinite, infinite) == (0.0, 0.0) and difference_of(np.ones(2), infinite)[0] == np.inf
    assert difference_of(np.array([3]), np.array([4])) == (1.0, 0.25)


# Files and names


def test_a_model_too_large_for_one_file_keeps_its_weights_beside_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "LARGEST_FILE", 50)
    monkeypatch.setattr(conversion, "SMALL_TENSOR", 4)
    done = write_checked(exported(proto=raw()), here / "out.onnx", Check())
    assert {p.name for p in here.iterdir()} == {"out.onnx", "out.onnx.data"}
    assert done.size_bytes == sum(p.stat().st_size for p in here.iterdir())
    assert done.digest == load(done.out).digest
    answers = OrtEngine(provider="cpu").prepare(done.out).run({"x": np.ones((1, 2), np.float32)})
    assert answers["y"].tolist() == [[9.0, 12.0]]


def raw() -> onnx.ModelProto:
    proto = parser.parse_model(HEAD + GRAPH)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    return proto


def test_the_public_door_names_what_it_does_not_take() -> None:
    with pytest.raises(InputError, match=r"a builtins\.dict is not a model"):
        convert({}, "x.onnx")
