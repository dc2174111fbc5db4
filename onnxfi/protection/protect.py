"""Protecting: a model with protections in its graph, and the proof that its fault-free outputs stay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.errors import InputError, ModelError, SelectorError, closest
from onnxfi.faults.space import NamePattern, Selector
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.dataflow.type_inference import convert_opset
from onnxfi.graph.model.loading import Model, ModelLike, load, parse
from onnxfi.graph.passes.node_builder import opset_of
from onnxfi.graph.write.model_file import save_model
from onnxfi.graph.write.output_file import check_output_files, output_files
from onnxfi.numbers import optional_whole
from onnxfi.protection.calibration import calibration_record
from onnxfi.protection.fault_free_outputs import FaultFreeOutputs, compare_fault_free
from onnxfi.protection.protection import Protection, Setting
from onnxfi.protection.protection_plan import ProtectionPlan
from onnxfi.protection.protections import WeightClipping, parse_protection
from onnxfi.runtime.data.dry_run import dry_run
from onnxfi.runtime.data.open_data import Data, data_of
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.ports import inputs_of
from onnxfi.runtime.engine.protocols import Engine

if TYPE_CHECKING:
    import onnx

#: The entry of the metadata of a protected file, described in docs/reference/protections.md.
RECORD_KEY = "onnxfi.protection"
_VERSION = 1


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
    fault_free
        The fault-free outputs beside the original's.
    nodes_before, nodes_after
        Nodes of the main graph.
    size_before_bytes, size_after_bytes
        Bytes of the files.
    notes
        Remarks for people.

    Examples
    --------
    >>> unchanged = FaultFreeOutputs(500, 0, 0.0)
    >>> Protected(Path("p.onnx"), "0" * 64, (), {}, unchanged, 10, 28, 427_790, 430_177).fault_free.changed
    0
    """

    out: Path
    digest: str
    protections: tuple[Protection, ...]
    tensors: dict[str, tuple[str, ...]] = field(repr=False)
    fault_free: FaultFreeOutputs
    nodes_before: int
    nodes_after: int
    size_before_bytes: int
    size_after_bytes: int
    notes: tuple[str, ...] = ()


def protect(
    model: ModelLike,
    protections: str | Protection | Sequence[str | Protection],
    out: str | Path,
    *,
    selector: Selector | None = None,
    data: Any = None,
    engine: Engine | None = None,
    batch: int = 32,
    opset: int | None = None,
    plan: ProtectionPlan | None = None,
) -> Protected:
    """Write a model with protections in its graph, in plain ONNX operators.

    `onnxfi.protect` describes arguments and errors; here the engine is open, and samples run `batch` at a time.

    Examples
    --------
    >>> import tempfile
    >>> from onnxfi.runtime.data.open_data import open_data
    >>> from onnxfi.runtime.engine.registry import engine_of
    >>> cnn = load("models/fashion_cnn.onnx")
    >>> data = open_data("models/fashion_test.npz", engine_of().prepare(cnn.path).inputs, limit=100)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = protect(cnn, ["range:clip", "nan-filter"], folder + "/protected.onnx", data=data)
    >>> done.fault_free.changed, done.tensors["range:clip"][:2]
    (0, ('relu', 'relu_1'))
    """
    model, place = load(model), Path(out)
    entries = _planned(model, plan, protections, selector) if plan is not None else None
    if entries is None:
        chosen = _chosen([protections] if isinstance(protections, str | Protection) else protections)
    else:
        chosen = tuple(one for one, _ in entries)
    data = data_of(data, inputs_of(model.proto))
    record = read_record(model.proto)
    if record is not None:
        raise InputError(
            f"{model.name} is protected already, by {', '.join(record['protections'])}; protect the original model, "
            f"with all protections at once"
        )
    check_output_files(model, output_files(place, len(model.external)))
    runner = engine or OrtEngine(provider="cpu")
    dry_run(runner, model.stored_form)
    if entries is None and selector is not None:
        _check_excluded(model, chosen, selector)
    origin = model.digest
    model, notes = _raised(model, opset)
    setting = Setting(model, selector or Selector(), data, runner, batch, notes)
    chosen_settings = [setting] * len(chosen) if entries is None else [setting.of(names) for _, names in entries]
    placed = sorted(zip(chosen, chosen_settings, strict=True), key=lambda row: row[0].rank)
    passes = [(one, one.passes(where)) for one, where in placed]
    proto, tensors = parse(model), dict.fromkeys(map(str, chosen), tuple[str, ...]())
    before = len(proto.graph.node)
    for one, edit in passes:
        proto, found = edit.run(proto)
        tensors[str(one)] = tuple(found)
    _write_record(proto, origin, chosen, data)
    fault_free = compare_fault_free(setting, proto, [edit for _, edit in passes])
    save_model(model, proto, place)
    written = load(place)
    size_before, size_after = (sum(source.size for source in m.sources) for m in (model, written))
    nodes = before, len(proto.graph.node)
    if plan is not None and plan.memory:
        setting.notes.append("the plan has memory codes too: give it to onnxfi run as --memory-code")
    return Protected(
        place, written.digest, chosen, tensors, fault_free, *nodes, size_before, size_after, tuple(setting.notes)
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


def _check_excluded(model: Model, chosen: Sequence[Protection], selector: Selector) -> None:
    """Raise SelectorError for a pattern of `exclude` that leaves out nothing that these protections could cover."""
    of_weights = [isinstance(one, WeightClipping) for one in chosen]
    weights = model.targets if any(of_weights) else ()
    computed = () if all(of_weights) else tuple(a.target for a in activations(model))
    names = [name for target in (*computed, *weights) for name in target.names]
    kind = "activation or weight" if computed and weights else "weight" if weights else "activation"
    for pattern in selector.exclude:
        if not NamePattern(pattern).matches(names):
            near = closest(pattern.lstrip("="), names)
            raise SelectorError(f"--exclude {pattern!r} matches no {kind} of this model{near}")


def _planned(
    model: Model,
    plan: ProtectionPlan,
    protections: str | Protection | Sequence[str | Protection],
    selector: Selector | None,
) -> list[tuple[Protection, tuple[str, ...]]]:
    """Return the protections of a plan, each with the names that it covers; InputError if it is of another model."""
    if protections or selector not in (None, Selector()):
        raise InputError("a plan says what is protected; leave out --with, --include, --exclude and --op")
    if plan.model != model.digest:
        raise InputError(
            f"the plan is for the model {plan.model[:12]}…, {model.name} is {model.digest[:12]}…; plan anew, or give "
            f"that model"
        )
    if not plan.graph:
        raise InputError(
            "the plan protects in memory alone, so no file is written; give the plan to onnxfi run as --memory-code"
        )
    return [(parse_protection(one.protection), one.names) for one in plan.graph]


def _raised(model: Model, opset: int | None) -> tuple[Model, list[str]]:
    """Return the model at a higher opset where that is asked for."""
    own, opset = opset_of(model.proto), optional_whole("opset", opset)
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
