"""Converting, without any framework: what is refused, what is compared, how names and large files are written."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxfi.converters import FRAMEWORKS, conversion, convert, naming
from onnxfi.converters.conversion import Check, Exported, difference_of, write_checked
from onnxfi.converters.frameworks import require
from onnxfi.converters.sources import call_factory, framework_of
from onnxfi.errors import ConversionError, InputError, OutputError
from onnxfi.graph.model.loading import load
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

Run = Callable[..., tuple[int, str, str]]
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


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Modules that are not to be found, whatever is installed."""
    gone: set[str] = {module for framework in FRAMEWORKS.values() for module in framework.modules}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find(name))
    return gone


# What is missing


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_missing_extra_is_named_with_the_line_for_pip(name: str, absent: set[str]) -> None:
    with pytest.raises(InputError) as caught:
        require(name)
    assert str(caught.value).endswith(f"which are not installed: pip install 'onnxfi[{name}]'")
    assert all(module in str(caught.value) for module in FRAMEWORKS[name].modules)


def test_users_of_tensorflow_learn_what_else_to_install(absent: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else object())
    with pytest.raises(InputError, match=r"need tf2onnx, which is not installed: pip install tf2onnx$"):
        require("tensorflow")


def test_a_factory_that_needs_what_is_missing(run: Run, absent: set[str]) -> None:
    code, out, err = run("convert", "framework_models:needs_torch", "-o", "x.onnx")
    assert (code, out) == (2, "") and "pip install 'onnxfi[torch]'" in err


def test_a_module_that_raises_when_it_is_imported(here: Path) -> None:
    Path("broken.py").write_text("import nosuchthing_\n")
    with pytest.raises(
        ConversionError, match="'broken:make' raised ModuleNotFoundError: No module named 'nosuchthing_'"
    ):
        call_factory("broken:make")


def test_the_framework_is_inferred_from_the_source(here: Path) -> None:
    Path("saved").mkdir()
    Path("saved/saved_model.pb").touch()
    frameworks = {name: framework_of(name) for name in ("a.pt", "a.pth", "a.safetensors", "a.keras", "a.h5", "saved")}
    assert frameworks == {
        "a.pt": "torch", "a.pth": "torch", "a.safetensors": "torch", "a.keras": "keras", "a.h5": "keras",
        "saved": "tensorflow",
    }  # fmt: skip


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


def test_weights_are_found_by_their_values_whatever_their_order() -> None:
    proto = raw()
    kernel = np.array([[1, 3], [2, 4]], np.float32)
    variables = {"dense/kernel": kernel, "dense/bias": np.array([5, 6], np.float32)}
    assert naming.match_variables(proto, variables) == {"w": "dense/kernel", "b": "dense/bias"}
    assert naming.match_variables(proto, variables | {"twin/bias": variables["dense/bias"]}) == {"w": "dense/kernel"}
    assert naming.match_variables(proto, {"zeros": np.zeros(2, np.float32)}) == {}


def test_renaming_takes_no_name_that_is_taken() -> None:
    proto = raw()
    naming.rename(proto, {"w": "x", "b": "t2", "t": "t2", "none": "z"})
    assert [t.name for t in proto.graph.initializer] == ["w", "t2"]
    assert [list(n.input) for n in proto.graph.node] == [["x", "w"], ["t", "t2"]]
    onnx.checker.check_model(proto)


def test_metadata_keeps_layers_alone() -> None:
    proto = raw()
    node = proto.graph.node[0]
    for key in ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace", "onnxfi.layer"):
        node.metadata_props.add(key=key, value="v")
    proto.metadata_props.add(key="path", value="/home/me")
    naming.clean(proto)
    assert {entry.key for entry in node.metadata_props} == {"pkg.torch.onnx.name_scopes", "onnxfi.layer"}
    assert not proto.metadata_props


def test_layers_survive_the_way_to_another_opset() -> None:
    proto = raw()
    naming.clean(proto)
    for k, node in enumerate(proto.graph.node):
        node.name = f"n{k}"
    naming.record_layers(proto, lambda node: f"layer_{node.op_type}")
    raised = conversion.at_opset(proto, 21, range(18, 19))
    assert [(t.id, t.layer) for t in load(raised).targets] == [("w", "layer_MatMul"), ("b", "layer_Add")]
    with pytest.raises(InputError, match="there is no opset 99; the exporter writes 18 to 18"):
        conversion.at_opset(proto, 99, range(18, 19))


def test_the_public_door_names_what_it_does_not_take() -> None:
    with pytest.raises(InputError, match=r"a builtins\.dict is not a model"):
        convert({}, "x.onnx")
