"""Fault-aware training in Keras: the bits of the ONNX side and of PyTorch, fit, any topology, bad input."""

from __future__ import annotations

import doctest
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxfi import Selector, inject, load, sample
from onnxfi.errors import InputError, SelectorError

for module in ("tensorflow", "keras"):
    pytest.importorskip(module, reason=f"{module} is not installed: bash scripts/test.sh frameworks")
pytestmark = [pytest.mark.frameworks("keras", "tensorflow", "tf2onnx"), pytest.mark.filterwarnings("ignore")]

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from onnxfi.converters import keras_training  # noqa: E402
from onnxfi.converters.keras import FaultAwareTraining, convert  # noqa: E402
from onnxfi.errors import NonFiniteLossError  # noqa: E402

LOW = Selector(bits="0-29,31")


def cnn() -> Any:
    """Two convolutions, the second with a skip connection, and two dense layers; functional."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv1", bias_initializer="normal")(image)
    y = keras.layers.Conv2D(4, 3, padding="same", name="conv2", bias_initializer="normal")(x)
    x = keras.layers.Flatten()(keras.layers.Add()([x, y]))
    x = keras.layers.Dense(7, activation="relu", name="fc1", bias_initializer="normal")(x)
    return keras.Model(image, keras.layers.Dense(10, name="fc2", bias_initializer="normal")(x), name="cnn")


def rows() -> Any:
    """A recurrent layer, normalisation, dropout and attention; the dense layer is used twice."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    given = keras.Input((8, 8, 1))
    x = keras.layers.Reshape((8, 8))(given)
    x = keras.layers.LSTM(8, return_sequences=True)(x)
    x = keras.layers.BatchNormalization()(x)
    shared = keras.layers.Dense(8, name="shared")
    x = shared(shared(x))
    x = keras.layers.MultiHeadAttention(2, 4)(x, x)
    return keras.Model(given, keras.layers.Dense(10)(keras.layers.Flatten()(x)), name="rows")


def image(samples: int = 4) -> Any:
    return np.random.default_rng(1).random((samples, 8, 8, 1), dtype=np.float32)


def words(values: Any) -> Any:
    return np.asarray(values).view(np.uint32)


def named(model: Any) -> dict[str, Any]:
    return {v.path: np.array(v.value) for v in model.variables}


def twin() -> Any:
    """`cnn()` in PyTorch, with the same numbers."""
    import torch

    class Twin(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 4, 3, padding=1)
            self.fc1, self.fc2 = torch.nn.Linear(144, 7), torch.nn.Linear(7, 10)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.conv1(x))
            x = (x + self.conv2(x)).permute(0, 2, 3, 1).flatten(1)
            return self.fc2(torch.relu(self.fc1(x)))

    made, values = Twin(), named(cnn())
    with torch.no_grad():
        for name in ("conv1", "conv2", "fc1", "fc2"):
            layer = getattr(made, name)
            order = (3, 2, 0, 1) if name.startswith("conv") else (1, 0)
            layer.weight.copy_(torch.from_numpy(values[f"{name}/kernel"].transpose(order).copy()))
            layer.bias.copy_(torch.from_numpy(values[f"{name}/bias"]))
    return made


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.parametrize("fault", ["flip", "burst:k=3", "stuck-at-0", "random-word", "noise", "scale:factor=-3"])
def test_one_fault_list_affects_the_same_bits_in_torch_in_keras_and_in_onnx(fault: str, tmp_path: Path) -> None:
    from onnxfi.converters.torch_training import FaultAwareTraining as InTorch

    model, other = cnn(), twin()
    convert(model, tmp_path / "m.onnx")
    exported = load(tmp_path / "m.onnx")
    drawn = sample(exported, ber=0.02, seed=5, fault=fault, selector=Selector(role=("weight", "bias")))
    inject(exported, drawn, tmp_path / "faulty.onnx")
    assert len(drawn.faults) > 10
    in_keras, in_torch = (made(m, ber=0.02) for made, m in ((FaultAwareTraining, model), (InTorch, other)))
    done = in_keras.inject_faults(in_keras.map_faults(exported, drawn.faults))
    also = in_torch.inject_faults(in_torch.map_faults(exported, drawn.faults))
    expected = [(f.before, f.after) for f in drawn.faults]
    assert [(f.before, f.after) for f in done] == [(f.before, f.after) for f in also] == expected
    faulty, values = load(tmp_path / "faulty.onnx"), named(model)
    for name in ("conv1", "conv2", "fc1", "fc2"):
        kernel = values[f"{name}/kernel"]
        order = (3, 2, 0, 1) if name.startswith("conv") else (0, 1)
        stored = next(t for t in faulty.targets if t.layer == name and t.role == "weight")
        in_file = faulty.words(stored, np.arange(stored.size))
        assert stored.shape == kernel.transpose(order).shape
        assert np.array_equal(words(kernel.transpose(order).copy()).ravel(), in_file)
        ours = getattr(other, name).weight.detach().numpy()
        if not name.startswith("conv"):
            ours = ours.T
        assert np.array_equal(words(ours.copy()).ravel(), in_file)
        stored = next(t for t in faulty.targets if t.layer == name and t.role == "bias")
        in_file = faulty.words(stored, np.arange(stored.size))
        assert np.array_equal(words(values[f"{name}/bias"]), in_file)
        assert np.array_equal(words(getattr(other, name).bias.detach().numpy()), in_file)


