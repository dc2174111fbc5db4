"""The registry of the passes that protect; one suite, tests/graph/passes/test_model_pass.py, tests them all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.protection.checksum import CheckLayers
from onnxfi.graph.protection.range_restriction import FilterNonFinite, RestrictRanges
from onnxfi.graph.protection.redundant_layers import RepeatLayers
from onnxfi.graph.protection.weight_clipping import ClipWeights

_OWN: tuple[type[ModelPass[Any]], ...] = (RestrictRanges, FilterNonFinite, RepeatLayers, CheckLayers, ClipWeights)


def protection_passes() -> Mapping[str, type[ModelPass[Any]]]:
    """Return every pass that protects, by its name.

    Examples
    --------
    >>> sorted(protection_passes())[:2]
    ['check-layers', 'clip-weights']
    """
    return MappingProxyType({one.name: one for one in _OWN})
