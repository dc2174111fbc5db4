"""Prompts from text with a tokenizer, and from archives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxfi.errors import DataError
from onnxfi.runtime.data.tokenizer import Tokenizer
from onnxfi.runtime.engine.ports import Port
from onnxfi.runtime.generation.prompts import open_prompts

PORT = Port("input_ids", "int64", ("N", "T"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    made = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["?", "a", "cat", "sat", "end"])}
    one = made.Tokenizer(made.models.WordLevel(words, unk_token="?"))
    one.pre_tokenizer = made.pre_tokenizers.Whitespace()
    one.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(str(tmp_path / "tokenizer.json"))


def test_a_line_is_a_prompt(tokenizer: Tokenizer, tmp_path: Path) -> None:
    Path(tmp_path, "prompts.txt").write_text("a cat sat\ncat dog\n\n")
    data = open_prompts(tmp_path / "prompts.txt", [PORT], tokenizer=tokenizer)
    (batch,) = data.batches(8)
    assert batch.feeds["input_ids"].tolist() == [[1, 2, 3], [2, 0, -1]]
    assert "prompts.txt" in data.description and tokenizer.text([1, 2, -1]) == "a cat" and tokenizer.size == 5
    assert open_prompts(tmp_path / "prompts.txt", [PORT], tokenizer=tokenizer, limit=1).samples == 1


def test_an_archive_holds_tokens(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", input_ids=np.array([[1, 2], [3, -1]]))
    assert open_prompts(tmp_path / "p.npz", [PORT]).samples == 2


def test_what_is_no_text_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("a cat\n")
    with pytest.raises(DataError, match=r"tokenizer=tokenizer\.json"):
        open_prompts(text, [PORT])
    text.write_text("a cat\n\nsat\n")
    with pytest.raises(DataError, match="no token of line 2"):
        open_prompts(text, [PORT], tokenizer=tokenizer)
    text.write_text("\n\n")
    with pytest.raises(DataError, match="0 prompts"):
        open_prompts(text, [PORT], tokenizer=tokenizer)
    text.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        open_prompts(text, [PORT], tokenizer=tokenizer)
    with pytest.raises(DataError, match="cannot read"):
        open_prompts(tmp_path / "none.txt", [PORT], tokenizer=tokenizer)
