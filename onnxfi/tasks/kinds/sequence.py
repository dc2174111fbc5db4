"""Sequences: a text for each sample, from a recogniser of characters, a speech model or a decoder of tokens.

The output is one of these; the highest score counts, the first in a tie:

- CTC scores [N,T,classes] and a ``charset``: a file with a character (or any text) a line, of classes in order without
  the ``blank``. Of equal classes one after another one is kept, then blanks are left out. A class more than characters
  and blank, behind them, is the space, as PaddleOCR's recognisers have it;
- scores of tokens [N,T,tokens], or tokens as integers [N,T], and a ``tokenizer``: a file of Hugging Face
  (``tokenizer.json``), or a vocabulary (``.txt``, a token a line; ``▁`` is a space, ``##`` continues a word). The text
  ends before token ``end``;
- texts themselves.

A sample is wrong where its text changed, without a new NaN or infinity.

With labels y, where L is the Levenshtein distance: the exact match is the share of samples with text = y, the character
error rate Σ L(text, y) / Σ |y| over all samples, the word error rate the same of words (without spaces). Both are 0
where all is right, and may exceed 1. ``text_distance`` is the character error rate towards the golden texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, InputError
from onnxfi.extensions import library
from onnxfi.file_fields import read_text
from onnxfi.numbers import named_whole, optional_whole
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.labels import Labels, as_kind
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.data.tokenizer import Tokenizer
from onnxfi.runtime.engine.ports import Array, Port, shape_text
from onnxfi.tasks.answers import AnswerPair, Answers, Flags, share
from onnxfi.tasks.class_scores import only_output
from onnxfi.tasks.task import Metric, ModelOutputs, Task

_LARGEST_FILE, _MOST_LINES = 1 << 26, 1 << 20
_KINDS = "scores [N,T,classes], tokens [N,T] or texts [N]"


@dataclass(frozen=True)
class Charset:
    """The characters of CTC classes, and the class that is blank (-1: the last)."""

    characters: tuple[str, ...]
    blank: int = 0

    def texts(self, scores: Array) -> list[str]:
        """Return the text of each sample ([n,T,classes]).

        >>> Charset(("a", "b")).texts(np.eye(3)[[[1, 1, 0, 1, 2, 2]]])
        ['aab']
        """
        classes = scores.shape[2]
        blank = self.blank % classes
        names = [*self.characters, *([" "] if len(self.characters) + 2 == classes else [])]
        names.insert(blank, "")
        best = scores.argmax(axis=2)
        new = np.ones(best.shape, np.bool_)
        new[:, 1:] = best[:, 1:] != best[:, :-1]
        return ["".join(names[k] for k in row[kept].tolist()) for row, kept in zip(best, new, strict=True)]

    def misfit(self, array: Array) -> str:
        """Return why an output cannot be of these characters; empty if it can."""
        if array.ndim != 3 or array.dtype.kind in "OUSTiub":
            return f"the output has shape {shape_text(array.shape)}, and CTC scores have [N,T,classes]"
        classes, known = array.shape[2], len(self.characters)
        if classes - known not in (1, 2):
            return f"the output scores {classes:,} classes, and the charset has {known:,} characters beside the blank"
        return "" if -classes <= self.blank < classes else f"blank is class {self.blank} of {classes}"


@dataclass(frozen=True)
class Tokens:
    """A rule that makes text of tokens, and the token that ends a text (none: all count)."""

    join: Callable[[Sequence[int]], str]
    end: int | None = None

    def texts(self, array: Array) -> list[str]:
        """Return the text of each sample, of scores [n,T,tokens] or tokens [n,T]."""
        tokens: Any = np.argmax(array, axis=2) if array.ndim == 3 else array
        return [self.join(self._until_end(row)) for row in tokens]

    def _until_end(self, row: NDArray[Any]) -> list[int]:
        ends = np.flatnonzero(row == self.end).tolist() if self.end is not None else []
        return [int(token) for token in (row[: ends[0]] if ends else row)]

    def misfit(self, array: Array) -> str:
        """Return why an output cannot be tokens; empty if it can."""
        whole = array.dtype.kind in "iu"
        if array.dtype.kind in "OUSTb" or array.ndim != (2 if whole else 3):
            given = f"{array.dtype.name} {shape_text(array.shape)}"
            return f"the output is {given}; tokens are integers [N,T] or scores [N,T,tokens]"
        return ""


def _texts_of(outputs: Outputs, how: Charset | Tokens | None) -> list[str]:
    """Return the text of each sample."""
    (array,) = outputs.arrays.values()
    if array.dtype.kind in "OUST":
        return [str(one) for one in array.reshape(-1)]
    assert how is not None
    return how.texts(array)


def joined_words(vocabulary: Sequence[str], tokens: Sequence[int]) -> str:
    """Return the text of tokens of a vocabulary; tokens in brackets, as [CLS], are none of it.

    >>> joined_words(["[CLS]", "▁he", "llo", "▁you"], [0, 1, 2, 3]), joined_words(["un", "##do", "it"], [0, 1, 2])
    ('hello you', 'undo it')
    """
    found = [vocabulary[k] for k in tokens if 0 <= k < len(vocabulary)]
    found = [one for one in found if not (one[:1] + one[-1:] in ("[]", "<>") and len(one) > 2)]
    if any("▁" in one for one in vocabulary):
        return "".join(found).replace("▁", " ").strip()
    return "".join(one.removeprefix("##") if one.startswith("##") else f" {one}" for one in found).strip()


def distance(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the Levenshtein distance of two texts, or of two lists of words.

    >>> distance("kitten", "sitting"), distance(["a", "b"], ["b"])
    (3, 1)
    """
    found: int = library("rapidfuzz.distance", "metrics").Levenshtein.distance(one, other)
    return found


