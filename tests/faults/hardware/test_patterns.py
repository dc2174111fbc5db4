"""Fault patterns: affected elements against their definition, element by element, and files that are refused."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import FaultError
from onnxfi.faults.hardware.patterns import AxisRule, Pattern
from onnxfi.faults.registry import parse_fault

RULES = st.one_of(
    st.sampled_from([AxisRule("same"), AxisRule("all")]),
    st.builds(lambda kind, k: AxisRule(kind, (k,)), st.sampled_from(["every", "block"]), st.integers(1, 5)),
    st.lists(st.integers(-3, 3), min_size=1, max_size=3, unique=True).map(
        lambda k: AxisRule("offsets", tuple(sorted(k)))
    ),
)


def affected(rule: AxisRule, at: int, other: int) -> bool:
    """Definition of a rule, for one coordinate."""
    match rule.kind:
        case "same":
            return other == at
        case "every":
            return (other - at) % rule.values[0] == 0
        case "block":
            return other // rule.values[0] == at // rule.values[0]
        case "offsets":
            return other - at in rule.values
    return True


def pattern(folder: Path, **row: Any) -> Pattern:
    file = folder / "pattern.json"
    file.write_text(json.dumps({"version": 1} | row))
    return Pattern(str(file))


@given(RULES, st.integers(1, 12), st.data())
def test_coordinates_are_those_of_the_definition(rule: AxisRule, length: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, length - 1))
    assert rule.coordinates(at, length).tolist() == [i for i in range(length) if affected(rule, at, i)]


@pytest.mark.parametrize(
    ("row", "around"),
    [
        ({"shape": "row"}, lambda site, at: site[:2] == at[:2]),
        ({"shape": "column"}, lambda site, at: site[::2] == at[::2]),
        ({"shape": "channel"}, lambda site, at: site[0] == at[0]),
        ({"shape": "channel", "axis": 1}, lambda site, at: site[1] == at[1]),
        ({"shape": "block", "size": [2, 3]}, lambda site, at: (site[0], site[1] // 2, site[2] // 3) == (at[0], at[1] // 2, at[2] // 3)),
        ({"axes": {"-1": {"offsets": [0, 1]}}, "rest": "all"}, lambda site, at: site[2] - at[2] in (0, 1)),
    ],
    ids=["row", "column", "channel", "channel 1", "block", "axes"],
)  # fmt: skip
def test_elements_lie_around_the_site(row: dict[str, Any], around: Any, tmp_path: Path) -> None:
    model, shape = pattern(tmp_path, **row), (2, 3, 4)
    sites = list(product(*map(range, shape)))
    for at in sites:
        found = model.elements(shape, int(np.ravel_multi_index(at, shape)))
        assert found.tolist() == [k for k, site in enumerate(sites) if around(site, at)]
    assert model.elements((), 0).tolist() == [0]


def test_a_tensor_without_the_named_axes_has_no_site(tmp_path: Path) -> None:
    column = pattern(tmp_path, shape="column")
    assert [column.applies_to(shape) for shape in ((), (4,), (4, 5))] == [False, False, True]


def test_a_pattern_is_bound_to_the_content_of_its_file(tmp_path: Path) -> None:
    model = pattern(tmp_path, shape="row", fault="burst:k=2")
    assert (model.unit, model.width(), str(model.element_model)) == ("bit", 2, "burst:k=2")
    assert parse_fault(str(model)) == model
    assert pattern(tmp_path, shape="row", fault="zero").unit == "word"
    with pytest.raises(FaultError, match="it was changed"):
        parse_fault(str(model))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON"),
        ("[1]", "holds no fields"),
        ('{"version": 2, "shape": "row"}', "version 2; this onnxfi reads version 1"),
        ('{"version": 1, "sizes": 4}', "unknown field 'sizes'; closest: 'size'"),
        ('{"version": 1}', "give either shape .* or axes"),
        ('{"version": 1, "shape": "row", "axes": {}}', "give either shape .* or axes"),
        ('{"version": 1, "shape": "columns"}', "unknown shape 'columns'; closest: 'column'"),
        ('{"version": 1, "shape": "block"}', "size is missing"),
        ('{"version": 1, "axes": {}}', "axes is {}; it takes names with a value each"),
        ('{"version": 1, "axes": {"x": "all"}}', "axis 'x' is not a whole number"),
        ('{"version": 1, "axes": {"0": {"every": 0}}}', "every is 0; it takes a whole number from 1"),
        ('{"version": 1, "axes": {"0": "some"}}', "0 is 'some'; it takes 'same'"),
        ('{"version": 1, "axes": {"0": {"offsets": [0.5]}}}', r"offsets is \[0.5\]; it takes a list of"),
        ('{"version": 1, "shape": "row", "fault": "pattern:file=x"}', "not another pattern"),
        (" " * (1 << 20) + "{}", "has more than 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_files_that_describe_no_pattern_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(FaultError, match=message):
        Pattern(str(tmp_path / "p.json"))


def test_a_pattern_needs_a_file_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(FaultError, match=r"pattern takes file=PATTERN\.json"):
        Pattern()
    with pytest.raises(FaultError, match="cannot read"):
        Pattern(str(tmp_path / "absent.json"))
