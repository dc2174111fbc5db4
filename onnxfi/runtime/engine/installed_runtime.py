"""Installed ONNX Runtime packages, of which there may be only one."""

from __future__ import annotations

import contextlib
import importlib.metadata

_RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
)


def installed_runtimes() -> tuple[str, ...]:
    """Return the installed packages that hold an `onnxruntime` module; more than one overwrite each other.

    >>> len(installed_runtimes()) >= 1
    True
    """
    found = []
    for name in _RUNTIMES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(name)
            found.append(name)
    return tuple(found)


def both_runtimes_warning() -> str | None:
    """One line with the remedy where several ONNX Runtime packages share one folder, else None."""
    found = installed_runtimes()
    if len(found) < 2:
        return None
    keep = "onnxruntime-gpu" if "onnxruntime-gpu" in found else found[0]
    return (
        f"{' and '.join(found)} are installed into one folder and overwrite each other; keep one: "
        f"pip uninstall -y {' '.join(found)} && pip install {keep}"
    )