@dataclass(frozen=True)
class ErrorRate:
    """A rate of errors: the distance of texts, or of their words, from the labels, as a share of their length."""

    words: bool = False

    def parts(self, text: str) -> Sequence[str]:
        """Return the characters of a text, or its words."""
        return text.split() if self.words else text

    def lengths(self, labels: Labels) -> int:
        """Return the number of characters, or words, of all labels."""
        return sum(len(self.parts(text)) for text in as_kind("texts", labels))

    def defined(self, labels: Labels) -> bool:
        """Return true if the labels have any."""
        return self.lengths(labels) > 0

    def golden(self, golden: Answers) -> NDArray[np.int64]:
        """Return the distance of each golden text ([N])."""
        return self._distances(golden.labels, golden.values, range(len(golden.values)))

    def _distances(
        self, labels: Labels | None, texts: Sequence[str] | Array, which: Sequence[int]
    ) -> NDArray[np.int64]:
        if labels is None:
            raise DataError("this metric needs texts as labels; the data has none")
        pairs = ((self.parts(texts[k]), self.parts(labels[k])) for k in which)
        return np.array([distance(*pair) for pair in pairs], np.int64)

    def measure(self, pair: AnswerPair) -> float:
        """Rate of errors: Σ L(text, label) / Σ |label|."""
        found, which = pair.golden.once(self.golden).copy(), np.flatnonzero(pair.once(changed)).tolist()
        found[which] = self._distances(pair.labels, pair.values, which)
        assert pair.labels is not None
        whole = self.lengths(pair.labels)
        return float(found.sum() / whole) if whole else (math.inf if found.any() else 0.0)


def changed(pair: AnswerPair) -> Flags:
    """Return the samples whose text is another than in the golden run ([N])."""
    found = np.zeros(len(pair.golden.values), np.bool_)
    which = np.flatnonzero(pair.differ).tolist()
    found[which] = [pair.golden.values[k] != pair.values[k] for k in which]
    return found


def text_changed(pair: AnswerPair) -> float:
    """Share of samples whose text is another than in the golden run."""
    return share(pair.once(changed))


def text_distance(pair: AnswerPair) -> float:
    """Distance from the golden texts: Σ L(faulty, golden) / Σ |golden|; 0 if no text changed."""
    which = np.flatnonzero(pair.once(changed)).tolist()
    away = sum(distance(pair.values[k], pair.golden.values[k]) for k in which)
    whole = sum(map(len, pair.golden.values))
    return away / whole if whole else (math.inf if away else 0.0)


def exact(pair: AnswerPair) -> float:
    """Share of samples whose text is their label."""
    if pair.labels is None:
        raise DataError("exact match needs texts as labels; the data has none")
    return share(np.array([one == label for one, label in zip(pair.values, pair.labels, strict=True)], np.bool_))


_CER, _WER = ErrorRate(), ErrorRate(words=True)


def _rate(name: str, function: Callable[[AnswerPair], float], label: str, **more: Any) -> Metric:
    return Metric(
        name, function, label=label, axis=f"{label} (%)", per="set", bounds=(0.0, math.inf), failed=1.0, **more
    )


