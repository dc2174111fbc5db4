"""Generation: what a decoder with a KV cache writes behind each prompt, token by token.

The answer of a prompt is the list of its new tokens. It is compared with the golden one:

- changed: some token differs, or the text ends elsewhere;
- divergence (TDR): the share of tokens that differ, place by place, of the longer of the two texts;
- first divergence: the number of tokens in front of the first that differs;
- collapse: the text ends in a repeated n-gram (`repeats`), or does not end where the golden one does, and the golden
  text does not repeat itself;
- ROUGE-L: the F-measure of the longest common subsequence, of words where there is a tokenizer, else of tokens (Lin,
  Text Summarization Branches Out 2004).

A sample is wrong where it changed, without a new NaN or infinity among the scores of its tokens.

A trial whose faults are present in one phase alone counts for that phase: `prefill_changed` in the run of the prompt,
`decode_changed` in the runs of further tokens. Faults in weights are present in both; there `first_token_changed` is
what the run of the prompt answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from onnxfi.errors import DataError, InputError
from onnxfi.extensions import library
from onnxfi.numbers import named_number, named_whole, optional_whole
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.data.tokenizer import Tokenizer
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.runtime.generation.generation_engine import SCORE, TOKENS, GenerationEngine
from onnxfi.runtime.generation.greedy_loop import NO_TOKEN, LoopSettings
from onnxfi.runtime.generation.prompts import open_prompts
from onnxfi.tasks.answers import AnswerPair, Flags, Floats, share
from onnxfi.tasks.task import Metric, ModelOutputs, Task

#: A text repeats itself if so many of its last tokens have a period of so many, at least three times over.
TAIL, LONGEST_PERIOD = 16, 8
_MOST_TOKENS, _MOST_INT64 = 1 << 16, (1 << 63) - 1
#: Metrics that say something of faults in one phase alone.
_PHASES = ("prefill_changed", "decode_changed")
_SHOWN = ("changed", "divergence", "collapse", "rouge_l")
Text = tuple[int, ...]


def texts_of(outputs: Outputs) -> list[Text]:
    """Return the new tokens of each sample."""
    tokens = next(iter(outputs.arrays.values())).astype(np.int64, copy=False)  # the first of `_reads`
    return [tuple(row[row != NO_TOKEN].tolist()) for row in tokens]


def changed(pair: AnswerPair) -> Flags:
    """Return the samples whose tokens differ ([N])."""
    pairs = zip(pair.golden.values, pair.values, strict=True)
    return np.array([one is not other and one != other for one, other in pairs], np.bool_)


def divergences(pair: AnswerPair) -> Floats:
    """Return the share of tokens that differ in each sample ([N])."""
    found = np.zeros(len(pair.golden.values))
    for row in np.flatnonzero(pair.once(changed)).tolist():
        golden, faulty = pair.golden.values[row], pair.values[row]
        most = max(len(golden), len(faulty))
        same = sum(a == b for a, b in zip(golden, faulty, strict=False))
        found[row] = (most - same) / most
    return found


def first_differences(pair: AnswerPair) -> Floats:
    """Return the number of golden tokens in front of the first that differs ([N]); all where none does."""
    found = []
    for golden, faulty in zip(pair.golden.values, pair.values, strict=True):
        pairs = enumerate(zip(golden, faulty, strict=False))
        found.append(next((k for k, (a, b) in pairs if a != b), min(len(golden), len(faulty))))
    return np.array(found, np.float64)


def repeats(text: Text) -> bool:
    """Return true if the end of a text repeats an n-gram.

    >>> repeats((5, 1, 2) + (7, 8, 9) * 6), repeats(tuple(range(40))), repeats((4,) * 8)
    (True, False, False)
    """
    for period in range(1, LONGEST_PERIOD + 1):
        tail = text[-max(TAIL, 3 * period) :]
        if len(tail) >= TAIL and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return True
    return False


def collapsed(pair: AnswerPair, end: int | None) -> Flags:
    """Return the samples that collapsed ([N]): they repeat an n-gram or do not end, other than the golden text."""
    found = np.zeros(len(pair.golden.values), np.bool_)
    for row in np.flatnonzero(pair.once(changed)).tolist():
        golden, faulty = pair.golden.values[row], pair.values[row]
        endless = end is not None and golden[-1:] == (end,) and faulty[-1:] != (end,)
        found[row] = not repeats(golden) and (repeats(faulty) or endless)
    return found


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the longest common subsequence.

    >>> common_length("abcbdab", "bdcaba")
    4
    """
    found: int = library("rapidfuzz.distance", "metrics").LCSseq.similarity(one, other)
    return found


