"""Calibration: the range of activations on fault-free data, and marks by which that data is known again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, InputError
from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.model.graph_index import GraphIndex, Scope
from onnxfi.graph.model.loading import Model, parse
from onnxfi.graph.passes.graph_edit import FreeNames
from onnxfi.graph.passes.node_builder import NodeBuilder, opset_of
from onnxfi.graph.protection.loop_and_branch_bodies import carry_out, name_nodes_with_bodies
from onnxfi.graph.protection.placement import Follower, Places, followed_bounds
from onnxfi.graph.protection.range_restriction import Bounds, Restricted
from onnxfi.runtime.data.open_data import Data
from onnxfi.runtime.engine.ports import Array, native
from onnxfi.runtime.engine.protocols import Engine, Session

if TYPE_CHECKING:
    import onnx

#: Bins between the least and the largest number, from which percentiles are read.
_BINS = 1 << 12
#: Bytes of activations that one run may output.
_MOST_BYTES = 1 << 28
#: A measured end of the range moves outward by this share: another batch or fusion rounds differently.
MARGIN = 2.0**-10
#: Samples of the calibration data by which it is known again.
_MARKS = 32


@dataclass
class _Extent:
    """The least, largest and summed numbers of an activation so far, by channel ([C], [1] without channels)."""

    axis: int | None
    rank: int
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    total: NDArray[np.float64]
    count: int = 0
    histogram: NDArray[np.int64] | None = None

    def joined(self, other: _Extent | None) -> _Extent:
        """Return the extent of both together."""
        if other is None:
            return self
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return replace(self, low=low, high=high, total=self.total + other.total, count=self.count + other.count)


def calibrate(
    model: Model, places: Places, data: Data, engine: Engine, *, percentile: float = 100.0, per: str = "tensor",
    batch: int = 32,
) -> tuple[Restricted, ...]:  # fmt: skip
    """Measure the range of activations on data, and give their followers the bounds that carry over.

    Parameters
    ----------
    model : Model
        The unprotected model.
    places : Places
        The activations.
    data : Data
        Fault-free calibration data.
    engine : Engine
        The engine that runs the model.
    percentile : float
        100 takes the least and the largest number, each moved outward by 2^-10 of itself; p below 100 the percentiles
        100 - p and p, to 1/4096 of the range.
    per : {"tensor", "channel"}
        One range for an activation, or one for each of its channels.
    batch : int
        Samples that run together at most.

    Returns
    -------
    tuple of Restricted
        The activations with their bounds, those that were measured first. Those in bodies that no sample runs are left
        out; others in bodies have the bounds of their whole tensors, whatever `percentile` and `per` say.

    Raises
    ------
    InputError
        For parameters out of range.
    DataError
        If an activation is not finite on the data.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> from onnxfi.graph.protection.placement import find_places
    >>> from onnxfi.runtime.data.open_data import open_data
    >>> from onnxfi.runtime.engine.onnx_runtime import OrtEngine
    >>> model, engine = load("models/fashion_cnn.onnx"), OrtEngine(provider="cpu")
    >>> data = open_data("models/fashion_test.npz", engine.prepare(model.path).inputs, limit=50)
    >>> found = calibrate(model, find_places(model), data, engine)
    >>> [(r.name, round(r.bounds.high[0], 1)) for r in found if "relu" in r.name]
    [('relu', 1.2), ('relu_1', 3.4), ('relu_2', 16.7)]
    """
    if not 50 < percentile <= 100:
        raise InputError(f"percentile must be above 50 and at most 100, got {percentile:g}")
    if per not in ("tensor", "channel"):
        raise InputError(f"per must be tensor or channel, got {per!r}")
    main = [a for a in places.measured if not a.path]
    extents = _extents_in_bodies(model, [a for a in places.measured if a.path], data, engine, batch)
    for arrays in _activations_of(model, main, data, engine, batch) if main else ():
        for a in main:
            axis = channel_axis(model.index.main, a.name, arrays[a.name].ndim) if per == "channel" else None
            _add(extents, a.name, arrays[a.name], axis)
    if percentile < 100 and main:
        for arrays in _activations_of(model, main, data, engine, batch):
            for name, array in arrays.items():
                _count(extents[name], array)
    bounds = {name: _bounds(extent, percentile) for name, extent in extents.items()}
    ran = [(a, a.path + a.name) for a in places.measured if a.path + a.name in extents]
    measured = [Restricted.of(a, extents[key].rank, bounds[key]) for a, key in ran]
    return with_followers(measured, places.followers)


def with_followers(measured: Sequence[Restricted], followers: Sequence[Follower]) -> tuple[Restricted, ...]:
    """Return activations with known bounds, and behind them their followers with the bounds that carry over."""
    found, known = [*measured], {one.id: one.bounds for one in measured}
    for follower in followers:
        if not known.keys() >= set(follower.sources):
            continue
        a = follower.activation
        one = Restricted.of(a, None if a.dims is None else len(a.dims), followed_bounds(follower, known))
        known[one.id] = one.bounds
        found.append(one)
    return tuple(found)


def _activations_of(
    model: Model, rows: Sequence[Activation], data: Data, engine: Engine, batch: int
) -> Iterator[dict[str, Array]]:
    """Yield these activations batch by batch."""
    import onnx

    proto = parse(model)
    have = {o.name for o in proto.graph.output}
    names = [a.name for a in rows]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    session = prepared(engine, model, proto)
    sizes = [math.prod(a.target.shape) * a.target.word.bits // 8 for a in rows]
    size = data.layout.fixed or max(1, min(batch, _MOST_BYTES // max(1, sum(sizes))))
    for part in data.batches(size):
        found = part.trim(session.run(part.feeds, names))
        yield {name: np.asarray(array) for name, array in found.items()}


def _extents_in_bodies(
    model: Model, rows: Sequence[Activation], data: Data, engine: Engine, batch: int
) -> dict[str, _Extent]:
    """Return the extents of activations in bodies: what the iterations that run have, over whole tensors.

    A body puts out the ends, the sum and the number of its numbers, not the numbers, which may differ in shape from
    one iteration to the next.
    """
    if not rows:
        return {}
    proto = parse(model)
    name_nodes_with_bodies(proto)
    ports = {a.path + a.name: _add_extent(proto, a) for a in rows}
    for name in [name for pair in ports.values() for name in pair]:
        proto.graph.output.add().name = name
    session, extents = prepared(engine, model, proto), dict[str, _Extent]()
    for part in data.batches(data.layout.fixed or batch):
        found = session.run(part.feeds, [name for pair in ports.values() for name in pair])
        for a in rows:
            (low, minus_high), (total, count) = (found[name] for name in ports[a.path + a.name])
            if not count:
                continue
            _check_finite(a.path + a.name, np.array([low, minus_high, total]))
            low, high, total = (np.array([number], np.float64) for number in (low, -minus_high, total))
            one = _Extent(None, len(a.dims or ()), low, high, total, int(count))
            extents[a.path + a.name] = one.joined(extents.get(a.path + a.name))
    return extents


def _add_extent(proto: onnx.ModelProto, a: Activation) -> tuple[str, str]:
    """Add outputs for what an activation of a body has: its least and negated largest number, and sum and count."""
    graph, names, opset = GraphIndex.of(proto).by_path[a.path].graph, FreeNames(proto), opset_of(proto)
    g = NodeBuilder(opset, names.new(f"{a.name}.extent") + ".")
    flat = g.cast(g.add("Reshape", a.name, g.constant([-1])), "float64")
    some = g.add("Concat", flat, g.constant([np.inf], "float64"), axis=0)
    other = g.add("Concat", g.add("Neg", flat), g.constant([np.inf], "float64"), axis=0)
    ends = g.add("Concat", *(g.reduce("ReduceMin", one, keepdims=1) for one in (some, other)), axis=0)
    total = g.reduce("ReduceSum", g.add("Concat", flat, g.constant([0.0], "float64"), axis=0), keepdims=1)
    count = g.cast(g.add("Shape", flat), "float64")
    sums = g.add("Concat", total, count, axis=0)
    graph.node.extend(g.nodes)
    return (
        carry_out(proto, a.path, ends, np.full(2, np.inf), "ReduceMin"),
        carry_out(proto, a.path, sums, np.zeros(2), "ReduceSum"),
    )


def prepared(engine: Engine, model: Model, proto: Any) -> Session:
    """Return a session of a changed copy of a model, whose external data lies beside the model's file."""
    from onnxfi.runtime.engine.onnx_runtime import OrtEngine

    content = proto.SerializeToString()
    if not model.external or model.path is None:
        return engine.prepare(content)
    if not isinstance(engine, OrtEngine):
        raise InputError(
            f"{model.name} has external data, which the engine {engine.name!r} does not take here; use onnxruntime"
        )
    return engine.prepare(content, model.path.parent)


