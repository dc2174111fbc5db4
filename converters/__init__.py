"""Models from training frameworks to ONNX: one module for each, behind an extra of its own.

    from onnxfi.converters import convert

    convert("nets:make", "cnn.onnx", input_shape="N,1,28,28")

`onnxfi.converters.torch.convert` and its siblings do the same for one framework, with what only that takes.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from .conversion import Converted
from .frameworks import FRAMEWORKS, named, require
from .sources import framework_of, is_factory, made

__all__ = ["FRAMEWORKS", "Converted", "convert"]


def convert(source: Any, out: str | Path, *, framework: str | None = None, **options: Any) -> Converted:
    """Convert a model to ONNX by the converter of its framework, which is told by the source unless named.

    `source` is a model object, a file, a SavedModel folder, or `module:factory`. `options` are those of the framework's
    own `convert`: `input_shape`, `opset`, `data`, `samples`, `tolerance`, for torch also `factory`.

    >>> convert("model.pb.txt", "out.onnx")
    Traceback (most recent call last):
    onnxfi.errors.InputError: cannot tell the framework of 'model.pb.txt'; give module:factory, ...
    """
    model = source
    if framework is None:
        if is_factory(source):
            model = made(source)
        framework = framework_of(model)
    require(named(framework).name)
    chosen = importlib.import_module(f"onnxfi.converters.{framework}")
    done: Converted = chosen.convert(model, out, **options)
    return done if model is source else replace(done, source=source)
