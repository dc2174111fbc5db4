"""Text forms of fault models, protections and memory codes: what is read, and what is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from onnxfi.errors import FaultError, InputError
from onnxfi.faults.text_form import parse_text_form, text_of


@dataclass(frozen=True)
class Clip:
    name: ClassVar[str] = "range:clip"
    high: float = 1.0
    count: int = 0
    strict: bool = False
    side: str = ""


KNOWN = {"range:clip": Clip}


def test_each_parameter_has_the_type_of_its_field() -> None:
    found = parse_text_form(" range:clip:high=1e-3, count=0x10,strict=yes,side=left", KNOWN, "thing")
    assert (
        found == Clip(1e-3, 16, True, "left") and parse_text_form(text_of("range:clip", found), KNOWN, "thing") == found
    )
    assert parse_text_form("range:clip", KNOWN, "thing") == Clip() and text_of("range:clip", Clip()) == "range:clip"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("range:clop:high=1", r"unknown thing 'range:clop:high=1'; closest: 'range:clip'"),
        ("range:clip:low=1", r"thing 'range:clip' takes high, count, strict, side as key=value; given 'low=1'"),
        ("range:clip:high=1,high=2", r"thing 'range:clip': high is given twice"),
        ("range:clip:high=x", r"high='x' is not a number"),
        ("range:clip:count=1.5", r"count='1.5' is not a whole number"),
        ("range:clip:strict=maybe", r"strict='maybe' is neither yes nor no"),
        ("range:clip:high=1e-400", r"thing 'range:clip': high: '1e-400' is so small that it would be taken as 0"),
        ("range:clip:", r"given ''"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(text: str, message: str) -> None:
    for error in (InputError, FaultError):
        with pytest.raises(error, match=message):
            parse_text_form(text, KNOWN, "thing", error)
