"""The installed package of ONNX Runtime: which one it is, and one line with the remedy where there is none or two.

Packages for other devices all hold the module `onnxruntime`. pip cannot be asked for any one of them, so onnxfi depends
on none: extras bring one where there is none, and what is installed already stays as it is.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from typing import Any

from onnxfi.errors import EngineError

#: Packages that hold the module `onnxruntime`.
RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-silicon",
    "onnxruntime-training",
)
MISSING = (
    "ONNX Runtime, which runs the models, is not installed; pip install 'onnxfi[cpu]', or 'onnxfi[gpu]' for NVIDIA GPUs"
)


def onnxruntime() -> Any:
    """Return the module `onnxruntime`; EngineError with the command that installs it where it is absent or broken.

    >>> onnxruntime().__name__
    'onnxruntime'
    """
    try:
        import onnxruntime as module
    except ImportError as error:
        installed = installed_runtimes()
        if not installed:
            raise EngineError(MISSING) from None
        raise EngineError(f"{_broken(installed)}: {' '.join(str(error).split())}") from error
    if not hasattr(module, "InferenceSession"):  # pip took the files of two packages away with one of them
        raise EngineError(_broken(installed_runtimes()))
    return module


def _broken(installed: tuple[str, ...]) -> str:
    keep = kept_runtime(installed) if installed else "onnxruntime"
    return f"the installation of {keep} is damaged; pip install --force-reinstall --no-deps {keep}"


def kept_runtime(installed: tuple[str, ...]) -> str:
    """Return the package that is kept of several: that for NVIDIA GPUs, which serves CPUs as well, else the first."""
    return "onnxruntime-gpu" if "onnxruntime-gpu" in installed else installed[0]


def installed_runtimes() -> tuple[str, ...]:
    """Return the installed packages that hold an `onnxruntime` module; more than one overwrite each other.

    >>> len(installed_runtimes()) >= 1
    True
    """
    found = []
    for name in RUNTIMES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(name)
            found.append(name)
    return tuple(found)


def both_runtimes_warning() -> str | None:
    """Return one line with the remedy where several ONNX Runtime packages share one folder, else None."""
    found = installed_runtimes()
    if len(found) < 2:
        return None
    return (
        f"{' and '.join(found)} are installed into one folder and overwrite each other; keep one: "
        f"pip uninstall -y {' '.join(found)} && pip install {kept_runtime(found)}"
    )
