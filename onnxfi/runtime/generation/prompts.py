"""Prompts: a text file with a tokenizer, one prompt a line, or tokens by the name `input_ids` in an archive.

An encoder that takes numbers, as those of speech, has them by their own name in an archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.errors import DataError
from onnxfi.file_fields import read_text
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.data.tokenizer import Tokenizer
from onnxfi.runtime.engine.ports import Port
from onnxfi.runtime.generation.decoder_stages import PROMPTS
from onnxfi.runtime.generation.greedy_loop import NO_TOKEN

_LARGEST_TEXT, _MOST_PROMPTS, _LONGEST_PROMPT = 1 << 26, 1 << 16, 1 << 16


def open_prompts(spec: Any, inputs: Sequence[Port], *, tokenizer: Tokenizer | None = None, **how: Any) -> Data:
    """Open prompts; what is no text file is opened as any other data.

    Parameters
    ----------
    spec : str, Path or what `open_data` takes
        A text file (``.txt``), one prompt a line, or an archive whose array `input_ids` [N, T] has -1 behind the last
        token of each prompt.
    inputs : sequence of Port
        The input of prompts.
    tokenizer : Tokenizer, optional
        The tokenizer that makes tokens of text.
    **how
        As `open_data`.

    Returns
    -------
    Data
        The prompts.

    Raises
    ------
    DataError
        If there is no text, or no tokenizer for it.
    """
    path = Path(spec) if isinstance(spec, str | Path) else None
    if path is None or path.suffix != ".txt" or path.is_dir():
        return open_data(spec, inputs, **how)
    if inputs and inputs[0].name != PROMPTS:
        raise DataError(
            f"{str(path)!r} is text, and the encoder takes numbers, {inputs[0]}; give an archive (.npz) with that array"
        )
    if tokenizer is None:
        raise DataError(
            f"{str(path)!r} is text; name the file that makes tokens of it: --task generation:tokenizer=tokenizer.json"
        )
    rows = [tokenizer.tokens(line) for line in _lines(path)]
    limit = how.get("limit")
    rows = rows if limit is None else rows[:limit]
    if empty := [number for number, row in enumerate(rows) if not row]:
        raise DataError(f"{str(path)!r}: the tokenizer makes no token of line {empty[0] + 1}; leave it out")
    longest = max(map(len, rows))
    if longest > _LONGEST_PROMPT:
        raise DataError(f"{str(path)!r}: a prompt has {longest:,} tokens; the most are {_LONGEST_PROMPT:,}")
    array = np.full((len(rows), longest), NO_TOKEN, np.int64)
    for number, row in enumerate(rows):
        array[number, : len(row)] = row
    found = open_data({PROMPTS: array}, inputs, **how)
    return replace(found, description=found.description.replace("the arrays given", repr(str(path))))


def _lines(path: Path) -> list[str]:
    lines = read_text(path, _LARGEST_TEXT, DataError).splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if not 1 <= len(lines) <= _MOST_PROMPTS:
        raise DataError(f"{str(path)!r} has {len(lines):,} prompts; give 1 to {_MOST_PROMPTS:,}, one a line")
    return lines
