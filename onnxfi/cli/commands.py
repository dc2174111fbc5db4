"""The group of all commands, each imported when it is called; errors become one line and an exit code."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from onnxfi.cli.completion import answered
from onnxfi.cli.streams import named

#: The commands, each a module of this package, in the order of `onnxfi --help`.
COMMANDS = (
    *("convert", "inspect", "census", "inject", "eval", "instrument", "quantize", "protect", "compare"),
    *("assess", "attack", "plan", "run", "report", "fit", "plan-protection", "show", "merge", "check"),
    *("manifest", "verify", "diff", "rowhammer"),
    *("demo", "doctor", "completion", "help"),
)
#: Address space that importing numpy and onnx takes, with a margin.
_MIN_ADDRESS_SPACE_BYTES = 256 << 20
_LOG = logging.getLogger("onnxfi")


class _LazyGroup(click.Group):
    """A group that imports a command when it is needed, so that `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"onnxfi.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from onnxfi.errors import closest

            raise click.UsageError(f"no command {args[0]!r}{closest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxfi")
def group() -> None:
    """Inject faults into a deployed neural network, and measure how often its answers change.

    onnxfi works on the ONNX file, whatever framework exported it. It injects soft errors (SEUs, as bit flips), stuck-at
    and other faults into weights and activations, and compares the faulty outputs with those of the fault-free golden
    run in ONNX Runtime.

    \b
    onnxfi demo
    onnxfi assess model.onnx --data images.npz --time 5m
    onnxfi inject model.onnx --ber 1e-6
    onnxfi run model.onnx --data images.npz --ber 1e-7:1e-3
    """


def run_command(arguments: Sequence[str]) -> None:
    """Run one command; its errors are raised."""
    atexit.register(gc.freeze)  # saves a garbage collection as the interpreter ends
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal cannot encode is escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _configure_logging()
    _check_address_space()
    if answered(group):
        return
    # Not group.main, which exits with 1 on a broken pipe: here 1 means that a check failed.
    with group.make_context("onnxfi", list(arguments) or ["--help"]) as context:
        group.invoke(context)


def _check_address_space() -> None:
    """Refuse an address space in which native libraries abort or hang while they are loaded, and need less of it."""
    # Before numpy is imported: its BLAS threads, which nothing here needs, take memory each and spin at first.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if sys.platform == "win32":
        return
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _MIN_ADDRESS_SPACE_BYTES:
        raise click.ClickException(
            f"the address space is limited to {limit >> 20} MiB (ulimit -v); onnxfi needs {_MIN_ADDRESS_SPACE_BYTES >> 20} MiB or more; raise the limit"
        )


def exit_with(error: Exception) -> NoReturn:
    """Print an error in one line and exit with its code; an unexpected error is raised again."""
    from onnxfi.errors import OnnxfiError

    if isinstance(error, OnnxfiError):
        _fail(str(error))
    if isinstance(error, click.exceptions.Exit):
        sys.exit(error.exit_code)
    if isinstance(error, click.UsageError):
        where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        _fail(error.format_message().rstrip(".") + where)
    if isinstance(error, click.ClickException):
        _fail(error.format_message())
    if isinstance(error, MemoryError):
        _fail(f"not enough memory ({str(error) or 'none is left'}); use a smaller model or a smaller --batch")
    if isinstance(error, ImportError) and "failed to map" in str(error):  # the message of the dynamic linker
        _fail(f"a library cannot be loaded into the address space ({str(error)[-100:]}); raise its limit (ulimit -v)")
    if isinstance(error, BrokenPipeError):
        _discard_output()
        sys.exit(141)
    if isinstance(error, OSError):
        if error.filename is not None:
            what = repr(os.fsdecode(error.filename))
        elif isinstance(error, FileNotFoundError):
            what = "the working directory"  # it was removed
        else:
            what = "standard output"  # most likely a full disk behind `> FILE`
            _discard_output()
        _fail(f"cannot use {what}: {error.strerror}; choose another place or name")
    raise error


def _discard_output() -> None:
    """Discard what the standard streams still buffer, so that the interpreter does not fail on it at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(null, stream.fileno())


def _configure_logging() -> None:
    level = os.environ.get("ONNXFI_LOG_LEVEL", "").upper() or "WARNING"
    if level not in logging.getLevelNamesMapping():
        raise click.ClickException(f"ONNXFI_LOG_LEVEL={level!r}; use DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    _LOG.setLevel(level)


def _fail(message: str) -> NoReturn:
    from onnxfi.graph.model.byte_source import printable

    _LOG.debug("traceback:", exc_info=True)
    try:
        # A word of thousands of characters is cut.
        short = re.sub(r"\S{400,}", lambda word: word[0][:200] + "…", named(printable(message)))
        click.echo(f"onnxfi: error: {short}", err=True)
    except OSError:  # standard error is closed
        _discard_output()
    sys.exit(2)
