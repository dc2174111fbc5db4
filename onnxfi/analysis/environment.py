"""Environments: memories, their upset rates, checks and repairs, and the mission.

Format: docs/reference/environment.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from onnxfi.errors import SpecError, closest
from onnxfi.faults.space import NamePattern
from onnxfi.runtime.data.untrusted_yaml import load_yaml

VERSION = 1
#: Kinds of tensors that a memory holds as a whole.
KINDS = ("weights", "activations")
_SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TIMES = {"ms": 1e-3 / 3600, "s": 1 / 3600, "min": 1 / 60, "h": 1.0, "hours": 1.0, "days": 24.0, "years": 24 * 365.25}
_SHARES = {"%": 0.01}
_FREQUENCIES = {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600}
#: FIT of one bit in each unit of an upset rate; FIT/Mbit depends on the Mbit.
_UPSETS = {"FIT/bit": 1.0, "FIT/Mibit": 1 / 2**20, "/bit/day": 1e9 / 24, "/bit/h": 1e9}
_MBITS = {"2^20": 2**20, "10^6": 10**6, "1048576": 2**20, "1000000": 10**6}
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"


@dataclass(frozen=True)
class Memory:
    """A memory: the parts of the network in it, and how often its bits are upset.

    `upsets` are the lowest, the middle and the highest FIT of one bit, altitude included; `coverage` is the share of
    upsets that something detects, `scrubbing_h` the hours between two repairs (None: never).
    """

    name: str
    holds: tuple[str, ...]
    size_bytes: int
    upsets: tuple[float, float, float]
    unit: str
    coverage: float = 0.0
    scrubbing_h: float | None = None

    def holds_part(self, layer: str, kind: str) -> bool:
        """Return True if a layer's weights or activations lie in it."""
        if kind in self.holds:
            return True
        return any(NamePattern(one).matches([layer]) for one in self.holds if one not in KINDS)


@dataclass(frozen=True)
class Environment:
    """The memories of a deployed network, its mission, and the share of time in which an inference runs.

    Attributes
    ----------
    memories : tuple of Memory
        Memories with what they hold, their size, upset rates, coverage and scrubbing.
    altitude_factor : float
        Factor that the upset rates contain.
    mission_h : float, optional
        Hours of the mission.
    busy : float, optional
        Share of time in which an inference runs.

    Examples
    --------
    >>> found = load_environment("examples/environment.yaml")
    >>> found.memory_of("conv1", "weights").name, found.mission_h
    ('weight SRAM', 43830.0)
    """

    memories: tuple[Memory, ...]
    altitude_factor: float = 1.0
    mission_h: float | None = None
    busy: float | None = None

    def memory_of(self, layer: str, kind: str) -> Memory | None:
        """Return the first memory that holds a part of the network."""
        return next((memory for memory in self.memories if memory.holds_part(layer, kind)), None)


def upset_rate(text: str, mbit: int | None = None) -> tuple[float, str]:
    """Return the FIT of one bit that a raw upset rate gives, and its unit.

    Parameters
    ----------
    text : str
        A number with its unit: FIT/Mbit, FIT/Mibit, FIT/bit, /bit/day or /bit/h.
    mbit : int, optional
        Bits of a Mbit, with FIT/Mbit.

    Raises
    ------
    SpecError
        Without a unit, or where it is not said which Mbit is meant.

    Examples
    --------
    >>> upset_rate("1000 FIT/Mbit", 10**6), upset_rate("2e-9 FIT/bit")
    ((0.001, 'FIT/Mbit'), (2e-09, 'FIT/bit'))
    """
    known = dict(_UPSETS)
    if mbit is not None:
        known["FIT/Mbit"] = 1 / mbit
    elif re.search(r"FIT/Mbit\s*$", text):
        raise SpecError(f"upsets {text!r}: is a Mbit 2^20 or 10^6 bits? They differ by 4.9 %; add mbit: 2^20 or 10^6")
    return _quantity("upsets", text, known, "1000 FIT/Mbit, 1e-10 /bit/day or 2e-9 FIT/bit")


def load_environment(path: str | Path) -> Environment:
    """Read an environment from a YAML file.

    Parameters
    ----------
    path : str or Path
        The file; docs/reference/environment.md describes it.

    Returns
    -------
    Environment
        Memories, mission and use.

    Raises
    ------
    SpecError
        For an unknown or missing field, a quantity without a unit, or a value out of range.

    Examples
    --------
    >>> load_environment("examples/environment.yaml").memories[0].name
    'weight SRAM'
    """
    given = load_yaml(path, "environment", SpecError)

    def fail(text: str) -> NoReturn:
        raise SpecError(f"{path}: {text}")

    try:
        whole = _fields(given, "an environment", _ENVIRONMENT, required=("version", "memories"))
        if whole["version"] is True or whole["version"] != VERSION:
            fail(f"version {str(whole['version'])[:20]} of an environment; this onnxfi reads version {VERSION}")
        listed = whole["memories"]
        if not isinstance(listed, list) or not listed:
            fail("memories takes a list of one or more, each with name, size and upsets")
        factor = whole.get("altitude_factor", 1)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1e9:
            fail(f"altitude_factor {str(factor)[:40]!r} is not a number above 0, as 5")
        memories = tuple(_memory(one, f"memories[{k}]", float(factor)) for k, one in enumerate(listed))
        names = [memory.name for memory in memories]
        if len(set(names)) < len(names):
            fail(f"two memories have the name {max(names, key=names.count)!r}; give each its own")
        mission = None if "mission" not in whole else _time("mission", whole["mission"])
        return Environment(memories, float(factor), mission, _busy(whole.get("inference")))
    except SpecError as error:
        if str(error).startswith(f"{path}: "):
            raise
        fail(str(error))


