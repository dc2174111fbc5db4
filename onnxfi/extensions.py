"""Loading what other packages offer: fault models, passes, engines, tasks and metrics by entry points; libraries."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from onnxfi.errors import InputError, OnnxfiError

Base = TypeVar("Base")


def library(module: str, extra: str) -> Any:
    """Return a module of a package that an extra of onnxfi brings; InputError, with the remedy, where it is absent.

    >>> library("no_such_package.metrics", "metrics")
    Traceback (most recent call last):
    onnxfi.errors.InputError: no_such_package is not installed; pip install 'onnxfi[metrics]'
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise InputError(f"{name} is not installed; pip install 'onnxfi[{extra}]'") from error


def load_extension(point: EntryPoint, error: type[OnnxfiError]) -> Any:
    """Return the object of an entry point, or raise `error` with whatever its package raised."""
    try:
        return point.load()
    except Exception as raised:
        raise error(f"entry point {point.value!r} does not load: {raised}; repair or remove its package") from raised


def load_extension_class(point: EntryPoint, base: type[Base], error: type[OnnxfiError]) -> type[Base]:
    """Return the class of an entry point, a frozen dataclass derived from `base`; raise `error` for anything else."""
    offered = load_extension(point, error)
    if not (isinstance(offered, type) and dataclasses.is_dataclass(offered) and issubclass(offered, base)):
        raise error(f"entry point {point.value!r} is not a frozen dataclass derived from onnxfi.{base.__name__}")
    return offered
