"""Manifests: a hash for each tensor of a model, by which damage is found and named without the original at hand.

The hash of a tensor is over its words as they lie in a file (little-endian, packed), however this file stores them, in
chunks of 1 MiB: a model of 10 GB is checked in parallel, a chunk at a time, and damage is located to a chunk. The
format is docs/reference/manifest.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.errors import InputError
from onnxfi.faults.space import Selector, Target
from onnxfi.file_fields import parse_json, read_bytes
from onnxfi.graph.model.byte_source import quoted
from onnxfi.graph.model.external_data import tensors_in
from onnxfi.graph.model.loading import Model, ModelLike, load
from onnxfi.graph.write.output_file import atomic_files

FORMAT, VERSION = "onnxfi-manifest", 1
#: Bytes of a tensor that are hashed together.
CHUNK_BYTES = 1 << 20
#: Chunks that one thread hashes before it takes others, also of another tensor.
CHUNKS_TOGETHER = 64
#: The largest manifest that is read: that of a model of some 4 TB.
MOST_BYTES = 1 << 28
#: Fields of a tensor that hold its numbers, or the place where they lie.
_PAYLOAD = (
    *("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"),
    *("external_data", "data_location"),
)


@dataclass(frozen=True)
class TensorHash:
    """Hash of one tensor.

    Attributes
    ----------
    id : str
        The target's id.
    dtype : str
        The number format.
    shape : tuple of int
        The shape.
    size_bytes : int
        The bytes of its words.
    chunks : tuple of str
        SHA-256 of each chunk of `CHUNK_BYTES`, in hexadecimal; the last one may be shorter.
    """

    id: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    chunks: tuple[str, ...]

    @property
    def root(self) -> str:
        """The hash of the tensor: that of its chunk, and SHA-256 over the hashes where there are several or none."""
        if len(self.chunks) == 1:
            return self.chunks[0]
        return hashlib.sha256(b"".join(map(bytes.fromhex, self.chunks))).hexdigest()

    def row(self) -> dict[str, Any]:
        """Return the hash as a manifest has it."""
        return {
            "id": self.id, "dtype": self.dtype, "shape": list(self.shape), "size_bytes": self.size_bytes,
            "sha256": self.root, "chunks": list(self.chunks) if len(self.chunks) > 1 else None,
        }  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """Hashes of a model: of the whole file, of its structure, and of each tensor.

    Attributes
    ----------
    model : str
        The name of the model's file.
    digest : str
        SHA-256 of the file and its external data, as fault lists have it.
    structure : str
        SHA-256 of all that is no stored number: graph, operators, attributes, names.
    tensors : tuple of TensorHash
        The tensors in file order.

    Examples
    --------
    >>> found = manifest("models/fashion_cnn.onnx")
    >>> len(found.tensors), found.tensors[0].id, verify("models/fashion_cnn.onnx", found).whole
    (9, 'conv1.weight', True)
    """

    model: str
    digest: str
    structure: str
    tensors: tuple[TensorHash, ...] = field(repr=False)

    def document(self) -> dict[str, Any]:
        """Return the manifest as plain values for JSON."""
        return {
            "format": FORMAT, "version": VERSION, "model": self.model, "digest": self.digest,
            "structure": self.structure, "chunk_bytes": CHUNK_BYTES, "tensors": [one.row() for one in self.tensors],
        }  # fmt: skip

    def write(self, file: str | Path) -> Path:
        """Write the manifest as JSON; the file appears whole or not at all."""
        with atomic_files([Path(file)]) as (stream,):
            stream.write(json.dumps(self.document(), indent=1).encode() + b"\n")
        return Path(file)

    @classmethod
    def read(cls, file: str | Path) -> Manifest:
        """Read a manifest; InputError where the file is none, is damaged, or is of another version."""
        where = quoted(file)
        text = read_bytes(file, MOST_BYTES)
        try:
            held = parse_json(text, where)
        except InputError:
            raise InputError(f"{where} is no manifest, or is damaged; onnxfi manifest MODEL writes one") from None
        if not isinstance(held, dict) or held.get("format") != FORMAT:
            raise InputError(f"{where} is no manifest; onnxfi manifest MODEL writes one")
        if held.get("version") != VERSION or held.get("chunk_bytes") != CHUNK_BYTES:
            raise InputError(f"{where} has version {held.get('version')!r}; this onnxfi reads version {VERSION}")
        try:
            texts = {key: _hexadecimal(held[key]) for key in ("digest", "structure")}
            return cls(str(held["model"]), **texts, tensors=tuple(map(_tensor_hash, held["tensors"])))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where} is damaged ({error}); write it again with onnxfi manifest MODEL") from None


@dataclass(frozen=True)
class Verification:
    """The comparison of a model with a manifest.

    Attributes
    ----------
    changed : mapping of str to tuple
        The tensors whose words differ: by id, the byte ranges `(start, end)` of the chunks that do.
    missing, added : tuple of str
        The tensors of the manifest that the model lacks or has in another format or shape; those that only it has.
    structure : bool
        True where graph, operators, attributes and names are the same.
    same_bytes : bool or None
        True where the file and its external data are the same byte for byte; None if only some tensors were compared.
    tensors : int
        The tensors that were compared.
    """

    changed: Mapping[str, tuple[tuple[int, int], ...]]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    structure: bool
    same_bytes: bool | None
    tensors: int

    @property
    def whole(self) -> bool:
        """True where every stored number and the structure are those of the manifest."""
        return not self.changed and not self.missing and not self.added and self.structure

    def document(self) -> dict[str, Any]:
        """Return the comparison as plain values for JSON."""
        return {
            "whole": self.whole, "same_bytes": self.same_bytes, "structure": self.structure, "tensors": self.tensors,
            "changed": [{"id": name, "bytes": [list(one) for one in ranges]} for name, ranges in self.changed.items()],
            "missing": list(self.missing), "added": list(self.added),
        }  # fmt: skip


def manifest(model: ModelLike, *, workers: int | None = None) -> Manifest:
    """Hash every tensor of a model.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The model.
    workers : int, optional
        Threads that read and hash; by default one a processor.

    Returns
    -------
    Manifest
        The hashes, to be written and compared with `verify`.

    Raises
    ------
    ModelError
        Where the model cannot be opened.

    Examples
    --------
    >>> manifest("models/fashion_cnn.onnx").tensors[1].size_bytes
    64
    """
    opened = load(model)
    with ThreadPoolExecutor(workers) as pool:
        whole = pool.submit(lambda: opened.digest)  # one after the other, beside the tensors
        hashes = _hashes(opened, opened.targets, pool)
        digest = whole.result()
    name = opened.path.name if opened.path else opened.name
    return Manifest(name, digest, structure_digest(opened), hashes)


def verify(
    model: ModelLike,
    known: Manifest | str | Path,
    *,
    selector: Selector | None = None,
    workers: int | None = None,
    **selection: Any,
) -> Verification:
    """Compare a model with a manifest, tensor by tensor.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The model.
    known : Manifest, str or Path
        The manifest, or its file.
    selector : Selector, optional
        The tensors to compare, so that a large model is checked a part at a time; by default all, and the whole file.
    workers : int, optional
        Threads that read and hash; by default one a processor.
    **selection
        Fields of a selector in place of one: ``include="conv1"``, ….

    Returns
    -------
    Verification
        The tensors that differ, and where.

    Raises
    ------
    InputError
        For a manifest that cannot be read, or of a model that shares no tensor with this one.

    Examples
    --------
    >>> from onnxfi.runtime.inject.weights import inject, sample
    >>> model = load("models/fashion_cnn.onnx")
    >>> faulty = inject(model, sample(model, sites=["fc1.weight[70000]:30"])).data
    >>> dict(verify(faulty, manifest(model)).changed)
    {'fc1.weight': ((0, 401408),)}
    """
    opened = load(model)
    wanted = known if isinstance(known, Manifest) else Manifest.read(known)
    there = {one.id: one for one in wanted.tensors}
    if selector is None and not selection:
        found = manifest(opened, workers=workers)
        hashes, structure, same_bytes = found.tensors, found.structure, found.digest == wanted.digest
    else:
        chosen = Selector.given(selector, selection).space(opened.targets).targets
        with ThreadPoolExecutor(workers) as pool:
            hashes = _hashes(opened, chosen, pool)
        structure, same_bytes = structure_digest(opened), None
        left_out = {target.id for target in opened.targets} - {target.id for target in chosen}
        there = {name: one for name, one in there.items() if name not in left_out}
    here = {one.id: one for one in hashes}
    common = [
        name
        for name, one in there.items()
        if name in here and (one.dtype, one.shape) == (here[name].dtype, here[name].shape)
    ]
    if there and not common:
        raise InputError(
            f"the manifest is of another model ({quoted(wanted.model)}): none of its {len(there):,} tensors is in "
            f"{opened.name}"
        )
    changed = {name: tuple(_ranges(there[name], here[name])) for name in common if there[name] != here[name]}
    return Verification(
        changed,
        tuple(name for name in there if name not in set(common)),
        tuple(name for name in here if name not in there),
        structure == wanted.structure,
        same_bytes,
        len(common),
    )


def structure_digest(model: Model) -> str:
    """Return SHA-256 of a model without its stored numbers: graph, operators, attributes, names, shapes."""
    bare = type(model.proto)()
    bare.CopyFrom(model.proto)
    for tensor in tensors_in(bare):
        for name in _PAYLOAD:
            tensor.ClearField(name)
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _hashes(model: Model, targets: Sequence[Target], pool: Executor) -> tuple[TensorHash, ...]:
    """Hash tensors in parallel, a large one in parts."""
    waiting = []
    for target in targets:
        step = CHUNKS_TOGETHER * (CHUNK_BYTES * 8 // target.word.storage)
        starts = range(0, target.size, step)
        waiting.append([pool.submit(_chunks, model, target, k, min(k + step, target.size)) for k in starts])
    return tuple(
        TensorHash(
            target.id, target.word.name, target.shape, target.word.size_bytes(target.size),
            tuple(chunk for part in parts for chunk in part.result()),
        )
        for target, parts in zip(targets, waiting, strict=True)
    )  # fmt: skip


def _chunks(model: Model, target: Target, first: int, last: int) -> list[str]:
    """Hash words of a tensor, a chunk at a time."""
    step = CHUNK_BYTES * 8 // target.word.storage
    parts = (_bytes(model, target, start, min(step, last - start)) for start in range(first, last, step))
    return [hashlib.sha256(part).hexdigest() for part in parts]


def _bytes(model: Model, target: Target, start: int, count: int) -> bytes:
    """Return words of a tensor as a file of packed words has them; `start` begins a byte."""
    place, word = model.places[model.by_id[target.id]], target.word
    if not place.varint and len(place.runs) == 1 and not place.runs[0][2]:
        first = place.runs[0][0] + word.size_bytes(start)
        with model.sources[place.file].reading() as read:
            return read(first, first + word.size_bytes(count))
    words = model.words(target, np.arange(start, start + count))
    if word.storage >= 8:
        return words.astype(word.carrier).tobytes()
    per_byte = 8 // word.storage
    padded = np.zeros(-(-count // per_byte) * per_byte, np.uint64)
    padded[:count] = words
    shifts = np.arange(per_byte, dtype=np.uint64) * np.uint64(word.storage)
    return bytes((padded.reshape(-1, per_byte) << shifts).sum(axis=1).astype(np.uint8))


def _ranges(one: TensorHash, other: TensorHash) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges of the chunks that differ."""
    for k, (ours, theirs) in enumerate(zip(one.chunks, other.chunks, strict=True)):
        if ours != theirs:
            yield k * CHUNK_BYTES, min((k + 1) * CHUNK_BYTES, one.size_bytes)


def _hexadecimal(text: Any) -> str:
    if not isinstance(text, str) or len(text) != 64 or len(bytes.fromhex(text)) != 32:
        raise ValueError(f"{str(text)[:80]!r} is no SHA-256")
    return text


def _tensor_hash(row: Any) -> TensorHash:
    """Read a row of a manifest; ValueError where its numbers do not agree with each other."""
    shape = tuple(row["shape"])
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, row["size_bytes"])):
        raise ValueError("a size is no whole number")
    root = _hexadecimal(row["sha256"])
    single = (root,) if row["size_bytes"] else ()
    chunks = tuple(map(_hexadecimal, row["chunks"])) if row["chunks"] else single
    known = TensorHash(str(row["id"]), str(row["dtype"]), shape, row["size_bytes"], chunks)
    if known.root != root or len(chunks) != -(-known.size_bytes // CHUNK_BYTES):
        raise ValueError(f"the hashes of tensor {known.id!r} do not agree with each other")
    return known
