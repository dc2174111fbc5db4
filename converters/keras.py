"""Keras 3: a `.keras` or `.h5` file, a model, or `module:factory`. Each layer is traced under its own name."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.errors import ConversionError, InputError
from onnxfi.runtime.engine.model_io import Array, Port

from . import naming, shapes
from .conversion import (
    OPSET,
    Check,
    Converted,
    Exported,
    check_output,
    finish,
    foreign,
    named_outputs,
    shown,
)  # fmt: skip
from .frameworks import quiet, require, version
from .sources import existing, is_factory, made
from .tensorflow import package_version, port_of, traced

if TYPE_CHECKING:
    import onnx

#: Put into the scope of what the layer of this number computes; a scope that is opened again gets a suffix.
_MARK = "onnxfi.{}."
_MARKED = re.compile(r"(?:^|.*/)onnxfi\.(\d+)\.(?:_\d+)?(?:/|$)")


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
    """Convert a Keras 3 model with tf2onnx, hold it against Keras, and write it to `out`.

    `source` is a `keras.Model`, a `.keras` or `.h5` file (opened in safe mode: nothing in it is run), or
    `module:factory`. Layers bear their own names (`conv2d_3`; inside another one `backbone/conv2d_3`), weights those of
    their variables (`conv2d_3/kernel`). `input_shape` replaces the model's own shapes, as `N,28,28,1`.

    Raises InputError for a source that cannot be used, ConversionError (with the foreign text) where Keras or tf2onnx
    refuse.
    """
    require("keras")
    place, check = check_output(out), Check(data, samples, tolerance)
    with quiet():
        import keras
        import tensorflow as tf

        if keras.backend.backend() != "tensorflow":
            raise InputError(
                f"keras runs on {keras.backend.backend()} here, and is exported through TensorFlow; set "
                f"KERAS_BACKEND=tensorflow"
            )
        model = _model(source)
        ports = _ports(model, shapes.tuple_of(input_shape))
        outputs = _output_names(model)

        def called(*values: Any) -> dict[str, Any]:
            found = keras.tree.flatten(model(values[0] if len(values) == 1 else list(values), training=False))
            return dict(zip(outputs, found, strict=True))

        paths = list(_layers(model))
        with _marked([layer for layer, _ in paths]):
            proto = traced(called, ports, opset or OPSET)
        _name_by_marks(proto, [path for _, path in paths])
        head = f"{model.name}/"
        variables = {w.path.removeprefix(head): keras.ops.convert_to_numpy(w) for w in model.weights}
        matched = naming.matched(proto, variables)
        naming.record_owners(proto, matched)
        naming.rename(proto, matched)
        naming.sort_by_use(proto)
        names = [value.name for value in proto.graph.output]

        def run(feeds: Mapping[str, Array]) -> Mapping[str, Any]:
            found = called(*(tf.constant(feeds[port.name]) for port in ports))
            return named_outputs(names, [value.numpy() for value in found.values()])

        versions = f"{version('keras')}, tensorflow {package_version()}"
        exported = Exported("keras", versions, shown(source), proto, run)
        return finish(exported, place, check)


def _model(source: Any) -> Any:
    """The model; a file is opened in safe mode."""
    import keras

    model = made(source) if is_factory(source) else source
    if isinstance(model, str | Path):
        path = existing(model)
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            if "deserializ" in str(error) and "Lambda" in str(error):
                raise ConversionError(
                    f"{str(path)!r} holds code, a Lambda layer, and is not opened; build the model in "
                    f"module:factory and load its weights there, or replace the layer by one of Keras'",
                    str(error),
                ) from None
            raise foreign(
                error, f"Keras cannot open {str(path)!r}", "if it has layers of your own, give module:factory"
            ) from None
    if not isinstance(model, keras.Model):
        raise InputError(
            f"{shown(source)!r} gave a {type(model).__qualname__}, not a keras.Model; return the model itself"
        )
    return model


def _ports(model: Any, texts: Sequence[str]) -> list[Port]:
    """What the model takes, in the shapes asked for where there are any."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        if not texts:
            raise InputError(
                "the model was never built, so that its inputs are not known; give --input-shape N,28,28,1, say, or "
                "call it once before it is saved"
            )
        names = ["input"] if len(texts) == 1 else [f"input_{k}" for k in range(len(texts))]
        return shapes.ports(texts, names)
    given = {port.name: port for port in shapes.ports(texts, [value.name for value in inputs])}
    return [
        replace(given[value.name], dtype=value.dtype)
        if value.name in given
        else port_of(value.name, value.dtype, list(value.shape))
        for value in inputs
    ]


def _output_names(model: Any) -> list[str]:
    """The names of the layers that give the outputs, numbered where two would be alike."""
    names: list[str] = []
    for value in getattr(model, "outputs", None) or [None]:
        history = getattr(value, "_keras_history", None)
        name = history.operation.name if history is not None else "output"
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names


def _layers(layer: Any, head: str = "") -> Iterator[tuple[Any, str]]:
    """Every layer inside a model, outer ones first, with its path."""
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        yield inner, head + inner.name
        yield from _layers(inner, f"{head}{inner.name}/")


@contextlib.contextmanager
def _marked(layers: Sequence[Any]) -> Iterator[None]:
    """What each layer computes is traced in a scope with its number: Keras' own scopes get suffixes of TensorFlow's."""
    import tensorflow as tf

    def under(number: int, call: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            with tf.name_scope(_MARK.format(number)):
                return call(*args, **kwargs)

        return marked

    changed = []
    try:
        for number, layer in enumerate(layers):
            if "call" not in vars(layer):  # a layer that is in two places is marked once
                call = under(number, layer.call)
                object.__setattr__(layer, "call", call)
                changed.append(layer)
        yield
    finally:
        for layer in changed:
            object.__delattr__(layer, "call")


def _name_by_marks(proto: onnx.ModelProto, paths: Sequence[str]) -> None:
    """Record the layer whose number is innermost in a node's name, and put its path in the place of the scopes."""

    def split(name: str) -> tuple[str, str]:
        match = _MARKED.match(name)
        return (paths[int(match[1])], name[match.end() :]) if match else ("", name)

    naming.record(proto, lambda node: split(node.name)[0])
    naming.rename(proto, {name: "/".join(split(name)) for name in naming.names(proto) if split(name)[0]})


def __getattr__(name: str) -> Any:
    if name == "FaultAwareTraining":  # its module needs keras to be imported at all, this one does not
        require("keras")
        from .keras_training import FaultAwareTraining

        return FaultAwareTraining
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
