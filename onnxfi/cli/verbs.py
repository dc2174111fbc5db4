"""The group of verbs, each loaded when it is called, and what becomes of its errors."""

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

#: The verbs and their modules, in the order in which a user meets them.
VERBS = {
    verb: verb
    for verb in (
        *("convert", "inspect", "inject", "eval", "instrument", "quantize", "compare"),
        *("plan", "run", "report", "show", "merge", "check"),
    )
} | {"show": "trial"}
#: Address space in which numpy and onnx are loaded, with some to spare.
_LEAST_ROOM = 256 << 20
_LOG = logging.getLogger("onnxfi")


class _Lazy(click.Group):
    """A group whose verbs are imported when they are needed, so that `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"onnxfi.cli.{VERBS[cmd_name]}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from onnxfi.errors import closest

            raise click.UsageError(f"no command {args[0]!r}{closest(args[0], VERBS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxfi")
def group() -> None:
    """What happens to a deployed neural network's answers when bits go wrong?

    onnxfi works on the ONNX file, whatever framework made it: it flips bits in stored weights, writes the faulty
    model, and runs both with ONNX Runtime.

    \b
    onnxfi inspect model.onnx
    onnxfi inject model.onnx --ber 1e-6
    onnxfi eval model.onnx --data images.npz
    """


def invoke(words: Sequence[str]) -> None:
    """Run one command; what goes wrong is raised."""
    atexit.register(gc.freeze)  # what is left then goes with the process, and is not looked through before
    for stream in (sys.stdout, sys.stderr):  # what a terminal of another alphabet cannot show is written out
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _logging()
    _check_room()
    # Not group.main, which ends a broken pipe with 1: here that says that a check failed.
    with group.make_context("onnxfi", list(words) or ["--help"]) as context:
        group.invoke(context)


def _check_room() -> None:
    """Refuse too little address space, in which libraries end or wait for ever as they start; ask for less of it."""
    # Before numpy is loaded: the threads of its BLAS, which nothing here needs, take memory each and spin at first.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if sys.platform == "win32":
        return
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _LEAST_ROOM:
        raise click.ClickException(
            f"the address space is limited to {limit >> 20} MiB (ulimit -v); onnxfi takes {_LEAST_ROOM >> 20} MiB and more"
        )


def end(error: Exception) -> NoReturn:
    """Say what went wrong in one line, and exit; what nobody expected is raised."""
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
        _fail(f"there is not enough memory ({str(error) or 'none is left'}); take a smaller model or less data at once")
    if isinstance(error, ImportError) and "failed to map" in str(error):  # the dynamic linker's words for it
        _fail(f"a library finds no room in memory ({str(error)[-100:]}); raise the limit of address space (ulimit -v)")
    if isinstance(error, BrokenPipeError):
        _silence()
        sys.exit(141)
    if isinstance(error, OSError):
        if error.filename is not None:
            what = repr(os.fsdecode(error.filename))
        elif isinstance(error, FileNotFoundError):
            what = "the working directory"  # it was removed
        else:
            what = "standard output"  # a full disk behind `> FILE`, most likely
            _silence()
        _fail(f"cannot use {what}: {error.strerror}; choose another place or name")
    raise error


def _silence() -> None:
    """Let what is left for the standard streams go nowhere, so that the interpreter does not fail on it in the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())


def _logging() -> None:
    level = os.environ.get("ONNXFI_LOG_LEVEL", "").upper() or "WARNING"
    if level not in logging.getLevelNamesMapping():
        raise click.ClickException(f"ONNXFI_LOG_LEVEL={level!r}; use DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    _LOG.setLevel(level)


def _fail(message: str) -> NoReturn:
    from onnxfi.graph.model.byte_source import printable

    _LOG.debug("where it was found:", exc_info=True)
    try:
        # Of a word of thousands of digits the first will do.
        short = re.sub(r"\S{400,}", lambda word: word[0][:200] + "…", printable(message))
        click.echo(f"onnxfi: error: {short}", err=True)
    except OSError:  # nobody reads it
        _silence()
    sys.exit(2)
