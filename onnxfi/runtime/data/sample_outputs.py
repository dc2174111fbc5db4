"""The outputs of a run, batch by batch, with the samples of each along the first axis; and inputs that a task reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, closest
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.protection.alarms import ALARM, alarm_flags
from onnxfi.graph.write.faulty_copy import OnProgress
from onnxfi.runtime.data.batches import Batch, Data
from onnxfi.runtime.engine.ports import Array, same_bytes
from onnxfi.runtime.engine.protocols import Session

Dim = int | str | None
#: Bytes of scored outputs that are kept to be compared, golden and faulty together.
MOST_OUTPUT_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of a model for some samples, most often one batch.

    Attributes
    ----------
    samples : array of int64, shape (n,)
        The numbers of the samples in the data.
    arrays : mapping of str to array
        The outputs by name. Of an array whose first axis has n rows, row r belongs to `samples[r]`; of any other the
        rows belong to all n samples together, as those of boxes that name their image in a column.
    inputs : mapping of str to array
        Inputs of the same samples, with samples first, where a task asks for them.
    alarms : array of bool, shape (n,), optional
        The samples for which a detector in the model raised an alarm, from its output `onnxfi.alarm`, which is not
        among `arrays` then; None for a model without detectors.
    """

    samples: NDArray[np.int64]
    arrays: Mapping[str, Array]
    inputs: Mapping[str, Array] = field(default_factory=dict)
    alarms: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        """Take the output of alarms out of the arrays."""
        if ALARM in self.arrays and len(self.arrays) > 1:
            rest = {name: array for name, array in self.arrays.items() if name != ALARM}
            object.__setattr__(self, "alarms", alarm_flags(self.arrays[ALARM], len(self.samples)))
            object.__setattr__(self, "arrays", rest)

    @classmethod
    def of(cls, array: Array) -> Outputs:
        """Return one array ([N, …]) as the outputs of samples 0 to N - 1."""
        array = np.asarray(array)
        return cls(np.arange(len(np.atleast_1d(array))), {"": array})

    @property
    def nbytes(self) -> int:
        """The bytes of the outputs."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def has_rows(self) -> bool:
        """True if each output has as many rows as there are samples."""
        return all(array.ndim and len(array) == len(self.samples) for array in self.arrays.values())

    def take(self, rows: NDArray[np.int64]) -> Outputs:
        """Return the outputs of some of the samples, by their rows; each output must have one per sample."""
        arrays = {name: array[rows] for name, array in self.arrays.items()}
        inputs = {name: array[rows] for name, array in self.inputs.items()}
        return Outputs(self.samples[rows], arrays, inputs, None if self.alarms is None else self.alarms[rows])


#: Returns what a task keeps of the outputs of some samples.
Reduce = Callable[[Outputs], Outputs]


def as_run(run: Array | Sequence[Outputs]) -> tuple[Outputs, ...]:
    """Return the outputs of all batches; of one array ([N, …]) as those of one batch."""
    return (Outputs.of(run),) if isinstance(run, np.ndarray) else tuple(run)


def alike(one: Outputs, other: Outputs) -> bool:
    """Return true for outputs of the same names, shapes and types."""
    kinds = ({name: (a.shape, a.dtype) for name, a in outputs.arrays.items()} for outputs in (one, other))
    return next(kinds) == next(kinds)


def same_outputs(one: Outputs, other: Outputs) -> bool:
    """Return true for the same names, types, shapes and bytes, and the same alarms."""
    if one.alarms is not None and other.alarms is not None and not np.array_equal(one.alarms, other.alarms):
        return False
    pairs = zip(one.arrays.values(), other.arrays.values(), strict=True)
    return one.arrays.keys() == other.arrays.keys() and all(same_bytes(*pair) for pair in pairs)


def same_runs(one: Sequence[Outputs], other: Sequence[Outputs]) -> bool:
    """Return true if two runs have the same outputs in each batch."""
    return len(one) == len(other) and all(map(same_outputs, one, other))


def run_outputs(
    session: Session,
    data: Data,
    size: int,
    names: Sequence[str] = (),
    *,
    batches: int | None = None,
    progress: OnProgress | None = None,
    axes: Mapping[str, tuple[int, ...]] | None = None,
    reduce: Reduce | None = None,
) -> tuple[Outputs, ...]:
    """Return these outputs (none: all) over all samples, or over the first `batches` of `size`, batch by batch.

    Samples come first, wherever the model puts them (`axes`: see `sample_axes`). `reduce` says what is kept of a batch.
    """
    found: list[Outputs] = []
    total = 0
    for batch in islice(data.batches(size), batches):
        found.append(outputs_of(batch, session.run(batch.feeds, names or None), axes or {}, names, reduce))
        total += found[-1].nbytes
        if total > MOST_OUTPUT_BYTES // 2:
            raise DataError(
                f"the outputs take {found[-1].nbytes // max(1, batch.valid):,} bytes per sample, too much to compare "
                f"{data.samples:,} of them; take fewer with --samples, or one output with --output"
            )
        if progress is not None:
            progress(batch.start + batch.valid, data.samples)
    return tuple(found)


def stacked(run: Sequence[Outputs]) -> Array:
    """Return the numbers of all samples ([N, …]), several outputs side by side; as one row where shapes vary.

    >>> stacked([Outputs.of(np.zeros((2, 3))), Outputs.of(np.zeros((1, 3)))]).shape
    (3, 3)
    >>> stacked([Outputs.of(np.zeros((2, 3))), Outputs.of(np.zeros((1, 4)))]).shape
    (1, 10)
    """
    parts = [_side_by_side(outputs) for outputs in run]
    if len({part.shape[1:] for part in parts}) == 1 and parts[0].ndim:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    return np.concatenate([part.ravel() for part in parts])[None]


def _side_by_side(outputs: Outputs) -> Array:
    arrays = [*outputs.arrays.values()]
    if len(arrays) == 1:
        return arrays[0]
    numbers = [array for array in arrays if array.dtype.kind not in "OSUT"]
    with np.errstate(invalid="ignore"):  # signalling NaN is what faults make of numbers
        wide = [array.astype(np.float64) for array in numbers]
    if outputs.has_rows:
        return np.concatenate([array.reshape(len(array), -1) for array in wide], axis=1)
    return np.concatenate([array.ravel() for array in wide])[None]


def sample_axes(session: Session, data: Data, model: str | Path | bytes | Model) -> dict[str, tuple[int, ...]]:
    """Return the possible sample axes of each output, the most likely first.

    The shapes may say it, by the symbol that stands for the samples of the inputs, or the graph. Else it is the axis of
    the inputs, but of scores in two dimensions rather the first: there the axes before the samples are gone. What a
    model that takes one sample at a time outputs without such an axis is that sample's (-1).
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
    """Move the axis of `size` samples to the front; return the output unchanged if there is none."""
    axis = next((k for k in axes if k < 0 or (k < array.ndim and array.shape[k] == size)), 0)
    return array[None] if axis < 0 else np.moveaxis(array, axis, 0) if axis else array


