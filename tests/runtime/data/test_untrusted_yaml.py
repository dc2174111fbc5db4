"""Untrusted YAML: files beyond the limits, or with other than plain values, give one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from onnxfi.errors import DataError, InputError
from onnxfi.runtime.data.untrusted_yaml import compose_yaml, load_yaml, parse_yaml, scalar


def grown(levels: int) -> str:
    """Lists of nine aliases, each for the list before it: 9 ** levels values."""
    return (
        "[&a0 [x,x,x,x,x,x,x,x,x],"
        + ",".join(f"&a{k} [{','.join([f'*a{k - 1}'] * 9)}]" for k in range(1, levels))
        + "]"
    )


def refused(text: str) -> str:
    with pytest.raises(DataError) as caught:
        parse_yaml(text.encode(), "p.yaml", "page", DataError)
    line = str(caught.value)
    assert line.startswith("'p.yaml' is not a readable YAML file: ") and "\n" not in line and len(line) < 300, line
    return line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 1", {"a": 1}),
        ("a: 1e-3", {"a": 0.001}),
        ("a: '1e-3'", {"a": "1e-3"}),
        ("a: -.5E+2", {"a": -50.0}),
        ("a: 2001-13-45", {"a": "2001-13-45"}),
        ("a: 2001-01-02 03:04:05", {"a": "2001-01-02 03:04:05"}),
        ("a: =", {"a": "="}),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("a: &x [1, 2]\nb: [*x, *x]", {"a": [1, 2], "b": [[1, 2], [1, 2]]}),
        ("a: ~\nb: yes\nc: .inf", {"a": None, "b": True, "c": math.inf}),
        ("1: a\nx: b", {1: "a", "x": "b"}),
        ("!!str 5", "5"),
    ],
)
def test_plain_values_are_read_as_they_stand(text: str, value: Any) -> None:
    assert parse_yaml(text.encode(), "p.yaml", "page") == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"a: {grown(10)}", "line 1: a page holds at most 20,000 values, aliases written out"),
        ("a: [" + "1," * 20_001 + "]", "at most 20,000 values"),
        ("a: " + "[" * 51 + "]" * 51, "and 50 lists in each other"),
        ("a: " + "[" * 100_000, "and 50 lists in each other"),
        ("a: " + "{b: " * 100_000, "and 50 lists in each other"),
        ("a:\n" + "\n".join(" " * k + "- " for k in range(1, 300)), "lists in each other"),
        ("a: &x [*x]", "line 1: *x stands within itself"),
        ("a: &x {b: [1, *x]}", "*x stands within itself"),
        ("a: *x", "found undefined alias"),
        ("a: &x 1\nb: &x 2", "found duplicate anchor"),
        ("a: 0x" + "f" * 5000, "line 1: a number of 5,002 characters; at most 100 are read"),
        ("a: " + "9" * 5000, "a number of 5,000 characters"),
        ("a: 1" + ":59" * 3000, "a number of 9,001 characters"),
        ("a: 1." + "0" * 5000, "a number of 5,002 characters"),
        ("a: !!int x", "line 1: 'x' is not a value of YAML"),
        ("a: !!int ''", "'' is not a value of YAML"),
        ("a: !!bool maybe", "'maybe' is not a value of YAML"),
        ("a: !!binary aGk=", "the tag 'tag:yaml.org,2002:binary' is not allowed; give a plain value"),
        ("a: !!python/object/apply:os.system [ls]", "the tag 'tag:yaml.org,2002:python/object/apply:os.system' is"),
        ("a: !!set {b, c}", "the tag 'tag:yaml.org,2002:set' is not allowed; leave it out"),
        ("a: !!str [b]", "the tag 'tag:yaml.org,2002:str' is not allowed; leave it out"),
        ("\na: 1\na: 2", "line 3: 'a' is given twice"),
        ("[1]: 2", "line 1: a key is not a plain value"),
        ("a: 1\n--- b", "expected a single document"),
        ("a: '\\0' \0", "special characters are not allowed"),
        ("- 1\na: 2", "while parsing"),
        ("a: 1e-400", "'1e-400' is so small that it would be taken as 0"),
        ("a: -1.0e-400", "'-1.0e-400' is so small that it would be taken as 0"),
    ],
    ids=range(28),
)
def test_what_grows_or_is_no_plain_value_is_one_line_at_once(text: str, says: str) -> None:
    assert says in refused(text)


def test_bytes_that_are_no_text_are_one_line() -> None:
    with pytest.raises(InputError, match="is not a readable YAML file: 'utf-8' codec"):
        compose_yaml(b"a: \xff\xfe", "p.yaml", "page")


def test_a_large_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(DataError, match="has more than 1,048,576 bytes"):
        load_yaml(file, "page", DataError)
    with pytest.raises(InputError, match=r"cannot read '.*none': No such file"):
        load_yaml(tmp_path / "none", "page")


def test_a_scalar_is_read_from_a_node_alone() -> None:
    [(key, value)] = compose_yaml(b"seed: 0b101", "p.yaml", "page").value  # type: ignore[union-attr]
    assert (scalar(key), scalar(value)) == ("seed", 5)
    with pytest.raises(ValueError, match="a list or mapping where a plain value is expected"):
        scalar(yaml.compose("[1]"))


@pytest.mark.parametrize("text", ["1:30", "010", "-0_17", "1:30.5"])
def test_a_number_that_other_readers_read_otherwise_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"'{text}' is read as one number or another"):
        parse_yaml(f"trials: {text}".encode(), "c.yaml", "campaign")
    assert parse_yaml(f"name: '{text}'".encode(), "c.yaml", "campaign") == {"name": text}
    assert parse_yaml(b"[0, 0.5, 00x, 0x10, 1_000]", "c.yaml", "campaign") == [0, 0.5, "00x", 16, 1000]
