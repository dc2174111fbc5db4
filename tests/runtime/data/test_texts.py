"""Texts and items as samples of a language model: windows, labels, tokenizers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import DataError
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.data.texts import TextWindows, windows
from onnxfi.runtime.engine.ports import Port

IDS = Port("input_ids", "int64", ("batch", "sequence"))
MASK = Port("attention_mask", "int64", ("batch", "total"))
CACHE = Port("past_key_values.0.key", "float32", ("batch", 1, "past", 2))
PORTS = (IDS, MASK, CACHE)
ITEM = {"context": "ab", "choices": ["ca", "b"], "answer": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer of the characters a, b and c, and how texts are cut."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"?": 0, "a": 1, "b": 2, "c": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("[\\s\\S]"), "isolated")
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.yaml").write_text("version: 1\nwindow: 4\nstride: 3\n")
    return tmp_path


def test_a_text_becomes_windows(folder: Path) -> None:
    (folder / "a.txt").write_text("abcabcaz\nb")
    data = open_data(folder / "a.txt", PORTS)
    [batch] = data.batches(8)
    assert batch.feeds["input_ids"].tolist() == [[1, 2, 3, 1], [1, 2, 3, 1], [1, 0, 0, 2]]
    assert data.labels is not None
    assert data.labels.tolist() == [[-100, 2, 3, 1], [-100, 2, 3, 1], [-100, 0, 0, 2]]
    assert batch.feeds["past_key_values.0.key"].shape == (3, 1, 0, 2)
    assert open_data(str(folder / "a.txt"), PORTS, limit=2).samples == 2


@given(st.integers(2, 9), st.integers(1, 9), st.integers(2, 40))
def test_windows_score_each_token_once(window: int, stride: int, length: int) -> None:
    stride = min(stride, window)
    tokens = np.arange(length)
    how = TextWindows(Path(), window, stride)
    if length < window:
        with pytest.raises(DataError, match="fewer than a window"):
            windows(tokens, how, None, "a")
        return
    found = windows(tokens, how, None, "a")
    scored = found["labels"][found["labels"] != -100].tolist()
    last = (length - window) // stride * stride + window
    # Without overlap the first token of a window has none before it.
    missed = {0} if stride < window else set(range(0, last, window))
    assert scored == [token for token in range(last) if token not in missed]


def test_items_become_a_row_for_each_choice(folder: Path) -> None:
    (folder / "items.jsonl").write_text(f"{json.dumps(ITEM)}\n\n{json.dumps(ITEM | {'answer': 0})}\n")
    data = open_data(folder / "items.jsonl", PORTS)
    [batch] = data.batches(8)
    assert batch.feeds["input_ids"].tolist() == [[1, 2, 3, 1], [1, 2, 2, 0]] * 2
    assert batch.feeds["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]] * 2
    assert data.labels is not None
    assert data.labels.tolist() == [[0, -100, 3, 1], [1, -100, 2, -100], [3, -100, 3, 1], [2, -100, 2, -100]]
    assert open_data(folder / "items.jsonl", (IDS,)).inputs == ("input_ids",)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 1 of .* is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "has no context"),
        (json.dumps(ITEM | {"choices": ["a"]}), "no list of two or more choices"),
        (json.dumps(ITEM | {"choices": ["a", 1]}), "no list of two or more choices"),
        (json.dumps(ITEM | {"answer": 2}), "answer is 2; it is the number of a choice, from 0"),
        (json.dumps(ITEM | {"answer": True}), "answer is True"),
        (
            json.dumps(ITEM | {"context": "abcabc"}),
            "have 6 and 2 tokens; both have some, and together at most the window, 4",
        ),
        (json.dumps(ITEM | {"context": ""}), "have 0 and 2 tokens"),
        (json.dumps(ITEM | {"choices": ["", "a"]}), "choice 0 have 2 and 0 tokens"),
        ("", "has no items"),
    ],
)
def test_items_that_are_none_are_refused(line: str, why: str, folder: Path) -> None:
    (folder / "items.jsonl").write_text(line)
    with pytest.raises(DataError, match=why):
        open_data(folder / "items.jsonl", PORTS)


@pytest.mark.parametrize(
    ("yaml", "why"),
    [
        ("version: 2\nwindow: 4\n", "version 2; this onnxfi reads version 1"),
        ("version: 1\n", "window is missing"),
        ("version: 1\nwindow: 1\n", "window is 1; it takes a whole number from 2 to"),
        ("version: 1\nwindow: true\n", "window is True"),
        ("version: 1\nwindow: 4\nstride: 5\n", "stride is 5; it takes a whole number from 1 to 4"),
        ("version: 1\nwindow: 4\nstep: 5\n", "unknown field 'step'"),
        ("version: 1\nwindow: 4\ntokenizer: [a]\n", r"tokenizer is \['a'\]; it takes the name of a file"),
        ("version: 1\nwindow: 4\ntokenizer: no.json\n", "cannot read '.*no.json'"),
        ("version: 1\nwindow: 4\ntokenizer: text.yaml\n", "tokenizer '.*text.yaml' is no tokenizer.json"),
        ("- 1\n", "holds no fields; it takes version, tokenizer"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(yaml: str, why: str, folder: Path) -> None:
    (folder / "a.txt").write_text("abcabc")
    (folder / "text.yaml").write_text(yaml)
    with pytest.raises(DataError, match=why):
        open_data(folder / "a.txt", PORTS)


def test_texts_that_cannot_be_read_are_refused(folder: Path) -> None:
    def refused(name: str, held: bytes, why: str, ports: Any = PORTS) -> None:
        (folder / name).write_bytes(held)
        with pytest.raises(DataError, match=why):
            open_data(folder / name, ports)

    refused("a.txt", b"ab", "has 2 tokens, fewer than a window of 4; set a smaller one")
    refused("a.txt", b"\xff\xfe", "is no text in UTF-8")
    refused(
        "a.txt",
        b"abcabc",
        r"texts are fed to an input 'input_ids', and the model takes 'x'",
        (Port("x", "int64", ("N",)),),
    )
    (folder / "text.yaml").unlink()
    refused("a.txt", b"abcabc", "no text preprocessing at '.*text.yaml': write one, or name it; an example")
