"""The tree of exceptions: the documented one, and what a message says about a name that is close to others."""

from __future__ import annotations

import re

import pytest

from onnxfi import errors
from onnxfi.errors import ConversionError, OnnxfiError, SpecError, closest

EVERY = {name: one for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, OnnxfiError)}


def drawn() -> dict[str, str]:
    """The parent of each class, as the picture in the module's docstring has it."""
    parents, above = {}, dict[int, str]()
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    (?P<lines>[│├└─ ]*)(?P<name>[A-Z]\w+)", line):
            depth = len(found["lines"])
            above[depth] = found["name"]
            if depth:
                parents[found["name"]] = above[max(other for other in above if other < depth)]
            above = {other: name for other, name in above.items() if other <= depth}
    return parents


def test_the_picture_is_the_tree() -> None:
    assert drawn() == {name: one.__bases__[0].__name__ for name, one in EVERY.items() if one is not OnnxfiError}


@pytest.mark.parametrize("name", EVERY)
def test_an_error_is_its_message(name: str) -> None:
    assert str(EVERY[name]("what is wrong; what to do")) == "what is wrong; what to do"


def test_some_errors_carry_more() -> None:
    assert (SpecError("wrong", "ber").field, SpecError("wrong").field) == ("ber", "")
    assert (ConversionError("wrong", "two\nlines").details, ConversionError("wrong").details) == ("two\nlines", "")


def test_the_closest_names_come_first_and_each_once() -> None:
    assert closest("conv", ["conv1", "convs", "conv1", "zzz", "cnv"], most=2) in (
        "; closest: 'convs', 'conv1'",
        "; closest: 'conv1', 'convs'",
    )
    assert closest("zzz", (f"name{k}" for k in range(8))).endswith("'name6', 'name7'")
    assert closest("zzz", [f"name{k}" for k in range(9)]).endswith("'name7', … (9 in all)"), "not a page of names"


def test_many_names_cost_no_more_than_some() -> None:
    """The closest of the first 5,000 is named, so that a message of a large model does not take minutes."""
    names = [f"layer{k}" for k in range(5000)]
    assert "conv" not in closest("conv1", [*names, "conv2"])
    assert closest("conv1", [*names[:-1], "conv2"]) == "; closest: 'conv2'"
