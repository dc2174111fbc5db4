"""Real numbers that stored integers represent, by the scheme of their tensor and the scales in the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.faults.quantization import QuantizationScheme
from onnxfi.faults.space import Index, Target
from onnxfi.faults.trials import Faults
from onnxfi.faults.words import Words
from onnxfi.graph.model.loading import Model

RealValues = NDArray[np.float32]


def scales_at(model: Model, target: Target, index: Index) -> RealValues | None:
    """Return the scale of some elements (flat, [n]) of a quantised target; None if it is only known at run time."""
    scheme = target.scheme
    if scheme is None or not scheme.scales:
        return None
    product = np.ones(len(index), np.float32)
    for name in scheme.scales:
        held = model.targets[model.by_id[name]]
        here, inverse = np.unique(scheme.scale_indices(target.shape, held.axes, index), return_inverse=True)
        product *= held.word.values(model.words(held, here)).astype(np.float32)[inverse]
    return product


def zero_points_at(model: Model, target: Target, index: Index) -> NDArray[np.float64]:
    """Return the zero point of some elements of a quantised target."""
    scheme = target.scheme
    if scheme is None or not scheme.zero_point:
        return np.full(len(index), 0 if scheme is None else scheme.offset, np.float64)
    held = model.targets[model.by_id[scheme.zero_point]]
    here, inverse = np.unique(scheme.scale_indices(target.shape, held.axes, index), return_inverse=True)
    return held.word.values(model.words(held, here)).astype(np.float64)[inverse]


def dequantized(model: Model, target: Target, index: Index, words: Words) -> RealValues | None:
    """Return the real numbers of these words at these elements, as float32; None if the target is not quantised.

    Computed as DequantizeLinear does: (integer − zero point) × scale, with the scales and zero points of the file.
    NaN if several nodes scale the target differently.
    """
    scheme = target.scheme
    if scheme is not None and scheme.others:
        ways = [replace(target, scheme=replace(one, others=())) for one in (scheme, *scheme.others)]
        first, *others = (dequantized(model, way, index, words) for way in ways)
        for other in others:
            if first is not None and other is not None:
                first = np.where(first == other, first, np.float32(np.nan))
        return first
    scale = scales_at(model, target, index)
    if scale is None:
        return None
    with np.errstate(all="ignore"):
        away = target.word.values(words).astype(np.float64) - zero_points_at(model, target, index)
        return away.astype(np.float32) * scale


def with_dequantized(model: Model, faults: Faults) -> Faults:
    """Return the faults with their real numbers before and after; unchanged if the model is not quantised."""
    if faults.before is None or faults.after is None or not any(t.scheme for t in faults.targets):
        return faults
    found = np.full((2, len(faults)), np.nan, np.float32)
    for ordinal in np.unique(faults.sites.target).tolist():
        target = faults.targets[ordinal]
        if target.scheme is None:
            continue
        here = faults.sites.target == ordinal
        for row, words in enumerate((faults.before, faults.after)):
            real = dequantized(model, target, faults.sites.index[here], words[here])
            if real is not None:
                found[row, here] = real
        if target.scheme.others:  # one number without the other would be no change
            found[:, here] = np.where(np.isnan(found[:, here]).any(axis=0), np.float32(np.nan), found[:, here])
    return replace(faults, real_values=found)


def describe_scheme(model: Model, target: Target) -> dict[str, Any]:
    """Return the scheme of a target as plain values: its name, its scale tensors, the least and the largest scale."""
    scheme = target.scheme
    if scheme is None:
        return {}
    ends = [end for one in (scheme, *scheme.others) for end in _scales(model, one)]
    return {
        "scheme": scheme.name, "scale": [min(ends), max(ends)] if ends else None, "scales": list(scheme.scales),
        "zero_point": scheme.zero_point or None, "axis": scheme.axis, "block": scheme.block or None,
        "ways": 1 + len(scheme.others),
    }  # fmt: skip


def _scales(model: Model, scheme: QuantizationScheme) -> tuple[float, ...]:
    """Return the least and the largest scale of a scheme; () if they are only known at run time."""
    held = [model.targets[model.by_id[name]] for name in scheme.scales]
    if not held or not all(t.size for t in held):
        return ()
    values = [_values(model, t) for t in held]
    ends = np.prod([[v.min(), v.max()] for v in values], axis=0) if len(values) > 1 else _ends(values)
    return tuple(float(str(np.float32(end))) for end in ends)


def _ends(values: Sequence[RealValues]) -> tuple[np.float32, np.float32]:
    return values[0].min(), values[0].max()


def _values(model: Model, target: Target) -> RealValues:
    words = model.words(target, np.arange(target.size))
    return np.nan_to_num(target.word.values(words).astype(np.float32))
