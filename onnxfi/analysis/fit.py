"""FIT of a network: upsets of its memories that damage answers, in 10^9 hours, and what a mission brings."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from onnxfi.analysis.environment import Environment, Memory, load_environment
from onnxfi.analysis.exposure import residencies
from onnxfi.analysis.vulnerability import Vulnerabilities, Vulnerability, vulnerabilities
from onnxfi.errors import InputError, SpecError
from onnxfi.faults.trials import json_value
from onnxfi.graph.model.loading import load
from onnxfi.numbers import named_number
from onnxfi.statistics.intervals import Interval

#: The ends of a figure and the middle: low, estimate, high.
Range = tuple[float, float, float]
#: Hours of which FIT counts failures.
FIT_HOURS = 1e9


@dataclass(frozen=True)
class FitPart:
    """A part of the network in its memory (None: in none that is described), and its share of the FIT."""

    part: Vulnerability
    memory: Memory | None
    residency: float

    @property
    def raw(self) -> Range:
        """Upsets of its bits in 10^9 hours."""
        rates = (0.0, 0.0, 0.0) if self.memory is None else self.memory.upsets
        low, middle, high = (self.part.bits * one for one in rates)
        return low, middle, high

    @property
    def fit(self) -> Range:
        """Undetected upsets that damage an answer in 10^9 hours: bits · λ · residency · PVF · (1 − coverage)."""
        if self.memory is None:
            return 0.0, 0.0, 0.0
        left = self.residency * (1 - self.memory.coverage)
        i = self.part.pvf
        low, middle, high = (raw * pvf * left for raw, pvf in zip(self.raw, (i.low, i.estimate, i.high), strict=True))
        return low, middle, high

    def document(self) -> dict[str, Any]:
        """Return the part as plain values for JSON."""
        i = self.part.pvf
        return {
            "layer": self.part.layer, "kind": self.part.kind, "memory": self.memory and self.memory.name,
            "bits": self.part.bits, "trials": self.part.trials, "residency": self.residency,
            "pvf": [i.low, json_value(i.estimate), i.high], "raw_fit": list(self.raw),
            "fit": [json_value(one) for one in self.fit],
        }  # fmt: skip


@dataclass(frozen=True)
class Mission:
    """The upsets of a mission, and the accuracy to expect at a random moment of it.

    `upsets` are all of the mission, `present` those that are in memory at a time between two repairs, at its end;
    `none`, `one`, `more` are the chances of 0, 1, and 2 or more at a random moment.
    """

    hours: float
    upsets: float
    present: float
    none: float
    one: float
    accuracy: tuple[float, float] | None = None
    golden: float | None = None

    @property
    def more(self) -> float:
        """The chance of two upsets or more at a random moment."""
        return max(0.0, 1 - self.none - self.one)

    @property
    def untouched(self) -> float:
        """The chance of a mission without any upset."""
        return math.exp(-self.upsets)


@dataclass(frozen=True)
class FitBudget:
    """The FIT of a network in an environment, by part and in all.

    Attributes
    ----------
    environment : Environment
        Memories, rates and mission.
    rate, label : str
        The rate that says what damage is, and its name for people.
    confidence : float
        Joint confidence of all intervals.
    parts : tuple of FitPart
        Each layer with its memory, residency and FIT.
    measured : tuple of Vulnerabilities
        The campaigns behind it.

    Examples
    --------
    >>> from onnxfi.analysis.environment import load_environment
    >>> empty = FitBudget(load_environment("examples/environment.yaml"), "sdc1", "SDC-1", 0.99, (), ())
    >>> empty.fit
    (0.0, 0.0, 0.0)
    """

    environment: Environment
    rate: str
    label: str
    confidence: float
    parts: tuple[FitPart, ...]
    measured: tuple[Vulnerabilities, ...]

    @property
    def raw(self) -> Range:
        """Upsets of all its bits in 10^9 hours."""
        return _sum(part.raw for part in self.parts)

    @cached_property
    def fit(self) -> Range:
        """Undetected upsets that damage an answer in 10^9 hours; NaN in the middle where a part has no estimate."""
        return _sum(part.fit for part in self.parts)

    def mission(self) -> Mission | None:
        """Return what a mission brings, by the middle of the upset rates; None if the environment names none."""
        hours = self.environment.mission_h
        if hours is None:
            return None
        by_memory: dict[Memory, float] = defaultdict(float)
        for part in self.parts:
            if part.memory is not None and part.part.kind == "weights":
                by_memory[part.memory] += part.raw[1] * (1 - part.memory.coverage) / FIT_HOURS
        upsets = sum(rate * hours for rate in by_memory.values())
        present = sum(rate * min(hours, memory.scrubbing_h or hours) for memory, rate in by_memory.items())
        none, one = moments(present)
        weights = next((one for one in self.measured if one.kind == "weights"), None)
        accuracy = None if weights is None else weights.golden.task.accuracy
        if weights is None or accuracy is None or accuracy.name not in weights.golden.golden["metrics"]:
            return Mission(hours, upsets, present, none, one)
        golden = float(weights.golden.golden["metrics"][accuracy.name])
        single = weights.golden.everything.rate(accuracy.name) or Interval(0.0, golden, golden, "none", 0.0)
        low = none * golden + one * single.low
        high = none * golden + one * min(single.high, 1.0) + max(0.0, 1 - none - one) * golden
        return Mission(hours, upsets, present, none, one, (low, high), golden)

    def document(self) -> dict[str, Any]:
        """Return the budget as plain values for JSON."""
        mission = self.mission()
        return {
            "rate": self.rate, "confidence": self.confidence, "raw_fit": list(self.raw),
            "fit": [json_value(one) for one in self.fit], "parts": [part.document() for part in self.parts],
            "memories": [
                {"name": one.name, "unit": one.unit, "fit_per_bit": list(one.upsets), "coverage": one.coverage,
                 "scrubbing_h": one.scrubbing_h} for one in self.environment.memories
            ],
            "mission": None if mission is None else {
                "hours": mission.hours, "upsets": mission.upsets, "present": mission.present,
                "p_none": mission.none, "p_one": mission.one, "p_more": mission.more,
                "accuracy": None if mission.accuracy is None else list(mission.accuracy), "golden": mission.golden,
            },
        }  # fmt: skip


def moments(mu: float) -> tuple[float, float]:
    """Return the chances of no upset and of one at a random moment of a time in which `mu` upsets accumulate.

    >>> [round(p, 6) for p in moments(0.0)], [round(p, 6) for p in moments(1.0)]
    ([1.0, 0.0], [0.632121, 0.264241])
    """
    if mu < 1e-6:
        return 1 - mu / 2, mu / 2
    return -math.expm1(-mu) / mu, (1 - math.exp(-mu) * (1 + mu)) / mu


def fit(
    stores: str | Path | Sequence[str | Path],
    environment: Environment | str | Path,
    *,
    rate: str | None = None,
    confidence: float | None = None,
) -> FitBudget:
    """Return the FIT of a network: its upsets that damage answers in 10^9 hours.

    Parameters
    ----------
    stores : path or sequence of paths
        Stores of single bit faults in one network: in its weights, in its activations, or one of each.
    environment : Environment, str or Path
        Memories, rates and mission; or the file that describes them.
    rate : str, optional
        The rate that says what damage is; by default the headline of the task.
    confidence : float, optional
        Joint confidence of the intervals; by default that of the campaigns.

    Returns
    -------
    FitBudget
        FIT by part and in all, each with its ends.

    Raises
    ------
    InputError
        For stores of different networks, a memory that is smaller than what it holds, or an environment that holds no
        part of the network.

    Examples
    --------
    >>> import tempfile
    >>> from onnxfi.analysis.environment import load_environment
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=50, single=True, trials=20)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = list(run(campaign, folder + "/store.db"))
    ...     budget = fit(folder + "/store.db", load_environment("examples/environment.yaml"))
    >>> round(budget.raw[1]), budget.fit[0] <= budget.fit[2]
    (15346, True)
    """
    files = [stores] if isinstance(stores, str | Path) else list(stores)
    if isinstance(environment, str | Path):
        environment = load_environment(environment)
    confidence = None if confidence is None else named_number("confidence", confidence)
    each = None if confidence is None else 1 - (1 - confidence) / len(files)
    measured = tuple(vulnerabilities(file, rate=rate, confidence=each) for file in files)
    if len({one.digest for one in measured}) > 1:
        raise InputError("the stores are of different models; give stores of one network")
    if len({one.kind for one in measured}) < len(measured):
        raise InputError(
            f"two stores have faults in {measured[0].kind}; give one store for weights, one for activations"
        )
    parts = tuple(part for one in measured for part in _parts(one, environment))
    check_memories(environment, [(part.part.layer, part.part.kind, part.part.bits) for part in parts])
    level = 1 - sum(1 - one.confidence for one in measured)
    return FitBudget(environment, measured[0].rate, measured[0].label, level, parts, measured)


def check_memories(environment: Environment, parts: Sequence[tuple[str, str, int]]) -> None:
    """Refuse an environment that holds no part of a network, or in a memory more than fits.

    `parts` are layer, kind (weights or activations) and bits of each.
    """
    homes = [environment.memory_of(layer, kind) for layer, kind, _ in parts]
    if not any(homes):
        kinds = " and ".join(dict.fromkeys(kind for _, kind, _ in parts))
        raise SpecError(f"no memory of the environment holds the {kinds} of this network; add them to its holds")
    for memory in environment.memories:
        held = sum(bits for home, (_, _, bits) in zip(homes, parts, strict=True) if home == memory)
        if held > 8 * memory.size_bytes:
            raise SpecError(
                f"memory {memory.name!r} has {memory.size_bytes:,} bytes, but what it holds takes {-(-held // 8):,}; "
                f"give its true size, or let holds name the layers in it"
            )


def _parts(one: Vulnerabilities, environment: Environment) -> list[FitPart]:
    shares: dict[str, float] = {}
    if one.kind == "activations":
        model = load(one.model)
        if model.digest != one.digest:
            raise InputError(f"{one.model!r} is another file than the one that {str(one.store)!r} was run on")
        shares = residencies(model, one.kind, environment)
    return [
        FitPart(part, environment.memory_of(part.layer, part.kind), shares.get(part.layer, 1.0)) for part in one.parts
    ]


def _sum(ranges: Any) -> Range:
    low, middle, high = (math.fsum(column) for column in zip((0.0, 0.0, 0.0), *ranges, strict=True))
    return low, middle, high
