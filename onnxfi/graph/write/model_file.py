"""Saving of a rewritten model with its external data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onnxfi.errors import OutputError
from onnxfi.graph.model.external_data import tensors_in
from onnxfi.graph.model.loading import Model
from onnxfi.graph.write.output_file import atomic_files, check_output_files, output_files

if TYPE_CHECKING:
    import onnx

_CHUNK = 1 << 22


def save_model(model: Model, proto: onnx.ModelProto, out: Path) -> None:
    """Write `proto`, made from `model`, to `out`; external data is copied as it is to `OUT.data`, `OUT.data.1`, …

    A temporary name, fsync and rename leave no partial file. Raises OutputError for an output that cannot be written.
    """
    files = output_files(out, len(model.external))
    check_output_files(model, files)
    renamed = _renamed(model, proto, [file.name for file in files[1:]])
    with atomic_files(files) as (stream, *rest):
        stream.write(renamed.SerializeToString(deterministic=True))
        for source, copy in zip(model.external, rest, strict=True):
            with source.reading() as read:
                for start in range(0, source.size, _CHUNK):
                    copy.write(read(start, min(start + _CHUNK, source.size)))


def _renamed(model: Model, proto: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Return the model with the new names of its data files, in the order of first reference."""
    import onnx

    if not names:
        return proto
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    assert model.path is not None
    by_place = {source.path.resolve(): name for source, name in zip(model.external, names, strict=True) if source.path}
    for tensor in (one for one in tensors_in(made) if one.data_location == 1):
        for entry in tensor.external_data:
            if entry.key == "location":
                place = (model.path.parent / entry.value).resolve()
                if place not in by_place:
                    raise OutputError(
                        f"external data {entry.value!r} is none of the files that the model was opened with"
                    )
                entry.value = by_place[place]
    return made
