"""A file that is written from its start to its end, on request past the page cache of the system.

What counts is on the disk in the end. Through the page cache each byte is copied to a fresh page first, and written
from there later; past it the disk takes it from our buffer, for a fraction of the processor time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

#: Runs of zeros of this length are left as holes; longer than a file system's block, so that holes are few.
_HOLE = bytes(1 << 16)
#: Disks take multiples of their block, which is no larger than this, from memory that begins at one.
_BLOCK = 1 << 12


class SequentialFile:
    """A file that gets one chunk after the other; stretches of zeros are left as holes.

    With `direct` blocks go past the page cache, where system, file system and the chunk's memory allow it.
    """

    def __init__(self, stream: IO[bytes], *, direct: bool = False) -> None:
        self._stream, self._end = stream, 0
        self._direct = _past_page_cache(stream) if direct else None

    def write(self, chunk: Any) -> None:
        """Write the next chunk."""
        view = memoryview(chunk)
        for low, high in _stretches(view):
            rest = low + self._write_direct(self._end + low, view[low:high])
            if rest < high:
                self._stream.seek(self._end + rest)
                self._stream.write(view[rest:high])
        self._end += len(view)

    def finish(self) -> None:
        """Give the file its length, where it ends with a hole, and take no more chunks."""
        try:
            self._stream.truncate(self._end)
        finally:
            self.close()

    def close(self) -> None:
        """Take no more chunks."""
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None

    def _write_direct(self, at: int, view: memoryview) -> int:
        """Write blocks past the page cache, as far as it goes; return how many bytes, a multiple of a block."""
        done, size = 0, len(view) - len(view) % _BLOCK
        while self._direct is not None and at % _BLOCK == 0 and done < size:
            try:
                done += os.pwrite(self._direct, view[done:size], at + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break  # this file system, or memory that begins within a block
            if done % _BLOCK:
                done -= done % _BLOCK
                break
        return done


def _stretches(view: memoryview) -> Iterator[tuple[int, int]]:
    """Yield start and end of the stretches between holes."""
    done = 0
    for low in range(0, len(view), len(_HOLE)):
        high = low + len(_HOLE)
        if view[low] == 0 and bytes(view[low:high]) == _HOLE:
            if done < low:
                yield done, low
            done = high
    if done < len(view):
        yield done, len(view)


def _past_page_cache(stream: IO[bytes]) -> int | None:
    """Return another descriptor of the file, for writes past the page cache; None where there are none."""
    if hasattr(os, "O_DIRECT"):
        with suppress(OSError):
            return os.open(stream.name, os.O_WRONLY | os.O_DIRECT)
    return None
