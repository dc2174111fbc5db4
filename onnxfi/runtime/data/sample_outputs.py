"""The scored outputs of a run, with the samples of each along the first axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from onnxfi.errors import DataError
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.write.faulty_copy import OnProgress
from onnxfi.runtime.data.batches import Batch, Data
from onnxfi.runtime.engine.ports import Array
from onnxfi.runtime.engine.protocols import Session

Dim = int | str | None
#: Bytes of scored outputs that are kept to be compared, golden and faulty together.
_MOST_OUTPUT_BYTES = 1 << 30


def run_scores(
    session: Session,
    data: Data,
    size: int,
    name: str | None,
    *,
    batches: int | None = None,
    progress: OnProgress | None = None,
    axes: Mapping[str, tuple[int, ...]] | None = None,
) -> Array:
    """Return the scored output over all samples, or over the first `batches` of `size` ([N, …]).

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
    """Concatenate the scores of all batches; into one row where their shapes vary."""
    if len({part.shape[1:] for part in parts}) == 1 and parts[0].ndim:
        return np.concatenate(parts)
    return np.concatenate([part.ravel() for part in parts])[None]


def sample_axes(session: Session, data: Data, model: str | Path | bytes | Model) -> dict[str, tuple[int, ...]]:
    """Return the possible sample axes of each output, the most likely first.

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
    """Move the axis of `size` samples to the front; return the output unchanged where there is none."""
    axis = next((k for k in axes if k < 0 or (k < array.ndim and array.shape[k] == size)), 0)
    return array[None] if axis < 0 else np.moveaxis(array, axis, 0) if axis else array


def scored(piece: Batch, outputs: dict[str, Array], axes: Mapping[str, tuple[int, ...]], name: str | None) -> Array:
    """Return the scored output of one batch ([N, …]), or all outputs side by side where no name is given."""
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


def without_ones(scores: Array) -> Array:
    """Return scores [N, C, 1, 1] as [N, C], anything else as it is.

    >>> without_ones(np.zeros((2, 5, 1, 1))).shape, without_ones(np.zeros((2, 5, 1))).shape
    ((2, 5), (2, 5, 1))
    """
    return scores.reshape(scores.shape[: len(class_axes(scores.shape))])


def class_axes(shape: Sequence[Dim]) -> Sequence[Dim]:
    """[N, C, 1, 1] as [N, C], any other shape as it is."""
    return shape[:2] if len(shape) > 3 and set(shape[2:]) == {1} else shape
