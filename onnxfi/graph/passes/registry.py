"""The registry of model passes: those of onnxfi and those that other packages offer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

from onnxfi.errors import ModelError
from onnxfi.extensions import load_extension_class
from onnxfi.graph.passes.expose_neurons import ExposeNeurons
from onnxfi.graph.passes.expose_reads import ExposeReads
from onnxfi.graph.passes.fold_quantize import FoldQuantize
from onnxfi.graph.passes.instrument import ArmFaults, BakeFaults
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.passes.probes import CountIterations, OutputShapes
from onnxfi.graph.passes.scored_outputs import CountSpikes, MapScores

_OWN: tuple[type[ModelPass[Any]], ...] = (
    ArmFaults, BakeFaults, ExposeNeurons, ExposeReads, FoldQuantize, CountIterations, OutputShapes, CountSpikes,
    MapScores,
)  # fmt: skip
ENTRY_POINTS = "onnxfi.passes"


@cache
def model_passes() -> Mapping[str, type[ModelPass[Any]]]:
    """Return every pass by its name: those of onnxfi, and those of packages that offer `onnxfi.passes` entry points.

    Raises
    ------
    ModelError
        If an entry point does not load, is not a frozen dataclass derived from ModelPass, or has a name in use.

    Examples
    --------
    >>> sorted(model_passes())[:3]
    ['arm-faults', 'bake-faults', 'count-iterations']
    """
    found: dict[str, type[ModelPass[Any]]] = {one.name: one for one in _OWN}
    for point in entry_points(group=ENTRY_POINTS):
        one = load_extension_class(point, ModelPass, ModelError)  # type: ignore[type-abstract]
        name = getattr(one, "name", "")
        if not name or name in found:
            raise ModelError(f"entry point {point.value!r} has the name {name!r}; give the class a `name` of its own")
        found[name] = one
    return MappingProxyType(found)