@pytest.mark.parametrize("made", [cnn, rows])
def test_faults_are_there_in_training_alone_and_the_model_stays(made: Any) -> None:
    model = made()
    training = FaultAwareTraining(model, ber=0.02, selector=LOW, seed=3)
    before = named(model)
    faulty = np.array(training(image(), training=True))
    kernels = {v.path for v in model.trainable_variables}
    assert all(np.array_equal(before[name], named(model)[name]) for name in kernels)
    other = made()
    FaultAwareTraining(other, ber=0.02, selector=LOW, seed=3).inject_faults(trial=1)
    assert np.array_equal(faulty, other(image(), training=True))
    changed = {name for name, value in named(other).items() if not np.array_equal(value, named(model)[name])}
    assert changed <= kernels and len(changed) > 5, "moving averages and states went on alike"
    assert not np.array_equal(faulty, training(image(), training=True)), "every step draws anew"
    assert np.array_equal(training(image()), model(image()))
    assert np.array_equal(training.predict(image(), verbose=0), model.predict(image(), verbose=0))
    assert int(training.step) == 2


def test_gradients_are_those_at_the_faulty_weights_and_pass_straight_through() -> None:
    found = []
    for faulty in (False, True):
        model = cnn()
        training = FaultAwareTraining(model, ber=0.02, selector=LOW, seed=3)
        if faulty:
            training.inject_faults()
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(
                model(image(), training=True) ** 2 if faulty else training(image(), training=True) ** 2
            )
        found.append(tape.gradient(loss, model.trainable_variables))
    for ours, theirs in zip(*found, strict=True):
        assert np.array_equal(ours, theirs) and np.abs(ours).sum() > 0


def test_fit_draws_at_each_step_and_again_the_same_from_the_seed() -> None:
    labels = np.arange(32) % 10

    def fitted(seed: int, **settings: Any) -> tuple[dict[str, Any], Any]:
        model = cnn()
        training = FaultAwareTraining(model, ber=0.01, selector=LOW, seed=seed, **settings)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        training.compile("sgd", loss, metrics=["accuracy"])
        seen: list[int] = []
        recorder = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: seen.append(len(training.last_faults))
        )
        training.fit(image(32), labels, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[recorder])
        assert int(training.step) == 8
        assert seen == ([1] * 8 if not settings else [0] * 4 + [1] * 4), "from the second epoch on"
        assert np.isfinite(training.evaluate(image(32), labels, verbose=0)).all()
        return named(model), training

    first, _ = fitted(1)
    again, _ = fitted(1)
    other, _ = fitted(2)
    later, _ = fitted(1, from_epoch=1)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["conv1/kernel"], other["conv1/kernel"])
    assert not np.array_equal(first["conv1/kernel"], later["conv1/kernel"])


def test_the_step_is_saved_with_the_weights_and_goes_on(tmp_path: Path) -> None:
    first = FaultAwareTraining(cnn(), ber=0.01, selector=LOW, seed=4)
    outputs = [np.array(first(image(), training=True)) for _ in range(2)]
    second = FaultAwareTraining(cnn(), ber=0.01, selector=LOW, seed=4)
    second(image(), training=True)
    second.save_weights(tmp_path / "state.weights.h5")
    third = FaultAwareTraining(cnn(), ber=0.01, selector=LOW, seed=4)
    third.load_weights(tmp_path / "state.weights.h5")
    assert int(third.step) == 1 and np.array_equal(third(image(), training=True), outputs[1])


def test_faults_before_and_after_training() -> None:
    model = cnn()
    training = FaultAwareTraining(model, ber=0.01, seed=2)
    before = named(model)
    with training.faulty(trial=7) as faults:
        inside = named(model)
    assert len(faults) > 100
    assert all(np.array_equal(words(value), words(named(model)[name])) for name, value in before.items())
    training.inject_faults(trial=7)
    assert all(np.array_equal(words(value), words(named(model)[name])) for name, value in inside.items())
    for fault in faults:
        assert words(inside[fault.target]).ravel()[fault.index] != fault.before


