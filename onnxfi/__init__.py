"""onnxfi: fault injection on deployed ONNX models.

    import onnxfi

    model = onnxfi.load("model.onnx")
    drawn = onnxfi.sample(model, ber=1e-6)
    onnxfi.inject(model, drawn, "faulty.onnx")

The names below are resolved when they are used: importing onnxfi loads neither onnx nor onnxruntime.
"""

import importlib
import os
import pkgutil
import re
from typing import Any

# From 1.29 on ONNX Runtime sends usage data to its maker once it is imported, and leaves a device id and a queue of
# events on disk. It reads this variable once, on import; a value that the user has set is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

#: Each public name with its module. The stub is their one list, which type checkers read too (as in SPEC 1).
_STUB = (pkgutil.get_data(__name__, "__init__.pyi") or b"").decode()
_HOME = {name: module for module, name in re.findall(r"^from (\S+) import (\w+)", _STUB, re.M)}
__all__ = tuple(sorted(_HOME))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("onnxfi")
    if name not in _HOME:
        raise AttributeError(f"module 'onnxfi' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
