"""Evaluating: what a model answers on data, alone or against its golden self."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.errors import DataError, EngineError
from onnxfi.faults.trials import json_value
from onnxfi.graph.activations import activations
from onnxfi.graph.model import Model, load
from onnxfi.graph.mutate import Progress
from onnxfi.graph.times import counted, counts_of
from onnxfi.runtime.batches import Batch
from onnxfi.runtime.data import Data, open_data
from onnxfi.runtime.dry_run import dry_run
from onnxfi.runtime.engines import Engine, OrtEngine, Session
from onnxfi.runtime.metrics import applicable
from onnxfi.runtime.ports import Array
from onnxfi.runtime.scores import check_port, classifies, reading, scored_output, without_ones

__all__ = ["Evaluation", "evaluate", "open_data", "run_scores"]

#: Scored outputs that are kept to be compared, golden and faulty together.
_MOST_OUTPUT_BYTES = 1 << 30


@dataclass(frozen=True)
class Evaluation:
    """What a model answers on data: metrics by name, and the conditions under which they were taken.

    `scores` is the scored output over all samples ([N, …]); `output` its name, None where all outputs count.
    """

    metrics: dict[str, float]
    scores: Array = field(repr=False)
    samples: int
    data: str
    output: str | None
    provider: str
    note: str
    synthetic: bool = False
    #: A remark on how the scored output is read.
    reading: str = ""

    def summary(self) -> dict[str, Any]:
        """The metrics as strict JSON takes them."""
        return {name: json_value(value) for name, value in self.metrics.items()}

    def conditions(self) -> str:
        """The conditions in one line."""
        scored = f"output {self.output!r}" if self.output else "all outputs"
        made_up = "; synthetic inputs say nothing about accuracy" if self.synthetic else ""
        read = f"; {self.reading}" if self.reading else ""
        return f"{self.data}; {scored}; {self.note}{made_up}{read}"


def evaluate(
    model: str | Path | bytes,
    data: Data,
    *,
    golden: Evaluation | None = None,
    engine: Engine | None = None,
    batch: int = 32,
    output: str | None = None,
    time_axis: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run a model over data; where `golden` is given, also against that evaluation of the model without faults.

    `batch` samples run together (a model that takes one size only gets that). With scores of classes ([N, C], C of 2
    or more) and labels: top-1 and top-5, and against golden SDC-1; for any other output how far it deviates. Raises
    DataError where labels or outputs do not fit, EngineError where the runtime refuses. With `time_axis` the
    spikes of `output` are counted along that axis, and the counts are scored.

    >>> data = open_data("models/fashion_test.npz", OrtEngine().prepare("models/fashion_cnn.onnx").inputs, limit=200)
    >>> golden = evaluate("models/fashion_cnn.onnx", data)
    >>> golden.metrics["top1"]
    0.915
    >>> evaluate("models/fashion_cnn.onnx", data, golden=golden).metrics["sdc1"]
    0.0
    """
    if time_axis is not None:
        spikes = counted(load(model, allow_links=True), output, time_axis)
        model, output = spikes.source.data or b"", counts_of(spikes.proto)
    kind = "auto" if time_axis is None else "counts"
    engine = engine or OrtEngine()
    dry_run(engine, model, data)
    session = engine.prepare(model)
    if golden is not None and golden.samples != data.samples:
        raise DataError(f"golden was taken on {golden.samples:,} samples, the data has {data.samples:,}; take the same")
    name = golden.output if golden else scored_port(session, output, data, kind)
    axes = sample_axes(session, data, model)
    try:
        scores = run_scores(session, data, data.layout.fixed or batch, name, progress=progress, axes=axes)
    except EngineError as error:
        if data.synthetic:
            raise EngineError(f"{error}; these are synthetic inputs, give real ones with --data") from None
        raise
    truth = golden.scores if golden else scores
    metrics = _metrics(truth, scores, data, name, kind)
    return Evaluation(
        metrics, scores, data.samples, data.description, name, session.provider, session.note, data.synthetic,
        reading(truth, name, data.samples, kind) or _passed_over(session, name),
    )  # fmt: skip


def _passed_over(session: Session, name: str | None) -> str:
    """A remark on the outputs that do not count since they are no tensors."""
    listed = ", ".join(f"{other!r} ({dtype})" for other, dtype in _unread(session).items())
    return f"passed over, since they are no tensors: {listed}" if listed and name is None else ""


def _unread(session: Session) -> Mapping[str, str]:
    """Outputs that are no tensors, by name their type; engines of others tell none."""
    return getattr(session, "unread", {})


def scored_port(
    session: Session, name: str | None, data: Data, kind: str = "auto", *, whole: bool = False
) -> str | None:
    """The scored output of a session, None where all count; DataError where the labels cannot fit it.

    With `whole`, outputs of maps are not passed over.
    """
    labelled, unread = data.labels is not None, _unread(session)
    found = scored_output(session.outputs, name, labelled=labelled, unread=unread, whole=whole)
    for port in session.outputs:
        if port.name == found:
            check_port(port, data, kind)
    return found


