"""The command line: each command parses its arguments, calls one function, and prints.

`main` imports little, so that signals are handled early; `commands` has the group of commands, one module for each.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ExtensionFileLoader
from types import FrameType

#: The exit code after Ctrl-C or a signal, as in shells.
INTERRUPTED = 130
#: Seconds between checks for a native module that is still being loaded.
_RETRY_S = 0.02


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or another signal that ends the program.

    A subclass, since a plain KeyboardInterrupt that passes through an `exec` of text, as in the definition of a
    dataclass, makes CPython end the process by SIGINT instead of with the exit code.
    """


def main() -> None:
    """Run the command line: exit with 0 when done, 2 for bad input, 130 when interrupted, and with one line that says why."""
    _open_streams()
    with _signals() as received:
        try:
            from onnxfi.cli import commands

            try:
                commands.run_command(sys.argv[1:])
            except Exception as error:
                if not received:  # else the error follows from the signal, as a module that failed to load
                    commands.exit_with(error)
        except SystemExit as end:
            if not received or end.code in (None, 0, INTERRUPTED):
                raise
        except KeyboardInterrupt:
            received.append(signal.SIGINT)
        if received:
            with suppress(OSError):
                sys.stderr.write("onnxfi: interrupted; no partial file is left\n")
                sys.stderr.flush()
            sys.exit(INTERRUPTED)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield the list of received signals, each of which raises KeyboardInterrupt, so that partial files are removed."""
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if _loads_native_module(frame):  # the exception would become an ImportError, or be lost
            _interrupt_soon(number)
            return
        raise Interrupted

    def on_unraisable(error: sys.UnraisableHookArgs) -> None:
        if issubclass(error.exc_type, KeyboardInterrupt):  # raised where no exception can propagate, as in a finaliser
            _interrupt_soon(signal.SIGINT)  # at once it would be raised in here, and be printed
        else:
            previous(error)

    previous, sys.unraisablehook = sys.unraisablehook, on_unraisable
    handled = []
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, on_signal)
            handled.append(number)
    try:
        yield received
    finally:
        sys.unraisablehook = previous
        for number in handled:  # a signal during the exit of the interpreter ends it at once
            signal.signal(number, signal.SIG_DFL)


def _interrupt_soon(number: int) -> None:
    """Let the main thread receive a signal after a moment, also one that waits in a call of the system."""
    main_thread = threading.main_thread().ident or 0
    if hasattr(signal, "pthread_kill"):
        retry = threading.Timer(_RETRY_S, signal.pthread_kill, (main_thread, number))
    else:
        retry = threading.Timer(_RETRY_S, _thread.interrupt_main, (number,))
    retry.daemon = True
    retry.start()


def _loads_native_module(frame: FrameType | None) -> bool:
    """Return whether a native module is being loaded."""
    while frame is not None:
        is_loader = frame.f_code.co_name in ("create_module", "exec_module")
        if is_loader and isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def _open_streams() -> None:
    """Open closed standard streams on the null device: else the next opened file would get their descriptor."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115