def rouge_l(one: Sequence[Any], reference: Sequence[Any]) -> float:
    """Return ROUGE-L: 2·P·R / (P + R) of the longest common subsequence.

    >>> rouge_l("police killed the gunman".split(), "police kill the gunman".split())
    0.75
    """
    if not one or not reference:
        return float(len(one) == len(reference))
    return 2 * common_length(one, reference) / (len(one) + len(reference))


@dataclass(frozen=True)
class Parts:
    """The parts of which ROUGE-L compares sequences: words of a text, or tokens."""

    tokenizer: Tokenizer | None
    end: int | None

    def words(self, text: Text) -> Sequence[Any]:
        """Return the words of new tokens, or the tokens without a tokenizer."""
        return text if self.tokenizer is None else self.text(text).split()

    def text(self, text: Text) -> str:
        """Return the text of new tokens, without the end."""
        assert self.tokenizer is not None
        return self.tokenizer.text([token for token in text if token != self.end])

    def rouge_l(self, pair: AnswerPair) -> float:
        """Mean ROUGE-L towards the golden texts."""
        found = np.ones(len(pair.golden.values))
        for row in np.flatnonzero(pair.once(changed)).tolist():
            found[row] = rouge_l(self.words(pair.values[row]), self.words(pair.golden.values[row]))
        return float(found.mean())

    def _labels(self, pair: AnswerPair) -> Sequence[str]:
        if pair.labels is None or self.tokenizer is None:
            raise DataError("labels are texts, which a tokenizer compares; add tokenizer=FILE")
        return [str(one) for one in pair.labels]

    def exact(self, pair: AnswerPair) -> float:
        """Share of samples whose text is their label."""
        texts = [self.text(one).strip() for one in pair.values]
        same = [one == label.strip() for one, label in zip(texts, self._labels(pair), strict=True)]
        return share(np.array(same, np.bool_))

    def rouge_label(self, pair: AnswerPair) -> float:
        """Mean ROUGE-L towards the labels."""
        pairs = zip(pair.values, self._labels(pair), strict=True)
        return float(np.mean([rouge_l(self.words(one), label.split()) for one, label in pairs]))


def _first_token(pair: AnswerPair) -> float:
    pairs = zip(pair.golden.values, pair.values, strict=True)
    return share(np.array([one[:1] != other[:1] for one, other in pairs], np.bool_))


def _ended(text: Text, end: int | None) -> bool:
    return text[-1:] == (end,)


def _metrics(parts: Parts) -> tuple[Metric, ...]:
    end = parts.end
    found = [
        Metric("changed", lambda pair: share(pair.once(changed)), label="changed outputs", axis="Changed\noutputs (%)"),
        Metric(
            "divergence", lambda pair: float(pair.once(divergences).mean()), label="token divergence",
            axis="Divergence\n(% of tokens)",
        ),
        Metric(
            "first_divergence", lambda pair: float(pair.once(first_differences).mean()), label="first divergence",
            per="set", unit="tokens", bounds=(0.0, math.inf), better="higher", unchanged=None, failed=0.0,
        ),
        Metric("first_token_changed", _first_token, label="first token changed"),
        Metric("prefill_changed", lambda pair: share(pair.once(changed)), label="changed by faults in prefill"),
        Metric("decode_changed", lambda pair: share(pair.once(changed)), label="changed by faults in decoding steps"),
        Metric("collapse", lambda pair: share(collapsed(pair, end)), label="collapse", axis="Collapse\n(% of outputs)"),
        Metric(
            "repeats", lambda pair: share(np.array([repeats(one) for one in pair.values], np.bool_)),
            label="repeats an n-gram", golden=True, unchanged=None, failed=0.0,
        ),
        Metric("rouge_l", parts.rouge_l, label="ROUGE-L", better="higher", unchanged=1.0, failed=0.0),
    ]  # fmt: skip
    if end is not None:
        found.append(
            Metric(
                "ended", lambda pair: share(np.array([_ended(one, end) for one in pair.values], np.bool_)),
                label="reached the end", golden=True, better="higher", unchanged=None, failed=0.0,
            )
        )  # fmt: skip
    if parts.tokenizer is not None:
        found.append(Metric.of_labels("exact", parts.exact, "exact match"))
        found.append(Metric.of_labels("rouge_l_label", parts.rouge_label, "ROUGE-L to labels"))
    return tuple(found)


