"""Faulty copies: a model with some words changed, and every other byte as it was.

The copy is made byte for byte, with the faulty words overwritten. Bytes are inserted or removed only if a
number of variable length changes its length (weights in typed integer fields), or external data gets a new name; the
lengths of the enclosing messages are then rewritten. External data is copied and patched in chunks. Everything is
checked before anything is written; a temporary name, fsync and rename leave no partial file.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.errors import FaultListError, ModelError, OutputError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.trials import Faults, apply_faults, concatenate_faults
from onnxfi.faults.words import Words
from onnxfi.graph.model.byte_source import ByteSource
from onnxfi.graph.model.loading import Model, by_target
from onnxfi.graph.model.protobuf_scan import MessageFrame, varint
from onnxfi.graph.write.byte_edits import ByteEdit, ByteSplice, plain_edits, varint_edits
from onnxfi.graph.write.output_file import atomic_files, check_output_files, output_files
from onnxfi.graph.write.sequential_file import SequentialFile

#: Called with the bytes done, and the bytes in all.
OnProgress = Callable[[int, int], None]
#: Size of a chunk, which is read, patched, hashed and written; smaller ones cost more of handing them to threads.
_CHUNK = 2 << 20
#: Chunks that are hashed and written while the next one is read.
_AHEAD = 5
#: Size of a file from which on its copy goes past the page cache.
_DIRECT = 16 << 20
#: Chunks below this size are hashed in this thread, as handing them to others costs more.
_SMALL = 1 << 16


@dataclass
class FileEdits:
    """Edits of each file: bytes to overwrite, and stretches of the model file to replace.

    `patches` maps a file's number to (offset, byte) columns; `splices` are (frames, start, end, new bytes), with the
    enclosing frames, whose lengths change.
    """

    patches: dict[int, list[ByteEdit]] = field(default_factory=lambda: defaultdict(list))
    splices: list[ByteSplice] = field(default_factory=list)

    @property
    def resized(self) -> bool:
        """True if a number changed its length, so that the enclosing message is rewritten."""
        return any(end - start != len(new) for _, start, end, new in self.splices)

    def bytes_of(self, file: int) -> ByteEdit:
        """Return the edits of one file as ascending columns; ModelError if two tensors change a byte differently."""
        parts = self.patches.get(file) or [(np.zeros(0, np.int64), np.zeros(0, np.uint8))]
        offsets, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(offsets, kind="stable")
        offsets, values = offsets[order], values[order]
        twice = np.flatnonzero(offsets[1:] == offsets[:-1])
        if (values[twice] != values[twice + 1]).any():
            raise ModelError(
                f"tensors share their external data, and faults change byte {offsets[twice[0]]:,} through two of them; "
                f"leave one out with --exclude"
            )
        return offsets, values


def look_up_words(model: Model, faults: Faults) -> tuple[Faults, Words]:
    """Look up the stored words: the faults with their words before and after, and each row's final word."""
    faults = bind_models(model, faults)
    return apply_faults(faults, model.stored(faults))


def bind_models(model: Model, faults: Faults) -> Faults:
    """Return the faults, those that depend on the numbers of whole tensors bound to them (`FaultModel.for_tensor`)."""
    if not any(event.depends_on_tensor for event in faults.models):
        return faults
    known: dict[tuple[int, FaultModel], FaultModel] = {}
    models = []
    for row, ordinal in enumerate(faults.sites.target.tolist()):
        key = ordinal, faults.model(row)
        if key not in known:
            target = faults.targets[ordinal]
            every = model.words(target, np.arange(target.size, dtype=np.int64))
            known[key] = key[1].for_tensor(target.word.values(every))
        models.append(known[key])
    return replace(faults, models=tuple(models))


def find_edits(model: Model, faults: Faults, final: Words) -> FileEdits:
    """Return the edits that write each fault's final word."""
    out = FileEdits()
    for target, rows in by_target(faults):
        index, first = np.unique(faults.sites.index[rows], return_index=True)
        words = final[rows][first]
        spot = model.places[model.by_id[target.id]]
        with model.sources[spot.file].reading() as read:
            if spot.varint:
                patches, splices = varint_edits(read, target, spot, model.records[spot.record], index, words)
                out.patches[0] += patches
                out.splices += splices
            else:
                out.patches[spot.file].append(plain_edits(read, target, spot, index, words))
    return out


def _renamed(model: Model, names: Sequence[str]) -> Iterator[ByteSplice]:
    """Yield the splices that give every tensor in external data the new name of its file."""
    for number, file in model.files.items():
        record = model.records[number]
        if not record.locations:
            raise ModelError("a tensor names its external data in a way that cannot be rewritten")
        entry, value = record.locations[-1]
        yield (*record.frames, entry, value), value[1], value[2], names[file - 1].encode()


