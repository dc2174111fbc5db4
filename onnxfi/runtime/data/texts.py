"""Texts for a language model: a text file cut into windows of tokens, or multiple-choice items, one a line.

A YAML file says how, beside the data as `text.yaml` or named with ``--preprocess``:

```yaml
version: 1
tokenizer: tokenizer.json   # of Hugging Face; beside this file
window: 256                 # tokens of a sample; of items the most
stride: 128                 # from one window to the next; the window by default
```

A token is scored once: where windows overlap, in the first that holds it. What remains behind the last whole window is
left out. An item is a JSON object: `context`, a list of `choices` and `answer`, the number of the right one; each
choice is a sample, of whose tokens those of the choice are scored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError
from onnxfi.file_fields import read_text
from onnxfi.runtime.data.decoder_inputs import TOKENS
from onnxfi.runtime.data.in_memory import LABELS
from onnxfi.runtime.data.labels import NOT_SCORED
from onnxfi.runtime.data.tokenizer import Tokenizer
from onnxfi.runtime.engine.ports import Array, Port, element_type, one_line

#: The endings of files of texts and of items.
TEXT, ITEMS = (".txt", ".text", ".md"), ".jsonl"
_EXAMPLE = "version: 1, tokenizer: tokenizer.json, window: 256, stride: 128"
_LARGEST_FILE, _MOST_ITEMS, _LONGEST_WINDOW = 1 << 28, 1 << 20, 1 << 20


@dataclass(frozen=True)
class TextWindows:
    """Description of texts as samples: a tokenizer, the tokens of a sample, and the tokens from one to the next."""

    tokenizer: Path
    window: int
    stride: int

    @classmethod
    def read(cls, file: Path) -> TextWindows:
        """Read a YAML file; DataError names it and the key."""
        from onnxfi.runtime.data.untrusted_yaml import load_fields  # most data has no such file

        given = load_fields(file, "text preprocessing", ("version", "tokenizer", "window", "stride"), DataError)
        window = given.whole("window", 2, _LONGEST_WINDOW)
        name = given.text("tokenizer", "the name of a file beside it", "tokenizer.json")
        return cls(file.parent / name, window, given.whole("stride", 1, window, default=window))


def holds_texts(path: Path) -> bool:
    """Return true for a file that is read as texts, by the ending of its name."""
    return path.suffix.lower() in (*TEXT, ITEMS)


def read_texts(path: Path, ports: Sequence[Port], preprocess: Path | None, limit: int | None) -> dict[str, Array]:
    """Return the tokens of a file of texts or items as arrays, with their labels.

    Parameters
    ----------
    path : Path
        The file.
    ports : sequence of Port
        The inputs of the model.
    preprocess : Path, optional
        The YAML file; by default `text.yaml` beside the texts.
    limit : int, optional
        The number of samples that are read; the first of the file.

    Returns
    -------
    dict of str to array
        `input_ids` ([N,T]), `labels` ([N,T], -100 where a token is not scored), and of items `attention_mask` where the
        model takes one.

    Raises
    ------
    DataError
        If a file cannot be read, is too large, or holds no sample.
    """
    place = preprocess or path.parent / "text.yaml"
    if not place.is_file():
        raise DataError(f"no text preprocessing at {str(place)!r}: write one, or name it; an example: {_EXAMPLE}")
    how = TextWindows.read(place)
    encode = Tokenizer(str(how.tokenizer), plain=True).tokens
    port = next((port for port in ports if port.name == TOKENS), None)
    if port is None:
        listed = ", ".join(str(port) for port in ports)
        raise DataError(f"texts are fed to an input {TOKENS!r}, and the model takes {listed}; give tokens as an .npz")
    text = read_text(path, _LARGEST_FILE, DataError)
    if path.suffix.lower() == ITEMS:
        found = _of_items(text, path, how, encode, limit)
        masked = any(port.name == "attention_mask" for port in ports)
        arrays = found if masked else {k: v for k, v in found.items() if k != "attention_mask"}
    else:
        arrays = windows(np.asarray(encode(text), np.int64), how, limit, str(path))
    kinds = {port.name: element_type(port.dtype) for port in ports}
    return {name: array.astype(kinds.get(name, array.dtype)) for name, array in arrays.items()}


def windows(tokens: NDArray[np.int64], how: TextWindows, limit: int | None, what: str) -> dict[str, Array]:
    """Return the windows of tokens, and labels that score each token once.

    >>> found = windows(np.arange(6), TextWindows(Path("t.json"), 4, 2), None, "a.txt")
    >>> found["input_ids"].tolist(), found["labels"].tolist()
    ([[0, 1, 2, 3], [2, 3, 4, 5]], [[-100, 1, 2, 3], [-100, -100, 4, 5]])
    """
    if len(tokens) < how.window:
        raise DataError(
            f"{what!r} has {len(tokens):,} tokens, fewer than a window of {how.window:,}; set a smaller one"
        )
    starts = np.arange(0, len(tokens) - how.window + 1, how.stride)[:limit]
    ids = tokens[starts[:, None] + np.arange(how.window)]
    labels = ids.copy()
    labels[0, 0] = NOT_SCORED
    labels[1:, : max(1, how.window - how.stride)] = NOT_SCORED
    return {TOKENS: ids, LABELS: labels}


def _of_items(text: str, path: Path, how: TextWindows, encode: Any, limit: int | None) -> dict[str, Array]:
    """Return a row for each choice of each item, filled up behind its end, with labels of its scored tokens."""
    rows: list[tuple[list[int], int, int]] = []  # tokens, where the choice starts, and the label that says the item
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > _MOST_ITEMS:
        raise DataError(f"{str(path)!r} has {len(lines):,} items; give {_MOST_ITEMS:,} or fewer")
    for number, line in enumerate(lines):
        if limit is not None and len(rows) >= limit:
            break
        context, choices, answer = _item(line, f"line {number + 1} of {str(path)!r}")
        before = encode(context)
        for k, choice in enumerate(choices):
            tokens = [*before, *encode(choice)]
            if len(tokens) > how.window or len(tokens) == len(before) or not before:
                raise DataError(
                    f"line {number + 1} of {str(path)!r}: context and choice {k} have {len(before)} and "
                    f"{len(tokens) - len(before)} tokens; both have some, and together at most the window, {how.window}"
                )
            rows.append((tokens, len(before), 2 * number + (k == answer)))
    if not rows:
        raise DataError(f"{str(path)!r} has no items; each is a line with context, choices and answer")
    rows = rows[:limit]
    longest = max(len(tokens) for tokens, _, _ in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    mask, labels = np.zeros_like(ids), np.full_like(ids, NOT_SCORED)
    for row, (tokens, start, code) in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, start : len(tokens)] = tokens[start:]
        labels[row, 0] = code
    return {TOKENS: ids, "attention_mask": mask, LABELS: labels}


def _item(line: str, what: str) -> tuple[str, list[str], int]:
    """Return context, choices and the number of the right one of a line."""
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is no JSON: {one_line(error)}") from None
    wanted = 'an item is {"context": text, "choices": [texts], "answer": number}'
    if not isinstance(given, dict) or not isinstance(given.get("context"), str):
        raise DataError(f"{what} has no context; {wanted}")
    choices, answer = given.get("choices"), given.get("answer")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) for one in choices):
        raise DataError(f"{what} has no list of two or more choices; {wanted}")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise DataError(f"{what}: answer is {answer!r:.60}; it is the number of a choice, from 0")
    return given["context"], choices, answer
