"""Budgets of a protection: bytes of memory and operations of an inference, as `bytes=64KiB,macs=5%`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from onnxfi.errors import InputError, closest

_UNITS: dict[str, dict[str, float]] = {
    "bytes": {
        "": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3,
    },
    "macs": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
}  # fmt: skip
_EXAMPLES = {"bytes": "bytes=64KiB or bytes=12.5%", "macs": "macs=2M or macs=5%"}
_QUANTITY = re.compile(r"\s*(\d+\.?\d*(?:[eE][+-]?\d{1,3})?)\s*(%|[A-Za-z]*)\s*")


def parse_budget(text: str, whole: Mapping[str, float]) -> tuple[float, float]:
    """Return the bytes and the operations that may be spent; infinite for one that is not given.

    Parameters
    ----------
    text : str
        `bytes=…,macs=…`, each a number with a unit, or a share of what the model has.
    whole : mapping of str to float
        The bytes and the operations of the model, of which `%` are shares.

    Raises
    ------
    InputError
        For an unknown resource or unit, one given twice, and a number that is none.

    Examples
    --------
    >>> parse_budget("bytes=12.5%,macs=2M", {"bytes": 427_790, "macs": 1_117_056})
    (53473.75, 2000000.0)
    >>> parse_budget("bytes=64 KiB", {"bytes": 427_790, "macs": 1_117_056})
    (65536.0, inf)
    """
    found: dict[str, float] = {}
    for one in text.split(","):
        name, is_given, value = (part.strip() for part in one.partition("="))
        if not is_given or not name:
            raise InputError(f"budget {one.strip()[:60]!r} is no resource with its limit; write bytes=64KiB,macs=5%")
        if name not in _UNITS:
            raise InputError(f"budget {name[:40]!r} is unknown{closest(name, _UNITS)}; write bytes=64KiB,macs=5%")
        if name in found:
            raise InputError(f"budget {name} is given twice; give it once")
        matched = _QUANTITY.fullmatch(value)
        if matched is None:
            raise InputError(f"budget {name}={value[:40]!r} is not a number with a unit; write {_EXAMPLES[name]}")
        number, unit = float(matched[1]), matched[2]
        if unit != "%" and unit not in _UNITS[name]:
            known = ", ".join(one for one in (*_UNITS[name], "%") if one)
            raise InputError(
                f"budget {name}={value[:40]}: unknown unit {unit[:20]!r}; units of {name} are {known}: write "
                f"{_EXAMPLES[name]}"
            )
        limit = number / 100 * whole[name] if unit == "%" else number * _UNITS[name][unit]
        if not math.isfinite(limit):
            raise InputError(f"budget {name}={value[:40]} is out of range; write {_EXAMPLES[name]}")
        found[name] = limit
    return found.get("bytes", math.inf), found.get("macs", math.inf)
