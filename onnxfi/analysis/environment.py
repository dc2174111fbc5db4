"""Environments: memories, their upset rates, checks and repairs, and the mission.

Format: docs/reference/environment.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxfi.errors import SpecError, closest
from onnxfi.faults.space import NamePattern
from onnxfi.file_fields import Fields, is_number
from onnxfi.runtime.data.untrusted_yaml import load_fields

#: Kinds of tensors that a memory holds as a whole.
KINDS = ("weights", "activations")
_SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TIMES = {"ms": 1e-3 / 3600, "s": 1 / 3600, "min": 1 / 60, "h": 1.0, "hours": 1.0, "days": 24.0, "years": 24 * 365.25}
_SHARES = {"%": 0.01}
_FREQUENCIES = {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600}
#: FIT of one bit in each unit of an upset rate; FIT/Mbit depends on the Mbit.
_UPSETS = {"FIT/bit": 1.0, "FIT/Mibit": 1 / 2**20, "/bit/day": 1e9 / 24, "/bit/h": 1e9}
_MOST_MEMORIES = 10_000
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
    return _upset_rate(Fields({}, "an upset rate", SpecError), text, mbit)


def _upset_rate(memory: Fields, text: str, mbit: int | None) -> tuple[float, str]:
    known = dict(_UPSETS)
    if mbit is not None:
        known["FIT/Mbit"] = 1 / mbit
    elif re.search(r"FIT/Mbit\s*$", text):
        raise memory.fail(f"upsets {text!r}: is a Mbit 2^20 or 10^6 bits? They differ by 4.9 %; add mbit: 2^20 or 10^6")
    return _quantity(memory, "upsets", text, known, "1000 FIT/Mbit, 1e-10 /bit/day or 2e-9 FIT/bit")


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
    given = load_fields(path, "environment", _ENVIRONMENT, SpecError)
    factor = float(
        given.take("altitude_factor", lambda value: is_number(value, 0, 1e9) and value, "a number above 0, as 5", 1)
    )
    memories = tuple(_memory(one, factor) for one in given.each("memories", _MEMORY, _MOST_MEMORIES))
    names = [memory.name for memory in memories]
    if len(set(names)) < len(names):
        raise given.fail(f"two memories have the name {max(names, key=names.count)!r}; give each its own")
    return Environment(memories, factor, _time(given, "mission") if "mission" in given else None, _busy(given))


_ENVIRONMENT = ("version", "memories", "altitude_factor", "mission", "inference")
_MEMORY = ("name", "holds", "size", "upsets", "mbit", "coverage", "scrubbing")


def _memory(given: Fields, factor: float) -> Memory:
    holds = given.texts("holds", "weights, activations, or patterns of layer names", ("weights",), alone=True)
    mbit = (
        _MBITS[str(given.take("mbit", lambda value: str(value) in _MBITS, "2^20 or 10^6"))] if "mbit" in given else None
    )
    low, high, unit = _range(given, mbit)
    coverage = _quantity(given, "coverage", given.values.get("coverage", "0 %"), _SHARES, "90 %")[0]
    if coverage > 1:
        raise given.fail("coverage is out of range; give 0 % to 100 %")
    size = _quantity(given, "size", given.required("size"), _SIZES, "8 MiB or 512 kB")[0]
    scrubbing = _time(given, "scrubbing") if "scrubbing" in given else None
    upsets = (low * factor, (low + high) / 2 * factor, high * factor)
    return Memory(str(given.required("name")), holds, int(size), upsets, unit, coverage, scrubbing)


def _range(memory: Fields, mbit: int | None) -> tuple[float, float, str]:
    """Return the ends of an upset rate in FIT of one bit, and its unit with the Mbit that is meant."""
    text = str(memory.required("upsets"))
    first, to, second = text.partition(" to ")
    high, unit = _upset_rate(memory, second if to else first, mbit)
    low = _upset_rate(memory, f"{first} {unit}", mbit)[0] if to else high
    if not 0 < low <= high:
        raise memory.fail(f"upsets {text[:60]!r} is not a rate above 0, the lower one first")
    if unit == "FIT/Mbit":
        unit += " of 2^20 bits" if mbit == 2**20 else " of 10^6 bits"
    return low, high, unit


def _busy(whole: Fields) -> float | None:
    """Return the share of time in which an inference runs."""
    if "inference" not in whole:
        return None
    given = whole.inner("inference", ("rate", "latency"))
    rate = _quantity(given, "rate", given.required("rate"), _FREQUENCIES, "30 /s")[0]
    return min(1.0, rate * _time(given, "latency") * 3600)


def _time(given: Fields, name: str) -> float:
    """Return hours."""
    found = _quantity(given, name, given.required(name), _TIMES, "1 h, 30 days or 5 years")[0]
    if not found:
        raise given.fail(f"{name} is out of range; give a time above 0")
    return found


def _quantity(given: Fields, name: str, value: Any, units: Mapping[str, float], example: str) -> tuple[float, str]:
    """Return a number in the units' common measure, and its unit; SpecError without one."""
    text = str(value)[:60]
    found = re.fullmatch(rf"\s*{_NUMBER}\s*(\S*(?: \S+)?)\s*", str(value))
    if found is None or isinstance(value, bool):
        raise given.fail(f"{name} {text!r} is not a number with a unit; write {example}")
    unit = found[2]
    if not unit:
        raise given.fail(f"{name} {text} has no unit; write {example}")
    if unit not in units:
        raise given.fail(f"{name} {text!r}: unknown unit {unit[:20]!r}{closest(unit, units)}; write {example}")
    number = float(found[1]) * units[unit]
    if not math.isfinite(number) or number < 0:
        raise given.fail(f"{name} {text!r} is out of range; write {example}")
    return number, unit
