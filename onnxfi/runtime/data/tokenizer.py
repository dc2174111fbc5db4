"""Tokenizers of Hugging Face, from their files ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from onnxfi.errors import DataError
from onnxfi.extensions import library
from onnxfi.file_fields import read_bytes
from onnxfi.runtime.engine.ports import one_line

_LARGEST_FILE = 1 << 28


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer; with `plain` it neither adds tokens of its own, nor cuts texts or fills them up.

    Raises
    ------
    InputError
        If the file cannot be read, or is no tokenizer, or `tokenizers` is not installed.
    """

    file: str
    plain: bool = False

    @cached_property
    def _found(self) -> Any:
        made = library("tokenizers", "tokenizers").Tokenizer
        held = read_bytes(self.file, _LARGEST_FILE, DataError, regular=True)
        try:
            found = made.from_buffer(held)
        except Exception as error:  # its errors are plain Exceptions
            raise DataError(f"tokenizer {self.file[:200]!r} is no tokenizer.json: {one_line(error)}") from None
        if self.plain:
            found.no_truncation()
            found.no_padding()
        return found

    def opened(self) -> Self:
        """Return it with its file read, so that what is wrong with that is said at once."""
        _ = self._found
        return self

    @property
    def size(self) -> int:
        """The number of tokens that it knows."""
        return int(self._found.get_vocab_size())

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        found = self._found
        try:
            return list(found.encode(text, add_special_tokens=not self.plain).ids)
        except Exception as error:
            raise DataError(f"tokenizer {self.file[:200]!r} does not take this text: {one_line(error)}") from None

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self._found.decode([token for token in tokens if token >= 0]))
