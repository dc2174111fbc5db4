"""Sources of bytes: a regular file as it was when it was opened, or a model in memory."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ReadBytes = Callable[[int, int], bytes]
FillBuffer = Callable[[int, memoryview], None]
_LONGEST_NAME = 200
#: Tensors from this size on are used where they lie in their file.
MAPPED_BYTES = 16 << 20


def quoted(name: str | Path) -> str:
    """Return a name for a message: quoted, control characters escaped, cut where it is long.

    >>> quoted("w\\x1b[2J"), len(quoted("n" * 10_000))
    ("'w\\\\x1b[2J'", 202)
    """
    whole = str(name)
    return repr(whole if len(whole) <= _LONGEST_NAME else whole[: _LONGEST_NAME - 1] + "…")


def printable(text: object) -> str:
    """Return text with control, escape and direction characters written out, so that a name cannot control a terminal.

    >>> printable("conv\\x1b[31m")
    'conv\\\\x1b[31m'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        c if c == " " or unicodedata.category(c)[0] not in "CZ" else c.encode("unicode_escape").decode() for c in text
    )


@dataclass(frozen=True)
class ByteSource:
    """Bytes to read from: a file, or a model in memory."""

    path: Path | None
    data: bytes | None = field(repr=False)
    size: int
    stamp: tuple[int, ...] = ()

    @classmethod
    def file(cls, path: Path) -> ByteSource:
        """Open a regular file; ModelError if it is none or cannot be read."""
        try:
            status = path.stat()
            if path.is_dir():
                raise ModelError(f"{quoted(path)} is a directory; give the .onnx file inside it")
            if not path.is_file():
                raise ModelError(f"{quoted(path)} is not a regular file; give a file on disk")
            with path.open("rb"):
                return cls(path, None, status.st_size, _stamp(status))
        except (OSError, ValueError) as error:  # ValueError: a name with a NUL
            what = error.strerror if isinstance(error, OSError) else str(error)
            raise ModelError(f"cannot read {quoted(path)}: {what}; give a readable file") from None

    @classmethod
    def memory(cls, data: bytes) -> ByteSource:
        """Take a serialised model in memory."""
        return cls(None, data, len(data))

    @contextmanager
    def filling(self) -> Iterator[FillBuffer]:
        """Give a function `fill(start, buffer)` that reads into a buffer; ModelError if the file has changed."""
        path = self.path
        if path is None:
            data = memoryview(self.data or b"")

            def copy(start: int, buffer: memoryview) -> None:
                buffer[:] = data[start : start + len(buffer)]

            yield copy
            return
        try:
            with path.open("rb", buffering=0) as stream:
                if _stamp(os.fstat(stream.fileno())) != self.stamp:
                    raise ModelError(f"{quoted(path)} changed while it was being read; try again")

                def fill(start: int, buffer: memoryview) -> None:
                    end = stream.seek(start) + len(buffer)
                    while buffer:
                        size = stream.readinto(buffer)
                        if not size:
                            raise ModelError(f"{quoted(path)} ends before byte {end}; it was cut while being read")
                        buffer = buffer[size:]

                yield fill
        except OSError as error:
            raise ModelError(f"cannot read {quoted(path)}: {error.strerror}") from None

    @contextmanager
    def reading(self) -> Iterator[ReadBytes]:
        """Give a function `read(start, end)` that returns bytes; ModelError if the file has changed."""
        if self.path is None:
            data = self.data or b""
            yield lambda start, end: data[start:end]
            return
        with self.filling() as fill:

            def read(start: int, end: int) -> bytes:
                buffer = bytearray(end - start)
                fill(start, memoryview(buffer))
                return bytes(buffer)

            yield read


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class StoredArray:
    """Tensor in a source: its bytes from `start` on, little-endian and packed.

    >>> from onnxfi.graph.model.byte_source import ByteSource
    >>> import numpy as np
    >>> StoredArray(ByteSource.memory(bytes(range(8))), 4, np.dtype(np.uint8), (2, 2)).read().tolist()
    [[4, 5], [6, 7]]
    """

    source: ByteSource
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> NDArray[Any]:
        """Return the tensor in memory of its own; ModelError if the file has changed."""
        import numpy as np

        array = np.empty(self.shape, self.dtype)
        self.into(array)
        return array

    def mapped(self) -> NDArray[Any]:
        """Return the tensor for changes in this process alone; of a large one in a file only changed pages are copied.

        ModelError if the file has changed.
        """
        import numpy as np

        aligned = self.start % self.dtype.itemsize == 0 and sys.byteorder == "little"
        if self.source.path is None or self.nbytes < MAPPED_BYTES or not aligned:
            return self.read()
        with self.source.filling():  # which looks whether the file is still the same
            return np.asarray(np.memmap(self.source.path, self.dtype, "c", self.start, self.shape))

    def into(self, array: NDArray[Any]) -> None:
        """Read the tensor into an array of its type and shape; ModelError if the file has changed."""
        with self.source.filling() as fill:
            fill(self.start, memoryview(array.reshape(-1).view("u1").data))
        if sys.byteorder == "big":
            array.byteswap(inplace=True)
