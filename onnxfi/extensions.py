"""Loading of other code: what packages offer by entry points, libraries of extras, what users name `module:name`."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module, invalidate_caches
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from onnxfi.errors import InputError, OnnxfiError, closest

Base = TypeVar("Base")
#: Letters of an error of somebody else's code that a message repeats.
_LONGEST = 300


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


def names_function(spec: str) -> bool:
    """Return True for `module:function`, which is imported and called, in place of a file.

    >>> names_function("own.data:test_set"), names_function("images.npz")
    (True, False)
    """
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", spec) is not None


@contextmanager
def importable(*folders: str) -> Iterator[None]:
    """Find modules in these folders first, then in the current one, then among those that are installed."""
    places = list(dict.fromkeys([*map(os.path.abspath, folders), os.getcwd()]))
    sys.path[:0] = places
    try:
        invalidate_caches()
        yield
    finally:
        for place in places:
            with suppress(ValueError):
                sys.path.remove(place)


def imported(spec: str, *folders: str, what: str = "") -> Any:
    """Return what ``module:name`` leads to; InputError, which calls it `what`, for anything that goes wrong.

    >>> imported("math:floor")(2.5)
    2
    """
    module, _, name = spec.partition(":")
    said = f"{what} {spec!r} cannot be loaded".lstrip()
    with importable(*folders):
        try:
            found = import_module(module)
            if hasattr(found, name):  # which a module may load only now
                return getattr(found, name)
        except (Exception, SystemExit) as error:
            summary = " ".join(str(error).split())[:_LONGEST]
            raise InputError(f"{said}: {type(error).__name__}: {summary}") from error
    raise InputError(f"{said}: module {module!r} has no {name!r}{closest(name, dir(found))}")