def outputs_of(
    batch: Batch,
    arrays: Mapping[str, Array],
    axes: Mapping[str, tuple[int, ...]],
    names: Sequence[str] = (),
    reduce: Reduce | None = None,
) -> Outputs:
    """Return the outputs of one batch, its samples first and without repeated ones.

    Without names, numbers count and text does not. One named output [N, C, 1, 1] is [N, C].
    """
    first = {key: _samples_first(arrays[key], axes.get(key, ()), batch.size) for key in names or arrays}
    kept = batch.trim(first)
    if not names:
        kept = {name: array for name, array in kept.items() if array.dtype.kind not in "OSUT"}
    if not kept:
        raise DataError("the model has no output of numbers that could be compared")
    if len({*names} - {ALARM}) == 1:
        kept = {name: array if name == ALARM else without_ones(array) for name, array in kept.items()}
    found = Outputs(np.arange(batch.start, batch.start + batch.valid), kept)
    return found if reduce is None else reduce(found)


def without_ones(scores: Array) -> Array:
    """Return scores [N, C, 1, 1] as [N, C], anything else as it is.

    >>> without_ones(np.zeros((2, 5, 1, 1))).shape, without_ones(np.zeros((2, 5, 1))).shape
    ((2, 5), (2, 5, 1))
    """
    return scores.reshape(scores.shape[: len(class_axes(scores.shape))])


def class_axes(shape: Sequence[Dim]) -> Sequence[Dim]:
    """[N, C, 1, 1] as [N, C], any other shape as it is."""
    return shape[:2] if len(shape) > 3 and set(shape[2:]) == {1} else shape


#: Bytes of inputs that are kept for a task.
MOST_BYTES = 1 << 29


@dataclass(frozen=True, eq=False)
class KeptInputs:
    """Some inputs of all samples, batch by batch, samples first; `starts` are the first samples of the batches."""

    starts: NDArray[np.int64]
    batches: tuple[dict[str, Array], ...]

    @classmethod
    def read(cls, data: Data, size: int, names: Sequence[str]) -> KeptInputs:
        """Read these inputs of all data.

        Raises
        ------
        DataError
            If one is not an input with a row per sample, or they take too much memory.

        Examples
        --------
        >>> from onnxfi.graph.dataflow.batch_layout import BatchLayout
        >>> data = Data.of_arrays({"x": np.arange(6).reshape(3, 2)}, None, BatchLayout(0, (("x", 0),), None), "")
        >>> KeptInputs.read(data, 2, ["x"]).of(np.array([1]))["x"]
        array([[2, 3]])
        """
        for name in names:
            if name not in data.layout.batched:
                raise DataError(f"the task reads input {name!r}{closest(name, data.layout.batched)} of each sample")
        starts, batches, total = [], list[dict[str, Array]](), 0
        for batch in data.batches(size):
            first = {n: np.moveaxis(batch.feeds[n], data.layout.batched[n], 0)[: batch.valid] for n in names}
            total += sum(array.nbytes for array in first.values())
            if total > MOST_BYTES:
                raise DataError(f"inputs {', '.join(names)} take too much memory; take fewer samples with --samples")
            starts.append(batch.start)
            batches.append(first)
        return cls(np.array(starts), tuple(batches))

    def of(self, samples: NDArray[np.int64]) -> dict[str, Array]:
        """Return the inputs of some samples of one batch."""
        k = int(np.searchsorted(self.starts, samples[0], side="right")) - 1 if len(samples) else 0
        return {name: array[samples - self.starts[k]] for name, array in self.batches[k].items()}
