"""The command line: each verb parses, calls one function, and prints.

`main` stands here and loads little, so that a signal finds it ready; `commands` has the group of commands, one module for each.
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

#: The exit code of what was stopped by Ctrl-C or a signal, as shells have it.
STOPPED = 130
#: Seconds after which it is looked again whether a native module has been loaded.
_AGAIN_S = 0.02


class Stopped(KeyboardInterrupt):
    """Ctrl-C or a signal like it.

    Of a class of its own: a plain KeyboardInterrupt that passes an `exec` of text, as a dataclass has it while its
    module is imported, makes CPython end the process by SIGINT, whatever the exit code was to be.
    """


def main() -> None:
    """Run the command line: exit 0 when done, 2 for bad input, 130 when stopped; then with one line that says why."""
    _open_streams()
    with _listening() as stops:
        try:
            from onnxfi.cli import commands

            try:
                commands.run_command(sys.argv[1:])
            except Exception as error:
                if not stops:  # else it says what a stop came to, as a module that could not be loaded
                    commands.exit_with(error)
        except SystemExit as end:
            if not stops or end.code in (None, 0, STOPPED):
                raise
        except KeyboardInterrupt:
            stops.append(signal.SIGINT)
        if stops:
            with suppress(OSError):
                sys.stderr.write("onnxfi: stopped; no half file is left\n")
                sys.stderr.flush()
            sys.exit(STOPPED)


@contextmanager
def _listening() -> Iterator[list[int]]:
    """Let signals that end a program raise KeyboardInterrupt, so that what is half written is taken away; those seen."""
    stops: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stops.append(number)
        if _loads(frame):  # it would end as an error of the module, or be lost
            again = threading.Timer(_AGAIN_S, _thread.interrupt_main, (number,))
            again.daemon = True
            again.start()
            return
        raise Stopped

    def lost(found: sys.UnraisableHookArgs) -> None:
        if issubclass(found.exc_type, KeyboardInterrupt):  # it came where none can be raised, as in a finaliser
            _thread.interrupt_main()
        else:
            before(found)

    before, sys.unraisablehook = sys.unraisablehook, lost
    heard = []
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, stop)
            heard.append(number)
    try:
        yield stops
    finally:
        sys.unraisablehook = before
        for number in heard:  # what comes while the interpreter ends, ends it at once
            signal.signal(number, signal.SIG_DFL)


def _loads(frame: FrameType | None) -> bool:
    """Whether a native module is being loaded."""
    while frame is not None:
        named = frame.f_code.co_name in ("create_module", "exec_module")
        if named and isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def _open_streams() -> None:
    """Open standard streams that were closed on nothing: else the next file that is opened would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115
