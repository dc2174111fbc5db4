"""Engines by name: onnxfi's own, and those that installed packages offer by the entry point group `onnxfi.engines`."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

from onnxfi.errors import EngineError, InputError, closest
from onnxfi.extensions import load_extension_class
from onnxfi.runtime.engine.protocols import Engine

#: The group of entry points by which a package offers an engine under the engine's name.
ENTRY_POINTS = "onnxfi.engines"
_BUILT_IN = MappingProxyType(
    {
        "onnxruntime": ("onnx_runtime", "OrtEngine"),
        "openvino": ("openvino", "OpenVinoEngine"),
        "reference": ("reference", "ReferenceEngine"),
    }
)
#: The default engine.
DEFAULT = "onnxruntime"


def engine_names() -> tuple[str, ...]:
    """Return the names of all engines, onnxfi's own first.

    >>> engine_names()[:3]
    ('onnxruntime', 'openvino', 'reference')
    """
    return (*_BUILT_IN, *sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - _BUILT_IN.keys()))


def engine_class(name: str) -> type[Engine]:
    """Return the class of an engine; its runtime is imported only when a model is prepared.

    Raises
    ------
    InputError
        If no engine has that name; the message names the closest.
    EngineError
        If an installed package offers something that is not an engine.
    """
    if name in _BUILT_IN:
        module, class_name = _BUILT_IN[name]
        found: type[Engine] = getattr(import_module(f"onnxfi.runtime.engine.{module}"), class_name)
        return found
    points = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if not points:
        raise InputError(f"no engine {name!r}{closest(name, engine_names())}")
    if len(points) > 1:
        raise EngineError(f"two installed packages offer an engine {name!r}; remove one of them")
    offered: type[Engine] = load_extension_class(points[0], Engine, EngineError)
    if offered.name != name:
        raise EngineError(
            f"entry point {points[0].value!r} says {name!r}, its class {offered.name!r}; give both one name"
        )
    return offered


def engine_of(name: str = DEFAULT, **settings: Any) -> Engine:
    """Return the engine of that name with these settings.

    Parameters
    ----------
    name : str
        Name of the engine, as `engine_names` lists them.
    **settings
        Fields of the engine's class.

    Returns
    -------
    Engine
        The engine, a frozen dataclass.

    Raises
    ------
    InputError
        If there is no such engine, or it does not have a setting.

    Examples
    --------
    >>> engine_of("onnxruntime", provider="cpu", threads=2).name
    'onnxruntime'
    >>> engine_of("reference", threads=2)
    Traceback (most recent call last):
    onnxfi.errors.InputError: engine 'reference' has no setting threads; leave it out (it has none)
    """
    found = engine_class(name)
    known = setting_names(found)
    for given in settings:
        if given not in known:
            has = f"it takes {', '.join(known)}" if known else "it has none"
            raise InputError(f"engine {name!r} has no setting {given}; leave it out ({has})")
    return found(**settings)


def setting_names(engine: type[Engine]) -> tuple[str, ...]:
    """Return the settings that an engine takes: the public fields of its class."""
    fields: Any = dataclasses.fields(engine) if dataclasses.is_dataclass(engine) else ()
    return tuple(f.name for f in fields if f.init and not f.name.startswith("_"))