def _metrics(golden: Array, faulty: Array, data: Data, name: str | None, kind: str) -> dict[str, float]:
    classifier = classifies(golden, name, data, kind)
    wanted = applicable(classifier=classifier, labelled=data.labels is not None)
    alone = golden is faulty
    return {
        m.name: m(golden, faulty, data.labels) for m in wanted if not alone or m.needs_labels or m.name == "nonfinite"
    }


def run_scores(
    session: Session,
    data: Data,
    size: int,
    name: str | None,
    *,
    batches: int | None = None,
    progress: Progress | None = None,
    axes: Mapping[str, tuple[int, ...]] | None = None,
) -> Array:
    """The scored output over all samples, or over the first `batches` of `size` ([N, …]).

    Samples come first, wherever the output holds them (`axes`: see `sample_axes`). Where `name` is None all outputs
    count, laid side by side; where their shapes vary, as one row.
    """
    parts: list[Array] = []
    total = 0
    for piece in islice(data.batches(size), batches):
        scores = scored(piece, session.run(piece.feeds, None if name is None else [name]), axes or {}, name)
        total += scores.nbytes
        if total > _MOST_OUTPUT_BYTES // 2:
            raise DataError(
                f"the outputs take {scores.nbytes // max(1, piece.valid):,} bytes a sample, too much to compare "
                f"{data.samples:,} of them; take fewer with --samples, or one output with --output"
            )
        parts.append(scores)
        if progress is not None:
            progress(piece.start + piece.valid, data.samples)
    return stacked(parts)


def stacked(parts: Sequence[Array]) -> Array:
    """The scores of all batches from those of each; where their shapes vary, as one row."""
    if len({part.shape[1:] for part in parts}) == 1 and parts[0].ndim:
        return np.concatenate(parts)
    return np.concatenate([part.ravel() for part in parts])[None]


def sample_axes(session: Session, data: Data, model: str | Path | bytes | Model) -> dict[str, tuple[int, ...]]:
    """Where each output may hold its samples, the likeliest place first.

    The shapes may say it, by the symbol that stands for the samples of the inputs, or the graph. Else it is the axis of
    the inputs, but of scores in two dimensions rather the first: there the axes before the samples are gone. What a
    model that takes one sample at a time puts out without such an axis is that sample's (-1).
    """
    layout, found = data.layout, dict[str, tuple[int, ...]]()
    symbols = {p.shape[layout.batched[p.name]] for p in session.inputs if p.name in layout.batched and p.shape}
    untold = list[str]()
    for port in session.outputs:
        shape = port.shape or ()
        said = [k for k, dim in enumerate(shape) if isinstance(dim, str) and dim in symbols]
        if not said and (len(shape) != 2 or layout.axis) and layout.fixed != 1:
            untold.append(port.name)
        usual = (0, layout.axis) if len(shape) <= 2 else (layout.axis, 0)
        found[port.name] = (*said[:1], *usual, *((-1,) if layout.fixed == 1 else ()))
    if untold:
        opened = model if isinstance(model, Model) else load(model, allow_links=True)
        for a in activations(opened, layout):
            if not a.path and a.name in untold and a.place is not None and a.place.rows == 1:
                found[a.name] = (a.place.axis, *found[a.name])
    return found


def _samples_first(array: Array, axes: Sequence[int], size: int) -> Array:
    """An output with its `size` samples along the first axis; as it is where none has so many."""
    axis = next((k for k in axes if k < 0 or (k < array.ndim and array.shape[k] == size)), 0)
    return array[None] if axis < 0 else np.moveaxis(array, axis, 0) if axis else array


def scored(piece: Batch, outputs: dict[str, Array], axes: Mapping[str, tuple[int, ...]], name: str | None) -> Array:
    """The scored output of one batch ([N, …]), or all of them side by side where no name is given."""
    first = {key: _samples_first(array, axes.get(key, ()), piece.size) for key, array in outputs.items()}
    return _joined(piece.trim(first), name, piece.valid)


def _joined(outputs: dict[str, Array], name: str | None, samples: int) -> Array:
    if name is not None:
        return without_ones(outputs[name])
    numbers = [a for a in outputs.values() if a.dtype.kind not in "OSU"]
    if not numbers:
        raise DataError("the model has no output of numbers that could be compared")
    if len(numbers) == 1:
        return numbers[0]
    with np.errstate(invalid="ignore"):  # signalling NaN is what faults make of numbers
        wide = [a.astype(np.float64) for a in numbers]
    if all(a.ndim and len(a) == samples for a in numbers):
        return np.concatenate([a.reshape(samples, -1) for a in wide], axis=1)
    return np.concatenate([a.ravel() for a in wide])[None]
