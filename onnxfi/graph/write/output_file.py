"""Output files: checked before anything is written, and drafts until all of them are complete.

All files are written through `atomic_files`, so no command replaces a device or a pipe by a file.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from onnxfi.errors import OutputError
from onnxfi.graph.model.byte_source import ByteSource
from onnxfi.graph.model.loading import Model
from onnxfi.graph.write.scratch_folder import scratch_folder


def output_files(out: Path, data_files: int) -> list[Path]:
    """Return the files that a model is written to: `OUT`, and `OUT.data`, `OUT.data.1`, … for its external data.

    >>> [file.name for file in output_files(Path("m.onnx"), 2)]
    ['m.onnx', 'm.onnx.data', 'm.onnx.data.1']
    """
    return [out, *(out.parent / (f"{out.name}.data" + (f".{k}" if k else "")) for k in range(data_files))]


def check_output_files(model: Model | None, files: Sequence[Path], *, copy: bool = True) -> None:
    """Raise OutputError for an output that is one of the model's files, in a missing folder, a directory or a device.

    With `copy`, for a copy of the model, also if the disk has no room for it.
    """
    sources = model.sources if model is not None else ()
    with _output_errors(files[0]):
        _check_folder(files[0])
        for file in files:
            _check_file(file, sources)
        folder, needed = files[0].parent, sum(map(_bytes_on_disk, sources)) if copy else 0
        if not os.access(folder, os.W_OK):
            raise OutputError(f"the folder {str(folder)!r} cannot be written; choose another with -o")
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OutputError(f"the disk is full: {needed:,} bytes are needed in {str(folder)!r}, {free:,} are free")


def check_folder(folder: Path) -> None:
    """Raise OutputError for an output folder that is a file, or cannot be created or written; it need not exist yet."""
    with _output_errors(folder):
        if folder.name == "-":
            raise OutputError("an output folder cannot be '-'; give the name of a folder")
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists() or place.is_symlink())
        if not there.is_dir():
            raise OutputError(f"the output folder {str(folder)!r} cannot be made: {str(there)!r} is not a folder")
        if not os.access(there, os.W_OK):
            raise OutputError(f"the folder {str(there)!r} cannot be written; choose another place")


def make_folder(folder: Path) -> None:
    """Create an output folder if it does not exist; OutputError if that fails."""
    check_folder(folder)
    with _output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _output_errors(place: Path) -> Iterator[None]:
    """Raise OutputError for errors of the system, as for a name that is too long."""
    try:
        yield
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(f"the output {str(place)!r} cannot be written: {what}") from None


def _check_folder(file: Path) -> None:
    if file.name == "-":
        raise OutputError("the output cannot be '-', as it takes a file that can be named; give the name of a file")
    if not file.parent.is_dir():
        raise OutputError(f"no folder {str(file.parent)!r} to write {file.name!r} into; make it first")


def _check_file(file: Path, sources: Sequence[ByteSource]) -> None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        raise OutputError(f"the output {str(file)!r} is a directory; give a file name")
    # A rename would put a file in place of a device or a pipe, or of the link /dev/stdout where that is a file.
    if not stat.S_ISREG(status.st_mode) or _is_open_stream(file):
        raise OutputError(f"the output {str(file)!r} is a device or pipe; give the name of a file")
    if any(source.stamp[:2] == (status.st_dev, status.st_ino) for source in sources):
        raise OutputError(f"the output {str(file)!r} is the input itself; give another name with -o")


def _is_open_stream(file: Path) -> bool:
    """Return True if a path is or links to a file that a process has open, as /dev/stdout and /dev/fd/3."""
    while True:
        if os.path.realpath(file.parent).startswith("/proc/"):
            return True
        if not file.is_symlink():
            return False
        file = file.parent / os.readlink(file)


def _bytes_on_disk(source: ByteSource) -> int:
    blocks = getattr(source.path.stat(), "st_blocks", None) if source.path else None
    return source.size if blocks is None else min(source.size, blocks * 512)


@contextmanager
def atomic_files(files: Sequence[Path]) -> Iterator[list[IO[bytes]]]:
    """Open streams that become `files` when all are written: data first, the model last; else nothing is left."""
    check_output_files(None, files)
    streams: list[IO[bytes]] = []
    try:
        with scratch_folder(files[0].parent) as folder:
            drafts = [folder / str(number) for number in range(len(files))]
            try:
                for draft in drafts:
                    streams.append(draft.open("wb"))
                yield streams
                for stream in streams:
                    stream.flush()
                    os.fsync(stream.fileno())
                    stream.close()
            finally:
                for stream in streams:
                    _close(stream)
            for draft, file in reversed(list(zip(drafts, files, strict=True))):
                os.replace(draft, file)
    except OSError as error:
        raise OutputError(f"cannot write {str(files[0])!r}: {error.strerror}; nothing was written") from None


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except OSError:  # a full disk may refuse the last flush; the draft is removed anyway
        stream.raw.close() if hasattr(stream, "raw") else None