def channel_axis(scope: Scope, name: str, rank: int) -> int | None:
    """Return the axis of channels of an activation: that behind the samples of convolutions, the last of linear layers.

    >>> from onnxfi.graph.model.loading import load
    >>> channel_axis(load("models/fashion_attention.onnx").index.main, "linear", 3)
    2
    """
    if rank < 2:
        return None
    value = scope.find(name)
    for _ in range(8):
        maker = None if value is None else value.producer
        if maker is None:
            break
        if maker.op in ("MatMul", "FusedMatMul", "MatMulNBits", "LayerNormalization"):
            return rank - 1
        if maker.op in ("Conv", "ConvTranspose", "BatchNormalization", "Gemm"):
            return 1
        value = next((i for i in maker.inputs if i is not None and i.producer is not None), None)
    return 1


def _add(extents: dict[str, _Extent], name: str, array: Array, axis: int | None) -> None:
    """Take the numbers of one batch into the extent of an activation."""
    rows = _by_channel(array, axis)
    _check_finite(name, rows)
    if not rows.size:
        raise DataError(f"the activation {name!r} is empty on the calibration data, so it has no range")
    low, high, total = rows.min(axis=1), rows.max(axis=1), rows.sum(axis=1)
    known = extents.get(name)
    if known is None:
        extents[name] = _Extent(axis, array.ndim, low, high, total, rows.shape[1])
        return
    if len(known.low) != len(low) or known.rank != array.ndim:
        raise DataError(f"the activation {name!r} has another number of channels in every batch; take per=tensor")
    extents[name] = _Extent(axis, array.ndim, low, high, total, rows.shape[1]).joined(known)


