"""Opening a model: its structure, its targets, and the locations of their words. Nothing here changes a file.

The same rules hold in every command: external data lies inside the model's folder, links to data are refused unless
allowed, and lengths are checked before memory is allocated.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import ModelError
from onnxfi.extensions import names_function
from onnxfi.faults.space import Index, Target
from onnxfi.faults.trials import Faults
from onnxfi.faults.words import Words
from onnxfi.graph.model.byte_source import ByteSource, ReadBytes, quoted
from onnxfi.graph.model.external_data import ExternalData
from onnxfi.graph.model.graph_index import GraphIndex, check_unfolded
from onnxfi.graph.model.protobuf_scan import TensorRecord, read_varints, scan
from onnxfi.graph.model.stored_tensors import StoredTensors, WordLocation
from onnxfi.graph.model.targets import find_targets, merge_aliases, target_notes

if TYPE_CHECKING:
    import onnx

#: File identifier of ONNX Runtime's own format, at byte 4.
_ORT_FORMAT = b"ORTM"
_LOG = logging.getLogger(__name__)
_CHUNK = 1 << 22
#: Bytes of a YAML file in which its stages begin.
_YAML_HEAD = 1 << 16
_MOST_NOTES = 20


@dataclass(frozen=True)
class Model:
    """Model on disk or in memory, opened for reading: its graphs, its targets and the locations of their words.

    Attributes
    ----------
    source
        The bytes of the model file.
    proto
        The structure without large payloads.
    index
        Producers, consumers, scopes and captures of the structure.
    targets
        Every stored tensor and number list, in file order.
    places
        The location of each target's words.
    records
        The byte ranges that the scan found, by the number of each record.
    external
        The data files in order of first reference.
    files
        The number (1…) of the data file of each record in external data.
    by_record
        The location of each record's words, also of aliases of a target.
    notes
        Notes for readers of the population.
    origin
        The digest of the model from which this one was made by adding an output: faults in one are faults in the other.

    Examples
    --------
    >>> model = load("models/fashion_cnn.onnx")
    >>> model.name, len(model.targets), model.targets[0].shape
    ('models/fashion_cnn.onnx', 9, (16, 1, 3, 3))
    """

    source: ByteSource
    proto: onnx.ModelProto = field(repr=False)
    index: GraphIndex = field(repr=False)
    targets: tuple[Target, ...] = field(repr=False)
    places: tuple[WordLocation, ...] = field(repr=False)
    records: Mapping[int, TensorRecord] = field(repr=False)
    external: tuple[ByteSource, ...] = ()
    files: Mapping[int, int] = field(default_factory=dict, repr=False)
    by_record: Mapping[int, WordLocation] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    origin: str = ""

    @property
    def path(self) -> Path | None:
        """The model file; None for a model in memory."""
        return self.source.path

    @property
    def stored_form(self) -> Path | bytes:
        """The model as a runtime opens it: its path, or its bytes where it is in memory."""
        return self.source.path or self.source.data or b""

    @property
    def name(self) -> str:
        """The name in messages."""
        return str(self.path) if self.path else "the model in memory"

    @cached_property
    def sources(self) -> tuple[ByteSource, ...]:
        """The model file and its data files."""
        return (self.source, *self.external)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model file followed by its data files: `cat m.onnx m.onnx.data | sha256sum`."""
        if self.origin:
            return self.origin
        total = hashlib.sha256()
        for source in self.sources:
            with source.reading() as read:
                for start in range(0, source.size, _CHUNK):
                    total.update(read(start, min(start + _CHUNK, source.size)))
        return total.hexdigest()

    @property
    def digest_known(self) -> bool:
        """True if the digest takes no reading any more."""
        return bool(self.origin) or "digest" in self.__dict__

    def know_digest(self, digest: str) -> None:
        """Keep the digest, as found by who has read all bytes anyway."""
        if not self.digest_known:
            self.__dict__["digest"] = digest

    @cached_property
    def by_id(self) -> dict[str, int]:
        """The ordinal of each target, by all its ids."""
        return {name: k for k, target in enumerate(self.targets) for name in target.ids}

    def words(self, target: Target, index: Index) -> Words:
        """Return the stored words of some elements (flat, row-major; [n]) of a target."""
        place = self.places[self.by_id[target.id]]
        out = np.zeros(len(index), np.uint64)
        if not len(index):
            return out
        with self.sources[place.file].reading() as read:
            if place.varint:
                return _varint_words(read, place, target, index)
            near = len(index) * 64 > int(index.max()) - int(index.min())
            if near and len(place.runs) == 1 and not place.runs[0][2]:
                return _many_words(read, place, target, index)
            offsets, shifts = byte_offsets(target, place, index)
            for k, (at, shift) in enumerate(zip(offsets.tolist(), shifts.tolist(), strict=True)):
                out[k] = int.from_bytes(read(at, at + (shift + target.word.storage + 7) // 8), "little") >> shift
        return out & np.uint64(target.word.full)

    def stored(self, faults: Faults) -> Words:
        """Return the stored word under each fault, in the order of the faults ([n])."""
        out = np.zeros(len(faults), np.uint64)
        for target, rows in by_target(faults):
            out[rows] = self.words(target, faults.sites.index[rows])
        return out


def by_target(faults: Faults) -> Iterator[tuple[Target, Index]]:
    """Yield each faulty target with the rows of its faults, in their order."""
    order = np.argsort(faults.sites.target, kind="stable")
    ordinals, starts = np.unique(faults.sites.target[order], return_index=True)
    for ordinal, rows in zip(ordinals.tolist(), np.split(order, starts[1:]), strict=False):
        yield faults.targets[ordinal], rows


def byte_offsets(target: Target, place: WordLocation, index: Index) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the file offset of each element's first byte, and the bits of that byte that come before it."""
    if target.word.storage < 8:  # raw, and so in one run
        bit = index * target.word.storage
        return place.runs[0][0] + bit // 8, bit % 8
    starts, ends, leads = np.array(place.runs, np.int64).reshape(-1, 3).T
    strides = leads + target.word.storage // 8
    upto = np.cumsum((ends - starts) // strides)
    run = np.searchsorted(upto, index, side="right")
    before = np.concatenate([[0], upto])[run]
    return starts[run] + (index - before) * strides[run] + leads[run], np.zeros_like(index)


def _many_words(read: ReadBytes, place: WordLocation, target: Target, index: Index) -> Words:
    """Return words that lie near each other, from the first to the last of which a tensor is read in chunks."""
    out = np.zeros(len(index), np.uint64)
    start = place.runs[0][0]
    per_read = _CHUNK // target.word.storage * 8
    end = int(index.max()) + 1
    for first in range(int(index.min()) // 8 * 8, end, per_read):
        count = min(per_read, end - first)
        here = (index >= first) & (index < first + count)
        if here.any():
            at = start + target.word.size_bytes(first)
            words = target.word.unpack(read(at, at + target.word.size_bytes(count)), first, count)
            out[here] = words[index[here] - first]
    return out & np.uint64(target.word.full)


def _varint_words(read: ReadBytes, place: WordLocation, target: Target, index: Index) -> Words:
    """Return words of a list of varints, which can only be located by reading it."""
    out = np.zeros(len(index), np.uint64)
    entry, position = np.divmod(index, place.per_entry)
    done = 0
    for run in place.runs:
        for values, _, _ in read_varints(read, run):
            here = (entry >= done) & (entry < done + len(values))
            out[here] = values[entry[here] - done]
            done += len(values)
    return (out >> (position * target.word.storage).astype(np.uint64)) & np.uint64(target.word.full)


#: A model as public functions take it: a path, serialised bytes, an `onnx.ModelProto`, or one that is open already.
ModelLike: TypeAlias = "Model | str | Path | bytes | onnx.ModelProto"


def load(model: ModelLike, *, allow_links: bool = False) -> Model:
    """Open a model for reading; the file is never changed.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        A path, the serialised bytes of a model, an `onnx.ModelProto`, or an open model, which is returned.
    allow_links : bool
        Follow symbolic and hard links to external data.

    Returns
    -------
    Model
        The structure of the model, its targets and the locations of their words.

    Raises
    ------
    ModelError
        The file is no ONNX model or is damaged, or its external data is missing, too short, outside the model's folder,
        or behind a link.

    Examples
    --------
    >>> model = load("models/fashion_cnn.onnx")
    >>> len(model.targets), model.targets[0].id, model.digest[:8]
    (9, 'conv1.weight', '6a9d8077')
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, (str, Path)):
        _refuse_pipeline(Path(model))
        source = ByteSource.file(Path(model))
    elif isinstance(model, bytes):
        source = ByteSource.memory(model)
    elif hasattr(model, "SerializeToString"):
        source = ByteSource.memory(_serialised(model))
    else:
        raise ModelError(f"{type(model).__name__} is not a model; give a path, its bytes, or an onnx.ModelProto")
    try:
        opened = _opened(source, allow_links)
    except ModelError as error:
        raise ModelError(f"{quoted(source.path) if source.path else 'the model'}: {error}") from None
    _LOG.info("opened %s: %d targets, %d files", opened.name, len(opened.targets), len(opened.sources))
    return opened


def _refuse_pipeline(path: Path) -> None:
    """Refuse what names a pipeline: a function, or a YAML file with stages (ModelError)."""
    found = names_function(str(path)) and not path.exists()
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        with suppress(OSError), path.open("rb") as stream:
            found = re.search(rb"^stages\s*:", stream.read(_YAML_HEAD), re.MULTILINE) is not None
    if found:
        raise ModelError(
            f"{quoted(path)} names a pipeline, and one model is taken here; give the .onnx file of one of its stages, "
            f"or the pipeline to eval, inject, run, check, compare or protect"
        )


def stored_form(model: ModelLike) -> str | Path | bytes:
    """Return a model as a runtime opens it: its path, or its bytes where it is in memory.

    >>> stored_form(load("models/fashion_cnn.onnx")).name
    'fashion_cnn.onnx'
    """
    if isinstance(model, str | Path | bytes):
        return model
    return load(model).stored_form


def _serialised(model: onnx.ModelProto) -> bytes:
    from google.protobuf.message import EncodeError

    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise ModelError(
            f"the model in memory is too large to serialise ({error}); save it with external data"
        ) from None


def _opened(source: ByteSource, allow_links: bool) -> Model:
    if source.size == 0:
        raise ModelError("the file is empty; give an ONNX file")
    with source.reading() as read:
        if read(0, min(source.size, 8))[4:] == _ORT_FORMAT:
            raise ModelError(
                "it is in the format of ONNX Runtime (.ort), not in ONNX; give the .onnx file it was made of"
            )
    skeleton, records = scan(source)
    proto = parsed(skeleton)
    check_unfolded(proto)
    data = ExternalData(source.path, allow_links)
    index = GraphIndex.of(proto)
    stored = StoredTensors.find(index, records, data.locate)
    every = find_targets(index, stored)
    rows = merge_aliases(every)
    targets, places = (tuple(column) for column in zip(*rows, strict=True)) if rows else ((), ())
    if any(record.locations and number not in data.files for number, record in records.items()):
        data.open_rest(proto)
    notes = [*_version_notes(proto), *stored.notes, *target_notes(targets)]
    if len(notes) > _MOST_NOTES:
        notes[_MOST_NOTES:] = [f"{len(notes) - _MOST_NOTES:,} more of such notes"]
    return Model(
        source,
        proto,
        index,
        targets,
        places,
        records,
        tuple(data.sources),
        data.files,
        {place.record: place for _, place in every},
        tuple(notes),
    )


def parse(model: Model) -> onnx.ModelProto:
    """Return the whole model as onnx reads it, with large payloads; external data stays outside.

    Raises ModelError for a file that is larger than onnx can read at once.
    """
    if model.source.size >= 1 << 31:
        raise ModelError(
            f"{model.name} takes {model.source.size:,} bytes in one file, more than onnx can read; "
            f"move its weights into external data first"
        )
    with model.source.reading() as read:
        return parsed(read(0, model.source.size))


def parsed(skeleton: bytes) -> onnx.ModelProto:
    """Return a serialised model as onnx reads it; ModelError if it is none."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(skeleton)
        if not proto.HasField("graph"):
            raise ModelError("not an ONNX model: it holds no graph")
        return proto
    except DecodeError as error:
        raise ModelError(f"not an ONNX model: {str(error)[:120]}") from None


def _version_notes(proto: onnx.ModelProto) -> Iterable[str]:
    import onnx

    if proto.ir_version > onnx.IR_VERSION:
        yield f"IR version {proto.ir_version} is newer than the {onnx.IR_VERSION} that onnx {onnx.__version__} knows"
    newest = onnx.defs.onnx_opset_version()
    opsets = [o for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    if not opsets and any(node.domain in ("", "ai.onnx") for node in proto.graph.node):
        yield "no default opset is imported, though operators of it are used; most runtimes refuse such a file"
    if len(opsets) > 1:
        yield f"the default opset is imported {len(opsets)} times: {', '.join(str(o.version) for o in opsets)}"
    for opset in opsets:
        if opset.version > newest:
            yield f"opset {opset.version} is newer than the {newest} that onnx {onnx.__version__} knows"
