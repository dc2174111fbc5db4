"""Quantisation-aware training in Keras: the integers of the quantised file, the accuracy, bad input."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from onnxfi import QuantisationRecipe, Selector, load, open_data, quantize
from onnxfi.errors import InputError

keras = pytest.importorskip("keras", reason="Keras is not installed: bash scripts/test.sh frameworks")
pytestmark = [pytest.mark.frameworks("keras", "tensorflow"), pytest.mark.filterwarnings("ignore")]

from onnxfi.converters import keras_qat  # noqa: E402
from onnxfi.converters.keras import QuantisationAwareTraining, convert  # noqa: E402

layers = keras.layers


def model() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            layers.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="conv"),
            layers.BatchNormalization(momentum=0.5, name="norm"),
            layers.Flatten(),
            layers.Dense(3, name="fc"),
        ]
    )


def data() -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 3, 240)
    return (chance.random((240, 8, 8, 1)) * 0.5 + labels[:, None, None, None] * 0.25).astype(np.float32), labels


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any]:
    net = model()
    training = QuantisationAwareTraining(net)
    training.compile(
        keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    training.fit(*data(), batch_size=24, epochs=6, verbose=0)
    return net, training


def test_the_quantised_file_stores_the_integers_that_were_trained(trained: tuple[Any, Any], tmp_path: Path) -> None:
    net, training = trained
    images, labels = data()
    done = convert(net, tmp_path / "trained.onnx")
    np.savez(tmp_path / "data.npz", image=images, labels=labels)
    recipe = QuantisationRecipe("static", per_channel=True)
    quantize(load(done.out), recipe, tmp_path / "int8.onnx", data=open_data(tmp_path / "data.npz", done.inputs))
    held = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "int8.onnx").graph.initializer]
    integers = {array.shape: array for array in held if array.dtype == np.int8 and array.ndim > 1}
    kernel = np.array(net.get_layer("fc").kernel)
    expected = np.array(keras_qat.fake_kernel(net.get_layer("fc").kernel.value)) / (np.abs(kernel).max(0) / 127)
    np.testing.assert_array_equal(integers[kernel.shape], np.rint(expected))
    score = training.evaluate(images, labels, verbose=0)[1]
    assert score > 0.9


def test_the_wrapper_is_written_in_qdq_form_with_its_own_ranges(trained: tuple[Any, Any], tmp_path: Path) -> None:
    net, training = trained
    done = convert(training, tmp_path / "qdq.onnx", tolerance=0.02)
    proto = onnx.load(done.out)
    held = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    for name in ("conv", "fc"):
        kernel, integers = np.array(net.get_layer(name).kernel), held[f"{name}/kernel_quantized"]
        scale = np.maximum(np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / np.float32(127), 1e-9)
        wanted = np.rint(kernel / scale).astype(np.int8)
        np.testing.assert_array_equal(integers, wanted.transpose(3, 2, 0, 1) if name == "conv" else wanted)
        assert integers.dtype == np.int8 and f"{name}/kernel" not in held
        low, high = np.array(training.ranges[list(training.quantised).index(name)])
        assert held[f"{name}/input_scale"] == np.float32((high - low) / np.float32(255))
    images, _ = data()
    session = onnxruntime.InferenceSession(done.out, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"image": images})
    wanted = training.predict(images, verbose=0)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
    assert np.mean(found.argmax(1) == wanted.argmax(1)) == 1
    roles = {t.id: (t.role, t.dtype, t.layer) for t in load(done.out).targets}
    assert roles["fc/kernel_quantized"] == ("weight", "int8", "fc") and roles["fc/kernel_scale"][0] == "scale"


def test_a_layer_that_is_used_twice_is_stored_once(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    series, shared = keras.Input((12, 4), name="series"), layers.Dense(4, activation="relu", name="shared")
    hidden = shared(shared(layers.Conv1D(4, 3, padding="same", name="conv")(series)))
    net = keras.Model(series, layers.Dense(3, name="fc")(layers.Flatten()(hidden)))
    training = QuantisationAwareTraining(net)
    training.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(48, 12, 4)).astype(np.float32)
    training.fit(x, x[:, 0, :3], epochs=1, verbose=0)
    done = convert(training, tmp_path / "qdq.onnx", tolerance=0.02)
    nodes = onnx.load(done.out).graph.node
    kernels = [n.input[0] for n in nodes if n.op_type == "DequantizeLinear" and "kernel" in n.input[0]]
    assert kernels == [f"{name}/kernel_quantized" for name in ("conv", "shared", "fc")]
    assert sum(n.op_type == "QuantizeLinear" for n in nodes) == 4
    [found] = onnxruntime.InferenceSession(done.out, providers=["CPUExecutionProvider"]).run(None, {"series": x})
    wanted = training.predict(x, verbose=0)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


def test_the_model_is_trained_and_its_answers_are_rounded(trained: tuple[Any, Any]) -> None:
    net, training = trained
    images, _ = data()
    plain, rounded = net.predict(images, verbose=0), training.predict(images, verbose=0)
    assert 0 < np.abs(plain - rounded).max() < 0.2 * np.abs(plain).max()
    assert "call" not in vars(net.get_layer("fc")) and int(training.seen) == 60
    low, high = np.array(training.ranges[0])
    assert low == 0 and 0.9 < high <= images.max()
    assert not np.allclose(np.array(net.get_layer("norm").moving_mean), 0), "moving averages are kept"


def test_layers_are_selected_and_others_refused() -> None:
    assert QuantisationAwareTraining(model(), selector=Selector(include=("conv",))).quantised == ("conv",)
    with pytest.raises(InputError, match="no selected layer of Dense, Conv1D"):
        QuantisationAwareTraining(model(), selector=Selector(include=("=nothing",)))
    with pytest.raises(InputError, match=r"must be a keras\.Model"):
        QuantisationAwareTraining("model")
    half = keras.Sequential([layers.Input((3,)), layers.Dense(2, dtype="float16")])
    with pytest.raises(InputError, match="needs float32"):
        QuantisationAwareTraining(half)


def test_the_examples_of_the_docstrings() -> None:
    assert doctest.testmod(keras_qat).failed == 0
