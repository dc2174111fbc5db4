"""Fault-free outputs of a protected model beside the original's: the proof that a protection keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfi.graph.model.loading import parse
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.protection.range_restriction import FilterNonFinite, RestrictRanges
from onnxfi.protection.calibration import prepared
from onnxfi.protection.protection import Setting
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Array

if TYPE_CHECKING:
    import onnx

#: Samples on which the outputs before and after are compared.
_COMPARED = 512


@dataclass(frozen=True)
class FaultFreeOutputs:
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


def compare_fault_free(setting: Setting, proto: onnx.ModelProto, passes: Sequence[ModelPass[Any]]) -> FaultFreeOutputs:
    """Compare fault-free outputs of the original and the protected model, on calibration data or made-up inputs.

    Where they differ, the protected model is compared with one that has the same operators and holds nothing.

    Parameters
    ----------
    setting : Setting
        The original model, the data and the engine.
    proto : onnx.ModelProto
        The protected model.
    passes : sequence of ModelPass
        The passes that made it, in their order.

    Returns
    -------
    FaultFreeOutputs
        The outputs beside each other, over 512 samples at most.
    """
    plain = parse(setting.model)
    found = _compared(setting, plain, proto)
    if not found.changed:
        return found
    for edit in passes:
        loose = edit.unbounded() if isinstance(edit, RestrictRanges | FilterNonFinite) else edit
        plain, _ = loose.run(plain)
    return replace(found, rounding=not _compared(setting, plain, proto).changed)


def _compared(setting: Setting, plain: onnx.ModelProto, proto: onnx.ModelProto) -> FaultFreeOutputs:
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
    return FaultFreeOutputs(samples, changed, largest)


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