_ENVIRONMENT = ("version", "memories", "altitude_factor", "mission", "inference")
_MEMORY = ("name", "holds", "size", "upsets", "mbit", "coverage", "scrubbing")


def _memory(given: Any, where: str, factor: float) -> Memory:
    fields = _fields(given, where, _MEMORY, required=("name", "size", "upsets"))
    try:
        holds = fields.get("holds", ["weights"])
        holds = [holds] if isinstance(holds, str) else holds
        if not isinstance(holds, list) or not holds or not all(isinstance(one, str) and one for one in holds):
            raise SpecError("holds takes weights, activations, or patterns of layer names")
        mbit = fields.get("mbit")
        if mbit is not None and str(mbit) not in _MBITS:
            raise SpecError(f"mbit {str(mbit)[:40]!r} is neither 2^20 nor 10^6")
        low, high, unit = _range(str(fields["upsets"]), None if mbit is None else _MBITS[str(mbit)])
        coverage = _within("coverage", _quantity("coverage", fields.get("coverage", "0 %"), _SHARES, "90 %")[0], 1)
        size = _quantity("size", fields["size"], _SIZES, "8 MiB or 512 kB")[0]
        scrubbing = None if "scrubbing" not in fields else _time("scrubbing", fields["scrubbing"])
        upsets = (low * factor, (low + high) / 2 * factor, high * factor)
        return Memory(str(fields["name"]), tuple(holds), int(size), upsets, unit, coverage, scrubbing)
    except SpecError as error:
        raise SpecError(f"{where}.{error}") from None


def _range(text: str, mbit: int | None) -> tuple[float, float, str]:
    """Return the ends of an upset rate in FIT of one bit, and its unit with the Mbit that is meant."""
    first, to, second = text.partition(" to ")
    high, unit = upset_rate(second if to else first, mbit)
    low = upset_rate(f"{first} {unit}", mbit)[0] if to else high
    if not 0 < low <= high:
        raise SpecError(f"upsets {text[:60]!r} is not a rate above 0, the lower one first")
    if unit == "FIT/Mbit":
        unit += " of 2^20 bits" if mbit == 2**20 else " of 10^6 bits"
    return low, high, unit


def _busy(given: Any) -> float | None:
    """Return the share of time in which an inference runs."""
    if given is None:
        return None
    fields = _fields(given, "inference", ("rate", "latency"), required=("rate", "latency"))
    rate = _quantity("inference.rate", fields["rate"], _FREQUENCIES, "30 /s")[0]
    return min(1.0, rate * _time("inference.latency", fields["latency"]) * 3600)


def _time(name: str, given: Any) -> float:
    """Return hours."""
    return _within(name, _quantity(name, given, _TIMES, "1 h, 30 days or 5 years")[0], math.inf)


def _within(name: str, value: float, most: float) -> float:
    if not 0 <= value <= most or (most == math.inf and not value):
        raise SpecError(f"{name} is out of range" + ("; give 0 % to 100 %" if most == 1 else "; give a time above 0"))
    return value


def _quantity(name: str, given: Any, units: Mapping[str, float], example: str) -> tuple[float, str]:
    """Return a number in the units' common measure, and its unit; SpecError without one."""
    found = re.fullmatch(rf"\s*{_NUMBER}\s*(\S*(?: \S+)?)\s*", str(given))
    if found is None or isinstance(given, bool):
        raise SpecError(f"{name} {str(given)[:60]!r} is not a number with a unit; write {example}")
    unit = found[2]
    if not unit:
        raise SpecError(f"{name} {str(given)[:60]} has no unit; write {example}")
    if unit not in units:
        raise SpecError(
            f"{name} {str(given)[:60]!r}: unknown unit {unit[:20]!r}{closest(unit, units)}; write {example}"
        )
    value = float(found[1]) * units[unit]
    if not math.isfinite(value) or value < 0:
        raise SpecError(f"{name} {str(given)[:60]!r} is out of range; write {example}")
    return value, unit


def _fields(given: Any, where: str, known: tuple[str, ...], required: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a mapping; SpecError for one that is unknown or missing."""
    if not isinstance(given, dict):
        raise SpecError(f"{where} takes fields and their values: {', '.join(known)}")
    for name in given:
        if name not in known:
            raise SpecError(f"{where}: unknown field {str(name)[:60]!r}{closest(str(name), known)}")
    for name in required:
        if name not in given:
            raise SpecError(f"{where}: {name} is missing")
    return {str(name): value for name, value in given.items()}
