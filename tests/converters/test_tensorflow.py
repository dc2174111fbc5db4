"""TensorFlow to ONNX: SavedModels, by Keras and by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import framework_models
import numpy as np
import pytest

from onnxfi.converters import convert
from onnxfi.errors import InputError
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

pytestmark = [pytest.mark.frameworks("keras", "tensorflow", "tf2onnx"), pytest.mark.filterwarnings("ignore")]
Layers = Callable[[Path], dict[str, str]]


def test_a_saved_model_of_keras_keeps_its_layers(here: Path, layers: Layers) -> None:
    framework_models.keras_cnn().export("saved", verbose=False)
    done = convert("saved", "out.onnx")
    named = {
        "conv2d_3/kernel": "conv2d_3",
        "dense/kernel": "dense",
        "dense_1/kernel": "dense_1",
        "dense_1/bias": "dense_1",
    }
    assert named.items() <= layers(done.out).items()
    assert (done.framework, done.inputs[0].name, done.outputs[0].name) == ("tensorflow", "image", "output_0")
    assert done.inputs[0].shape == ("N", 28, 28, 1) and done.relative < 1e-5


def test_a_module_of_ones_own(here: Path, layers: Layers) -> None:
    import tensorflow as tf

    tf.saved_model.save(framework_models.tf_module(), "saved")
    done = convert("saved", "out.onnx")
    assert layers(done.out) == {"linear/kernel": "linear", "linear/bias": "linear"}
    answer = OrtEngine(provider="cpu").prepare(done.out).run({"x": np.eye(4, dtype=np.float32)})["scores"]
    assert answer == pytest.approx(np.arange(12).reshape(4, 3) / 10 + [1, 2, 3])


def test_what_cannot_be_used(here: Path) -> None:
    import tensorflow as tf

    Path("damaged").mkdir()
    Path("damaged/saved_model.pb").write_bytes(b"junk" * 9)
    with pytest.raises(InputError, match="'damaged' is not a loadable SavedModel"):
        convert("damaged", "out.onnx")
    tf.saved_model.save(tf.Module(), "empty")
    with pytest.raises(InputError, match="the SavedModel has no signature"):
        convert("empty", "out.onnx")
    with pytest.raises(InputError, match="no file 'nowhere'"):
        convert("nowhere", "out.onnx", framework="tensorflow")
    assert not Path("out.onnx").exists()


def test_an_operator_that_onnx_does_not_have(here: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    spec = [tf.TensorSpec([None, 3, 3], tf.float32, name="x")]
    module.serve = tf.function(lambda x: {"y": tf.linalg.svd(x, compute_uv=False)}, input_signature=spec)
    tf.saved_model.save(module, "saved")
    with pytest.raises(InputError, match="Svd"):
        convert("saved", "out.onnx")
    assert not Path("out.onnx").exists()
