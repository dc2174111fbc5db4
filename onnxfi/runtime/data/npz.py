"""Reading of untrusted `.npz` archives and `.npy` files, and writing of archives.

Nothing is unpickled, and the sizes in a header are checked against the archive before memory is allocated.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxfi.errors import DataError
from onnxfi.graph.write.output_file import atomic_files
from onnxfi.runtime.engine.ports import Array, one_line

_CHUNK_BYTES = 1 << 24
#: numpy refuses longer headers, but allocates the memory first.
_LONGEST_HEADER = 1 << 14
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def memory_bytes() -> int:
    """Return the memory of the machine, or 16 GiB where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 34


def read_headers(path: Path) -> dict[str, Array]:
    """Return the arrays that an archive declares: zeros of their type and shape, which take no memory.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez_compressed(Path(folder, "d.npz"), image=np.ones((2000, 3), np.float32))
    ...     read_headers(Path(folder, "d.npz"))["image"].strides
    (0, 0)
    """
    return _each(path, lambda file, size, what: _claimed(*_header(file, size, what)[:3]))


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an archive by name; `DataError` names the archive and what is wrong with it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(Path(folder, "d.npz"), image=np.zeros((2, 3), np.float32), labels=[0, 1])
    ...     [(name, array.shape) for name, array in read_npz(Path(folder, "d.npz")).items()]
    [('image', (2, 3)), ('labels', (2,))]
    """
    return _each(path, _read_array)


def read_npy(path: Path) -> Array:
    """Return the array of a `.npy` file; `DataError` names the file and what is wrong with it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder, "l.npy"), [3, 1])
    ...     read_npy(Path(folder, "l.npy")).tolist()
    [3, 1]
    """
    try:
        size, memory = path.stat().st_size, memory_bytes()
        if size > memory:
            raise DataError(f"it holds {size:,} bytes; this machine has {memory:,}")
        with path.open("rb") as file:
            return _read_array(file, size, "it")
    except Exception as error:  # numpy's header parser raises a dozen kinds on damage
        why = one_line(error) or type(error).__name__
        raise DataError(f"{str(path)!r} is no readable .npy array ({why}); write it with np.save") from None


def write_npz(path: Path, arrays: Mapping[str, Array]) -> Path:
    """Write arrays by name as an archive that `read_npz` reads; the file appears whole or not at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = write_npz(Path(folder, "d.npz"), {"x": np.arange(3)})
    ...     {name: array.tolist() for name, array in read_npz(file).items()}
    {'x': [0, 1, 2]}
    """
    texts = {name: array.astype(str) for name, array in arrays.items() if array.dtype == object}
    with atomic_files([path]) as (stream,):
        np.savez(stream, allow_pickle=False, **{**arrays, **texts})
    return path


def _each(path: Path, read: Callable[[IO[bytes], int, str], Array]) -> dict[str, Array]:
    """Read each member of an archive, after a check that they fit into memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total, memory = sum(member.file_size for member in members), memory_bytes()
            if total > memory:
                raise DataError(f"{str(path)!r} unpacks to {total:,} bytes; this machine has {memory:,}")
            arrays: dict[str, Array] = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays or name == member.filename:
                    problem = "twice" if name in arrays else "which is no .npy array"
                    raise DataError(f"{str(path)!r} holds {member.filename!r} {problem}")
                if member.compress_type not in _METHODS:
                    raise ValueError(f"{name!r} is compressed by a method that numpy does not write")
                with archive.open(member) as file:
                    arrays[name] = read(file, member.file_size, f"{name!r} in {str(path)!r}")
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy's header parser raise a dozen kinds on damage
        why = one_line(error) or type(error).__name__
        raise DataError(f"{str(path)!r} is not a readable .npz archive ({why}); write it with np.savez") from error
    return arrays


def _header(file: IO[bytes], size: int, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], bytes]:
    """Return shape, order and type of a member, checked against its `size` in bytes, and the data read so far."""
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    start = io.BytesIO(file.read(_LONGEST_HEADER))
    version = np.lib.format.read_magic(start)
    if version not in header:
        raise ValueError(f"{what} has format version {version}")
    shape, fortran, dtype = header[version](start)
    if dtype.hasobject:
        raise DataError(f"{what} holds Python objects, which are not loaded; save numbers or text")
    data_bytes = size - start.tell()
    if dtype.itemsize == 0 or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != data_bytes:
        raise ValueError(f"{what} claims {dtype} of shape {shape} but holds {data_bytes} bytes")
    return shape, fortran, dtype, start.read()


def _claimed(shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any]) -> Array:
    return np.broadcast_to(np.zeros((), dtype), shape)


def _read_array(file: IO[bytes], size: int, what: str) -> Array:
    """One array out of a member of `size` bytes."""
    shape, fortran, dtype, begun = _header(file, size, what)
    data_bytes = math.prod(shape) * dtype.itemsize
    data = bytearray(data_bytes)
    view = memoryview(data)
    view[: len(begun)] = begun
    for start in range(len(begun), data_bytes, _CHUNK_BYTES):
        part = file.read(min(_CHUNK_BYTES, data_bytes - start))
        view[start : start + len(part)] = part
        if not part:
            raise EOFError(f"{what} ends early")
    file.read(1)  # the end, where the checksum is compared
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
