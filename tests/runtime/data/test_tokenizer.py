"""Tokenizers of Hugging Face: what is none is refused, and a plain one adds nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxfi.errors import InputError
from onnxfi.runtime.data.tokenizer import Tokenizer


def test_a_plain_tokenizer_neither_cuts_nor_fills_up(tmp_path: Path) -> None:
    made = pytest.importorskip("tokenizers")
    one = made.Tokenizer(made.models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    one.pre_tokenizer = made.pre_tokenizers.Whitespace()
    one.post_processor = made.processors.TemplateProcessing(single="? $A", special_tokens=[("?", 0)])
    one.enable_truncation(3)
    one.save(file := str(tmp_path / "tokenizer.json"))
    assert Tokenizer(file).tokens("a b a b") == [0, 1, 2]
    assert Tokenizer(file, plain=True).tokens("a b a b") == [1, 2, 1, 2]
    assert Tokenizer(file).opened().size == 3 and Tokenizer(file).text([1, -1, 2]) == "a b"


@pytest.mark.parametrize("held", ["{}", "[", json.dumps({"model": {}})])
def test_what_is_no_tokenizer_is_refused(held: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    file = tmp_path / "tokenizer.json"
    file.write_text(held)
    with pytest.raises(InputError, match=r"is no tokenizer\.json"):
        Tokenizer(str(file)).tokens("a")
    with pytest.raises(InputError, match="cannot read"):
        Tokenizer(str(tmp_path / "none.json")).tokens("a")
