"""Native calls in a copy of the process: a hostile model that crashes onnx or a runtime ends the copy only.

On some models onnx's shape inference, its version converter and runtimes abort the process (a C++ assertion, an invalid
pointer), or take time and memory in proportion to a number in the file. A copy by `fork` costs some milliseconds, since
memory is shared until it is written. On systems without `fork` the call is made in this process.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from onnxfi.errors import CrashError, IsolationError

#: Limits of one call: seconds of a processor, seconds of the clock where it waits for something that never comes,
#: and bytes beyond what the process holds. A model of 100,000 nodes takes a tenth of it.
LIMIT_S, _TIMEOUT_S, LIMIT_BYTES = 20, 600, 1 << 30


def run_isolated(
    call: Callable[[], bytes], *, spare_bytes: int = 0, limited: bool = True, timeout_s: float | None = _TIMEOUT_S
) -> bytes:
    """Return the result of a native call, made in a copy of this process within limits of time and memory.

    `spare_bytes` is memory beyond the limit, for a call on a large model. Without `limited` memory and CPU time are
    those that this process may take, and `timeout_s` the wall-clock limit (None: no limit).

    Raises IsolationError if the call raises or exceeds a limit, CrashError if a signal ends the copy.

    >>> run_isolated(lambda: b"shapes")
    b'shapes'
    >>> run_isolated(lambda: os.abort())
    Traceback (most recent call last):
    onnxfi.errors.CrashError: it ended with SIGABRT
    """
    if not hasattr(os, "fork"):
        try:
            return call()
        except Exception as error:
            raise IsolationError(_words(error)) from None
    receiving, sending = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads that the copy does not have; it makes one call that needs none, and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os.close(receiving)
        _serve(call, sending, LIMIT_BYTES + spare_bytes if limited else None)
    os.close(sending)
    status = None
    try:
        answer = _read(receiving, timeout_s)
        status = os.waitpid(child, 0)[1]
    finally:
        os.close(receiving)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return answer
    if code > 0:
        raise IsolationError(answer.decode("utf-8", "replace"))
    if -code in (signal.SIGXCPU, signal.SIGKILL) and not limited:  # not by our limit: the system ran out of memory
        raise IsolationError("the system ended it, as when memory runs out")
    if -code in (signal.SIGXCPU, signal.SIGKILL):
        raise IsolationError(f"it takes more than {LIMIT_S} s or {LIMIT_BYTES >> 30} GiB")
    raise CrashError(f"it ended with {signal.Signals(-code).name}")


def _serve(call: Callable[[], bytes], sending: int, limit_bytes: int | None) -> NoReturn:
    """Make the call in the copy, send its result or its error, and exit without the process's own clean-up."""
    code = 1
    try:
        faulthandler.disable()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # a library's messages on abort are not shown
            os.dup2(nowhere, stream)
        _limit(limit_bytes)
        code, answer = 0, call()
    except BaseException as error:
        code, answer = 1, _words(error).encode()
    with suppress(BaseException):
        rest = memoryview(answer)
        while rest:
            rest = rest[os.write(sending, rest) :]
        os._exit(code)
    os._exit(1)


def _limit(limit_bytes: int | None) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit_bytes is None:
        return
    _lower(resource.RLIMIT_CPU, LIMIT_S)
    with suppress(OSError):  # Linux alone says how much address space there is already
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + limit_bytes)


def _lower(kind: int, limit: int) -> None:
    import resource

    soft, hard = resource.getrlimit(kind)
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(kind, (limit, hard))


def _read(receiving: int, timeout_s: float | None) -> bytes:
    """Return all that the copy sends until it ends."""
    chunks: list[bytes] = []
    until, pipe = time.monotonic() + (timeout_s or 0.0), select.poll()
    pipe.register(receiving, select.POLLIN)
    while pipe.poll(None if timeout_s is None else max(0.0, 1000 * (until - time.monotonic()))):
        chunk = os.read(receiving, 1 << 20)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
    raise IsolationError(f"it does not end within {timeout_s} s")


def _words(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return "it takes too much memory" if isinstance(error, MemoryError) else lines[0][:200]
