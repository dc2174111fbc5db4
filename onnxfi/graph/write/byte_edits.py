"""Byte edits that change stored words: overwritten bytes, or splices of another length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxfi.faults.space import Index, Target
from onnxfi.faults.words import Words
from onnxfi.graph.model.byte_source import ReadBytes
from onnxfi.graph.model.loading import byte_offsets
from onnxfi.graph.model.protobuf_scan import MessageFrame, TensorRecord, read_varints, varint
from onnxfi.graph.model.stored_tensors import WordLocation

#: Offsets in a file, and the new bytes.
ByteEdit = tuple[NDArray[np.int64], NDArray[np.uint8]]
#: The enclosing messages, whose lengths change; start and end of the removed bytes; and the new bytes.
ByteSplice = tuple[tuple[MessageFrame, ...], int, int, bytes]


def plain_edits(read: ReadBytes, target: Target, location: WordLocation, index: Index, words: Words) -> ByteEdit:
    """Return the offset and value of each byte of words that are stored as they are."""
    offsets, shifts = byte_offsets(target, location, index)
    if target.word.bits >= 8:
        size = target.word.storage // 8
        values = words.astype(target.word.carrier).view(np.uint8).reshape(-1, size)
        return (offsets[:, None] + np.arange(size)).ravel(), values.ravel()
    cells: dict[int, int] = {}
    for at, shift, word in zip(offsets.tolist(), shifts.tolist(), words.tolist(), strict=True):
        span = range(at, at + (shift + target.word.storage + 7) // 8)
        old = bytes(cells[byte] if byte in cells else read(byte, byte + 1)[0] for byte in span)
        new = _within(int.from_bytes(old, "little"), shift, word, target)
        cells.update(zip(span, new.to_bytes(len(old), "little"), strict=True))
    return np.array(list(cells), np.int64), np.array(list(cells.values()), np.uint8)


def _within(number: int, shift: int, word: int, target: Target) -> int:
    """Return a number with the word that begins at its bit `shift` replaced, all other bits as they are."""
    return number & ~(target.word.full << shift) | (word << shift)


def varint_edits(
    read: ReadBytes, target: Target, location: WordLocation, record: TensorRecord, index: Index, words: Words
) -> tuple[list[ByteEdit], list[ByteSplice]]:
    """Return edits of words in a list of varints: overwritten if the length stays, else spliced. `index` ascends."""
    patches: list[ByteEdit] = []
    splices: list[ByteSplice] = []
    entries, positions = np.divmod(index, location.per_entry)
    done = 0
    for run in location.runs:
        frames = record.frames + ((record.packed[run[0]],) if run[0] in record.packed else ())
        for values, starts, ends in read_varints(read, run):
            low, high = np.searchsorted(entries, [done, done + len(values)]).tolist()
            numbers: dict[int, int] = {}
            for k in range(low, high):
                entry = int(entries[k]) - done
                old = numbers.get(entry, int(values[entry]))
                numbers[entry] = _entry(old, int(positions[k]), int(words[k]), target)
            for entry, number in numbers.items():
                start, end, new = int(starts[entry]), int(ends[entry]), varint(number)
                if len(new) == end - start == 10:  # the last byte holds one bit; parsers skip the others
                    new = new[:9] + bytes([new[9] | read(end - 1, end)[0] & 0x7E])
                if len(new) == end - start:
                    patches.append((np.arange(start, end), np.frombuffer(new, np.uint8)))
                elif number != int(values[entry]):
                    splices.append((frames, start, end, new))
            done += len(values)
    return patches, splices


def _entry(number: int, position: int, word: int, target: Target) -> int:
    """Return a number of a typed field with one of its words replaced; a signed one keeps its sign extension."""
    new, bits = _within(number, position * target.word.storage, word, target), target.word.bits
    if target.word.signed and not target.word.is_float and 8 <= bits < 64:
        above = number >> (bits - 1)
        if above in (0, (1 << (65 - bits)) - 1):
            return word - (1 << bits) if word >> (bits - 1) else word
    return new