def _reads(model: ModelOutputs) -> tuple[str, ...]:
    """Return the outputs that count: tokens and their scores."""
    if model.asked not in (None, TOKENS):
        raise DataError(f"the task generation compares tokens; leave --output {model.asked!r} out")
    if TOKENS not in [port.name for port in model.ports]:
        raise DataError("the task generation needs a model that runs in its loop; a pipeline does not")
    return (TOKENS, SCORE)


def _misfit(run: Sequence[Outputs], data: Data, kind: str, *, parts: Parts) -> str:
    """Return why golden tokens, a tokenizer and labels do not fit; empty if they do."""
    if any(TOKENS not in outputs.arrays for outputs in run):
        return "the outputs are no tokens of a generation loop"
    library("rapidfuzz.distance", "metrics")
    most = max((int(outputs.arrays[TOKENS].max(initial=0)) for outputs in run), default=0)
    if parts.tokenizer is not None and most >= parts.tokenizer.size:
        known = f"the tokenizer knows {parts.tokenizer.size:,}"
        return f"the model writes token {most:,}, and {known}; it is of another vocabulary"
    if data.labels is not None and parts.tokenizer is None:
        return "labels are texts, and no tokenizer makes texts of tokens; add tokenizer=FILE"
    return ""


def _driven(engine: Engine, *, how: LoopSettings, files: Mapping[str, str]) -> Engine:
    return engine if isinstance(engine, GenerationEngine) else GenerationEngine(engine, how, files)


def generation(
    tokenizer: str = "",
    tokens: int = 32,
    end: int | None = None,
    start: int = 0,
    prefix: int = 0,
    temperature: float = 0.0,
    seed: int | None = None,
    encoder: str = "",
    prefill: str = "",
    decode: str = "",
) -> Task:
    """Return the task of text that a decoder with a KV cache generates.

    Parameters
    ----------
    tokenizer : str
        The file ``tokenizer.json`` that makes tokens of text prompts, and text of tokens.
    tokens : int
        The number of new tokens a prompt, at most.
    end : int, optional
        The token that ends a text.
    start : int
        The token that a decoder behind an encoder begins with.
    prefix : int
        The number of first tokens that all prompts share; they run once, and their cache is shared.
    temperature : float
        0 for the token with the highest score; above it tokens are drawn, with a `seed`.
    seed : int, optional
        The seed of drawn tokens.
    encoder, prefill, decode : str
        The files of the other models of the loop.

    Raises
    ------
    InputError
        For a number out of range, or tokens that are drawn without a seed.

    Examples
    --------
    >>> [metric.name for metric in generation(tokens=16).metrics[7:10]]
    ['changed', 'divergence', 'first_divergence']
    """
    tokens, temperature = named_whole("tokens", tokens, 1, _MOST_TOKENS), named_number("temperature", temperature, 0)
    start, prefix = named_whole("start", start, 0, _MOST_INT64), named_whole("prefix", prefix, 0, _MOST_INT64)
    end, seed = optional_whole("end", end, 0, _MOST_INT64), optional_whole("seed", seed, 0, _MOST_INT64)
    if temperature and seed is None:
        raise InputError("tokens that are drawn need a seed, which is recorded; add seed=N, or leave temperature out")
    if seed is not None and not temperature:
        raise InputError("seed says nothing of the highest score; add temperature=T, or leave seed out")
    how = LoopSettings(tokens, end, start, prefix, temperature, seed)
    files = {n: str(f) for n, f in (("encoder", encoder), ("prefill", prefill), ("decode", decode)) if f}
    known = Tokenizer(str(tokenizer)) if tokenizer else None
    parts = Parts(known, end)
    metrics = _metrics(parts)
    return Task(
        "generation",
        metrics,
        evaluated=("nonfinite", *(m.name for m in metrics if m.name not in _PHASES)),
        columns=tuple((name,) for name in (*_SHOWN, *(("exact",) if known else ()), "sdc", "due")),
        page_columns=(*_SHOWN, *_PHASES, "sdc", "due", "masked"),
        panels=("changed", "divergence", "collapse", "sdc", "due"),
        curves=("changed", "sdc"),
        compared=("changed", "divergence", "sdc_samples", "sdc"),
        orders=(("divergence", "changed"), ("sdc_samples", "changed"), ("collapse", "changed")),
        absent="the model runs once and in no loop; name the task with --task generation",
        labels="texts",
        takes_tolerance=False,
        masked=lambda pair: ~pair.once(changed),
        decode=texts_of,
        reads=_reads,
        misfit=partial(_misfit, parts=parts),
        drive=partial(_driven, how=how, files=files),
        samples=partial(open_prompts, tokenizer=known),
    )  # fmt: skip