def _lengths(splices: Iterable[ByteSplice]) -> list[tuple[int, int, bytes]]:
    """Return all replacements in the model file, ascending: splices, and the lengths of the messages around them."""
    edits_ = [(start, end, new) for _, start, end, new in splices]
    growth: dict[MessageFrame, int] = defaultdict(int)
    parent: dict[MessageFrame, tuple[int, MessageFrame | None]] = {}
    for frames, start, end, new in splices:
        for depth, frame in enumerate(frames):
            parent[frame] = (depth, frames[depth - 1] if depth else None)
        growth[frames[-1]] += len(new) - (end - start)
    for frame, (_, outer) in sorted(parent.items(), key=lambda item: -item[1][0]):
        at, start, end = frame
        if not growth[frame]:
            continue
        length = varint(end - start + growth[frame])
        edits_.append((at, start, length))
        if outer is not None:
            growth[outer] += growth[frame] + len(length) - (start - at)
    return sorted(edits_)


@dataclass(frozen=True)
class FaultyCopy:
    """Written copy: the digest of the faulty model, and its file, or its bytes in memory."""

    faulty: str
    path: Path | None
    data: bytes | None = None
    resized: bool = False


class _Behind:
    """Work on chunks in threads while the next ones are read: writing, and the digests of both models or of one.

    Up to the first chunk that differs the digests are one.
    """

    def __init__(self, *, both: bool) -> None:
        self.faulty = hashlib.sha256()
        self.model = self.faulty if both else None
        self._waiting: deque[list[Future[object]]] = deque()
        self._threads = [ThreadPoolExecutor(1) for _ in range(3)]

    def __enter__(self) -> _Behind:
        return self

    def __exit__(self, *raised: object) -> None:
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)

    def take(self, old: Any, new: Any, write: Callable[[Any], object]) -> None:
        """Hash a chunk as it was and as it becomes, and `write` the latter."""
        if self.faulty is self.model and new is not old and new != old:
            self.finish()
            self.model = self.faulty.copy()
        jobs: list[Callable[[], object]] = [partial(write, new), partial(self.faulty.update, new)]
        if self.model is not None and self.model is not self.faulty:
            jobs.append(partial(self.model.update, old))
        if len(old) + len(new) < _SMALL:
            self.finish()
            for job in jobs:
                job()
        else:
            self._waiting.append([thread.submit(job) for thread, job in zip(self._threads, jobs, strict=False)])
            self.finish(_AHEAD)

    def finish(self, ahead: int = 0) -> None:
        """Wait until all chunks, but for the last `ahead` ones, are hashed and written."""
        while len(self._waiting) > ahead:
            for job in self._waiting.popleft():
                job.result()

    def digest(self, model: Model) -> str:
        """Return the digest of the faulty model, and let the model know its own, if it was asked for."""
        self.finish()
        if self.model is not None:
            model.know_digest(self.model.hexdigest())
        return self.faulty.hexdigest()


