"""From an exported model to a checked file: write it, compare it with the source framework, move it into place."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfi.errors import ConversionError, EngineError, InputError, OutputError
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.write.output_file import check_output_files, output_files
from onnxfi.graph.write.scratch_folder import scratch_folder
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine, OrtSession
from onnxfi.runtime.engine.ports import Array, Port, one_line

from . import naming
from .installed_frameworks import quiet

if TYPE_CHECKING:
    import onnx

#: The opset that all three exporters write directly.
OPSET = 18
#: The oldest IR version whose nodes have metadata.
_IR_VERSION = 10
#: Protobuf's limit is 2 GiB; larger models keep their weights beside the file.
LARGEST_FILE = (1 << 31) - (1 << 24)
SMALL_TENSOR = 1024
_ALIGNED = 4096


@dataclass(frozen=True)
class Exported:
    """A model from an exporter. `run` takes inputs by name and returns the source's outputs by their ONNX names."""

    framework: str
    version: str
    source: str
    proto: onnx.ModelProto
    run: Callable[[Mapping[str, Array]], Mapping[str, Any]]


@dataclass(frozen=True)
class Converted:
    """A converted file, whose outputs were compared with those of the source framework.

    Attributes
    ----------
    framework, version : str
        The framework and its version.
    source : str
        Name of the converted model.
    out : Path
        The file.
    digest : str
        SHA-256 of the model.
    size_bytes : int
        Size of the file and its external data.
    opset : int
        Opset of the model.
    inputs, outputs : tuple of Port
        Inputs and outputs of the model.
    data : str
        The samples of the comparison, in words.
    samples : int
        Their number.
    largest : float
        Largest absolute difference of an output between ONNX Runtime and the framework.
    relative : float
        Largest difference, relative to the largest magnitude of its output.
    output : str
        The output with that difference.
    tolerance : float
        The accepted relative difference.
    layers : tuple of str
        Layers with stored numbers, in file order.
    words : int
        Count of stored numbers.
    notes : tuple of str
        Remarks for the user.
    """

    framework: str
    version: str
    source: str
    out: Path
    digest: str
    size_bytes: int
    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    data: str
    samples: int
    largest: float
    relative: float
    output: str
    tolerance: float
    layers: tuple[str, ...]
    words: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """The check of a conversion: on the first `samples` of `data` (None: synthetic), to a relative `tolerance`."""

    data: str | Path | Mapping[str, Array] | None = None
    samples: int = 8
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples must be 1 or more, got {self.samples}")
        if not 0 <= self.tolerance < float("inf"):
            raise InputError(f"tolerance must be finite and 0 or more, as 1e-4, got {self.tolerance}")


def check_output(out: str | Path) -> Path:
    """Return the path to write to; raise OutputError, before any work, where nothing can be written."""
    path = Path(out)
    check_output_files(None, output_files(path, 1))
    return path


def conversion_error(error: BaseException, what: str, remedy: str) -> ConversionError:
    """Return a framework's error as a ConversionError: its first paragraph and a remedy, its full text as details."""
    text = str(error).strip() or type(error).__name__
    summary = one_line(text.split("\n\n")[0], limit=200).rstrip(".")
    return ConversionError(f"{what}: {summary}; {remedy}", text)


def write_checked(exported: Exported, path: Path, check: Check) -> Converted:
    """Write the model and compare it with its source; on failure nothing is written.

    Raises ConversionError if ONNX Runtime rejects the model or the difference exceeds the tolerance.
    """
    naming.clean(exported.proto)
    exported.proto.ir_version = max(_IR_VERSION, exported.proto.ir_version)
    exported.proto.producer_name, exported.proto.producer_version = exported.framework, exported.version
    try:
        with scratch_folder(path.parent) as folder:
            draft = folder / path.name
            files = _write(exported.proto, draft)
            model = load(draft)
            try:
                session = OrtEngine(provider="cpu").prepare(draft)
            except EngineError as error:
                raise conversion_error(
                    error, "ONNX Runtime rejects the exported model", "try another --opset"
                ) from error
            data = open_data(check.data, session.inputs, limit=check.samples)
            largest, relative, output = _compare(exported, session, data, check)
            digest, size = model.digest, sum(file.stat().st_size for file in files)
            for file in reversed(files):  # external data first
                os.replace(file, path.with_name(file.name))
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror}; nothing was written") from None
    layers, words = _stored_numbers(model)
    return Converted(
        exported.framework, exported.version, exported.source, path, digest, size, _opset(exported.proto),
        session.inputs, session.outputs, data.description, data.samples, largest, relative, output, check.tolerance,
        layers, words, model.notes,
    )  # fmt: skip


def _opset(proto: onnx.ModelProto) -> int:
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)


