"""Conversion from Keras 3: a `.keras` or `.h5` file, a model, or `module:factory`; each layer keeps its name."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.errors import ConversionError, InputError
from onnxfi.runtime.engine.ports import Array, Port

from . import naming, shapes
from .conversion import (
    OPSET,
    Check,
    Converted,
    Exported,
    check_output,
    conversion_error,
    named_outputs,
    source_name,
    write_checked,
)  # fmt: skip
from .installed_frameworks import quiet, require, version
from .sources import call_factory, existing_path, is_factory
from .tensorflow import export_function, package_version, port_of

if TYPE_CHECKING:
    import onnx

#: The name scope of a layer, by number; TensorFlow adds a suffix to a scope that is opened again.
_SCOPE = "onnxfi.{}."
_SCOPED = re.compile(r"(?:^|.*/)onnxfi\.(\d+)\.(?:_\d+)?(?:/|$)")


#: Classes for training by the module that holds them.
_IN_TRAINING = {"FaultAwareTraining": "keras_training", "QuantisationAwareTraining": "keras_qat"}


def convert(
    source: Any,
    out: str | Path,
    *,
    input_shape: str | Sequence[str] = (),
    opset: int | None = None,
    data: str | Path | Mapping[str, Array] | None = None,
    samples: int = 8,
    tolerance: float = 1e-4,
) -> Converted:
    """Convert a Keras 3 model with tf2onnx, compare it with Keras, and write it to `out`.

    Layers keep their names (`conv2d_3`; nested in another `backbone/conv2d_3`), weights get those of their variables
    (`conv2d_3/kernel`).

    Parameters
    ----------
    source
        A `keras.Model`, a `.keras` or `.h5` file (loaded in safe mode, which runs no code in it), or `module:factory`.
        A `QuantisationAwareTraining` is written in QDQ form, with the integers of its kernels.
    out
        The file to write.
    input_shape
        Shapes that replace those of the model, as `N,28,28,1`.
    opset
        Opset of the file; None is 18.
    data, samples, tolerance
        The check: on the first `samples` of `data` (None: synthetic), to a relative `tolerance`.

    Returns
    -------
    Converted
        The file that was written, and its largest difference from Keras.

    Raises
    ------
    InputError
        For a source that cannot be used.
    ConversionError
        If Keras or tf2onnx fail, with their error text, or the outputs differ by more than the tolerance.
    """
    require("keras")
    path, check = check_output(out), Check(data, samples, tolerance)
    with quiet():
        import keras
        import tensorflow as tf

        if keras.backend.backend() != "tensorflow":
            raise InputError(
                f"keras runs on {keras.backend.backend()} here, and is exported through TensorFlow; set "
                f"KERAS_BACKEND=tensorflow"
            )
        given = _model(source)
        put_quantisers = getattr(given, "put_quantisers", None)  # quantisation-aware training
        model = given if put_quantisers is None else given.model
        ports = _ports(model, shapes.as_tuple(input_shape))
        outputs = _output_names(model)

        def call(*values: Any, of: Any = model) -> dict[str, Any]:
            found = keras.tree.flatten(of(values[0] if len(values) == 1 else list(values), training=False))
            return dict(zip(outputs, found, strict=True))

        paths = list(layers_of(model))
        with _scoped_layers([layer for layer, _ in paths]):
            proto = export_function(call, ports, opset or OPSET)
        _name_by_scopes(proto, [path for _, path in paths])
        prefix = f"{model.name}/"
        variables = {w.path.removeprefix(prefix): keras.ops.convert_to_numpy(w) for w in model.weights}
        matched = naming.match_variables(proto, variables)
        naming.record_owners(proto, matched)
        naming.rename(proto, matched)
        if put_quantisers is not None:
            put_quantisers(proto)
        naming.sort_by_use(proto)
        names = [value.name for value in proto.graph.output]

        def run(feeds: Mapping[str, Array]) -> Mapping[str, Any]:
            found = call(*(tf.constant(feeds[port.name]) for port in ports), of=given)
            return named_outputs(names, [value.numpy() for value in found.values()])

        versions = f"{version('keras')}, tensorflow {package_version()}"
        exported = Exported("keras", versions, source_name(source), proto, run)
        return write_checked(exported, path, check)


def _model(source: Any) -> Any:
    """Return the model; a file is loaded in safe mode."""
    import keras

    model = call_factory(source) if is_factory(source) else source
    if isinstance(model, str | Path):
        path = existing_path(model)
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            if "deserializ" in str(error) and "Lambda" in str(error):
                raise ConversionError(
                    f"{str(path)!r} holds code in a Lambda layer, and is not loaded; build the model in "
                    f"module:factory and load its weights there, or replace the layer by one of Keras",
                    str(error),
                ) from None
            raise conversion_error(
                error, f"Keras cannot load {str(path)!r}", "if it has custom layers, give module:factory"
            ) from None
    if not isinstance(model, keras.Model):
        raise InputError(
            f"{source_name(source)!r} returned a {type(model).__qualname__}, not a keras.Model; return the model itself"
        )
    return model


def _ports(model: Any, texts: Sequence[str]) -> list[Port]:
    """Return the inputs of the model, in the given shapes where there are any."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        if not texts:
            raise InputError(
                "the model was never built, so that its inputs are not known; give --input-shape, as N,28,28,1, or "
                "call it once before you save it"
            )
        names = ["input"] if len(texts) == 1 else [f"input_{k}" for k in range(len(texts))]
        return shapes.parse_ports(texts, names)
    given = {port.name: port for port in shapes.parse_ports(texts, [value.name for value in inputs])}
    return [
        replace(given[value.name], dtype=value.dtype)
        if value.name in given
        else port_of(value.name, value.dtype, list(value.shape))
        for value in inputs
    ]


