"""Quantisation-aware training in Keras 3 on TensorFlow: a model that rounds weights and inputs of another's layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from onnxfi.errors import ConversionError, InputError
from onnxfi.faults.space import Selector
from onnxfi.graph.model.layers import LAYER_KEY
from onnxfi.runtime.engine.ports import Array

from .keras import layers_of, replaced_calls
from .keras_training import path_of, refuse_model
from .training import target_of

if TYPE_CHECKING:
    import onnx

#: Layers whose kernels are quantised; the last axis of each kernel is the output channel.
_LAYERS = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
#: Operators that they become.
_OPERATORS = frozenset(("Conv", "MatMul", "Gemm"))
#: Share by which a range follows the input of a step, and the smallest scale.
_RATE, _SMALLEST = 0.02, 1e-9


class QuantisationAwareTraining(keras.Model):
    """A Keras model that computes another with the rounding of int8 weights and uint8 activations.

    Compile and fit it in place of `model`, whose weights it trains. Kernels of dense and convolutional layers are
    rounded as symmetric int8 numbers with a scale for each output channel, the inputs of these layers as uint8 numbers
    whose range follows what training feeds; biases and outputs stay as they are. Gradients pass straight through the
    rounding. `convert` writes it in QDQ form: the integers of the kernels, and the ranges that training found.

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

    def put_quantisers(self, proto: onnx.ModelProto) -> None:
        """Put the rounding into the float model exported from `model`, in place: int8 kernels, and QDQ at inputs.

        Raises ConversionError for a layer that the exported graph does not have under its name.
        """
        for path, ends in zip(self.quantised, self.ranges, strict=True):
            nodes = [node for node in proto.graph.node if node.op_type in _OPERATORS and _layer_of(node) == path]
            kernels = {t.name: t for t in proto.graph.initializer}
            nodes = [node for node in nodes if node.input[1] in kernels]
            if not nodes:
                raise ConversionError(
                    f"the exporter left no Conv or MatMul with a stored kernel for the layer {path!r}; leave it out "
                    f"with selector, or quantise the float model"
                )
            for node in nodes:
                _store_integers(proto, node, path)
                _quantise_input(proto, node, path, np.array(ends))

    def _input_hooks(self, ranges: dict[int, Any], training: bool) -> contextlib.AbstractContextManager[None]:
        """Round the inputs of the chosen layers; one that is used twice has a range of both."""
        every = enumerate(self._chosen)
        return replaced_calls((layer, self._rounded_call(layer, k, ranges, training)) for k, layer in every)

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


def _layer_of(node: onnx.NodeProto) -> str:
    return next((entry.value for entry in node.metadata_props if entry.key == LAYER_KEY), "")


def _store_integers(proto: onnx.ModelProto, node: onnx.NodeProto, path: str) -> None:
    """Store the kernel of a node as int8 numbers with a scale for each output channel, and dequantise it."""
    from onnx import helper, numpy_helper

    name = node.input[1]
    [held] = [t for t in proto.graph.initializer if t.name == name]
    kernel = numpy_helper.to_array(held)
    last = node.op_type != "Conv" and not any(a.name == "transB" and a.i for a in node.attribute)
    axis = kernel.ndim - 1 if last else 0
    channels = np.abs(kernel).max(axis=tuple(k for k in range(kernel.ndim) if k != axis))
    scale = np.maximum(channels / np.float32(127), np.float32(_SMALLEST)).astype(np.float32)
    shape = [-1 if k == axis else 1 for k in range(kernel.ndim)]
    integers = np.clip(np.rint(kernel / scale.reshape(shape)), -127, 127).astype(np.int8)
    stored = f"{path}/kernel_quantized"
    if all(t.name != stored for t in proto.graph.initializer):
        _store(
            proto,
            **{stored: integers, f"{path}/kernel_scale": scale, f"{path}/kernel_zero": np.zeros(scale.shape, np.int8)},
        )
        words = [stored, f"{path}/kernel_scale", f"{path}/kernel_zero"]
        _insert(
            proto,
            node,
            helper.make_node("DequantizeLinear", words, [f"{stored}/float"], f"{path}/dequantize", axis=axis),
            path,
        )
    node.input[1] = f"{stored}/float"
    if all(name not in other.input for other in proto.graph.node):
        proto.graph.initializer.remove(held)


def _quantise_input(proto: onnx.ModelProto, node: onnx.NodeProto, path: str, ends: Array) -> None:
    """Round the first input of a node to uint8 numbers of a range."""
    from onnx import helper

    scale = np.maximum((ends[1] - ends[0]) / np.float32(255), np.float32(_SMALLEST)).astype(np.float32)
    zero = np.clip(np.rint(-ends[0] / scale), 0, 255).astype(np.uint8)
    words = [f"{path}/input_scale", f"{path}/input_zero"]
    if all(t.name != words[0] for t in proto.graph.initializer):
        _store(proto, **dict(zip(words, (scale, zero), strict=True)))
    integers = f"{path}/{node.input[0].replace('/', '_')}_quantized"
    if all(integers not in other.output for other in proto.graph.node):
        for op, read, made in (
            ("QuantizeLinear", node.input[0], integers),
            ("DequantizeLinear", integers, f"{integers}/float"),
        ):
            _insert(proto, node, helper.make_node(op, [read, *words], [made], f"{integers}/{op}"), path)
    node.input[0] = f"{integers}/float"


def _store(proto: onnx.ModelProto, **arrays: Array) -> None:
    from onnx import numpy_helper

    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items())


def _insert(proto: onnx.ModelProto, before: onnx.NodeProto, node: onnx.NodeProto, layer: str) -> None:
    """Insert a node of a layer before another."""
    node.metadata_props.add(key=LAYER_KEY, value=layer)
    place = next(
        k for k, other in enumerate(proto.graph.node) if other is before or list(other.output) == list(before.output)
    )
    proto.graph.node.insert(place, node)


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
