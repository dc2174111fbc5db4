"""Fault-aware training in Keras 3 on TensorFlow: a model with faults in the weights or activations of another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from onnxfi.errors import InputError, NonFiniteLossError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.space import Index, Selector, Target
from onnxfi.faults.trials import Faults
from onnxfi.faults.words import Words
from onnxfi.runtime.engine.ports import Array

from .keras import layers_of, replaced_calls
from .training import (
    FaultSettings,
    InjectionPlan,
    TrainingFaults,
    nonfinite_loss,
    read_words,
    replace_words,
    resolve_faults,
    target_of,
)


class FaultAwareTraining(TrainingFaults, keras.Model):
    """A Keras model that injects faults into the weights or activations of another while it trains.

    Compile and fit it in place of `model`, which is not changed and is what is exported. Every batch of training is a
    step: each selected bit flips with probability `ber` (or is changed as `fault` says), drawn from `seed` and the
    number of the step. Gradients pass straight through to the weights, which stay fault-free. In evaluation there are
    no faults. The class of the same name for PyTorch has the same parameters and errors; `fit` itself counts epochs.

    Parameters
    ----------
    model
        The model to train.
    ber
        Probability of a fault at each selected site, per bit or, for fault models of whole words, per word.
    selector
        Selection of weights by their paths (`conv2d/kernel`), or of layers where `target` is "activations"; None
        selects all.
    fault
        Fault model.
    target
        "weights" or "activations".
    seed
        Seed of every draw.
    from_epoch
        First epoch with faults, counted from 0.
    clip
        Clip faulty numbers to ±clip; None does not.
    count
        Number of faulty sites at every step, instead of `ber`: in the selected weights together, or of neurons in each
        selected module or layer, faulty in every sample.
    permanent
        Keep the faults of the first step in every step.

    Raises
    ------
    SelectorError
        If nothing is selected.
    InputError
        For a model that cannot be wrapped, or a setting out of range.
    NonFiniteLossError
        In training, where a gradient is not finite, before any weight changes.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="fc1"), keras.layers.Dense(2)])
    >>> training = FaultAwareTraining(model, ber=0.01, selector=Selector(include=("fc1/kernel",), bits="0-29"), seed=1)
    >>> _ = training(np.ones((5, 4), np.float32), training=True)
    >>> int(training.step), [str(fault.site) for fault in training.last_faults[0]]
    (1, ['fc1/kernel[0]:2', 'fc1/kernel[3]:0', 'fc1/kernel[9]:11'])
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        ber: float | None = None,
        selector: Selector | None = None,
        fault: str | FaultModel = "flip",
        target: str = "weights",
        seed: int = 0,
        from_epoch: int = 0,
        clip: float | None = None,
        count: int | None = None,
        permanent: bool = False,
    ) -> None:
        refuse_model(model)
        super().__init__(name=f"{model.name}_with_faults")
        settings = FaultSettings(ber, selector or Selector(), fault, seed, target, from_epoch, clip, count, permanent)
        self.model = model
        self.supports_jit = False  # faults are drawn on the host, which XLA does not call
        layers = dict((path, layer) for layer, path in layers_of(model))
        targets = _weights(model) if target == "weights" else _outputs(layers)
        self.plan = InjectionPlan(settings, tuple(targets), _DESCRIPTIONS[target])
        #: Training steps so far; it is saved with the weights, so that resumed training continues the draws.
        self.step = keras.Variable(0, dtype="int64", trainable=False, name="step")
        self._layer_of = layers if target == "activations" else {}
        self._state = _HostState()
        self.built = True

    @property
    def last_faults(self) -> tuple[Faults, ...]:
        """The faults of the last step with their words, over the faulty targets."""
        return tuple(self._state.last)

    def begin_epoch(self, epoch: int) -> None:
        """Note that an epoch begins, counted from 0: for a custom training loop, `fit` calls it itself."""
        self._state.epoch = epoch

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile as `keras.Model.compile`; XLA is error, since faults are drawn on the host at every step."""
        if kwargs.get("jit_compile") is True:
            raise InputError("jit_compile=True compiles a step with XLA, which cannot draw new faults; leave it out")
        super().compile(*args, **kwargs)

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Train like `keras.Model.fit`; raise NonFiniteLossError before weights change from a non-finite gradient."""
        given = [] if callbacks is None else callbacks if isinstance(callbacks, list) else [callbacks]
        begin_epoch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs=None: self.begin_epoch(epoch))
        self._state.error = None
        try:
            return super().fit(*args, callbacks=[begin_epoch, *given], **kwargs)
        except tf.errors.OpError:
            if self._state.error is not None:
                raise self._state.error from None
            raise

    def call(self, inputs: Any, training: Any = None) -> Any:
        """Run the model, with faults in training."""
        if not training:
            return self.model(inputs, training=training)
        self.step.assign(self.step + 1)
        number = tf.identity(self.step.value)
        variables = _parameters(self.model)
        faulty = self._faulty_weights(number, [tf.convert_to_tensor(v.value) for v in variables])
        mapping = list(zip(variables, faulty, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope, self._output_hooks(number):
            outputs = self.model(inputs, training=True)
        parameters = {id(variable) for variable in variables}
        for variable in self.model.variables:  # moving averages, states of generators
            if id(variable) not in parameters and (value := scope.get_current_value(variable)) is not None:
                variable.assign(value)
        return outputs

    # ------------------------------------------------------------------------------------------- faults in a step

    def _faulty_weights(self, number: Any, values: list[Any]) -> list[Any]:
        """Return the faulty weights of a step; in the backward pass each finite gradient passes unchanged."""
        names = [path_of(self.model, v) for v in _parameters(self.model)]

        @tf.custom_gradient
        def straight_through(*given: Any) -> Any:
            after = tf.numpy_function(self._inject_step, [number, *given], [v.dtype for v in given])
            for one, value in zip(after, given, strict=True):
                one.set_shape(value.shape)

            def backward(*gradients: Any) -> list[Any]:
                found = zip(names, gradients, strict=True)
                return [self._checked(number, name, gradient) for name, gradient in found]

            return after, backward

        return list(straight_through(*values))

    def _inject_step(self, number: Any, *values: Array) -> list[Array]:
        """Return the weights of one step; it runs on the host."""
        self._state.last = []
        if self.settings.target != "weights" or not self._has_faults():
            return [np.asarray(value) for value in values]
        given = dict(zip(self._variables(), map(np.asarray, values), strict=True))
        targets, trial = self.plan.targets, self.settings.trial(int(number))
        found, final_words = resolve_faults(
            self.plan.faults(trial),
            lambda k, index: read_words(given[targets[k].id], targets[k].word, index),
            self.settings.clip,
        )
        for k, (index, words) in final_words.items():
            given[targets[k].id] = replace_words(given[targets[k].id], targets[k].word, index, words)
        self._state.last = [found]
        return list(given.values())

    def _has_faults(self) -> bool:
        try:
            return self.settings.begun(self._state.epoch)
        except InputError as error:
            self._state.error = error
            raise

    def _checked(self, number: Any, name: str, gradient: Any) -> Any:
        """Return the gradient unchanged; fail where it is not finite."""
        dense = tf.convert_to_tensor(gradient)

        def check(step: Any, finite: Any) -> Any:
            if not finite:
                self._state.error = nonfinite_loss(self.settings, int(step), name, self.last_faults)
                raise self._state.error
            return np.bool_(True)

        finite = tf.reduce_all(tf.math.is_finite(dense))
        with tf.control_dependencies([tf.numpy_function(check, [number, finite], tf.bool)]):
            return tf.identity(dense)

    @contextlib.contextmanager
    def _output_hooks(self, number: Any) -> Iterator[None]:
        """Inject faults into the outputs of the selected layers; a layer that is used twice draws twice."""
        if self.settings.target != "activations":
            yield
            return
        counts = [0]
        targets = [(self._layer_of[target.id], target) for target in self.plan.space.targets]
        with replaced_calls((layer, self._faulty_call(layer, target, number, counts)) for layer, target in targets):
            yield

    def _faulty_call(self, layer: Any, target: Target, number: Any, counts: list[int]) -> Callable[..., Any]:
        call = layer.call

        def faulty_call(*args: Any, **kwargs: Any) -> Any:
            def one(value: Any) -> Any:
                counts[0] += 1
                return self._faulty_output(value, target, counts[0] - 1, number)

            return keras.tree.map_structure(one, call(*args, **kwargs))

        return faulty_call

    def _faulty_output(self, value: Any, known: Target, output: int, number: Any) -> Any:
        """Return an activation with its faults; one that is not selected, or no float, is returned as it is."""
        if not tf.is_tensor(value) or not value.dtype.is_floating or not value.shape.rank:
            return value

        @tf.custom_gradient
        def straight_through(given: Any) -> Any:
            after = tf.numpy_function(inject, [number, given], given.dtype)
            after.set_shape(given.shape)
            return after, lambda gradient: gradient

        def inject(step: Any, given: Array) -> Array:
            given = np.asarray(given)
            if not self._has_faults() or not given.size:
                return given
            shape = given.shape[1:]
            target = target_of(known.id, given.dtype.name, shape, "activation", known.op, known.layer)
            if target is None or not self.settings.selector.selects(target):
                return given
            faults = self.settings.draw_activations(target, len(given), output, int(step))
            word = target.word
            faults, final_words = resolve_faults(
                faults, lambda _, index: read_words(given, word, index), self.settings.clip
            )
            self._state.last.append(faults)
            return replace_words(given, word, *final_words[0]) if final_words else given

        return straight_through(value)

    # ----------------------------------------------------------------------------------------- weights of the model

    def _variables(self) -> dict[str, Any]:
        return {path_of(self.model, variable): variable for variable in _parameters(self.model)}

    def _weights(self) -> dict[str, Array]:
        return {name: np.array(variable.value) for name, variable in self._variables().items()}

    _arrays = _weights

    def _restore(self, weights: Mapping[str, Any]) -> None:
        for name, variable in self._variables().items():
            variable.assign(weights[name])

    def _read(self, number: int, index: Index) -> Words:
        target = self.plan.targets[number]
        return read_words(np.asarray(self._variables()[target.id].value), target.word, index)

    def _write(self, final_words: Mapping[int, tuple[Index, Words]]) -> None:
        variables = self._variables()
        for number, (index, words) in final_words.items():
            target = self.plan.targets[number]
            variable = variables[target.id]
            variable.assign(replace_words(np.asarray(variable.value), target.word, index, words))


class _HostState:
    """State of the host's steps, outside the model, so that Keras does not track it."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.last: list[Faults] = []
        self.error: NonFiniteLossError | InputError | None = None


_DESCRIPTIONS = {"weights": "weights in a float format", "activations": "layers inside it"}


def refuse_model(model: Any) -> None:
    """Refuse a model that cannot be wrapped."""
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"keras runs on {keras.backend.backend()} here; faults in training work on TensorFlow: set "
            f"KERAS_BACKEND=tensorflow, or train in PyTorch"
        )
    if not isinstance(model, keras.Model):
        what = f"{type(model).__module__}.{type(model).__qualname__}"
        raise InputError(f"model must be a keras.Model of Keras 3, got a {what}; rebuild models of tf_keras with keras")
    for layer, path in layers_of(model):
        if isinstance(layer, keras.layers.TFSMLayer):
            raise InputError(
                f"layer {path!r} of this graph is a SavedModel, whose weights TensorFlow holds inside it and Keras "
                f"cannot replace for a step; wrap the Keras model that it was saved from"
            )
    if not model.built:
        raise InputError("the model was never built, so that it has no weights yet; call it once, then wrap it")


def path_of(model: Any, variable: Any) -> str:
    """Return a variable's name in the exported file."""
    return str(variable.path).removeprefix(f"{model.name}/")


def _parameters(model: Any) -> list[Any]:
    """Return the trainable variables, also of frozen layers; no moving averages and no states."""
    known = {id(v) for part in (model, *(layer for layer, _ in layers_of(model))) for v in part._trainable_variables}
    return [variable for variable in model.variables if id(variable) in known]


def _weights(model: Any) -> Iterator[Target]:
    owners = {
        id(v): (type(layer).__name__, path) for layer, path in layers_of(model) for v in layer._trainable_variables
    }
    for variable in _parameters(model):
        op, layer = owners.get(id(variable), ("", ""))
        name = path_of(model, variable)
        target = target_of(name, str(variable.dtype), tuple(variable.shape), "initializer", op, layer)
        if target is not None:
            yield target


def _outputs(layers: dict[str, Any]) -> Iterator[Target]:
    """Yield the layers without sublayers, except input layers."""
    for path, layer in layers.items():
        if not any(layers_of(layer)) and not isinstance(layer, keras.layers.InputLayer):
            target = target_of(path, "float32", (1,), "activation", type(layer).__name__, path)
            assert target is not None
            yield target
