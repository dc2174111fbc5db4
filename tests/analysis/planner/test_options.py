"""Budgets of a protection: units, shares, and what is no budget."""

from __future__ import annotations

import math

import pytest

from onnxfi.analysis.planner.options import parse_budget
from onnxfi.errors import InputError

WHOLE = {"bytes": 1000.0, "macs": 5e6}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes=10%,macs=1%", (100.0, 5e4)),
        ("macs=2M", (math.inf, 2e6)),
        ("bytes=0", (0.0, math.inf)),
        (" bytes = 1.5 KiB , macs = 1e3 ", (1536.0, 1000.0)),
    ],
)
def test_limits(text: str, found: tuple[float, float]) -> None:
    assert parse_budget(text, WHOLE) == pytest.approx(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no resource with its limit"),
        ("bytes", "is no resource with its limit; write bytes=64KiB"),
        ("byte=3", "budget 'byte' is unknown"),
        ("bytes=3 parsec", "unknown unit 'parsec'; units of bytes are B, kB"),
        ("macs=3KiB", "unknown unit 'KiB'; units of macs are k, M, G, %"),
        ("bytes=-3", "is not a number with a unit"),
        ("bytes=nan", "is not a number with a unit"),
        ("bytes=1,bytes=2", "budget bytes is given twice"),
        ("bytes=1e999", "is out of range"),
    ],
)
def test_what_is_no_budget(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        parse_budget(text, WHOLE)
