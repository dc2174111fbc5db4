"""Conversion of models from training frameworks to ONNX: one module and one optional dependency for each.

    from onnxfi.converters import convert

    convert("nets:make", "cnn.onnx", input_shape="N,1,28,28")

`onnxfi.converters.torch.convert` and its siblings convert from one framework, with the options of that framework.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from .conversion import Converted
from .installed_frameworks import FRAMEWORKS, framework_named, require
from .sources import call_factory, framework_of, is_factory

__all__ = ["FRAMEWORKS", "Converted", "convert"]


def convert(source: Any, out: str | Path, *, framework: str | None = None, **options: Any) -> Converted:
    """Convert a model to ONNX with the converter of its framework.

    Parameters
    ----------
    source
        A model object, a file, a SavedModel folder, or `module:factory`.
    out
        The file to write.
    framework
        "torch", "keras", "tensorflow" or "sklearn"; None infers it from the source.
    **options
        Those of the framework's own `convert`: `input_shape`, `opset`, `data`, `samples`, `tolerance`; for torch also
        `factory`.

    Returns
    -------
    Converted
        The file that was written, and its largest difference from the framework's outputs.

    Raises
    ------
    InputError
        For a source that cannot be used.
    ConversionError
        If the framework or its exporter fails, or the outputs differ by more than the tolerance.

    Examples
    --------
    >>> convert("model.pb.txt", "out.onnx")
    Traceback (most recent call last):
    onnxfi.errors.InputError: cannot tell the framework of 'model.pb.txt'; give module:factory, ...
    """
    model = source
    if framework is None:
        if is_factory(source):
            model = call_factory(source)
        framework = framework_of(model)
    require(framework_named(framework).name)
    converter = importlib.import_module(f"onnxfi.converters.{framework}")
    done: Converted = converter.convert(model, out, **options)
    return done if model is source else replace(done, source=source)