def sequence(charset: str = "", tokenizer: str = "", blank: int = 0, end: int | None = None) -> Task:
    """Return the task of texts.

    Parameters
    ----------
    charset : str
        The file of the characters of CTC classes, one a line.
    tokenizer : str
        The file that makes text of tokens: ``tokenizer.json``, or a vocabulary with a token a line.
    blank : int
        The class of CTC that is no character; -1 is the last.
    end : int, optional
        The token that ends a text.

    Raises
    ------
    InputError
        If a file cannot be read, or both are given.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "letters.txt").write_text("a\\nb\\n")
    ...     task = sequence(charset=str(Path(folder, "letters.txt")))
    >>> [metric.name for metric in task.metrics[7:]]
    ['exact', 'cer', 'wer', 'text_changed', 'text_distance']
    """
    if charset and tokenizer:
        raise InputError("give charset or tokenizer, not both")
    blank, end = named_whole("blank", blank), optional_whole("end", end)
    how: Charset | Tokens | None = None
    if charset:
        how = Charset(tuple(_lines(charset, "charset")), blank)
    elif tokenizer:
        how = Tokens(_joining(tokenizer), end)
    return Task(
        "sequence",
        (
            Metric.of_labels("exact", exact, "exact match", axis="Exact match (%)"),
            _rate("cer", _CER.measure, "CER", needs_labels=True, golden=True, unchanged=None, defined=_CER.defined),
            _rate("wer", _WER.measure, "WER", needs_labels=True, golden=True, unchanged=None, defined=_WER.defined),
            Metric("text_changed", text_changed, label="text changed", axis="Text changed (%)"),
            _rate("text_distance", text_distance, "distance from golden texts"),
        ),
        columns=(("exact", "text_changed"), ("cer", "text_distance"), ("sdc_samples",), ("sdc",), ("due",)),
        page_columns=("exact", "cer", "wer", "text_changed", "sdc_samples", "sdc", "due", "masked"),
        curves=("exact", "text_changed", "sdc"),
        orders=(("sdc_samples", "text_changed"),),
        absent="the output is not read as text; name the task with --task sequence:charset=FILE or tokenizer=FILE",
        labels="texts",
        takes_tolerance=False,
        masked=lambda pair: ~pair.once(changed),
        decode=partial(_texts_of, how=how),
        reads=partial(_text_output, how=how),
        misfit=partial(_misfit, how=how),
    )  # fmt: skip


def _text_output(declared: ModelOutputs, *, how: Charset | Tokens | None) -> tuple[str, ...]:
    """Return the output that holds texts, or what a charset or tokenizer makes texts of."""
    if how is None and declared.asked is None and not any(_fits(port, how=how) for port in declared.ports):
        listed = "; ".join(map(str, declared.ports)) or "none"
        raise DataError(
            f"no output holds text, of {listed}; scores [N,T,classes] take --task sequence:charset=FILE, and tokens "
            f"[N,T] tokenizer=FILE"
        )
    return only_output(declared, partial(_fits, how=how), _KINDS)


def _fits(port: Port, *, how: Charset | Tokens | None) -> bool:
    """Return true for an output as it is declared that may hold texts."""
    if port.dtype == "string":
        return how is None
    rank = None if port.shape is None else len(port.shape)
    if "float" in port.dtype:
        return how is not None and rank in (None, 3)
    return isinstance(how, Tokens) and port.dtype in ("int64", "int32") and rank in (None, 2)


def _misfit(run: Sequence[Outputs], data: Data, kind: str, *, how: Charset | Tokens | None) -> str:
    """Return why golden outputs or labels are no texts; empty if they are."""
    for outputs in run:
        if len(outputs.arrays) != 1:
            return f"{len(outputs.arrays)} outputs count; name the one of the texts with --output"
        (array,) = outputs.arrays.values()
        shape = shape_text(array.shape)
        if not array.ndim or len(array) != len(outputs.samples):
            return f"the output has shape {shape} for {len(outputs.samples)} samples; the first axis counts them"
        if array.dtype.kind in "OUST":
            if array.size != len(array):
                return f"the output holds texts of shape {shape}; give one per sample"
        elif how is None:
            return f"the output is {array.dtype.name} {shape}; give charset=FILE or tokenizer=FILE to make text of it"
        elif why := how.misfit(array):
            return why
    library("rapidfuzz.distance", "metrics")
    return ""


def _lines(file: str, what: str) -> list[str]:
    """Return the lines of a file of characters or tokens."""
    lines = read_text(file, _LARGEST_FILE).split("\n")
    lines = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not 1 <= len(lines) <= _MOST_LINES:
        raise InputError(f"{what} {file!r} has {len(lines):,} lines; give 1 to {_MOST_LINES:,}")
    return lines


def _joining(file: str) -> Callable[[Sequence[int]], str]:
    """Return the function that makes text of tokens."""
    if not file.endswith(".json"):
        return partial(joined_words, _lines(file, "tokenizer"))
    return Tokenizer(file).opened().text
