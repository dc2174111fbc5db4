"""Training frameworks: the packages that each needs, the check that they are installed, and muted logs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from onnxfi.errors import InputError, closest


@dataclass(frozen=True)
class Framework:
    """A training framework. `modules` maps imported modules to pip packages; `suffixes` are those of its files."""

    name: str
    modules: dict[str, str]
    suffixes: tuple[str, ...] = ()


#: A model object belongs to the first framework that defines one of its classes.
FRAMEWORKS: dict[str, Framework] = {
    f.name: f
    for f in (
        Framework("torch", {"torch": "torch", "onnxscript": "onnxscript"}, (".pt", ".pth", ".bin", ".safetensors")),
        Framework("keras", {"keras": "keras", "tensorflow": "tensorflow", "tf2onnx": "tf2onnx"}, (".keras", ".h5")),
        Framework("tensorflow", {"tensorflow": "tensorflow", "tf2onnx": "tf2onnx"}),
        Framework("sklearn", {"sklearn": "scikit-learn", "skl2onnx": "skl2onnx"}),
    )
}


def framework_named(name: str) -> Framework:
    """Return the framework of this name; raise InputError for an unknown one.

    >>> framework_named("pytorch")
    Traceback (most recent call last):
    onnxfi.errors.InputError: no framework 'pytorch'; closest: 'torch'
    """
    if name not in FRAMEWORKS:
        raise InputError(f"no framework {name!r}{closest(name, FRAMEWORKS)}")
    return FRAMEWORKS[name]


def require(name: str) -> None:
    """Raise InputError if a package of the framework is missing, with the pip command that installs it."""
    modules = framework_named(name).modules
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        packages = " ".join(modules[module] for module in missing)
        line = f"'onnxfi[{name}]'" if next(iter(modules)) in missing else packages
        are = "are" if len(missing) > 1 else "is"
        raise InputError(f"models of {name} need {', '.join(missing)}, which {are} not installed: pip install {line}")


def version(package: str) -> str:
    """Return the installed version of the first of these packages (`tensorflow-cpu|tensorflow`), '' for none."""
    for one in package.split("|"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(one)
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what frameworks print, warn and log away from the user; errors still come as exceptions."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read once, when TensorFlow is first imported
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "tensorflow", "tf2onnx", "absl", "skl2onnx")]
    before = [logger.level for logger in loggers]
    root, was = logging.getLogger(), logging.getLogger().disabled
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.disabled = True
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            root.disabled = was
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
