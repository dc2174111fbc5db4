"""From what an exporter made to a checked file: layers, write, compare with the source framework, move into place."""

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
from onnxfi.runtime.data.sources import open_data
from onnxfi.runtime.engine.engines import OrtEngine, OrtSession
from onnxfi.runtime.engine.model_io import Array, Port, one_line

from . import naming
from .frameworks import quiet

if TYPE_CHECKING:
    import onnx

#: What all three exporters write without a conversion.
OPSET = 18
#: The oldest format whose nodes can carry metadata.
_IR_VERSION = 10
#: Protobuf's limit is 2 GiB; larger models keep their weights beside the file.
_LARGEST_FILE = (1 << 31) - (1 << 24)
_SMALL_TENSOR = 1024
_ALIGNED = 4096


@dataclass(frozen=True)
class Exported:
    """A model as an exporter made it. `run` takes inputs by name and gives the source's outputs by the ONNX names."""

    framework: str
    version: str
    source: str
    proto: onnx.ModelProto
    run: Callable[[Mapping[str, Array]], Mapping[str, Any]]


@dataclass(frozen=True)
class Converted:
    """A file that was written and gives the source's answers.

    `largest` is the largest absolute difference between an output of ONNX Runtime and the source framework's, over
    `samples` samples of `data`; `relative` the largest over the outputs of that difference over the largest magnitude
    in the output; `output` names it. `layers` are those that hold stored numbers, in file order, `words` how many.
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
    """How a conversion is checked: on the first `samples` of `data` (None: made up), to a relative `tolerance`."""

    data: str | Path | Mapping[str, Array] | None = None
    samples: int = 8
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples is {self.samples}; it takes 1 or more")
        if not 0 <= self.tolerance < float("inf"):
            raise InputError(f"tolerance is {self.tolerance}; it takes 0 or more, as 1e-4")


def check_output(out: str | Path) -> Path:
    """The place to write to; OutputError, before any work, where nothing can be written."""
    place = Path(out)
    check_output_files(None, output_files(place, 1))
    return place


def foreign(error: BaseException, what: str, remedy: str) -> ConversionError:
    """An exporter's error as ours: its first words, then what to try; the whole of it as details."""
    text = str(error).strip() or type(error).__name__
    said = one_line(text.split("\n\n")[0], limit=200).rstrip(".")
    return ConversionError(f"{what}: {said}; {remedy}", text)


def finish(exported: Exported, place: Path, check: Check) -> Converted:
    """Write the model, hold it against the source, and put it into its place; else nothing is written.

    Raises ConversionError where ONNX Runtime refuses it or the difference is beyond the tolerance.
    """
    naming.clean(exported.proto)
    exported.proto.ir_version = max(_IR_VERSION, exported.proto.ir_version)
    exported.proto.producer_name, exported.proto.producer_version = exported.framework, exported.version
    try:
        with scratch_folder(place.parent) as folder:
            draft = folder / place.name
            files = _written(exported.proto, draft)
            model = load(draft)
            try:
                session = OrtEngine(provider="cpu").prepare(draft)
            except EngineError as error:
                raise foreign(error, "ONNX Runtime refuses what the exporter made", "try another --opset") from error
            fed = open_data(check.data, session.inputs, limit=check.samples)
            largest, relative, output = _compared(exported, session, fed, check)
            digest, size = model.digest, sum(file.stat().st_size for file in files)
            for file in reversed(files):  # the data first
                os.replace(file, place.with_name(file.name))
    except OSError as error:
        raise OutputError(f"cannot write {str(place)!r}: {error.strerror}; nothing was written") from None
    layers, words = _told(model)
    return Converted(
        exported.framework, exported.version, exported.source, place, digest, size, _opset(exported.proto),
        session.inputs, session.outputs, fed.description, fed.samples, largest, relative, output, check.tolerance,
        layers, words, model.notes,
    )  # fmt: skip


def _opset(proto: onnx.ModelProto) -> int:
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)


