"""Lending: large tensors that a runtime is given beside a model.

A session packs them for its kernels, or copies them into memory of its own; so their pages go back to the system when
it is open, and a tensor is in memory once. A runtime that computed with what it was lent would find zeros there, which
no golden run takes for its own, and never memory of somebody else.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import numpy as np

from onnxfi.graph.model.byte_source import StoredArray
from onnxfi.runtime.engine.model_io import Array

#: What is less in all is not worth memory of its own.
_LEAST_BYTES = 1 << 16
#: Where each tensor begins, as the runtime's own do.
_ALIGNED = 64
#: Linux alone frees private pages for good.
_CAN_END = hasattr(mmap, "MAP_PRIVATE") and hasattr(mmap, "MADV_DONTNEED")


class Loan:
    """Tensors lent to a runtime, `arrays` in the order in which they are given, until `end`.

    >>> loan = Loan({"w": np.arange(1 << 18, dtype=np.float32), "b": np.ones(2, np.int8)})
    >>> [array[-1].item() for array in loan.arrays]
    [262143.0, 1]
    """

    def __init__(self, given: Mapping[str, Array | StoredArray]) -> None:
        sizes = [-(-one.nbytes // _ALIGNED) * _ALIGNED for one in given.values()]
        self._pages: mmap.mmap | None = None
        if not _CAN_END or sum(sizes) < _LEAST_BYTES:
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

    def end(self) -> None:
        """Give the memory back that the tensors took."""
        if self._pages is not None:
            self._pages.madvise(mmap.MADV_DONTNEED)
