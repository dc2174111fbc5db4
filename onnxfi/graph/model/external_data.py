"""External data of a model: files that hold tensors, inside the model's folder and behind no link unless allowed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from onnxfi.errors import ModelError
from onnxfi.graph.model.byte_source import ByteSource, quoted
from onnxfi.graph.model.protobuf_scan import record_number, text
from onnxfi.graph.model.stored_tensors import WordLocation

if TYPE_CHECKING:
    import onnx


class ExternalData:
    """External data files of one model, each opened once, and only inside the model's folder."""

    def __init__(self, path: Path | None, allow_links: bool) -> None:
        self.path, self.allow_links = path, allow_links
        self.sources: list[ByteSource] = []
        self.files: dict[int, int] = {}
        self._names: dict[str, int] = {}
        self._stamps: dict[tuple[int, ...], int] = {}

    def locate(self, tensor: onnx.TensorProto, name: str, size_bytes: int, record: int) -> WordLocation:
        """Locate a tensor of this size; ModelError if its file does not hold it."""
        entries = _entries(tensor)
        location = entries.get("location", "")
        number = self.files[record] = self._number(location, name)
        offset = _whole(entries.get("offset", "0"), "offset", name)
        length = _whole(entries.get("length", str(size_bytes)), "length", name)
        if length != size_bytes:
            raise ModelError(f"{quoted(name)} needs {size_bytes:,} bytes, but its external data has length {length:,}")
        held = self.sources[number - 1].size
        if offset + length > held:
            raise ModelError(
                f"external data {quoted(location)} is too short: {quoted(name)} lies at {offset:,} to "
                f"{offset + length:,}, the file has {held:,} bytes; fetch the file again"
            )
        return WordLocation(number, ((offset, offset + length, 0),), record)

    def open_rest(self, proto: onnx.ModelProto) -> None:
        """Open the files of tensors that are not targets as well (indices, training, attributes)."""
        for tensor in tensors_in(proto):
            record = record_number(tensor.doc_string)
            if tensor.data_location == 1 and record not in self.files:
                self.files[record] = self._number(_entries(tensor).get("location", ""), text(tensor.name))

    def _number(self, location: str, name: str) -> int:
        """Return the number of a data file; two names of one file have the same."""
        if location not in self._names:
            source = ByteSource.file(self._check(location, name))
            if source.stamp not in self._stamps:
                self.sources.append(source)
                self._stamps[source.stamp] = len(self.sources)
            self._names[location] = self._stamps[source.stamp]
        return self._names[location]

    def _check(self, location: str, name: str) -> Path:
        what = f"external data {quoted(location)} of {quoted(name)}"
        if self.path is None:
            raise ModelError(f"{what}: a model in memory has no folder; load it from its file")
        pure, windows = PurePosixPath(location), PureWindowsPath(location)
        if not location or "\0" in location:
            raise ModelError(f"{what} names no file; the model is damaged")
        if pure.is_absolute() or windows.drive or windows.root:
            raise ModelError(f"{what} is an absolute path; it must lie inside the model's folder")
        if ".." in pure.parts or ".." in windows.parts:
            raise ModelError(f"{what} leaves the model's folder with '..'; it must lie inside it")
        place = self.path.parent
        try:
            for part in pure.parts:
                place = place / part
                if place.is_symlink() and not self.allow_links:
                    raise ModelError(f"{what} is behind the symbolic link {quoted(place)}; --allow-links follows it")
            status = os.stat(place)
        except OSError as error:
            raise ModelError(
                f"{what} is missing: no file {quoted(place)} ({error.strerror}); put it beside the model"
            ) from None
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{what} is not a regular file; the model is damaged")
        if status.st_nlink > 1 and not self.allow_links:
            raise ModelError(f"{what} is a hard link ({status.st_nlink} names); --allow-links follows it")
        return place


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {text(entry.key): text(entry.value) for entry in tensor.external_data}


def tensors_in(message: Any) -> Iterator[onnx.TensorProto]:
    """Yield every tensor inside a message."""
    for field_, value in message.ListFields():
        if field_.message_type is None:
            continue
        for inner in value if isinstance(value, Sequence) else [value]:
            if field_.message_type.name == "TensorProto":
                yield inner
            else:
                yield from tensors_in(inner)


def _whole(text: str, key: str, name: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise ModelError(
            f"external data of {quoted(name)}: {key} {quoted(text)} is not a whole number; the model is damaged"
        )
    return int(text)
