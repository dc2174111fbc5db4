"""The distance of a quantised model's outputs from those of the float model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxfi.errors import EngineError, OnnxfiError
from onnxfi.graph.model.loading import Model
from onnxfi.runtime.data.dry_run import dry_run
from onnxfi.runtime.data.open_data import Data, open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.ports import Array, one_line

#: A quantised model whose outputs lie farther away (relative L2) computes something else: unrelated numbers lie at 1.4,
#: zeros at 1, and int4 of the shipped networks below 0.5.
_FARTHEST = 0.75
_SAMPLES = 16


def distance_to_float(model: Model, made: Path, mode: str, data: Data | None, notes: list[str]) -> float | None:
    """Return how far the outputs of `made` lie from those of the float model, as `relative_error` has it.

    Both run on the first samples of `data`, or on synthetic inputs. Where the float model does not run, `notes` gets
    the reason, and the result is None. Raises EngineError if ONNX Runtime does not load what was made, and where its
    outputs lie too far away.
    """
    engine = OrtEngine(provider="cpu")
    try:
        dry_run(engine, made)
        quantised = engine.prepare(made)
    except EngineError as error:
        message = str(error)
        reason = one_line((message.partition(": ")[2] or message).replace(str(made), "it"), limit=200)
        raise EngineError(
            f"ONNX Runtime refuses what mode {mode} made: {reason}; leave the node out with --exclude"
        ) from None
    try:
        whole = engine.prepare(model.stored_form)
        fed = data if data is not None else open_data(None, whole.inputs, limit=_SAMPLES)
        batch = next(iter(fed.batches(fed.layout.fixed or min(_SAMPLES, fed.samples))))
        wanted = whole.run(batch.feeds, None)
    except OnnxfiError as error:
        reason = one_line(str(error), limit=120)
        notes.append(f"the outputs were not compared with the float model's, which does not run: {reason}")
        return None
    away = relative_error(wanted, quantised.run(batch.feeds, None))
    if away > _FARTHEST:
        raise EngineError(
            f"the outputs of what mode {mode} made lie {away:.0%} away from the float model's (relative L2, "
            f"{fed.description}); at most {_FARTHEST:.0%} is accepted, nothing was written; leave nodes out with "
            f"--exclude, or use another mode"
        )
    return away


def relative_error(wanted: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Return how far float outputs lie from others of the same names: the largest relative L2 distance.

    Numbers that are not finite in `wanted` do not count; an output of another shape, or one that is not finite where
    `wanted` is, lies infinitely far away. Outputs that hold no floats are left out.

    >>> relative_error({"y": np.array([3.0, 4.0])}, {"y": np.array([3.0, 4.5])})
    0.1
    """
    largest = 0.0
    for name, array in wanted.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            continue
        other = found[name]
        if other.shape != array.shape:
            return math.inf
        counted = np.isfinite(array)
        one, two = (a[counted].astype(np.float64) for a in (array, other))
        norm, distance = float(np.linalg.norm(one)), float(np.linalg.norm(two - one))
        if not math.isfinite(distance):
            return math.inf
        largest = max(largest, distance / norm if norm else distance)
    return largest
