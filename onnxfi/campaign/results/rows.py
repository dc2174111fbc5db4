"""The results of trials: as a worker returns them, and beside the plan as a store yields them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxfi.graph.partition.route import Route


@dataclass(frozen=True)
class Result:
    """What one trial did. `error` is the traceback of a harness error: then there is no outcome."""

    trial: int
    outcome: str
    cause: str | None
    metrics: dict[str, Any]
    time_s: float
    changed: bytes | None = None
    error: str | None = None
    route: str = Route.FULL


@dataclass(frozen=True)
class Row:
    """A result beside what was planned."""

    trial: int
    stratum: int
    faults: int
    layer: str | None
    bit: int | None
    outcome: str
    cause: str | None
    changed: bytes | None
    metrics: dict[str, Any]
