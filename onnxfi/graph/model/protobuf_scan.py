"""Protobuf scan: the byte ranges of all stored numbers of an ONNX file, without reading the numbers.

An ONNX file is a protobuf message. `scan` walks it field by field and gives two things: a *skeleton*, the same
message without its large payloads (which `onnx` then parses as usual), and for each tensor and number list a
`TensorRecord` of the byte ranges that hold its words. The record's number travels in the skeleton as the `doc_string`
of that tensor or attribute, so that a tensor is matched to its bytes even if the parser merges repeated
fields.

A fault in a weight is then a change of some bytes of a copy: everything else in the file, known to onnx or not, stays
the same, and only the structure is held in memory. Source: the protobuf encoding guide and onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import ModelError
from onnxfi.graph.model.byte_source import ByteSource, ReadBytes

#: A run of numbers: start, end, and the bytes of the tag before each number (0 if they are packed).
ByteRun = tuple[int, int, int]
MessageFrame = tuple[int, int, int]

WINDOW_BYTES = 1 << 18
#: Payloads up to this size stay in the skeleton: shapes, axes and scalars, which graph analyses need. Of larger ones
#: nothing does, or the beginning, where they are not packed.
_SMALL = 1 << 10
#: Bytes of an unpacked list that are read number by number before the rest is searched in growing chunks.
_MANY = 256
#: Nesting of protobuf messages; onnx's own parser stops at 100.
_DEEPEST = 100
#: Names, attributes and nodes together; real models of 100,000 nodes need some 50 MB.
LARGEST_SKELETON = 1 << 30

_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_WIDTH = {_FIXED32: 4, _FIXED64: 8}
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
#: Fields that hold numbers, with the wire type of one of them; lists may also be packed. Any other type there is an
#: unknown field, which parsers skip.
_NUMBERS: dict[str, dict[int, int]] = {
    "tensor": {4: _FIXED32, 5: _VARINT, 7: _VARINT, 9: _BYTES, 10: _FIXED64, 11: _VARINT},
    "attribute": {2: _FIXED32, 3: _VARINT, 7: _FIXED32, 8: _VARINT},
}
_SCALARS = {"tensor": (), "attribute": (2, 3)}
#: Strings that may be large and that no analysis needs, and the field that carries the record's number (doc_string).
_STRINGS = {"tensor": 6, "attribute": 4}
_TOKEN = {"tensor": 12, "attribute": 13}
_EXTERNAL = 13
#: op_type and domain of a node.
_NODE = (4, 7)
_PREFIX = "onnxfi:"


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Byte ranges of the numbers of one tensor or attribute.

    `fields` maps a field number to its runs, in order; `counts` says how many numbers they hold (bytes, where they are
    raw); `frames` are the enclosing messages as (start of the length, start, end), outermost first, the tensor's own
    last; `locations` external file names, each as the frames of its entry and of the name in it; `packed` the frames
    of packed varint lists by their start.
    """

    fields: dict[int, list[ByteRun]]
    frames: tuple[MessageFrame, ...]
    locations: list[tuple[MessageFrame, MessageFrame]] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    packed: dict[int, MessageFrame] = field(default_factory=dict)

    def add(self, number: int, run: ByteRun, count: int) -> None:
        """Add a run; one that continues the last one, with the same tags, is merged into it."""
        runs = self.fields.setdefault(number, [])
        self.counts[number] = self.counts.get(number, 0) + count
        if run[2] and runs and runs[-1][1:] == (run[0], run[2]):
            runs[-1] = (runs[-1][0], *run[1:])
        else:
            runs.append(run)

    def run_length(self, number: int, at: int) -> int:
        """Return the length in bytes of the run that ends at `at`."""
        runs = self.fields.get(number, ())
        return at - runs[-1][0] if runs and runs[-1][1] == at else 0


def text(field: str | bytes) -> str:
    """Return a text field of a parsed message; bytes that are not UTF-8 are escaped.

    >>> text(b"conv\\xff")
    'conv\\\\xff'
    """
    return field if isinstance(field, str) else field.decode("utf-8", "backslashreplace")


def record_number(doc_string: str) -> int:
    """Return the number of the record that the scan wrote there; −1 if it found no numbers."""
    return int(doc_string[len(_PREFIX) :]) if doc_string else -1


def varint(number: int) -> bytes:
    """Return a number as a protobuf varint; negative ones as 64-bit two's complement.

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
    """Return the numbers of a packed field, and the offset of each (one entry more: the end).

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