def _chunks(
    source: ByteSource, patches: ByteEdit, replaced: Sequence[tuple[int, int, bytes]]
) -> Iterator[tuple[Any, Any]]:
    """Yield the file in chunks, each as it was and as it becomes; each is valid until `_AHEAD` + 2 more are taken."""
    offsets, values = patches
    # New memory for every chunk costs a page fault per 4 kB, more than the hashing. It begins at a page, for the disk.
    half = min(_CHUNK, (source.size // mmap.PAGESIZE + 1) * mmap.PAGESIZE)
    buffers = [memoryview(mmap.mmap(-1, 2 * half)) for _ in range(_AHEAD + 2)]
    with source.filling() as fill:
        at = 0
        for start, end, new in [*replaced, (source.size, source.size, b"")]:
            for low in range(at, start, _CHUNK):
                size = min(_CHUNK, start - low)
                buffers.append(buffers.pop(0))
                old, changed = buffers[0][:size], buffers[0][half : half + size]
                fill(low, old)
                a, b = np.searchsorted(offsets, [low, low + size])
                if a < b:
                    changed[:] = old
                    np.frombuffer(changed, np.uint8)[offsets[a:b] - low] = values[a:b]
                yield old, changed if a < b else old
            if end > start or new:
                gone = bytearray(end - start)
                fill(start, memoryview(gone))
                yield gone, new
            at = end


def _joined(chunks: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Join small chunks into larger ones, so that a million of them cost as little as a few."""
    old, new = bytearray(), bytearray()
    for a, b in chunks:
        small = len(a) < _CHUNK
        if small:
            old += a
            new += b
        if old and (not small or len(old) >= _CHUNK):
            yield bytes(old), bytes(new)
            old, new = bytearray(), bytearray()
        if not small:
            yield a, b
    if old or new:
        yield bytes(old), bytes(new)


def write_copy(
    model: Model,
    change: FileEdits,
    out: Path | None,
    *,
    hash_model: bool = False,
    expect: str | None = None,
    progress: OnProgress | None = None,
) -> FaultyCopy:
    """Write the changed copy to `out`, or return its bytes where `out` is None (a model without external data).

    With external data, `hash_model` and no `out` nothing is kept but the digests, under the names that the files have.

    External data is written to `OUT.data` (`OUT.data.1`, …); only their names change in the model. With
    `hash_model` the digest of the model is found on the way; `expect` is the required digest of the result; `progress`
    is called with the bytes done and the bytes in all. Raises OutputError for an output that cannot be written.
    """
    both = hash_model and not model.digest_known
    if out is None:
        if model.external and not hash_model:
            raise OutputError("a model with external data cannot be written into memory; give an output file")
        parts: list[bytes] = []
        keep = (lambda _: None) if model.external else (lambda chunk: parts.append(bytes(chunk)))
        with _Behind(both=both) as behind:
            for number, source in enumerate(model.sources):
                spliced = [] if number else _lengths(change.splices)
                for old, new in _joined(_chunks(source, change.bytes_of(number), spliced)):
                    behind.take(old, new, keep)
                behind.finish()
            data = None if model.external else b"".join(parts)
            return FaultyCopy(behind.digest(model), None, data, change.resized)
    files = output_files(out, len(model.external))
    check_output_files(model, files)
    splices = [*change.splices, *_renamed(model, [f.name for f in files[1:]])]
    done, total = 0, sum(source.size for source in model.sources)
    # Threads end before the files that they write are closed, also where an error or an interrupt stops the copy.
    with atomic_files(files) as streams, ExitStack() as copies, _Behind(both=both) as behind:
        for number, (source, stream) in enumerate(zip(model.sources, streams, strict=True)):
            copy = copies.enter_context(closing(SequentialFile(stream, direct=source.size >= _DIRECT)))
            for old, new in _joined(_chunks(source, change.bytes_of(number), [] if number else _lengths(splices))):
                behind.take(old, new, copy.write)
                done += len(old)
                if progress is not None:
                    progress(done, total)
            behind.finish()
            copy.finish()
        digest = behind.digest(model)
        if expect is not None and digest != expect:
            raise FaultListError(f"the digest of the result would be {digest}, not {expect}; nothing was written")
    return FaultyCopy(digest, out, None, change.resized)


def faulty_bytes(model: Model, change: FileEdits) -> bytes:
    """Return the changed model file as bytes, without digests, to make a session from."""
    chunks = _chunks(model.source, change.bytes_of(0), _lengths(change.splices))
    return b"".join(bytes(new) for _, new in chunks)


def write_scratch_copy(model: Model, change: FileEdits, out: Path) -> None:
    """Write the changed copy as `write_copy` does, without digests: a draft from which a session is made."""
    files = output_files(out, len(model.external))
    splices = [*change.splices, *_renamed(model, [file.name for file in files[1:]])]
    try:
        for number, (source, file) in enumerate(zip(model.sources, files, strict=True)):
            with file.open("wb") as stream:
                copy = SequentialFile(stream)
                for _, new in _chunks(source, change.bytes_of(number), [] if number else _lengths(splices)):
                    copy.write(new)
                copy.finish()
    except OSError as error:
        raise OutputError(f"cannot write {str(out)!r}: {error.strerror}") from None


def undo_words(model: Model, trials: Sequence[Faults]) -> tuple[Faults, Words]:
    """Return the words that undo these trials, last fault first, on the faulty model.

    Raises FaultListError if the model does not hold the words that the faults left.
    """
    rows = concatenate_faults([faults.pick(np.arange(len(faults))[::-1]) for faults in reversed(trials)])
    held = model.stored(rows)
    places, newest, group = np.unique(
        np.stack([rows.sites.target, rows.sites.index]), axis=1, return_index=True, return_inverse=True
    )
    if rows.after is not None:
        wrong = newest[held[newest] != rows.after[newest]]
        if len(wrong):
            fault = rows[int(wrong.min())]
            raise FaultListError(f"{fault.site} does not hold {fault.after:#x}; the list did not make this model")
    if rows.before is None:
        return apply_faults(rows, held)
    original = np.zeros(places.shape[1], np.uint64)
    original[group.ravel()] = rows.before  # rows are in reverse order, and the last assignment stays
    return rows, original[group.ravel()]
