"""Keras 3 to ONNX: files in safe mode, models, names of layers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import framework_models
import pytest
from jsonschema import Draft202012Validator

from onnxfi.converters import convert
from onnxfi.converters.keras import replaced_calls
from onnxfi.errors import InputError

pytestmark = [pytest.mark.frameworks("keras", "tensorflow", "tf2onnx"), pytest.mark.filterwarnings("ignore")]
Layers = Callable[[Path], dict[str, str]]
Run = Callable[..., tuple[int, str, str]]
JSON = Path(__file__).parents[2] / "docs" / "reference" / "json.md"


@pytest.mark.parametrize(
    ("factory", "named"),
    [
        (
            "keras_cnn",
            {
                "conv2d_3/kernel": "conv2d_3",
                "dense/kernel": "dense",
                "dense/bias": "dense",
                "dense_1/kernel": "dense_1",
                "dense_1/bias": "dense_1",
            },
        ),
        (
            "keras_nested",
            {
                "backbone/inner/kernel": "backbone/inner",
                "shared/kernel": "shared",
                "embedding/embeddings": "embedding",
                "mha/query/kernel": "mha/query",
                "lstm/lstm_cell/kernel": "lstm/lstm_cell",
                "head_a/kernel": "head_a",
                "head_b/kernel": "head_b",
            },
        ),
    ],
)
def test_layers_and_weights_bear_the_names_of_the_source(
    here: Path, layers: Layers, factory: str, named: dict[str, str]
) -> None:
    done = convert(f"framework_models:{factory}", "out.onnx")
    assert named.items() <= layers(done.out).items()
    assert (done.opset, done.framework, done.relative < 1e-5) == (18, "keras", True)
    assert all(port.shape is not None and port.shape[0] == "N" for port in (*done.inputs, *done.outputs))


def test_inputs_and_outputs_keep_their_names_and_layers_their_order(here: Path) -> None:
    done = convert("framework_models:keras_cnn", "out.onnx")
    assert ([p.name for p in done.inputs], [p.name for p in done.outputs]) == (["image"], ["softmax"])
    assert done.layers == ("conv2d_3", "batch_normalization", "dense", "dense_1")


def test_the_model_stays_as_it_was(here: Path) -> None:
    model = framework_models.keras_cnn()
    convert(model, "out.onnx")
    assert not [layer.name for layer in model.layers if "call" in vars(layer)]
    model.save("after.keras")


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_files_and_what_is_printed(here: Path, run: Run, file: str) -> None:
    framework_models.keras_cnn().save(file)
    code, out, err = run("convert", file, "-o", "out.onnx", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    texts = re.findall(r"```json\n(.*?)\n```", JSON.read_text(encoding="utf-8"), re.S)
    (schema,) = (s for s in map(json.loads, texts) if s["title"] == "onnxfi convert")
    Draft202012Validator(schema).validate(found)
    assert found["source"] == file and found["inputs"] == [
        {"name": "image", "dtype": "float32", "shape": ["N", 28, 28, 1]}
    ]
    code, out, err = run("convert", file, "-o", "out.onnx", "--opset", 13, "--input-shape", "1,28,28,1")
    assert (code, err) == (0, "") and "opset 13" in out and "[1,28,28,1]" in out
    assert "largest difference from keras: " in out and out.splitlines()[-1].startswith("wrote out.onnx, sha256 ")


@pytest.mark.parametrize("file", ["lambda.keras", "lambda.h5"])
def test_a_file_that_holds_code_is_not_opened(here: Path, file: str) -> None:
    import keras

    layers = [keras.layers.Input((3,)), keras.layers.Lambda(lambda x: x * 2)]
    keras.Sequential(layers).save(file)
    with pytest.raises(InputError, match=f"'{file}' holds code in a Lambda layer, and is not loaded"):
        convert(file, "out.onnx")
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.keras"], "no file 'none.keras'"),
        (["bad.keras"], "Keras cannot load 'bad.keras'"),
        (["bad.h5"], "Keras cannot load 'bad.h5'"),
        (["framework_models:three", "--from", "keras"], "not a keras.Model"),
        (["framework_models:keras_cnn", "--opset", "20"], "tf2onnx cannot write opset 20; use 9 to 18"),
        (["framework_models:keras_cnn", "--input-shape", "N,28,28,1", "--input-shape", "N,3"], "2 input shapes, but the model takes 1"),
        (["framework_models:keras_cnn", "--data", "none.npz"], "no data at 'none.npz'"),
    ],
)  # fmt: skip
def test_bad_input(here: Path, run: Run, words: list[str], message: str) -> None:
    for name in ("bad.keras", "bad.h5"):
        Path(name).write_bytes(b"junk" * 50)
    code, out, err = run("convert", *words, "-o", "out.onnx")
    assert (code, out) == (2, "") and message in err.splitlines()[-1], err
    assert not Path("out.onnx").exists()


def test_a_model_that_was_never_built(here: Path) -> None:
    import keras

    def unbuilt() -> Any:
        return keras.Sequential([keras.layers.Dense(4, name="only")])

    with pytest.raises(InputError, match="the model was never built"):
        convert(unbuilt(), "out.onnx")
    done = convert(unbuilt(), "out.onnx", input_shape="N,3")
    assert done.inputs[0].shape == ("N", 3) and done.layers == ("only",)


def test_calls_are_replaced_within_replaced_ones_and_put_back() -> None:
    class Layer:
        def call(self) -> str:
            return "own"

    layer: Any = Layer()
    with replaced_calls([(layer, lambda: "outer")]):
        outer = layer.call
        with replaced_calls([(layer, lambda: outer() + "+inner"), (layer, lambda: "never")]):
            assert layer.call() == "outer+inner"
        assert layer.call() == "outer"
    assert layer.call() == "own" and not vars(layer)
