"""Parts of a model whose large weights the runtime reads from the files that hold them.

The runtime maps such a file. What it packs for its kernels it reads once, and lets go of the pages; a table from which
rows are gathered stays where it is, so that all sessions of all processes share its pages.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxfi.graph.model.byte_source import StoredArray
from onnxfi.runtime.engine.ports import Array

#: Weights of a part that are smaller in all are copied, which is faster.
LEAST_BYTES = 16 << 20


@dataclass(frozen=True)
class PartInFiles:
    """A serialised part, the folder from which its external data is named, and the weights that are not in files."""

    model: bytes
    folder: Path
    rest: Mapping[str, Array | StoredArray]


def part_in_files(model: bytes, stored: Mapping[str, Array | StoredArray]) -> PartInFiles | None:
    """Return a part that names the files of its large weights; None if a copy of them is small, or no other way works.

    Raises ModelError if one of the files has changed.
    """
    lies = {name: one for name, one in stored.items() if isinstance(one, StoredArray) and _fits(one)}
    if sum(one.nbytes for one in lies.values()) < LEAST_BYTES:
        return None
    files = {one.source.path: Path(os.path.realpath(one.source.path)) for one in lies.values() if one.source.path}
    try:
        folder = Path(os.path.commonpath([file.parent for file in files.values()]))
    except ValueError:  # on several drives
        return None
    import onnx

    for source in {one.source.path: one.source for one in lies.values()}.values():
        with source.filling():  # which looks whether the file is still the same
            pass
    proto = onnx.ModelProto.FromString(model)
    for tensor in proto.graph.initializer:
        if (one := lies.get(tensor.name)) is not None and one.source.path is not None:
            del tensor.external_data[:]
            place = files[one.source.path].relative_to(folder).as_posix()
            for key, value in (("location", place), ("offset", str(one.start)), ("length", str(one.nbytes))):
                tensor.external_data.add(key=key, value=value)
    rest = {name: one for name, one in stored.items() if name not in lies}
    return PartInFiles(proto.SerializeToString(), folder, rest)


def _fits(one: StoredArray) -> bool:
    """Return whether the runtime can use a tensor where it lies in its file."""
    return one.source.path is not None and one.start % one.dtype.itemsize == 0 and sys.byteorder == "little"
