"""Sources of a conversion: a model object, a file, a folder, or `module:factory`."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import traceback
from pathlib import Path
from typing import Any

from onnxfi.errors import ConversionError, InputError, closest
from onnxfi.extensions import importable
from onnxfi.runtime.engine.ports import one_line

from .installed_frameworks import FRAMEWORKS, require

_SPEC = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
_PICKLES = (".pkl", ".pickle", ".joblib")


def is_factory(source: object) -> bool:
    r"""Return whether a source is the text `module:factory`, which names a Python function, class or object.

    >>> is_factory("nets.small:make"), is_factory("c:\\net.pt"), is_factory("model.keras")
    (True, False, False)
    """
    return isinstance(source, str) and _SPEC.fullmatch(source) is not None


def call_factory(spec: str) -> Any:
    """Return the model of `module:factory`: the result of a function or class, or the object itself.

    The current folder is searched first. Raises InputError for a missing module or name, ConversionError with the
    traceback for a factory that raises.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise InputError(f"{spec!r} is not of the form module:factory, as nets:make")
    module, name = match.groups()
    try:
        with importable():
            return _made(module, name)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        wanted = (error.name or "").partition(".")[0]
        for framework in FRAMEWORKS.values():
            if wanted in framework.modules:
                require(framework.name)
        raise _factory_error(spec, error) from error
    except (Exception, SystemExit) as error:
        raise _factory_error(spec, error) from error


def _made(module: str, name: str) -> Any:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise InputError(
                f"no module {module!r} in the current folder or installed; run onnxfi in the folder of {module}.py"
            ) from None
        raise
    if not hasattr(found, name):
        names = [n for n in vars(found) if not n.startswith("_")]
        raise InputError(f"module {module!r} has no {name!r}{closest(name, names)}")
    factory = getattr(found, name)
    return factory() if inspect.isclass(factory) or inspect.isroutine(factory) else factory


def _factory_error(spec: str, error: BaseException) -> ConversionError:
    summary = one_line(error, limit=160)
    return ConversionError(
        f"the factory {spec!r} raised {type(error).__name__}: {summary}; call it in Python first", _traceback(error)
    )


def _traceback(error: BaseException) -> str:
    """Return the traceback of the user's code, without the frames of onnxfi and of the import system."""
    full = traceback.TracebackException.from_exception(error)
    frames = [f for f in full.stack if f.filename != __file__ and not f.filename.startswith("<frozen importlib")]
    importer = os.path.join("importlib", "__init__.py")
    full.stack = traceback.StackSummary.from_list([f for f in frames if not f.filename.endswith(importer)])
    return "".join(full.format(chain=False)).rstrip()


def framework_of(source: object) -> str:
    """Return the framework of a model object, a file or a folder; raise InputError if it is unknown.

    >>> framework_of("cnn.keras"), framework_of("weights.safetensors")
    ('keras', 'torch')
    """
    if not isinstance(source, str | Path):
        for kind in type(source).__mro__:
            package = kind.__module__.partition(".")[0]
            if package in FRAMEWORKS:
                return package
        raise InputError(
            f"a {type(source).__module__}.{type(source).__qualname__} is not a model of {', '.join(FRAMEWORKS)}; "
            f"give a module, model or estimator"
        )
    path = Path(source)
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "tensorflow"
        raise InputError(f"the folder {str(path)!r} is not a SavedModel: it has no saved_model.pb")
    for framework in FRAMEWORKS.values():
        if path.suffix in framework.suffixes:
            return framework.name
    if path.suffix in _PICKLES:
        raise InputError(
            f"{str(path)!r} is a pickle, which runs code when it is loaded; give module:factory, a function "
            f"of your own that loads it"
        )
    if path.suffix == ".onnx":
        raise InputError(f"{str(path)!r} is an ONNX file already; run onnxfi inspect on it")
    known = ", ".join(suffix for framework in FRAMEWORKS.values() for suffix in framework.suffixes)
    raise InputError(
        f"cannot tell the framework of {str(path)!r}; give module:factory, a SavedModel folder or a "
        f"file ending in {known}"
    )


def existing_path(source: str | Path) -> Path:
    """Return the path of an existing file or folder; raise InputError if there is none."""
    path = Path(source)
    if not path.exists():
        raise InputError(f"no file {str(path)!r}; check the path, or give module:factory")
    return path
