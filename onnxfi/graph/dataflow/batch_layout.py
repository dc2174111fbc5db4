"""Sample axes: the axis along which the inputs of a model, and the tensors computed from them, hold samples.

The samples lie along the dimension that grows with the batch, by a whole number of rows per sample; shapes at two batch
sizes show which one. The order of several rows per sample follows from the operators (sample_placement.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.graph.model.graph_index import integer
from onnxfi.graph.model.protobuf_scan import text

if TYPE_CHECKING:
    import onnx

Dims = tuple[int | str | None, ...]
Array = NDArray[Any]


@dataclass(frozen=True)
class SampleAxis:
    """The axis along which a tensor holds samples: `outer` × samples × `inner` rows.

    With one row per sample, as in [N,7,6], both are 1. Tokens flattened into the batch, [N·7,6], have `inner` 7; two
    concatenated batches, [2·N,6], have `outer` 2.
    """

    axis: int
    outer: int = 1
    inner: int = 1

    @property
    def rows(self) -> int:
        """The rows of one sample along the axis."""
        return self.outer * self.inner

    def shape(self, dims: Sequence[int | str | None]) -> Dims:
        """Return the shape of one sample of a tensor."""
        own = (self.rows,) if self.rows > 1 else ()
        return (*dims[: self.axis], *own, *dims[self.axis + 1 :])

    def first(self, array: Array) -> Array:
        """Return a view of an array with its samples first, [N, …]; ValueError if no number of samples fits."""
        if self.rows == 1:
            return np.moveaxis(array, self.axis, 0)
        before, behind = array.shape[: self.axis], array.shape[self.axis + 1 :]
        apart = array.reshape(*before, self.outer, -1, self.inner, *behind)
        moved = np.moveaxis(apart, self.axis + 1, 0)
        return moved.reshape(len(moved), *before, self.rows, *behind)

    def back(self, array: Array) -> Array:
        """Return an array from `first` in its own layout."""
        if self.rows == 1:
            return np.moveaxis(array, 0, self.axis)
        before, behind = array.shape[1 : self.axis + 1], array.shape[self.axis + 2 :]
        apart = array.reshape(len(array), *before, self.outer, self.inner, *behind)
        moved = np.moveaxis(apart, 0, self.axis + 1)
        return moved.reshape(*before, self.rows * len(array), *behind)


@dataclass(frozen=True)
class BatchLayout:
    """Inputs with one row per sample, with the axis of each; the others are fed whole with every batch.

    `axis` is the requested one; `fixed` is the one batch size that the model takes, None if it takes any.
    """

    axis: int
    axes: tuple[tuple[str, int], ...]
    fixed: int | None

    @property
    def batched(self) -> dict[str, int]:
        """The axis of each input that holds samples."""
        return dict(self.axes)

    def rows(self, feeds: Mapping[str, Array]) -> int:
        """Return the number of samples in these feeds; 1 if no input holds samples."""
        return min((feeds[name].shape[axis] for name, axis in self.axes), default=1)

    def part(self, feeds: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
        """Return the samples from `start` up to `stop`."""
        found = dict(feeds)
        for name, axis in self.axes:
            found[name] = feeds[name][(slice(None),) * axis + (slice(start, stop),)]
        return found

    def pad(self, feeds: Mapping[str, Array], size: int) -> dict[str, Array]:
        """Return the feeds with the last sample repeated until there are `size`."""
        index = np.minimum(np.arange(size), self.rows(feeds) - 1)
        return {**feeds, **{name: feeds[name].take(index, axis) for name, axis in self.axes}}


def find_batch_layout(
    shapes: Mapping[str, Dims | None], axis: int, given: Mapping[str, Sequence[int]] | None = None
) -> BatchLayout:
    """Find the inputs that hold samples along `axis`, by their shapes in the order of the inputs.

    An input holds samples if its size along `axis` is open, unless that dimension has the name of another dimension of
    an input with samples: `seq` beside `[batch,seq]`. An input that names the batch along another axis has its samples
    there: `[2,batch,8]`. If all sizes are fixed, the first input with two dimensions gives the batch size, and inputs
    of the same size hold samples. `given` are the shapes of arrays, which give the rank if it is open; an array that
    holds a single number, or fits a fixed input although the others have another number of samples, is fed whole.

    >>> find_batch_layout({"ids": ("batch", "seq"), "position": ("seq",), "state": (2, "batch", 8)}, 0).axes
    (('ids', 0), ('state', 1))
    """
    given = given or {}
    known = {name: tuple(None for _ in given.get(name, ())) if dims is None else dims for name, dims in shapes.items()}
    there = {name: dims for name, dims in known.items() if len(dims) > axis}
    open_ = {name: dims for name, dims in there.items() if not isinstance(dims[axis], int)}
    if not open_:
        return _fixed(there, axis, given)
    other = {d for dims in known.values() for k, d in enumerate(dims) if k != axis and isinstance(d, str)}
    sure = {dims[axis] for dims in open_.values() if dims[axis] not in other}
    if not sure:
        sure = {max(open_.values(), key=len)[axis]}
    inside = {d for dims in known.values() if len(dims) > axis and dims[axis] in sure for d in dims} - sure
    found = {name: axis for name, dims in open_.items() if dims[axis] is None or dims[axis] not in inside}
    named = {symbol for symbol in sure if symbol is not None}
    for name, dims in known.items():
        along = [k for k, d in enumerate(dims) if d in named]
        if name not in found and len(along) == 1:
            found[name] = along[0]
    samples = {name: given[name][k] for name, k in found.items() if len(given.get(name, ())) > k}
    if len(set(samples.values())) > 1:
        batch = [dims[found[name]] for name, dims in known.items() if name in found]
        found = {
            name: k
            for name, k in found.items()
            if samples.get(name) != 1 or len(known[name]) > 1 or (known[name][k] and batch.count(known[name][k]) > 1)
        }
    return BatchLayout(axis, tuple((name, found[name]) for name in known if name in found), None)


def _fixed(there: Mapping[str, Dims], axis: int, given: Mapping[str, Sequence[int]]) -> BatchLayout:
    """Return the layout of inputs whose sizes are all fixed."""
    wide = [dims for dims in there.values() if len(dims) > 1] or [*there.values()]
    size = wide[0][axis] if wide else None
    if not isinstance(size, int):
        return BatchLayout(axis, (), None)
    alike = [name for name, dims in there.items() if dims[axis] == size]
    more = [name for name in alike if tuple(given.get(name, ())) != there[name]]
    # An array of exactly the declared shape, beside inputs with more samples, is the same for all samples.
    kept = more if more and all(name in given for name in alike) else alike
    return BatchLayout(axis, tuple((name, axis) for name in kept), size)


def graph_batch_layout(graph: onnx.GraphProto) -> BatchLayout:
    """Return the layout that follows from the file: samples come first, or after time before a recurrent layer."""
    stored = {text(t.name) for t in graph.initializer}
    shapes = {text(v.name): tensor_dims(v.type) for v in graph.input if text(v.name) not in stored}
    timed = [
        node.op_type in ("LSTM", "GRU", "RNN") and not integer(node, "layout", 0)
        for node in graph.node
        if node.input and text(node.input[0]) in shapes
    ]
    return find_batch_layout(shapes, int(any(timed)))


def declared_types(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    """Return the types that a graph declares, by name."""
    return {text(v.name): v.type for v in (*graph.value_info, *graph.output, *graph.input) if v.HasField("type")}


def tensor_dims(kind: onnx.TypeProto | None) -> Dims | None:
    """Return the dimensions of a tensor type: numbers, symbols, or None for neither; None if the rank is open."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else text(d.dim_param) or None
        for d in kind.tensor_type.shape.dim
    )
