"""Running a model in stages, with values in flight changed between them: how faults reach activations.

A stage is a session of its own, so the runtime fuses across no cut: golden is the same stages with nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxfi.errors import EngineError, SelectorError
from onnxfi.faults.sites import Index, Sites, Target
from onnxfi.faults.trials import Faults, apply_faults
from onnxfi.graph.dataflow.sample_axis import SampleAxis
from onnxfi.graph.dataflow.type_inference import infer_types
from onnxfi.graph.partition.split_model import Stage, crossing, stages
from onnxfi.graph.passes.bit_arithmetic import NUMBER
from onnxfi.runtime.engine.engines import Engine, OrtEngine, Session
from onnxfi.runtime.engine.model_io import Array

if TYPE_CHECKING:
    import onnx

#: Given a tensor's name and its value, the value that goes on.
Patch = Callable[[str, Array], Array]
_TEXT = {"string": 8}
_LARGEST = (1 << 31) - 1


@dataclass(frozen=True)
class Staged:
    """A model in stages, ready to run; the session of a stage without nodes is None."""

    parts: tuple[tuple[Session | None, Stage], ...] = field(repr=False)
    outputs: tuple[str, ...]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None, patch: Patch) -> dict[str, Array]:
        """Run once; every tensor that is cut goes through `patch`. `outputs` None means all of them."""
        live = dict(feeds)
        for session, stage in self.parts:
            if session is not None:
                live |= session.run({name: live[name] for name in stage.inputs})
            for name in stage.cuts:
                live[name] = patch(name, live[name])
        return {name: live[name] for name in (self.outputs if outputs is None else outputs)}


def prepare_stages(
    proto: onnx.ModelProto, cuts: Sequence[str], engine: Engine, folder: Path | None = None, *, loose: bool = False
) -> Staged:
    """Sessions of a model that is cut behind these tensors; `folder` is where its external data lies.

    The shapes that are inferred hold between the stages; `loose` takes any, as where a fault changes one.

    Raises ModelError for a tensor that is not in the top graph, EngineError where the runtime refuses a part, or what
    goes from one part to the next is no tensor.
    """
    proto = _whole(proto, folder)
    parts = []
    types = _types(proto, cuts, engine)
    for kind in types.values() if loose else ():
        kind.tensor_type.ClearField("shape")
    for stage in stages(proto, cuts, types):
        session = None if stage.proto is None else engine.prepare(stage.proto.SerializeToString())
        parts.append((session, stage))
    given = {port.name for session, _ in parts if session for port in session.outputs}
    held = given | {i.name for i in proto.graph.input}
    for _, stage in parts:
        for name in (*stage.inputs, *stage.cuts):
            if name not in held:
                raise EngineError(f"{name!r} is no tensor that can be read, so the model cannot be cut beside it")
    return Staged(tuple(parts), tuple(o.name for o in proto.graph.output if o.name in held))


def _whole(proto: onnx.ModelProto, folder: Path | None) -> onnx.ModelProto:
    """The model with its external data inside."""
    import onnx
    from onnx import external_data_helper

    if folder is None or not any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
        return proto
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    external_data_helper.load_external_data_for_model(made, str(folder))
    if made.ByteSize() > _LARGEST:
        raise EngineError(
            f"the model takes {made.ByteSize():,} bytes, too many to be cut at values in flight; strike its weights"
        )
    return made


def _types(proto: onnx.ModelProto, cuts: Sequence[str], engine: Engine) -> dict[str, onnx.TypeProto]:
    """The type of each tensor that crosses between stages: as inferred, else as the runtime says."""
    import onnx
    from onnx import helper

    wanted = crossing(proto, cuts)
    graph = infer_types(proto).graph
    found = {v.name: v.type for v in (*graph.value_info, *graph.output) if v.type.tensor_type.elem_type}
    left = [name for name in wanted if name not in found]
    if left:
        made = onnx.ModelProto()
        made.CopyFrom(proto)
        have = {o.name for o in made.graph.output} | {i.name for i in made.graph.input}
        made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in left if name not in have)
        if isinstance(engine, OrtEngine):
            engine = replace(engine, provider="cpu", provider_options=(), optimization="off")
        for port in engine.prepare(made.SerializeToString()).outputs:
            if port.name in left:
                found[port.name] = helper.make_tensor_type_proto(_TEXT.get(port.dtype) or NUMBER[port.dtype], None)
    return found


def strike(array: Array, target: Target, held: SampleAxis | None, faults: Faults, *, start: int, size: int) -> Array:
    """A value in flight with the words changed that its faults name; the array given stays as it is.

    `held` is where it holds its samples, `start` the number of the first of the `size` samples that run. Faults of
    other samples are left out. Raises SelectorError for an element that is not there, and where rows are no samples.
    """
    if held is not None and (array.ndim <= held.axis or array.shape[held.axis] % held.rows):
        raise SelectorError(f"{target.id!r} has the shape {array.shape} here, not {held.rows:,} rows a sample")
    moved = array[None] if held is None else held.first(array)
    flat = np.array(moved, order="C").reshape(len(moved), -1)
    words = flat.view(target.word.dtype) if target.word.parts > 1 else flat
    rows, samples = _rows(faults, len(moved), start, size, target)
    if not len(rows):
        return array
    here = faults.pick(rows)
    last = int(here.sites.index.max())
    if last >= words.shape[1]:
        raise SelectorError(f"{target.id}[{last}] is not there: a sample has {words.shape[1]:,} elements in this batch")
    index = samples * words.shape[1] + here.sites.index
    spots = Sites(np.zeros(len(rows), np.int64), index, here.sites.bit)
    values = words.reshape(-1)
    here = replace(here, targets=(target,), sites=spots, before=None, after=None, real_values=None)
    _, final = apply_faults(here, target.word.words(values[index]))
    values[index] = target.word.values(final)
    struck = flat.reshape(moved.shape)
    return np.ascontiguousarray(struck[0] if held is None else held.back(struck))


def _rows(faults: Faults, held: int, start: int, size: int, target: Target) -> tuple[Index, Index]:
    """Which fault strikes in which row of the value, in the order of the faults."""
    sample = faults.sites.times_or_all()[:, 0]
    named = sample >= 0
    if named.any() and held != size:
        raise SelectorError(
            f"{target.id!r} has {held} rows for {size} samples, so no sample of it can be named; "
            f"use --persistence permanent"
        )
    every, one = np.flatnonzero(~named), np.flatnonzero((sample >= start) & (sample < start + size))
    rows = np.concatenate([np.repeat(every, held), one])
    samples = np.concatenate([np.tile(np.arange(held), len(every)), sample[one] - start])
    order = np.argsort(rows, kind="stable")
    return rows[order], samples[order]
