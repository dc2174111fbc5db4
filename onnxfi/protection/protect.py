"""Protecting: a model with protections in its graph, and the proof that its fault-free outputs stay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfi.errors import InputError, ModelError
from onnxfi.faults.space import Selector
from onnxfi.graph.dataflow.type_inference import convert_opset
from onnxfi.graph.model.loading import Model, load, parse
from onnxfi.graph.passes.bit_arithmetic import opset_of
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.protection.range_restriction import FilterNonFinite, RestrictRanges
from onnxfi.graph.write.model_file import save_model
from onnxfi.graph.write.output_file import check_output_files, output_files
from onnxfi.protection.calibration import calibration_record, prepared
from onnxfi.protection.protection import Protection, Setting
from onnxfi.protection.protections import parse_protection
from onnxfi.runtime.data.dry_run import dry_run
from onnxfi.runtime.data.sources import Data, open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.ports import Array
from onnxfi.runtime.engine.protocols import Engine

if TYPE_CHECKING:
    import onnx

#: The entry of the metadata of a protected file, described in docs/reference/protections.md.
RECORD_KEY = "onnxfi.protection"
_VERSION = 1
#: Samples on which the outputs before and after are compared.
_COMPARED = 512


@dataclass(frozen=True)
class Drift:
    """Fault-free outputs of a protected model beside the original's, over some samples.

    `changed` samples differ in any bit; `largest` is the largest difference of two numbers, infinite if one of
    them is not finite. `rounding` is true if the same operators without bounds output the same: the runtime rounds
    otherwise around inserted operators, and no number was held.
    """

    samples: int
    changed: int
    largest: float
    rounding: bool = False

    def __str__(self) -> str:
        if not self.changed:
            return f"fault-free outputs are the original's byte for byte on {self.samples:,} samples"
        return (
            f"fault-free outputs differ from the original's in {self.changed:,} of {self.samples:,} samples, "
            f"by up to {self.largest:.3g}"
            + ("; no number is held: the runtime rounds otherwise around inserted operators" * self.rounding)
        )


@dataclass(frozen=True)
class Protected:
    """A protected model that was written.

    Attributes
    ----------
    out
        The file.
    digest
        SHA-256 of the file and its data.
    protections
        The protections in the order in which they were given.
    tensors
        The tensors that each protection covers, by its text form.
    drift
        The fault-free outputs beside the original's.
    nodes_before, nodes_after
        Nodes of the main graph.
    size_before_bytes, size_after_bytes
        Bytes of the files.
    notes
        Remarks for people.

    Examples
    --------
    >>> Protected(Path("p.onnx"), "0" * 64, (), {}, Drift(500, 0, 0.0), 10, 28, 427_790, 430_177).drift.changed
    0
    """

    out: Path
    digest: str
    protections: tuple[Protection, ...]
    tensors: dict[str, tuple[str, ...]] = field(repr=False)
    drift: Drift
    nodes_before: int
    nodes_after: int
    size_before_bytes: int
    size_after_bytes: int
    notes: tuple[str, ...] = ()


def protect(
    model: Model,
    protections: Sequence[str | Protection],
    out: str | Path,
    *,
    selector: Selector | None = None,
    data: Data | None = None,
    engine: Engine | None = None,
    batch: int = 32,
    opset: int | None = None,
) -> Protected:
    """Write a model with protections in its graph, in plain ONNX operators.

    Parameters
    ----------
    model : Model
        The unprotected model.
    protections : sequence of str or Protection
        What ``--with`` takes: ``NAME[:key=value,…]``.
    out : str or Path
        The file to write.
    selector : Selector, optional
        The activations, layers or weights to protect (`include`, `exclude`, `op`); each protection has its default.
    data : Data, optional
        Calibration data, which must not be what the model is scored on.
    engine : Engine, optional
        The engine that runs the model; ONNX Runtime on the CPU by default.
    batch : int
        Samples that run together.
    opset : int, optional
        Raise the model's opset first.

    Returns
    -------
    Protected
        What was written, and how fault-free outputs compare with the original's.

    Raises
    ------
    InputError
        If a protection is unknown, given twice, or finds nothing to protect, or the model is protected already;
        nothing is written then.

    Examples
    --------
    >>> import tempfile
    >>> from onnxfi.runtime.engine.registry import engine_of
    >>> cnn = load("models/fashion_cnn.onnx")
    >>> data = open_data("models/fashion_test.npz", engine_of().prepare(cnn.path).inputs, limit=100)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = protect(cnn, ["range:clip", "nan-filter"], folder + "/protected.onnx", data=data)
    >>> done.drift.changed, done.tensors["range:clip"][:2]
    (0, ('relu', 'relu_1'))
    """
    place, chosen = Path(out), _chosen(protections)
    record = read_record(model.proto)
    if record is not None:
        raise InputError(
            f"{model.name} is protected already, by {', '.join(record['protections'])}; protect the original model, "
            f"with all protections at once"
        )
    check_output_files(model, output_files(place, len(model.external)))
    runner = engine or OrtEngine(provider="cpu")
    dry_run(runner, model.path or model.source.data or b"")
    origin = model.digest
    model, notes = _raised(model, opset)
    setting = Setting(model, selector or Selector(), data, runner, batch, notes)
    passes = [(one, one.passes(setting)) for one in sorted(chosen, key=lambda one: one.rank)]
    proto, tensors = parse(model), dict.fromkeys(map(str, chosen), tuple[str, ...]())
    before = len(proto.graph.node)
    for one, edit in passes:
        proto, found = edit.run(proto)
        tensors[str(one)] = tuple(found)
    _write_record(proto, origin, chosen, data)
    drift = _drift(setting, proto, [edit for _, edit in passes])
    save_model(model, proto, place)
    written = load(place)
    size_before, size_after = (sum(source.size for source in m.sources) for m in (model, written))
    nodes = before, len(proto.graph.node)
    return Protected(
        place, written.digest, chosen, tensors, drift, *nodes, size_before, size_after, tuple(setting.notes)
    )


def _chosen(protections: Sequence[str | Protection]) -> tuple[Protection, ...]:
    """Return the protections; InputError if there is none, or one is given twice."""
    chosen = tuple(parse_protection(one) if isinstance(one, str) else one for one in protections)
    if not chosen:
        raise InputError("no protection is given; name one with --with, as range:clip")
    kinds = [one.name.partition(":")[0] for one in chosen]
    for k, kind in enumerate(kinds):
        if kind in kinds[:k]:
            raise InputError(f"{chosen[kinds.index(kind)]} and {chosen[k]} protect the same; give one of them")
    return chosen


def _raised(model: Model, opset: int | None) -> tuple[Model, list[str]]:
    """Return the model at a higher opset where that is asked for."""
    own = opset_of(model.proto)
    if opset is None or opset == own:
        return model, []
    if opset < own:
        raise InputError(f"--opset {opset} is below the model's own {own}; an opset is only raised")
    if model.external:
        raise ModelError(f"{model.name} has external data, so its opset is not raised here; use onnx.version_converter")
    made = convert_opset(parse(model), opset)
    made.ir_version = max(model.proto.ir_version, 8)
    return load(made), [f"opset raised from {own} to {opset}"]


def _write_record(proto: onnx.ModelProto, origin: str, chosen: Sequence[Protection], data: Data | None) -> None:
    """Keep in the file what protects it, and by which samples its calibration data is known again."""
    entry = proto.metadata_props.add()
    calibration = None if data is None else calibration_record(data)
    record = {"version": _VERSION, "origin": origin, "protections": [str(one) for one in chosen]}
    entry.key, entry.value = RECORD_KEY, json.dumps(record | {"calibration": calibration}, sort_keys=True)


def read_record(proto: onnx.ModelProto) -> dict[str, Any] | None:
    """Return what a protected file says of its protections; None for a model without any.

    Raises
    ------
    ModelError
        If the entry is damaged, or of a newer version.
    """
    text = next((p.value for p in proto.metadata_props if p.key == RECORD_KEY), None)
    if text is None:
        return None
    try:
        record = json.loads(text)
        calibration = record["calibration"]
        known = record["version"] == _VERSION and all(isinstance(one, str) for one in record["protections"])
        marks = [] if calibration is None else calibration["marks"]
        if not known or not all(isinstance(mark, str) for mark in marks):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ModelError(f"the metadata entry {RECORD_KEY!r} is damaged or of a newer version; protect anew") from None
    return dict(record)


def _drift(setting: Setting, proto: onnx.ModelProto, passes: Sequence[ModelPass[Any]]) -> Drift:
    """Compare fault-free outputs of the original and the protected model, on calibration data or made-up inputs.

    Where they differ, the protected model is compared with one that has the same operators and holds nothing.
    """
    plain = parse(setting.model)
    drift = _compared(setting, plain, proto)
    if not drift.changed:
        return drift
    for edit in passes:
        loose = edit.unbounded() if isinstance(edit, RestrictRanges | FilterNonFinite) else edit
        plain, _ = loose.run(plain)
    return replace(drift, rounding=not _compared(setting, plain, proto).changed)


def _compared(setting: Setting, plain: onnx.ModelProto, proto: onnx.ModelProto) -> Drift:
    """Compare the outputs of two models."""
    one, other = (prepared(setting.engine, setting.model, p) for p in (plain, proto))
    names = [port.name for port in one.outputs]
    data = setting.data if setting.data is not None else open_data(None, one.inputs)
    samples = changed = 0
    largest = 0.0
    for part in data.batches(data.layout.fixed or setting.batch):
        before, after = (part.trim(session.run(part.feeds, names)) for session in (one, other))
        rows, apart = _differences(before, after, part.valid)
        samples, changed, largest = samples + part.valid, changed + rows, max(largest, apart)
        if samples >= _COMPARED:
            break
    return Drift(samples, changed, largest)


def _differences(before: dict[str, Array], after: dict[str, Array], samples: int) -> tuple[int, float]:
    """Return how many samples differ in any bit, and the largest difference."""
    differ, largest = np.zeros(samples, bool), 0.0
    for name, array in before.items():
        other = after[name]
        if array.shape != other.shape or array.dtype != other.dtype:
            return samples, float("inf")
        if array.dtype.kind == "O":
            unlike = np.asarray(array != other)
        else:
            size = array.dtype.itemsize
            unlike = (np.frombuffer(array.tobytes(), f"V{size}") != np.frombuffer(other.tobytes(), f"V{size}")).reshape(
                array.shape
            )
        if not unlike.any():
            continue
        by_sample = array.ndim > 0 and len(array) == samples
        differ |= unlike.reshape(samples, -1).any(axis=1) if by_sample else True
        with np.errstate(all="ignore"):
            apart = np.abs(array[unlike].astype(np.float64) - other[unlike].astype(np.float64))
        largest = max(largest, float(np.where(np.isnan(apart), np.inf, apart).max()))
    return int(differ.sum()), largest