def at_opset(proto: onnx.ModelProto, wanted: int, direct: range) -> onnx.ModelProto:
    """The model at this opset, by ONNX's own converter where the exporter wrote another; nodes keep their layers.

    `direct` are those that the exporter writes itself. InputError for an opset that cannot be reached.
    """
    from onnx import defs, version_converter

    if _opset(proto) == wanted:
        return proto
    span = f"the exporter itself writes {direct.start} to {direct.stop - 1}"
    if not 1 <= wanted <= defs.onnx_opset_version():
        raise InputError(f"there is no opset {wanted}; {span}")
    try:
        with quiet():
            made = version_converter.convert_version(proto, wanted)
    except Exception as error:
        why = one_line(re.sub(r"^\S+\.h:\d+: (\w+: )?", "", str(error)), limit=120)
        raise InputError(f"this model cannot be written in opset {wanted}: {why}; {span}") from None
    known = {node.name: node.metadata_props for node in proto.graph.node}
    for node in made.graph.node:
        if not node.metadata_props and node.name in known:
            node.metadata_props.extend(known[node.name])
    return made


def _written(proto: onnx.ModelProto, draft: Path) -> list[Path]:
    """Write the model, where it is too large for one file with its weights in `NAME.data`; the files, model first."""
    beside = draft.with_name(f"{draft.name}.data")
    if proto.ByteSize() <= _LARGEST_FILE:
        draft.write_bytes(proto.SerializeToString(deterministic=True))
        return [draft]
    with beside.open("wb") as stream:
        for tensor in naming.stored(proto):
            if len(tensor.raw_data) < _SMALL_TENSOR:
                continue
            stream.write(bytes(-stream.tell() % _ALIGNED))
            for key, value in (("location", beside.name), ("offset", stream.tell()), ("length", len(tensor.raw_data))):
                tensor.external_data.add(key=key, value=str(value))
            stream.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = tensor.EXTERNAL
    draft.write_bytes(proto.SerializeToString(deterministic=True))
    return [draft, beside]


def _compared(exported: Exported, session: OrtSession, fed: Data, check: Check) -> tuple[float, float, str]:
    """The largest difference, the same relative to its output's magnitude, and which output that is."""
    largest, relative, worst = 0.0, 0.0, session.outputs[0].name if session.outputs else ""
    for batch in fed.batches(fed.layout.fixed or check.samples):
        try:
            with quiet():
                expected = exported.run(batch.feeds)
        except Exception as error:
            raise foreign(
                error, f"{exported.framework} fails on the sample inputs", "give --data with inputs that it takes"
            ) from error
        found = session.run(batch.feeds)
        for name, wanted in expected.items():
            difference, share = difference_of(found[name], np.asarray(wanted))
            largest = max(largest, difference)
            if not share <= relative:
                relative, worst = share, name
    if not relative <= check.tolerance:
        raise ConversionError(
            f"output {worst!r} of the ONNX model is not {exported.framework}'s: they differ by {largest:.3g}, relative "
            f"{relative:.3g}, on {fed.description}, tolerance {check.tolerance:g}; nothing was written; if that "
            f"will do, raise --tolerance"
        )
    return largest, relative, worst


def difference_of(found: Array, wanted: Array) -> tuple[float, float]:
    """The largest absolute difference, and the same over the largest magnitude; infinite where they cannot be compared.

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


def _told(model: Model) -> tuple[tuple[str, ...], int]:
    """The layers that hold stored numbers, and how many these are."""
    held = [t for t in model.targets if not t.structural]
    return tuple(dict.fromkeys(t.layer for t in held)), sum(t.size for t in held)


def shown(source: object) -> str:
    """A source as it is told: its text, or the class of an object."""
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def named_outputs(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Outputs by name; ConversionError where the exporter kept another number of them."""
    if len(names) != len(values):
        raise ConversionError(
            f"the exporter kept {len(names)} outputs of {len(values)}; return tensors only, "
            f"each computed from the inputs"
        )
    return dict(zip(names, values, strict=True))
