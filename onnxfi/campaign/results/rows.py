"""The results of trials: as a worker returns them, and beside the plan as a store yields them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxfi.graph.partition.route import Route


@dataclass(frozen=True)
class Result:
    """The result of one trial.

    Attributes
    ----------
    trial : int
        The number of the trial, from 1.
    outcome : str
        ``masked``, ``sdc`` or ``due``; empty if the harness failed.
    cause : str or None
        The cause of a DUE.
    metrics : dict
        The metrics of the trial by name, infinities as strings.
    time_s : float
        The time of the trial in seconds.
    changed : bytes or None
        The samples whose answer is silently wrong, as packed bits.
    error : str or None
        The traceback of an error of the harness; then there is no outcome.
    route : str
        The route of its execution.
    words : tuple of dict
        Words of activations before and after faults, as they were injected.

    Examples
    --------
    >>> Result(1, "sdc", None, {"sdc1": 0.02}, time_s=0.01).metrics
    {'sdc1': 0.02}
    """

    trial: int
    outcome: str
    cause: str | None
    metrics: dict[str, Any]
    time_s: float
    changed: bytes | None = None
    error: str | None = None
    route: str = Route.FULL
    words: tuple[dict[str, Any], ...] = ()


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