def at_opset(proto: onnx.ModelProto, wanted: int, direct: range) -> onnx.ModelProto:
    """Return the model at this opset, by ONNX's version converter where the exporter wrote another.

    Nodes keep their layers. `direct` is the range of opsets that the exporter writes. Raises InputError for an opset
    that cannot be reached.
    """
    from onnx import defs, version_converter

    if _opset(proto) == wanted:
        return proto
    span = f"the exporter writes {direct.start} to {direct.stop - 1}"
    if not 1 <= wanted <= defs.onnx_opset_version():
        raise InputError(f"there is no opset {wanted}; {span}")
    try:
        with quiet():
            converted = version_converter.convert_version(proto, wanted)
    except Exception as error:
        why = one_line(re.sub(r"^\S+\.h:\d+: (\w+: )?", "", str(error)), limit=120)
        raise InputError(f"this model cannot be written in opset {wanted}: {why}; {span}") from None
    known = {node.name: node.metadata_props for node in proto.graph.node}
    for node in converted.graph.node:
        if not node.metadata_props and node.name in known:
            node.metadata_props.extend(known[node.name])
    return converted


def _write(proto: onnx.ModelProto, draft: Path) -> list[Path]:
    """Write the model, a large one with external data in `NAME.data`; return the files, the model first."""
    data_file = draft.with_name(f"{draft.name}.data")
    if proto.ByteSize() <= LARGEST_FILE:
        draft.write_bytes(proto.SerializeToString(deterministic=True))
        return [draft]
    with data_file.open("wb") as stream:
        for tensor in naming.initializers(proto):
            if len(tensor.raw_data) < SMALL_TENSOR:
                continue
            stream.write(bytes(-stream.tell() % _ALIGNED))
            for key, value in (
                ("location", data_file.name),
                ("offset", stream.tell()),
                ("length", len(tensor.raw_data)),
            ):
                tensor.external_data.add(key=key, value=str(value))
            stream.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = tensor.EXTERNAL
    draft.write_bytes(proto.SerializeToString(deterministic=True))
    return [draft, data_file]


def _compare(exported: Exported, session: OrtSession, data: Data, check: Check) -> tuple[float, float, str]:
    """Return the largest difference, the largest relative to its output's magnitude, and the name of that output."""
    largest, relative, worst = 0.0, 0.0, session.outputs[0].name if session.outputs else ""
    for batch in data.batches(data.layout.fixed or check.samples):
        try:
            with quiet():
                expected = exported.run(batch.feeds)
        except Exception as error:
            raise conversion_error(
                error, f"{exported.framework} fails on the sample inputs", "give --data with inputs that it accepts"
            ) from error
        found = session.run(batch.feeds)
        for name, wanted in expected.items():
            difference, share = difference_of(found[name], np.asarray(wanted))
            largest = max(largest, difference)
            if not share <= relative:
                relative, worst = share, name
    if not relative <= check.tolerance:
        raise ConversionError(
            f"output {worst!r} of the ONNX model differs from {exported.framework}'s by {largest:.3g}, relative "
            f"{relative:.3g}, on {data.description}, tolerance {check.tolerance:g}; nothing was written; to accept "
            f"the difference, raise --tolerance"
        )
    return largest, relative, worst


def difference_of(found: Array, wanted: Array) -> tuple[float, float]:
    """Return the largest absolute difference, and its ratio to the largest magnitude; infinite if not comparable.

    >>> difference_of(np.array([1.0, 4.0]), np.array([1.0, 5.0]))
    (1.0, 0.2)
    >>> difference_of(np.zeros((1, 2)), np.zeros(2)), difference_of(np.array([np.nan]), np.array([np.nan]))
    ((inf, inf), (0.0, 0.0))
    """
    infinite = (float("inf"), float("inf"))
    if found.shape != wanted.shape:
        return infinite
    if found.dtype.kind in "OUST":
        return (0.0, 0.0) if (found.astype(str) == wanted.astype(str)).all() else infinite
    one, other = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(other)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True) or not np.isfinite(one[finite]).all():
        return infinite
    difference = float(np.abs(one[finite] - other[finite]).max(initial=0.0))
    magnitude = float(np.abs(other[finite]).max(initial=0.0))
    return difference, difference / magnitude if magnitude else difference


def _stored_numbers(model: Model) -> tuple[tuple[str, ...], int]:
    """Return the layers with stored numbers, and the count of these numbers."""
    stored = [t for t in model.targets if not t.structural]
    return tuple(dict.fromkeys(t.layer for t in stored)), sum(t.size for t in stored)


def source_name(source: object) -> str:
    """Return the text of a source, or the class name of a model object."""
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def named_outputs(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Return outputs by name; raise ConversionError if the exporter wrote another number of them."""
    if len(names) != len(values):
        raise ConversionError(
            f"the exporter wrote {len(names)} of {len(values)} outputs; return tensors only, "
            f"each computed from the inputs"
        )
    return dict(zip(names, values, strict=True))
