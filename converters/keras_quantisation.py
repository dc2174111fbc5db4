"""Quantisation-aware training in Keras 3 on TensorFlow: a model that rounds weights and inputs of another's layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from onnxfi.errors import InputError
from onnxfi.faults.space import Selector

from .keras_training import layers_of, path_of, refuse_model
from .training import target_of

#: Layers whose kernels are quantised; the last axis of each kernel is the output channel.
_LAYERS = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
#: Share by which a range follows the input of a step, and the smallest scale.
_RATE, _SMALLEST = 0.02, 1e-9


class QuantisationAwareTraining(keras.Model):
    """A Keras model that computes another with the rounding of int8 weights and uint8 activations.

    Compile and fit it in place of `model`, whose weights it trains and which is what is exported. Kernels of dense and
    convolutional layers are rounded as symmetric int8 numbers with a scale for each output channel, the inputs of these
    layers as uint8 numbers whose range follows what training feeds; biases and outputs stay as they are. Gradients pass
    straight through the rounding. Quantise the exported file with `onnxfi quantize --per-channel` on data of the same
    kind: its integer weights are those that were trained.

    Parameters
    ----------
    model
        The model to train.
    selector
        Selection of the layers by the paths of their kernels (`conv2d/kernel`), or by layer; None selects all.

    Raises
    ------
    InputError
        For a model without such layers, or one that cannot be wrapped.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="fc1")])
    >>> training = QuantisationAwareTraining(model)
    >>> training.quantised
    ('fc1',)
    """

    def __init__(self, model: keras.Model, *, selector: Selector | None = None) -> None:
        refuse_model(model)
        super().__init__(name=f"{model.name}_quantised")
        self.model = model
        chosen = dict(_chosen(model, selector or Selector()))
        if not chosen:
            kinds = ", ".join(kind.__name__ for kind in _LAYERS)
            raise InputError(f"nothing to quantise: the model has no selected layer of {kinds}")
        #: Paths of the layers whose kernels and inputs are rounded.
        self.quantised = tuple(chosen)
        self._chosen = list(chosen.values())
        #: The lowest and highest input of each, and how many steps they have seen; saved with the weights.
        self.ranges = [
            self.add_weight(name=f"range_{k}", shape=(2,), initializer="zeros", trainable=False)
            for k in range(len(chosen))
        ]
        self.seen = self.add_weight(name="seen", shape=(), dtype="int64", initializer="zeros", trainable=False)
        self.built = True

    def call(self, inputs: Any, training: Any = None) -> Any:
        """Run the model with rounded kernels and inputs; in training the ranges of these follow."""
        kernels = [(layer.kernel, fake_kernel(layer.kernel.value)) for layer in self._chosen]
        ranges: dict[int, Any] = {}
        with keras.StatelessScope(state_mapping=kernels) as scope, self._input_hooks(ranges, bool(training)):
            outputs = self.model(inputs, training=training)
        if training:
            held = {id(layer.kernel) for layer in self._chosen}
            for variable in self.model.variables:  # moving averages, states of generators
                if id(variable) not in held and (value := scope.get_current_value(variable)) is not None:
                    variable.assign(value)
            for number, value in ranges.items():
                self.ranges[number].assign(value)
            self.seen.assign(self.seen + 1)
        return outputs

    @contextlib.contextmanager
    def _input_hooks(self, ranges: dict[int, Any], training: bool) -> Iterator[None]:
        """Round the inputs of the chosen layers; one that is used twice has a range of both."""
        changed = []
        try:
            for number, layer in enumerate(self._chosen):
                object.__setattr__(layer, "call", self._rounded_call(layer, number, ranges, training))
                changed.append(layer)
            yield
        finally:
            for layer in changed:
                object.__delattr__(layer, "call")

    def _rounded_call(self, layer: Any, number: int, ranges: dict[int, Any], training: bool) -> Callable[..., Any]:
        call = layer.call

        def rounded_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            value = ranges.get(number, tf.convert_to_tensor(self.ranges[number].value))
            if training:
                ends = tf.stack([tf.minimum(tf.reduce_min(inputs), 0), tf.maximum(tf.reduce_max(inputs), 0)])
                first = tf.equal(tf.convert_to_tensor(self.seen.value), 0)
                rate = tf.where(first, tf.ones((), ends.dtype), tf.constant(_RATE, ends.dtype))
                value = ranges[number] = tf.stop_gradient(value + rate * (ends - value))
            return call(fake_input(inputs, value), *args, **kwargs)

        return rounded_call


def fake_kernel(kernel: Any) -> Any:
    """Return a kernel as its integers give it, with the gradient of the kernel itself.

    >>> fake_kernel(tf.constant([[127.0, 0.0], [63.4, -127.0]])).numpy().tolist()
    [[127.0, 0.0], [63.0, -127.0]]
    """
    channels = tf.reduce_max(tf.abs(kernel), axis=list(range(len(kernel.shape) - 1)))
    scale = tf.maximum(channels / 127, _SMALLEST)
    rounded = tf.clip_by_value(tf.round(kernel / scale), -127, 127) * scale
    return kernel + tf.stop_gradient(rounded - kernel)


def fake_input(inputs: Any, ends: Any) -> Any:
    """Return an input as uint8 numbers over this range give it; beyond it there is no gradient.

    >>> fake_input(tf.constant([0.0, 3.4, 300.0]), tf.constant([0.0, 255.0])).numpy().tolist()
    [0.0, 3.0, 255.0]
    """
    scale = tf.maximum((ends[1] - ends[0]) / 255, _SMALLEST)
    zero = tf.clip_by_value(tf.round(-ends[0] / scale), 0, 255)
    low, high = -zero * scale, (255 - zero) * scale
    inside = tf.clip_by_value(inputs, low, high)
    rounded = tf.round(inside / scale) * scale
    return inside + tf.stop_gradient(rounded - inside)


def _chosen(model: Any, selector: Selector) -> Iterator[tuple[str, Any]]:
    """Yield the layers that are selected, by path."""
    seen = set()
    for layer, path in layers_of(model):
        if type(layer) in _LAYERS and id(layer) not in seen:
            seen.add(id(layer))
            kernel = layer.kernel
            name, shape = path_of(model, kernel), tuple(kernel.shape)
            target = target_of(name, str(kernel.dtype), shape, "initializer", type(layer).__name__, path)
            if target is not None and selector.selects(target):
                if target.dtype != "float32":
                    raise InputError(f"{name!r} is {target.dtype}; quantisation-aware training needs float32")
                yield path, layer