def _output_names(model: Any) -> list[str]:
    """Return the names of the layers that compute the outputs, numbered where two are equal."""
    names: list[str] = []
    for value in getattr(model, "outputs", None) or [None]:
        history = getattr(value, "_keras_history", None)
        name = history.operation.name if history is not None else "output"
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names


def layers_of(layer: Any, prefix: str = "") -> Iterator[tuple[Any, str]]:
    """Yield every layer of a model with its path, outer ones first."""
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        yield inner, prefix + inner.name
        yield from layers_of(inner, f"{prefix}{inner.name}/")


@contextlib.contextmanager
def replaced_calls(calls: Iterable[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    """Let layers compute by other functions; of a layer that is in two places the first of them."""
    changed: dict[int, tuple[Any, Any]] = {}
    try:
        for layer, call in calls:
            if id(layer) not in changed:
                changed[id(layer)] = layer, vars(layer).get("call")
                object.__setattr__(layer, "call", call)
        yield
    finally:
        for layer, before in changed.values():
            if before is None:
                object.__delattr__(layer, "call")
            else:
                object.__setattr__(layer, "call", before)


def _scoped_layers(layers: Sequence[Any]) -> contextlib.AbstractContextManager[None]:
    """Trace each layer in a scope with its number: TensorFlow adds suffixes to the scopes of Keras."""
    import tensorflow as tf

    def scoped(number: int, call: Callable[..., Any]) -> Callable[..., Any]:
        def call_in_scope(*args: Any, **kwargs: Any) -> Any:
            with tf.name_scope(_SCOPE.format(number)):
                return call(*args, **kwargs)

        return call_in_scope

    return replaced_calls((layer, scoped(number, layer.call)) for number, layer in enumerate(layers))


def _name_by_scopes(proto: onnx.ModelProto, paths: Sequence[str]) -> None:
    """Record the layer of the innermost scope in a node's name, and replace the scopes by its path."""

    def split(name: str) -> tuple[str, str]:
        match = _SCOPED.match(name)
        return (paths[int(match[1])], name[match.end() :]) if match else ("", name)

    naming.record_layers(proto, lambda node: split(node.name)[0])
    naming.rename(proto, {name: "/".join(split(name)) for name in naming.names(proto) if split(name)[0]})


def __getattr__(name: str) -> Any:
    module = _IN_TRAINING.get(name)  # which imports keras; this one does not
    if module is not None:
        require("keras")
        return getattr(importlib.import_module(f".{module}", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
