"""Descriptions: files up to their limit, and fields that hold what they take, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxfi.errors import DataError, FaultError
from onnxfi.file_fields import Fields, parse_json, read_bytes, read_text


def fields(value: Any) -> Fields:
    return Fields.of({"x": value}, ("x",), "map 'm'", FaultError)


@pytest.mark.parametrize("value", [True, "1", None, 1.5, [1], -1, 9, float("nan")])
def test_whole_numbers_are_whole_and_within_their_ends(value: Any) -> None:
    with pytest.raises(FaultError, match=r"map 'm': x is .*; it takes a whole number from 0 to 8"):
        fields(value).whole("x", 0, 8)
    assert fields(8).whole("x", 0, 8) == 8 and fields(8).whole("y", 0, 8, default=3) == 3
    with pytest.raises(FaultError, match=r"it takes a list of 2 whole numbers from 0 to 8"):
        fields([1, value]).wholes("x", 0, 8, range(2, 3))
    assert fields([1, 2]).wholes("x", 0, 8, range(1, 3)) == (1, 2)


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf"), -0.1])
def test_numbers_are_finite_and_within_their_ends(value: Any) -> None:
    with pytest.raises(FaultError, match="it takes a number from 0 to 1"):
        fields(value).number("x", 0, 1)
    with pytest.raises(FaultError, match="two numbers from 0 to 1"):
        fields([0, value]).ends("x", 0, 1)
    assert fields(1).number("x", 0, 1) == 1.0 and fields([0, 0.5]).ends("x", 0, 1) == (0.0, 0.5)
    with pytest.raises(FaultError, match="two numbers"):
        fields([0.5, 0]).ends("x", 0, 1)


def test_texts_are_texts() -> None:
    for value in (5, "", [], ["a", ""], None):
        with pytest.raises(FaultError, match=r"x is .*; it takes names"):
            fields(value).texts("x", "names", alone=True)
    with pytest.raises(FaultError, match="it takes names"):
        fields("a").texts("x", "names")
    assert fields("a").texts("x", "names", alone=True) == fields(["a"]).texts("x", "names") == ("a",)
    assert fields("a").text("x", "a name") == "a" and fields("a").text("y", "a name", default=None) is None
    with pytest.raises(FaultError, match="x is 5; it takes a name"):
        fields(5).text("x", "a name")
    with pytest.raises(FaultError, match="x is 1; it takes true or false"):
        fields(1).flag("x")


def test_an_unknown_text_or_field_says_which_come_close() -> None:
    with pytest.raises(FaultError, match="unknown x 'rows'; closest: 'row'"):
        fields("rows").one_of("x", ("row", "column"))
    with pytest.raises(FaultError, match=r"unknown x '\[1\]'"):
        fields([1]).one_of("x", {"row": 1})
    with pytest.raises(FaultError, match="map 'm': unknown field 'yy'; closest: 'y'"):
        Fields.of({"yy": 1}, ("y",), "map 'm'", FaultError)
    with pytest.raises(FaultError, match="map 'm': x is missing"):
        Fields.of({}, ("x",), "map 'm'", FaultError).whole("x", 0, 1)


@pytest.mark.parametrize("version", [True, "1", 2, 1.0, None])
def test_another_version_is_refused(version: Any) -> None:
    with pytest.raises(DataError, match=r"m: version .*; this onnxfi reads version 1"):
        Fields.of({"version": version}, ("version",), "m", DataError, version=1)
    with pytest.raises(DataError, match="m: version is missing; add version: 1"):
        Fields.of({}, ("version",), "m", DataError, version=1)
    with pytest.raises(DataError, match="m holds no fields; it takes version"):
        Fields.of([], ("version",), "m", DataError, version=1)


def test_parts_say_where_they_are() -> None:
    parts = fields([{"p": 1}, {"p": 2}])
    with pytest.raises(FaultError, match=r"map 'm': x\[1\]: p is 2"):
        parts.each("x", ("p",), 2)[1].number("p", 0, 1)
    with pytest.raises(FaultError, match=r"map 'm': row 2: p is 2"):
        parts.each("x", ("p",), 2, "row")[1].number("p", 0, 1)
    value: Any
    for value in ([], {}, [{}] * 3):
        with pytest.raises(FaultError, match="it takes a list of 1 to 2, each with p"):
            fields(value).each("x", ("p",), 2)
    with pytest.raises(FaultError, match=r"map 'm': x\[0\] holds no fields; it takes p"):
        fields([1]).each("x", ("p",), 2)
    with pytest.raises(FaultError, match="map 'm': x: unknown field 'q'"):
        fields({"q": 1}).inner("x", ("p",))
    with pytest.raises(FaultError, match=r"x is {}; it takes names with a value each"):
        fields({}).inner("x")


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_bytes(b'\xef\xbb\xbf{"version": 1}')
    assert parse_json(read_text(file, 20).encode(), "m") == {"version": 1}
    with pytest.raises(FaultError, match="has more than 10 bytes"):
        read_bytes(file, 10, FaultError)
    for name in ("\0", tmp_path, tmp_path / "none"):
        with pytest.raises(FaultError, match="cannot read "):
            read_bytes(name, 10, FaultError)
    file.write_bytes(b"\xff")
    with pytest.raises(FaultError, match="is no text in UTF-8"):
        read_text(file, 10, FaultError)
    for text, why in ((b"{", "m is not JSON"), (b"NaN", "m is not JSON"), (b"1e-400", "taken as 0")):
        with pytest.raises(FaultError, match=why):
            parse_json(text, "m", FaultError)