def read_varints(
    read: ReadBytes, run: ByteRun
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the varints of a run, chunk by chunk: the numbers, and the start and end of each in the file."""
    start, end, lead = run
    while start < end:
        chunk = read(start, min(start + WINDOW_BYTES, end))
        if start + len(chunk) < end:
            chunk = chunk[: int(np.flatnonzero(np.frombuffer(chunk, np.int8) >= 0).max(initial=-1)) + 1]
        values, at = split_varints(chunk)
        if lead:  # a tag, which is a varint itself, before each number
            at = at[: len(values) // 2 * 2 + 1]
            values = values[1::2]
        if not len(values):
            raise ModelError("a number list in the file is damaged (a varint runs over its end)")
        step = 2 if lead else 1
        yield values, start + at[step - 1 : -1 : step], start + at[step::step]
        start += int(at[-1])


class _Scanner:
    """Scan of one file. The window over its bytes moves forward only."""

    def __init__(self, read: ReadBytes, size: int) -> None:
        self.read, self.size = read, size
        self.buffer, self.base = b"", 0
        self.records: dict[int, TensorRecord] = {}
        self.kept = self.numbered = 0

    def take(self, start: int, end: int) -> bytes:
        at = start - self.base
        if at >= 0 and end - self.base <= len(self.buffer):
            return self.buffer[at : end - self.base]
        return self.read(start, end)

    def keep(self, start: int, end: int) -> bytes:
        self.kept += end - start
        if self.kept > LARGEST_SKELETON:
            raise ModelError(f"the model's structure alone takes more than {LARGEST_SKELETON >> 20} MB; it is refused")
        return self.take(start, end)

    def field(self, at: int, end: int, depth: int = 0) -> tuple[int, int, int, int, int]:
        """Return the field at `at` of a message: its number, wire type, and the ends of its tag, header and payload."""
        if not (self.base <= at and min(at + 20, end) <= self.base + len(self.buffer)):
            self.buffer, self.base = self.read(at, min(at + WINDOW_BYTES, self.size)), at
        buffer, base = self.buffer, self.base
        tag, i = self._varint(buffer, at - base)
        number, wire, behind = tag >> 3, tag & 7, base + i
        if wire == _BYTES:
            length, i = self._varint(buffer, i)
            stop = base + i + length
        elif wire == _VARINT:
            stop = base + self._varint(buffer, i)[1]
        elif wire in _WIDTH:
            stop = behind + _WIDTH[wire]
        elif wire == _GROUP:
            stop = self._group(number, behind, end, depth + 1)
        elif wire == _GROUP_END and depth:
            stop = behind
        else:
            raise ModelError(f"not an ONNX model: byte {at} holds no protobuf field")
        if stop > end or number == 0:
            raise ModelError(f"not an ONNX model, or cut short: the field at byte {at} runs over its end")
        return number, wire, behind, base + i, stop

    def _group(self, number: int, at: int, end: int, depth: int) -> int:
        """Return the end of a group, protobuf's old form of a message: an unknown field, as ONNX has none."""
        if depth > _DEEPEST:
            raise ModelError(f"the model nests groups more than {_DEEPEST} deep; no runtime loads that")
        while True:
            inner, wire, _, _, at = self.field(at, end, depth)
            if wire == _GROUP_END:
                if inner != number:
                    raise ModelError(f"not an ONNX model: the group that ends at byte {at} never began")
                return at

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

    def message(self, kind: str, start: int, end: int, frames: tuple[MessageFrame, ...]) -> bytes:
        """Return the skeleton of one message, and record its numbers."""
        if len(frames) > _DEEPEST:
            raise ModelError(f"the model nests messages more than {_DEEPEST} deep; no runtime loads that")
        children, numbers = _CHILDREN.get(kind, {}), _NUMBERS.get(kind, {})
        strings, doc_string = _STRINGS.get(kind), _TOKEN.get(kind)
        record, first = TensorRecord({}, frames), self.numbered
        op = domain = b""
        out: list[bytes] = []
        at = copied = start
        while at < end:
            number, wire, behind, payload, stop = self.field(at, end)
            drop = False
            if wire == _BYTES and number in children:
                inner = self.message(children[number], payload, stop, (*frames, (behind, payload, stop)))
                out += (self.keep(copied, at), varint(number << 3 | _BYTES), varint(len(inner)), inner)
                copied = stop
            elif number in numbers and wire in (numbers[number], _BYTES):
                stop = self._numbers(kind, record, (number, wire, at, behind, payload, stop), end)
                drop = stop - payload > _SMALL
            elif number == strings:
                drop = stop - payload > _SMALL
            elif number == doc_string:  # text of the file must not be taken for a record's number
                drop = True
            elif number == _EXTERNAL and kind == "tensor" and wire == _BYTES:
                record.locations.extend(self._location((behind, payload, stop)))
            elif kind == "node" and wire == _BYTES and number in _NODE:
                what = self.take(payload, min(stop, payload + 20))
                op, domain = (what, domain) if number == _NODE[0] else (op, what)
            if drop:
                out.append(self.keep(copied, at))
                copied = stop
            at = stop
        out.append(self.keep(copied, end))
        if doc_string and (record.fields or kind == "tensor"):
            name = f"{_PREFIX}{self.numbered}".encode()
            self.records[self.numbered] = record
            self.numbered += 1
            out += (varint(doc_string << 3 | _BYTES), varint(len(name)), name)
        elif kind == "node" and op != b"Constant" and domain != b"ai.onnx.ml":
            # Strides and axes are no targets: a hundred thousand nodes have half a million of them.
            for held in range(first, self.numbered):
                if held in self.records and len(self.records[held].frames) == len(frames) + 1:
                    del self.records[held]
        return b"".join(out)

    def _numbers(self, kind: str, record: TensorRecord, where: tuple[int, int, int, int, int, int], end: int) -> int:
        """Record a field that holds numbers, and those of the same tag after it; returns where they end."""
        number, wire, at, behind, payload, stop = where
        form = _NUMBERS[kind][number]
        if number in _SCALARS[kind]:
            if wire == form:
                record.add(number, (payload, stop, 0), 1)
        elif wire != _BYTES:
            stop, count = self._run(wire, at, behind, stop, min(end, at + record.run_length(number, at)))
            record.add(number, (at, stop, behind - at), count)
        elif form == _VARINT:
            record.packed[payload] = (behind, payload, stop)
            record.add(number, (payload, stop, 0), self._count(payload, stop))
        else:
            count, rest = divmod(stop - payload, _WIDTH.get(form, 1))
            if rest:
                raise ModelError(f"the number list at byte {at} ends inside a number; the file is damaged")
            record.add(number, (payload, stop, 0), count)
        return stop

    def _run(self, wire: int, at: int, behind: int, stop: int, end: int) -> tuple[int, int]:
        """Return the end and the count of unpacked numbers with the same tag, from `at` up to `end`."""
        if behind - at > 1 or end - at < _MANY:
            return stop, 1
        raw = np.frombuffer(self.buffer, np.uint8)[at - self.base : end - self.base]
        if wire == _VARINT:
            ends = np.flatnonzero(raw < 128) + 1
            ends = ends[: len(ends) // 2 * 2]
            lengths = np.diff(ends, prepend=0)
            good = (lengths[::2] == 1) & (raw[ends[::2] - 1] == raw[0]) & (lengths[1::2] <= 10)
        else:
            good = raw[: len(raw) // (stop - at) * (stop - at) : stop - at] == raw[0]
        count = len(good) if good.all() else int(good.argmin())
        if count < 2:
            return stop, 1
        return at + (int(ends[2 * count - 1]) if wire == _VARINT else count * (stop - at)), count

    def _count(self, start: int, end: int) -> int:
        """Count the varints in [start, end): each ends with its one byte below 128."""
        chunks = (self.take(at, min(at + WINDOW_BYTES, end)) for at in range(start, end, WINDOW_BYTES))
        return sum(int(np.count_nonzero(np.frombuffer(chunk, np.int8) >= 0)) for chunk in chunks)

    def _location(self, entry: MessageFrame) -> list[tuple[MessageFrame, MessageFrame]]:
        """Return the frames of an external_data entry whose key is `location`, and of the name in it."""
        found: dict[int, MessageFrame] = {}
        at = entry[1]
        while at < entry[2]:
            number, wire, behind, payload, at = self.field(at, entry[2])
            if wire == _BYTES:
                found[number] = (behind, payload, at)
        key, value = found.get(1), found.get(2)
        return [(entry, value)] if key and value and self.take(*key[1:]) == b"location" else []


def scan(source: ByteSource) -> tuple[bytes, dict[int, TensorRecord]]:
    """Return the skeleton of an ONNX file, and the records of its tensors and number lists by their number.

    Raises ModelError if the file is no protobuf message.
    """
    with source.reading() as read:
        scanner = _Scanner(read, source.size)
        return scanner.message("model", 0, source.size, ()), scanner.records
