"""Dry run of a model in a copy of the process: a crash of the runtime ends the copy alone, and is reported in one line.

ONNX Runtime stops the process that opens some models (a division of integers in a kernel, an assertion of C++). The
copy opens a model as it will be opened and runs it on a sample, once in each process; it is on the CPU, since a copy
cannot use a GPU that this process uses. A refusal without a crash is reported when the model is opened
afterwards. Worker processes need no dry run: the process that started them reports a crash.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from onnxfi.errors import CrashError, EngineError, IsolationError
from onnxfi.graph.model.byte_source import quoted
from onnxfi.isolated_call import run_isolated
from onnxfi.runtime.data.open_data import Data, open_data
from onnxfi.runtime.engine.protocols import Engine

#: A model that takes longer is opened without it.
_LONGEST_S = 30
#: Dry runs that are remembered.
_MOST_REMEMBERED = 4096


def dry_run(engine: Engine, model: str | Path | bytes, data: Data | None = None) -> None:
    """Open a model in a copy of this process and run it there, before ONNX Runtime opens it here for the first time.

    It runs on the first sample of `data`, or on a made-up one. EngineError if that crashes the copy. Does nothing
    where processes cannot be copied safely, in worker processes, and for other engines.

    >>> from onnxfi.runtime.engine.onnx_runtime import OrtEngine
    >>> dry_run(OrtEngine(), "models/fashion_cnn.onnx")
    """
    if not sys.platform.startswith("linux") or multiprocessing.parent_process() is not None:
        return
    if (copied := engine.for_dry_run()) is None:
        return
    with suppress(OSError):  # a missing file is reported when it is opened
        real = None if data is None or data.synthetic else data

        def attempt() -> None:
            _run_copy(copied, model, real)

        _pass(_DryRun(_identity(model), copied, "" if real is None else real.description, weakref.ref(attempt)))


@dataclass(frozen=True)
class _DryRun:
    """A dry run, equal to another of the same content of a model, engine with its libraries of operators, and data."""

    model: tuple[object, ...]
    engine: Engine
    data: str
    #: Weak: what is remembered keeps neither model nor data in memory.
    attempt: weakref.ref[Callable[[], None]] = field(compare=False)


@lru_cache(_MOST_REMEMBERED)
def _pass(run: _DryRun) -> None:
    """Attempt a dry run; one that passed passes again. EngineError is raised each time."""
    if (attempt := run.attempt()) is not None:
        attempt()


def _identity(model: str | Path | bytes) -> tuple[object, ...]:
    if isinstance(model, bytes):
        return (hashlib.sha256(model).digest(),)
    found = Path(model).stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _run_copy(engine: Engine, model: str | Path | bytes, data: Data | None) -> None:
    def run() -> bytes:
        session = engine.prepare(model)
        fed = data or open_data(None, session.inputs, limit=1)
        session.run(next(fed.batches(fed.layout.fixed or 1)).feeds)
        return b""

    try:
        run_isolated(run, limited=False, timeout_s=_LONGEST_S)
    except CrashError as error:
        name = "the model" if isinstance(model, bytes) else quoted(str(model))
        how = str(error).removeprefix("it ended with ")
        raise EngineError(
            f"{engine.version} crashes ({how}) when it opens or runs {name}; look for sizes and "
            f"attributes that no operator takes, or use another release of the runtime"
        ) from None
    except IsolationError:
        pass