def _check_finite(name: str, numbers: NDArray[np.float64]) -> None:
    """Raise DataError for numbers without a range."""
    if not np.isfinite(numbers).all():
        raise DataError(
            f"the activation {name!r} is not finite on the calibration data, so it has no range; look at the data with "
            f"onnxfi eval, or leave the activation out with --exclude ={name}"
        )


def _by_channel(array: Array, axis: int | None) -> NDArray[np.float64]:
    """Return the numbers of an activation as [C, n]."""
    numbers = array.astype(np.float64)
    return numbers.reshape(1, -1) if axis is None else np.moveaxis(numbers, axis, 0).reshape(array.shape[axis], -1)


def _count(extent: _Extent, array: Array) -> None:
    """Count the numbers of one batch into the histogram of an activation."""
    rows = _by_channel(array, extent.axis)
    if extent.histogram is None:
        extent.histogram = np.zeros((len(rows), _BINS), np.int64)
    width = np.maximum(extent.high - extent.low, np.finfo(np.float64).tiny)[:, None]
    place = np.clip((rows - extent.low[:, None]) / width * _BINS, 0, _BINS - 1).astype(np.int64)
    flat = place + np.arange(len(rows))[:, None] * _BINS
    extent.histogram += np.bincount(flat.ravel(), minlength=len(rows) * _BINS).reshape(len(rows), _BINS)


def _bounds(extent: _Extent, percentile: float) -> Bounds:
    """Return the bounds of an activation: the ends of its range, or percentiles of its histogram."""
    low, high = extent.low, extent.high
    if extent.histogram is None:
        low, high = low - MARGIN * np.abs(low), high + MARGIN * np.abs(high)
    else:
        upto = np.cumsum(extent.histogram, axis=1)
        least = extent.count * (1 - percentile / 100)
        first = np.array([int(np.searchsorted(row, least, side="right")) for row in upto])
        last = np.array([int(np.searchsorted(row, extent.count - least, side="left")) for row in upto])
        step = (high - low) / _BINS
        low, high = low + first * step, np.minimum(low + (last + 1) * step, high)
    mean = np.clip(extent.total / extent.count, low, high)
    return Bounds(tuple(low.tolist()), tuple(high.tolist()), extent.axis, tuple(mean.tolist()))


def sample_marks(data: Data, numbers: frozenset[int] | None = None) -> list[str]:
    """Return a hash of the inputs of each sample, or of these samples, in order.

    >>> from onnxfi.runtime.data.open_data import Port, open_data
    >>> data = open_data({"x": np.ones((2, 3), np.float32)}, [Port("x", "float32", ("N", 3))])
    >>> one, two = sample_marks(data)
    >>> one == two, len(one)
    (True, 16)
    """
    found = []
    for part in data.batches(data.layout.fixed or 64):
        for k in range(part.valid):
            if numbers is None or part.start + k in numbers:
                found.append(_mark(part.feeds, data.layout.batched, k))
    return found


def _mark(feeds: Mapping[str, Array], axes: Mapping[str, int], row: int) -> str:
    hashed = hashlib.sha256()
    for name in sorted(feeds):
        array = native(feeds[name])
        one = np.asarray(array.take(row, axes[name])) if name in axes else array
        hashed.update(f"{name!r}{one.dtype}{one.shape}".encode())
        hashed.update(b"".join(str(x).encode() for x in one.flat) if one.dtype.kind == "O" else one.tobytes())
    return hashed.hexdigest()[:16]


def calibration_record(data: Data) -> dict[str, Any]:
    """Return what a protected file keeps of its calibration data: digest, number, and marks of up to 32 samples."""
    chosen = frozenset(k * data.samples // _MARKS for k in range(_MARKS))
    return {"digest": data.digest, "samples": data.samples, "marks": sample_marks(data, chosen)}
