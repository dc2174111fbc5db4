"""Fault-aware training in Keras 3 on TensorFlow: a model that strikes the weights or activations of another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from onnxfi.errors import InputError, NonFiniteLossError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.space import Selector, Target
from onnxfi.faults.trials import Faults
from onnxfi.graph.model.loading import Model
from onnxfi.runtime.engine.model_io import Array

from .training import Exposure, Plan, carried, outcome, read_array, refusal, target_of, write_array


class FaultAwareTraining(keras.Model):
    """`model` with faults in its weights or activations while it trains, and none while it is evaluated.

    Compile and fit it in the place of `model`, which it does not change and which is what is exported. Every batch of
    training is a step: each selected bit flips with probability `ber` (or whatever `fault` says happens), drawn from
    `seed` and the number of the step. Gradients pass straight through to the weights, which stay as they are.
    `selector` chooses weights by their paths (`conv2d/kernel`), or layers where `place` is "activations"; None takes
    all. `clip` holds struck numbers within ±clip. It is the twin of PyTorch's, and so are the errors; `fit` says itself
    which epoch it is.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="fc1"), keras.layers.Dense(2)])
    >>> training = FaultAwareTraining(model, ber=0.01, selector=Selector(include=("fc1/kernel",), bits="0-29"), seed=1)
    >>> _ = training(np.ones((5, 4), np.float32), training=True)
    >>> int(training.step), [str(fault.site) for fault in training.last[0]]
    (1, ['fc1/kernel[0]:2', 'fc1/kernel[3]:0', 'fc1/kernel[9]:11'])
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        ber: float,
        selector: Selector | None = None,
        fault: str | FaultModel = "flip",
        place: str = "weights",
        seed: int = 0,
        from_epoch: int = 0,
        clip: float | None = None,
    ) -> None:
        _refuse(model)
        super().__init__(name=f"{model.name}_with_faults")
        exposure = Exposure(ber, selector or Selector(), fault, seed, place, from_epoch, clip)
        self.model = model
        self.supports_jit = False  # faults are drawn on the host, which XLA does not call
        layers = dict((path, layer) for layer, path in _layers(model))
        targets = _weights(model) if place == "weights" else _outputs(layers)
        self.plan = Plan(exposure, tuple(targets), _NAMED[place])
        #: Training steps so far; it is saved with the weights, so that training that goes on draws on.
        self.step = keras.Variable(0, dtype="int64", trainable=False, name="step")
        self._layer_of = layers if place == "activations" else {}
        self._state = _State()
        self.built = True

    @property
    def exposure(self) -> Exposure:
        """What strikes, and when."""
        return self.plan.exposure

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should know of these settings, a line each."""
        return (self.plan.crowded,) if self.plan.crowded else ()

    @property
    def last(self) -> tuple[Faults, ...]:
        """The faults of the last step with their words, over the targets that they struck."""
        return tuple(self._state.last)

    def begin_epoch(self, epoch: int) -> None:
        """Say that an epoch begins, counted from 0; a training loop of one's own does, `fit` does so itself."""
        self._state.epoch = epoch

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.compile`; XLA is refused, since faults are drawn on the host at every step."""
        if kwargs.get("jit_compile") is True:
            raise InputError(
                "jit_compile=True makes one XLA program of a step, which cannot ask for new faults; leave it out"
            )
        super().compile(*args, **kwargs)

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """As `keras.Model.fit`. Raises NonFiniteLossError where a gradient is not finite, before any weight changes."""
        given = [] if callbacks is None else callbacks if isinstance(callbacks, list) else [callbacks]
        begins = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs=None: self.begin_epoch(epoch))
        self._state.refused = None
        try:
            return super().fit(*args, callbacks=[begins, *given], **kwargs)
        except tf.errors.OpError:
            if self._state.refused is not None:
                raise self._state.refused from None
            raise

    def call(self, inputs: Any, training: Any = None) -> Any:
        """The model's answer: with faults in training, plainly else."""
        if not training:
            return self.model(inputs, training=training)
        self.step.assign(self.step + 1)
        number = tf.identity(self.step.value)
        variables = _parameters(self.model)
        struck = self._struck(number, [tf.convert_to_tensor(v.value) for v in variables])
        mapping = list(zip(variables, struck, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope, self._hooked(number):
            outputs = self.model(inputs, training=True)
        parameters = {id(variable) for variable in variables}
        for variable in self.model.variables:  # moving averages, states of generators
            if id(variable) not in parameters and (value := scope.get_current_value(variable)) is not None:
                variable.assign(value)
        return outputs

    # ------------------------------------------------------------------------------------------- faults in a step

    def _struck(self, number: Any, values: list[Any]) -> list[Any]:
        """The weights as the step sees them; on the way back each gradient passes unchanged, if it is finite."""
        names = [_path(self.model, v) for v in _parameters(self.model)]

        @tf.custom_gradient
        def passed(*given: Any) -> Any:
            after = tf.numpy_function(self._strike_step, [number, *given], [v.dtype for v in given])
            for one, value in zip(after, given, strict=True):
                one.set_shape(value.shape)

            def back(*gradients: Any) -> list[Any]:
                found = zip(names, gradients, strict=True)
                return [self._checked(number, name, gradient) for name, gradient in found]

            return after, back

        return list(passed(*values))

    def _strike_step(self, number: Any, *values: Array) -> list[Array]:
        """On the host: the weights of one step."""
        self._state.last = []
        if self.exposure.place != "weights" or not self._struck_now():
            return [np.asarray(value) for value in values]
        names = [_path(self.model, v) for v in _parameters(self.model)]
        found, after = self._struck_arrays(self.plan.faults(int(number)), dict(zip(names, values, strict=True)))
        self._state.last = [found]
        return [after[name] for name in names]

    def _struck_now(self) -> bool:
        state = self._state
        if self.exposure.from_epoch and state.epoch is None:
            state.refused = InputError(
                f"faults begin with epoch {self.exposure.from_epoch}, but the epoch is not known: call "
                f"begin_epoch(number) as each epoch begins"
            )
            raise state.refused
        return (state.epoch or 0) >= self.exposure.from_epoch

    def _struck_arrays(self, faults: Faults, values: dict[str, Array]) -> tuple[Faults, dict[str, Array]]:
        targets = self.plan.targets
        done, ends = outcome(
            faults,
            lambda k, index: read_array(np.asarray(values[targets[k].id]), targets[k].word, index),
            self.exposure.clip,
        )
        after = {name: np.asarray(value) for name, value in values.items()}
        for k, (index, words) in ends.items():
            after[targets[k].id] = write_array(after[targets[k].id], targets[k].word, index, words)
        return done, after

    def _checked(self, number: Any, name: str, gradient: Any) -> Any:
        """The gradient as it comes; an error where it is not finite."""
        dense = tf.convert_to_tensor(gradient)

        def check(step: Any, finite: Any) -> Any:
            if not finite:
                self._state.refused = refusal(self.exposure, int(step), name, self.last)
                raise self._state.refused
            return np.bool_(True)

        finite = tf.reduce_all(tf.math.is_finite(dense))
        with tf.control_dependencies([tf.numpy_function(check, [number, finite], tf.bool)]):
            return tf.identity(dense)

    @contextlib.contextmanager
    def _hooked(self, number: Any) -> Iterator[None]:
        """What the selected layers put out is struck; a layer that is used twice draws twice."""
        if self.exposure.place != "activations":
            yield
            return
        changed, counts = [], [0]
        try:
            for target in self.plan.space.targets:
                layer = self._layer_of[target.id]
                if "call" not in vars(layer):  # a layer that is in two places is changed once
                    object.__setattr__(layer, "call", self._striking(layer, target, number, counts))
                    changed.append(layer)
            yield
        finally:
            for layer in changed:
                object.__delattr__(layer, "call")

    def _striking(self, layer: Any, target: Target, number: Any, counts: list[int]) -> Callable[..., Any]:
        call = layer.call

        def struck(*args: Any, **kwargs: Any) -> Any:
            def one(value: Any) -> Any:
                counts[0] += 1
                return self._struck_output(value, target, counts[0] - 1, number)

            return keras.tree.map_structure(one, call(*args, **kwargs))

        return struck

    def _struck_output(self, value: Any, known: Target, place: int, number: Any) -> Any:
        """An activation after its faults; what is no float, or of a format that is not selected, passes."""
        if not tf.is_tensor(value) or not value.dtype.is_floating or not value.shape.rank:
            return value

        @tf.custom_gradient
        def passed(given: Any) -> Any:
            after = tf.numpy_function(strike, [number, given], given.dtype)
            after.set_shape(given.shape)
            return after, lambda gradient: gradient

        def strike(step: Any, given: Array) -> Array:
            given = np.asarray(given)
            if not self._struck_now() or not given.size:
                return given
            shape = given.shape[1:]
            target = target_of(known.id, given.dtype.name, shape, "activation", known.op, known.layer)
            if target is None or not self.exposure.selector.selects(target):
                return given
            faults = self.exposure.activations(target, len(given), place, int(step))
            word = target.word
            faults, ends = outcome(faults, lambda _, index: read_array(given, word, index), self.exposure.clip)
            self._state.last.append(faults)
            return write_array(given, word, *ends[0]) if ends else given

        return passed(value)

    # -------------------------------------------------------------------------------- before and after training

    def strike(self, faults: Faults | None = None, *, trial: int = 1) -> Faults:
        """Put faults into the weights themselves, for a faulty start; returns them with the words before and after.

        They are those of `trial` at this wrapper's rate, or given ones, as `carried` makes them of a fault list.
        """
        if self.exposure.place != "weights":
            raise InputError("only weights are stored and can be struck before or after training; leave place out")
        values = self._values()
        done, after = self._struck_arrays(faults if faults is not None else self.plan.faults(trial), values)
        for variable in _parameters(self.model):
            variable.assign(after[_path(self.model, variable)])
        return done

    @contextlib.contextmanager
    def struck(self, faults: Faults | None = None, *, trial: int = 1) -> Iterator[Faults]:
        """The same for the length of a `with` block, as to evaluate with faults; then the weights are as before."""
        values = self._values()
        try:
            yield self.strike(faults, trial=trial)
        finally:
            for variable in _parameters(self.model):
                variable.assign(values[_path(self.model, variable)])

    def carried(self, model: Model, faults: Faults) -> Faults:
        """Faults of a file that was exported from this model, now, as faults of its weights."""
        return carried(model, faults, self.plan.targets, self._values())

    def _values(self) -> dict[str, Array]:
        return {_path(self.model, v): np.array(v.value) for v in _parameters(self.model)}


class _State:
    """What a step on the host leaves behind; no part of the model, so that Keras tracks none of it."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.last: list[Faults] = []
        self.refused: NonFiniteLossError | InputError | None = None


_NAMED = {"weights": "weights in a float format", "activations": "layers inside it"}


def _refuse(model: Any) -> None:
    """Refuse what cannot be wrapped, and say why."""
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"keras runs on {keras.backend.backend()} here; faults in training work on TensorFlow: set "
            f"KERAS_BACKEND=tensorflow, or train in PyTorch"
        )
    if not isinstance(model, keras.Model):
        what = f"{type(model).__module__}.{type(model).__qualname__}"
        raise InputError(f"a {what} is no keras.Model of Keras 3; models of tf_keras are made anew with keras")
    for layer, path in _layers(model):
        if isinstance(layer, keras.layers.TFSMLayer):
            raise InputError(
                f"layer {path!r} of this graph is a SavedModel, whose weights TensorFlow holds inside it and Keras "
                f"cannot replace for a step; wrap the Keras model that it was saved from"
            )
    if not model.built:
        raise InputError("the model was never built, so that it has no weights yet; call it once, then wrap it")


def _path(model: Any, variable: Any) -> str:
    """A variable's name in the exported file."""
    return str(variable.path).removeprefix(f"{model.name}/")


def _layers(layer: Any, head: str = "") -> Iterator[tuple[Any, str]]:
    """Every layer inside a model, outer ones first, with its path."""
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        yield inner, head + inner.name
        yield from _layers(inner, f"{head}{inner.name}/")


def _parameters(model: Any) -> list[Any]:
    """The variables that training moves, frozen layers' too; no moving averages and no states."""
    known = {id(v) for part in (model, *(layer for layer, _ in _layers(model))) for v in part._trainable_variables}
    return [variable for variable in model.variables if id(variable) in known]


def _weights(model: Any) -> Iterator[Target]:
    owners = {id(v): (type(layer).__name__, path) for layer, path in _layers(model) for v in layer._trainable_variables}
    for variable in _parameters(model):
        op, layer = owners.get(id(variable), ("", ""))
        name = _path(model, variable)
        target = target_of(name, str(variable.dtype), tuple(variable.shape), "initializer", op, layer)
        if target is not None:
            yield target


def _outputs(layers: dict[str, Any]) -> Iterator[Target]:
    """The layers that have none inside; what feeds the model is no layer."""
    for path, layer in layers.items():
        if not any(_layers(layer)) and not isinstance(layer, keras.layers.InputLayer):
            target = target_of(path, "float32", (1,), "activation", type(layer).__name__, path)
            assert target is not None
            yield target
