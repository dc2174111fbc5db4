"""External initializers: the large tensors that a runtime is given beside a model, in memory until it has loaded them.

A session packs such tensors for its kernels, or copies them; their pages are then released, so that each tensor is in
memory once. A runtime that still read the given memory would find zeros, which the golden run would reveal.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import numpy as np

from onnxfi.graph.model.byte_source import StoredArray
from onnxfi.runtime.engine.ports import Array

#: Tensors that are smaller in all stay in memory that numpy allocates.
_LEAST_BYTES = 1 << 16
#: Alignment of each tensor, as of the runtime's own.
_ALIGNED = 64
#: Only Linux frees private pages for good.
_CAN_RELEASE = hasattr(mmap, "MAP_PRIVATE") and hasattr(mmap, "MADV_DONTNEED")


class ExternalInitializers:
    """Tensors that a runtime may read until `release`; `arrays` holds them in the given order.

    Examples
    --------
    >>> tensors = ExternalInitializers({"w": np.arange(1 << 18, dtype=np.float32), "b": np.ones(2, np.int8)})
    >>> [array[-1].item() for array in tensors.arrays]
    [262143.0, 1]
    """

    def __init__(self, given: Mapping[str, Array | StoredArray]) -> None:
        sizes = [-(-one.nbytes // _ALIGNED) * _ALIGNED for one in given.values()]
        self._pages: mmap.mmap | None = None
        if not _CAN_RELEASE or sum(sizes) < _LEAST_BYTES:
            self.arrays = [
                one.read() if isinstance(one, StoredArray) else np.ascontiguousarray(one) for one in given.values()
            ]
            return
        self.arrays = []
        self._pages = mmap.mmap(-1, sum(sizes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = 0
        for one, size in zip(given.values(), sizes, strict=True):
            array = np.frombuffer(self._pages, np.uint8, one.nbytes, start).view(one.dtype).reshape(one.shape)
            if isinstance(one, StoredArray):
                one.into(array)
            else:
                array[...] = one
            self.arrays.append(array)
            start += size

    def release(self) -> None:
        """Give the memory of the tensors back to the system."""
        if self._pages is not None:
            self._pages.madvise(mmap.MADV_DONTNEED)