def test_faulty_activations_hold_what_the_fault_says_and_gradients_pass() -> None:
    model = cnn()
    training = FaultAwareTraining(
        model, ber=1.0, target="activations", fault="set:value=2", selector=Selector(include=("=fc1",))
    )
    twos = np.full((4, 7), 2.0, np.float32)
    assert np.array_equal(training(image(), training=True), model.get_layer("fc2")(twos))
    assert [p.targets[0].id for p in training.last_faults] == ["fc1"] and len(training.last_faults[0]) == 28
    assert np.array_equal(training(image()), model(image()))
    training = FaultAwareTraining(model, ber=0.001, target="activations", selector=Selector(bits="mantissa"), seed=3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(training(image(), training=True))
    assert all(np.abs(g).sum() > 0 for g in tape.gradient(loss, model.trainable_variables))
    assert [p.targets[0].id for p in training.last_faults] == ["conv1", "conv2", "add", "flatten", "fc1", "fc2"]
    shared = FaultAwareTraining(rows(), ber=0.001, target="activations", selector=Selector(include=("shared",)))
    shared(image(), training=True)
    assert [p.targets[0].id for p in shared.last_faults] == ["shared", "shared"]
    assert shared.last_faults[0].sites.index.tolist() != shared.last_faults[1].sites.index.tolist()


def test_a_nonfinite_loss_is_refused_before_an_update_and_a_clip_prevents_it() -> None:
    model, selector = cnn(), Selector(include=("fc2/kernel",), bits="30")
    before = named(model)
    training = FaultAwareTraining(model, ber=1.0, selector=selector, seed=1)
    training.compile("sgd", "mse")
    with pytest.raises(NonFiniteLossError) as error:
        training.fit(image(), np.zeros((4, 10)), verbose=0)
    text = str(error.value)
    assert "step 1: the loss is not finite" in text and "70 faults injected, the largest number is" in text
    assert "set clip, as clip=1.0" in text and "bits='0-29,31'" in text
    assert all(np.array_equal(value, named(model)[name]) for name, value in before.items())
    held = FaultAwareTraining(model, ber=1.0, selector=selector, seed=1, clip=1.0)
    held.compile("sgd", "mse")
    held.fit(image(), np.zeros((4, 10)), verbose=0)
    assert all(np.isfinite(value).all() for value in named(model).values())


def test_what_cannot_be_wrapped_says_why(tmp_path: Path) -> None:
    model = cnn()
    model.export(tmp_path / "saved", verbose=False)
    layer = keras.layers.TFSMLayer(tmp_path / "saved", call_endpoint="serving_default", name="frozen")
    given = keras.Input((8, 8, 1))
    inside = keras.Model(given, layer(given))
    for source, message in (
        (inside, "layer 'frozen' of this graph is a SavedModel, whose weights TensorFlow holds inside it"),
        (keras.Sequential([keras.layers.Dense(2)]), "the model was never built"),
        (tf.Module(), "must be a keras.Model of Keras 3"),
    ):
        with pytest.raises(InputError, match=message):
            FaultAwareTraining(source, ber=0.1)
    with pytest.raises(InputError, match=r"jit_compile=True compiles a step with XLA"):
        FaultAwareTraining(model, ber=0.1).compile("sgd", "mse", jit_compile=True)
    with pytest.raises(SelectorError, match=r"--include 'conv1/kernal' matches nothing in this model; closest"):
        FaultAwareTraining(model, ber=0.1, selector=Selector(include=("conv1/kernal",)))


def test_frozen_layers_are_faulty_and_stay() -> None:
    model = cnn()
    model.get_layer("conv1").trainable = False
    training = FaultAwareTraining(model, ber=1.0, fault="zero")
    assert "nearly every word is faulty" in training.notes[0]
    before = named(model)
    assert np.array_equal(training(image(), training=True), np.zeros((4, 10)))
    assert all(np.array_equal(value, named(model)[name]) for name, value in before.items())


def test_the_docstrings_examples_run() -> None:
    assert doctest.testmod(keras_training).failed == 0


def test_the_pages_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "training.md").read_text(encoding="utf-8")
    program = page.split("```python\n")[2].split("```")[0]
    model = cnn()
    exec(program, {"model": model, "images": image(32), "labels": np.arange(32) % 10})
    assert load(tmp_path / "trained.onnx").targets
