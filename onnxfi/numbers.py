"""Numbers as a program or a notebook gives them: of Python, numpy or a framework, and as text."""

from __future__ import annotations

import math
import operator
from decimal import Decimal
from typing import Any

from onnxfi.errors import InputError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_S = 1e9


def number(value: Any) -> float:
    """Return a number as Python's; ValueError for what is none, InputError for one that would be taken as 0.

    >>> import numpy as np
    >>> number("1e-6"), number(np.float32(0.5)), number(np.array(0.5))
    (1e-06, 0.5, 0.5)
    """
    if isinstance(value, bool | bytes):
        raise ValueError("a truth value or bytes")
    try:
        found = float(value)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None
    if found == 0 and isinstance(value, str | Decimal) and vanishes(str(value)):
        raise InputError(f"{str(value)[:60]!r} is so small that it would be taken as 0; give 0, or 1e-300 or more")
    return found


def vanishes(text: str) -> bool:
    """Return True for the text of a number that is 0 as Python's and is not 0.

    >>> vanishes("1e-400"), vanishes("0e-400"), vanishes("1e-300")
    (True, False, False)
    """
    mantissa = text.lower().partition("e")[0]
    return float(text) == 0 and any(digit in mantissa for digit in "123456789")


def whole_number(value: Any) -> int:
    """Return a whole number as Python's; ValueError for what is none, as 2.5.

    >>> import numpy as np
    >>> whole_number("20"), whole_number(2.0), whole_number(np.array(3))
    (20, 2, 3)
    """
    if isinstance(value, bool | bytes):
        raise ValueError("a truth value or bytes")
    if isinstance(value, str):
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        if number(value).is_integer():
            return int(value)
    raise ValueError("not whole")


def named_whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return a whole number that a caller gave; InputError for what is none, or lies beyond these ends.

    >>> named_whole("flips", "2", 1, 1000)
    2
    """
    try:
        found = whole_number(value)
    except ValueError:
        raise InputError(f"{name} must be a whole number; given {str(value)[:60]!r}") from None
    _check_ends(name, found, "a whole number", least, most)
    return found


def _check_ends(name: str, found: float, what: str, least: float | None, most: float | None) -> None:
    if (least is not None and not least <= found < math.inf) or (most is not None and not found <= most):
        ends = " to ".join(f"{end:,}" for end in (least, most) if end is not None)
        raise InputError(f"{name} {found} is out of range; give {what} from {ends}")


def optional_whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int | None:
    """Return a whole number that a caller may give, within these ends."""
    return None if value is None else named_whole(name, value, least, most)


def named_number(name: str, value: Any, least: float | None = None, most: float | None = None) -> float:
    """Return a number that a caller gave; InputError for what is none, or lies beyond these ends.

    >>> named_number("confidence", "0.95")
    0.95
    """
    try:
        found = number(value)
    except ValueError:
        raise InputError(f"{name} must be a number; given {str(value)[:60]!r}") from None
    _check_ends(name, found, "a number", least, most)
    return found


def seconds(value: Any) -> float:
    """Return a duration in seconds, also of a text with a unit; InputError for what is none above 0.

    >>> seconds(90), seconds("90s"), seconds("10m"), seconds("2h")
    (90.0, 90.0, 600.0, 7200.0)
    """
    text = value.strip().lower() if isinstance(value, str) else ""
    amount, unit = (text[:-1], text[-1]) if text[-1:] in _SECONDS else (value, "s")
    try:
        found = number(amount) * _SECONDS[unit]
    except ValueError:
        found = math.nan
    if not 0 < found <= _LONGEST_S:
        raise InputError(f"{str(value)[:60]!r} is no duration above 0; write seconds, or 90s, 10m, 2h")
    return found
