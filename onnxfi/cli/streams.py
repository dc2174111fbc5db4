"""`-` on the command line: a file that comes from standard input, or goes to standard output.

Either is a scratch file, so that readers and writers need not know. A command has one of each.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, BinaryIO

import click

_INPUT, _OUTPUT = "stdin", "stdout"
_SCRATCH_FILE = re.compile(rf"""[^\s'"]*onnxfi-[0-9a-f]{{16}}[/\\]+({_INPUT}|{_OUTPUT})(\.\w+)*""")


def named(text: str) -> str:
    """Return a text in which the scratch files of `-` are called what they stand for.

    >>> named("/tmp/onnxfi-0123456789abcdef/stdin.onnx: whole")
    'standard input: whole'
    """
    return _SCRATCH_FILE.sub(lambda found: "standard input" if found[1] == _INPUT else "standard output", text)


def from_stdin(file: Path) -> bool:
    """Return whether a path is that of a scratch file with what came from standard input."""
    return named(f"{file.parent.name}/{file.name}") == "standard input"


class InputFile(click.Path):
    """The path of a file that is read; of standard input, given as `-`, that of a scratch file of what came from there.

    `ending` is that of the scratch file, by which readers tell kinds apart.
    """

    def __init__(self, ending: str = ".onnx") -> None:
        super().__init__(readable=False, path_type=Path)
        self.ending = ending

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, also of what came from standard input."""
        if value != "-" or ctx is None:
            return super().convert(value, param, ctx)
        from onnxfi.graph.write.scratch_folder import scratch_folder

        if sys.stdin is None or sys.stdin.isatty():
            self.fail("'-' is standard input, where no file comes from; pipe one into it", param, ctx)
        if not _first(ctx, _INPUT):
            self.fail("standard input is one file; name the others", param, ctx)
        file = ctx.with_resource(scratch_folder()) / f"{_INPUT}{self.ending}"
        with file.open("wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        return file


class SourceFile(InputFile):
    """The path of a campaign's source; of standard input that of a scratch file, named .yaml where it is a spec."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, also of what came from standard input."""
        file = super().convert(value, param, ctx)
        if value == "-" and file.stem == _INPUT:
            with file.open("rb") as stream:
                spec = re.match(rb"(?:#.*\s*)*[a-z_]+:", stream.read(4096))
            return file.rename(file.with_suffix(".yaml")) if spec else file
        return file


class OutputFile(click.Path):
    """The path of an output; of standard output, given as `-`, that of a scratch file which goes there in the end.

    What the command prints goes to standard error then.
    """

    def __init__(self) -> None:
        super().__init__(readable=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, also of what goes to standard output."""
        if value != "-" or ctx is None:
            return super().convert(value, param, ctx)
        from onnxfi.graph.write.scratch_folder import scratch_folder

        stream = getattr(sys.stdout, "buffer", None)
        if stream is None or sys.stdout.isatty():
            self.fail("'-' is standard output, which is a terminal; send it to a file or another program", param, ctx)
        if not _first(ctx, _OUTPUT):
            self.fail("standard output is one file; name the others", param, ctx)
        file = ctx.with_resource(scratch_folder()) / _OUTPUT
        ctx.with_resource(_to_stdout(file, stream))
        return file


#: Files that are read or written, `-` included.
STORE, LIST, OUTPUT = InputFile(".db"), InputFile(".jsonl"), OutputFile()


def _first(ctx: click.Context, stream: str) -> bool:
    """Return true the first time that a command asks for a stream."""
    taken = f"{__name__}.{stream}" in ctx.meta
    ctx.meta[f"{__name__}.{stream}"] = True
    return not taken


@contextmanager
def _to_stdout(file: Path, stream: BinaryIO) -> Iterator[None]:
    """Let prints go to standard error, and in the end write a file, where it was made, to a stream."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (SystemExit, click.exceptions.Exit):  # done, with an exit code that says what was found
        _copy(file, stream)
        raise
    _copy(file, stream)


def _copy(file: Path, stream: BinaryIO) -> None:
    beside = [path.name for path in file.parent.glob(f"{file.name}.*")]
    if beside:
        raise click.UsageError(
            f"the model has external data ({beside[0]}), so it is more than one file; give a name with -o"
        )
    if file.exists():
        with file.open("rb") as made:
            shutil.copyfileobj(made, stream)
        stream.flush()
