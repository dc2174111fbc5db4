"""The file's own bytes: where each stored number lies, without reading the numbers.

An ONNX file is a protobuf message. `scan` walks it field by field and gives two things: a *skeleton*, the same
message without its large payloads (which `onnx` then parses as usual), and for each tensor and number list a `Record`
of the byte ranges that hold its words. The record's number travels in the skeleton as the `doc_string` of that tensor
or attribute, so that whatever the parser makes of repeated or merged fields, a tensor finds its own bytes again.

So a weight can be struck by patching bytes of a copy: what another writer put into the file, known to onnx or not,
stays as it is, and memory holds the structure only. Source: the protobuf encoding guide and onnx.proto.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import ModelError

Span = tuple[int, int]
Frame = tuple[int, int, int]
Read = Callable[[int, int], bytes]

_WINDOW = 1 << 18
#: Payloads up to this size stay in the skeleton: shapes, axes and scalars, which graph analyses need.
_SMALL = 1 << 10
#: Protobuf messages inside one another; onnx's own parser gives up at 100.
_DEEPEST = 100
#: Names, attributes and nodes together; real models of 100,000 nodes need some 50 MB.
_LARGEST_SKELETON = 1 << 30

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
#: Fields that hold numbers, and the field that carries the record's number (doc_string).
_NUMBERS = {"tensor": (4, 5, 6, 7, 9, 10, 11), "attribute": (2, 3, 7, 8)}
_VARINTS = {"tensor": (5, 7, 11), "attribute": (8,)}
_TOKEN = {"tensor": 12, "attribute": 13}
_EXTERNAL = 13
TOKEN = "onnxfi:"


@dataclass(frozen=True)
class Record:
    """Where the numbers of one tensor or attribute lie.

    `fields` maps a field number to the spans of its payloads, in order; `counts` the numbers in those fields that are
    lists of varints; `frames` are the enclosing messages as
    (start of the length, start, end), outermost first, the tensor's own last; `locations` external file names, each
    as the frames of its entry and of the name in it; `packed` the frames of packed varint lists by their start.
    """

    fields: dict[int, list[Span]]
    frames: tuple[Frame, ...]
    locations: list[tuple[Frame, Frame]] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    packed: dict[int, Frame] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Bytes to read from: a file, or a model in memory."""

    path: Path | None
    data: bytes | None
    size: int
    stamp: tuple[int, ...] = ()

    @classmethod
    def file(cls, path: Path) -> Source:
        """A regular file as it is now; ModelError where it is none or cannot be read."""
        try:
            status = path.stat()
            if path.is_dir():
                raise ModelError(f"{str(path)!r} is a directory; give the .onnx file inside it")
            if not path.is_file():
                raise ModelError(f"{str(path)!r} is no regular file; give a file on disk")
            with path.open("rb"):
                return cls(path, None, status.st_size, _stamp(status))
        except OSError as error:
            raise ModelError(f"cannot read {str(path)!r}: {error.strerror}; give a readable file") from None

    @classmethod
    def memory(cls, data: bytes) -> Source:
        """A serialised model in memory."""
        return cls(None, data, len(data))

    @contextmanager
    def reading(self) -> Iterator[Read]:
        """A function `read(start, end)` on the bytes; ModelError where the file changed since it was opened."""
        if self.path is None:
            data = self.data or b""
            yield lambda start, end: data[start:end]
            return
        try:
            with self.path.open("rb", buffering=0) as stream:
                if _stamp(os.fstat(stream.fileno())) != self.stamp:
                    raise ModelError(f"{str(self.path)!r} changed while it was being read; try again")

                def read(start: int, end: int) -> bytes:
                    stream.seek(start)
                    parts = []
                    while start < end:
                        part = stream.read(end - start)
                        if not part:
                            raise ModelError(f"{str(self.path)!r} ends before byte {end}; it was cut while being read")
                        parts.append(part)
                        start += len(part)
                    return parts[0] if len(parts) == 1 else b"".join(parts)

                yield read
        except OSError as error:
            raise ModelError(f"cannot read {str(self.path)!r}: {error.strerror}") from None


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def varint(number: int) -> bytes:
    """A number as a protobuf varint; negative ones as 64-bit two's complement.

    >>> varint(300).hex()
    'ac02'
    """
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def split_varints(data: bytes) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The numbers of a packed field, and where each starts (one entry more: the end).

    >>> [part.tolist() for part in split_varints(b"\\x01\\xac\\x02")]
    [[1, 300], [0, 1, 3]]
    """
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 128) + 1
    starts = np.concatenate([[0], ends]).astype(np.int64)
    lengths = np.diff(starts)
    if (len(ends) and ends[-1] != len(raw)) or (len(raw) and not len(ends)) or (lengths > 10).any():
        raise ModelError("a number list in the file is damaged (a varint runs over its end)")
    values = np.zeros(len(ends), np.uint64)
    for k in range(int(lengths.max(initial=0))):
        more = lengths > k
        values[more] |= (raw[starts[:-1][more] + k] & np.uint64(127)).astype(np.uint64) << np.uint64(7 * k)
    return values, starts


class _Scanner:
    """One walk over one file. The window over its bytes moves forward only."""

    def __init__(self, read: Read, size: int) -> None:
        self.read, self.size = read, size
        self.buffer, self.base = b"", 0
        self.records: list[Record] = []
        self.kept = 0

    def take(self, start: int, end: int) -> bytes:
        at = start - self.base
        if at >= 0 and end - self.base <= len(self.buffer):
            return self.buffer[at : end - self.base]
        return self.read(start, end)

    def keep(self, start: int, end: int) -> bytes:
        self.kept += end - start
        if self.kept > _LARGEST_SKELETON:
            raise ModelError(f"the model's structure alone takes more than {_LARGEST_SKELETON >> 20} MB; it is refused")
        return self.take(start, end)

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Fields of the message in [start, end): number, wire type, start of the field, of its payload, its end."""
        at = start
        while at < end:
            if not (self.base <= at and min(at + 20, end) <= self.base + len(self.buffer)):
                self.buffer, self.base = self.read(at, min(at + _WINDOW, self.size)), at
            buffer, i = self.buffer, at - self.base
            tag, i = self._varint(buffer, i)
            number, kind = tag >> 3, tag & 7
            if kind == _BYTES:
                length, i = self._varint(buffer, i)
                stop = self.base + i + length
            elif kind == _VARINT:
                length, begin = 0, i
                _, i = self._varint(buffer, i)
                stop, i = self.base + i, begin
            elif kind in (_FIXED32, _FIXED64):
                stop = self.base + i + (4 if kind == _FIXED32 else 8)
            else:
                raise ModelError(f"not an ONNX model: byte {at} holds no protobuf field")
            if stop > end or number == 0:
                raise ModelError(f"not an ONNX model, or cut short: the field at byte {at} runs over its end")
            payload = self.base + i
            yield number, kind, at, payload, stop
            at = stop

    @staticmethod
    def _varint(buffer: bytes, i: int) -> tuple[int, int]:
        try:
            byte = buffer[i]
            if byte < 128:
                return byte, i + 1
            number, shift = byte & 127, 7
            while shift < 70:
                i += 1
                byte = buffer[i]
                number |= (byte & 127) << shift
                if byte < 128:
                    return number & ((1 << 64) - 1), i + 1
                shift += 7
        except IndexError:
            pass
        raise ModelError("not an ONNX model, or cut short: a number runs over its end")

    def message(self, kind: str, start: int, end: int, frames: tuple[Frame, ...]) -> bytes:
        """The skeleton of one message; records what it holds."""
        if len(frames) > _DEEPEST:
            raise ModelError(f"the model nests messages more than {_DEEPEST} deep; no runtime loads that")
        children, numbers = _CHILDREN.get(kind, {}), _NUMBERS.get(kind, ())
        out: list[bytes] = []
        copied = start
        found: dict[int, list[Span]] = {}
        record = Record(found, frames)
        for number, wire, at, payload, stop in self.fields(start, end):
            child = children.get(number) if wire == _BYTES else None
            if child:
                inner = self.message(child, payload, stop, (*frames, (self._length_at(at), payload, stop)))
                out += (self.keep(copied, at), varint(number << 3 | _BYTES), varint(len(inner)), inner)
                copied = stop
            elif number in numbers:
                found.setdefault(number, []).append((payload, stop))
                if number in _VARINTS[kind]:
                    record.counts[number] = record.counts.get(number, 0) + self._count(payload, stop)
                    if wire == _BYTES:
                        record.packed[payload] = (self._length_at(at), payload, stop)
                if stop - payload > _SMALL:
                    out.append(self.keep(copied, at))
                    copied = stop
            elif number == _EXTERNAL and kind == "tensor" and wire == _BYTES:
                record.locations.extend(self._location((self._length_at(at), payload, stop)))
        out.append(self.keep(copied, end))
        if numbers and (found or kind == "tensor"):
            token = f"{TOKEN}{len(self.records)}".encode()
            self.records.append(record)
            out += (varint(_TOKEN[kind] << 3 | _BYTES), varint(len(token)), token)
        return b"".join(out)

    def _length_at(self, at: int) -> int:
        """Where the length of the field at `at` starts: behind its tag, which is one or two bytes here."""
        head = self.take(at, min(at + 10, self.size))
        return at + 1 + next(k for k, byte in enumerate(head) if byte < 128)

    def _count(self, start: int, end: int) -> int:
        """Varints in [start, end): each ends with the one byte below 128."""
        pieces = (self.take(at, min(at + _WINDOW, end)) for at in range(start, end, _WINDOW))
        return sum(int(np.count_nonzero(np.frombuffer(piece, np.int8) >= 0)) for piece in pieces)

    def _location(self, entry: Frame) -> list[tuple[Frame, Frame]]:
        """The frames of an external_data entry whose key is `location`, and of the name in it."""
        found = {n: (self._length_at(at), start, end) for n, _, at, start, end in self.fields(*entry[1:])}
        key, value = found.get(1), found.get(2)
        return [(entry, value)] if key and value and self.take(*key[1:]) == b"location" else []


def scan(source: Source) -> tuple[bytes, list[Record]]:
    """The skeleton of an ONNX file and the records of its numbers; ModelError where it is no protobuf message."""
    with source.reading() as read:
        scanner = _Scanner(read, source.size)
        return scanner.message("model", 0, source.size, ()), scanner.records
