"""Loading what installed packages offer by entry points: fault models, passes, engines, tasks and metrics."""

from __future__ import annotations

import dataclasses
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from onnxfi.errors import OnnxfiError

Base = TypeVar("Base")


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
