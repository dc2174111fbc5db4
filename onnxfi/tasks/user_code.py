"""Code that a user names as ``module:name``, imported from the current folder or from what is installed."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module
from typing import Any

from onnxfi.errors import InputError
from onnxfi.runtime.engine.ports import one_line


def imported(spec: str, what: str) -> Any:
    """Return what ``module:name`` leads to; InputError, which calls it `what`, for anything that goes wrong.

    >>> imported("math:floor", "function")(2.5)
    2
    """
    module, _, name = spec.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return getattr(import_module(module), name)
    except (Exception, SystemExit) as error:
        raise InputError(f"{what} {spec!r} cannot be loaded: {type(error).__name__}: {one_line(error)}") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
