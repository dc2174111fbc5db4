"""Scratch folders, which are removed with the process that made them."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Prefix of the folders' names, and the file in each that its owner keeps locked.
_SCRATCH = re.compile(r"\.?onnxfi-[0-9a-f]{16}")
_LOCK = "in-use"


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder for drafts in `parent` (the system's for temporary files), and remove it in the end.

    Folders that killed processes left there are removed too.
    """
    place = Path(tempfile.gettempdir() if parent is None else parent)
    remove_abandoned(place)
    folder = place / f"{'' if parent is None else '.'}onnxfi-{os.urandom(8).hex()}"
    folder.mkdir(mode=0o700)
    lock = None
    try:
        if fcntl is not None:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            with suppress(OSError):  # a file system without locks: the folder is then never taken as abandoned
                fcntl.flock(lock, fcntl.LOCK_EX)
                os.write(lock, b"\n")  # from now on it may be removed when it is unlocked
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_abandoned(place: Path | None = None) -> None:
    """Remove the scratch folders of killed processes."""
    if fcntl is None:
        return
    with suppress(OSError), os.scandir(place or tempfile.gettempdir()) as found:
        for entry in found:
            if _SCRATCH.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    _remove_unlocked(Path(entry.path))


def _remove_unlocked(folder: Path) -> None:
    """Remove a folder that no process holds; OSError if one does, or where another user owns it."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_size and folder.stat().st_uid == os.geteuid():
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
