"""Language models, teacher-forced: how well the logits ([N,T,vocabulary]) say which token follows each.

Nothing is fed back: each position sees the right tokens before it. With p the golden and q the faulty probabilities of
the tokens that may follow, over all scored positions of all samples:

- the negative log-likelihood is the mean of -log q(token that follows) in nats, the perplexity its exponential;
- the divergence of a position is Σ p log(p / q) in nats; of a vocabulary of more than 128 tokens a lower bound of it,
  from the 128 that the golden run finds most probable, and the others as one;
- top-1 agreement is the share of positions whose most probable token is the golden one.

A fault that leaves nothing but uniform probabilities has the vocabulary as its perplexity, whatever else it did, so
models and layers are compared by agreement.

Rows may be the choices of multiple-choice items (see labels.py). The answer is the choice with the highest mean
log-probability of its scored tokens, the first in a tie; a choice with a NaN is none.

A sample is wrong where more than the share `changed` of its scored tokens have another top-1 than in the golden run; a
row of an item where its item has another answer.
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
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.labels import NOT_SCORED, Labels, as_kind
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Array, Port
from onnxfi.tasks.answers import BLOCK, AnswerPair, Answers, Flags, Floats, differing
from onnxfi.tasks.class_scores import named_output, only_output
from onnxfi.tasks.kinds.token_scores import KEPT, NAME, OWN, TARGET, TOP, TokenScores, divergences
from onnxfi.tasks.task import Metric, ModelOutputs, Task

#: The quantile of the divergences of all positions that is shown beside their mean.
QUANTILE = 0.99


@dataclass(frozen=True)
class Losses:
    """The number of scored tokens of each sample, and the sum of their negative log-probabilities ([N] each)."""

    tokens: NDArray[np.int64]
    sums: Floats

    @property
    def mean(self) -> float:
        """The mean over all tokens."""
        return float(self.sums.sum() / self.tokens.sum())

    @property
    def of_choices(self) -> Floats:
        """The mean log-probability of each row ([N]); -infinity where it is no number."""
        with np.errstate(all="ignore"):
            found = -self.sums / self.tokens
        return np.where(np.isnan(found), -np.inf, found)


@dataclass(frozen=True)
class Scored:
    """The positions that are scored: their places among those of all samples ([M]), and their samples ([M])."""

    places: NDArray[np.int64]
    samples: NDArray[np.int64]


def scored(golden: Answers) -> Scored:
    """Return the positions that are scored in the golden run."""
    counts = _positions(golden)[:, TARGET] >= 0
    places = np.flatnonzero(counts)
    return Scored(places, places // np.shape(golden.values)[1])


def _positions(answers: Answers | AnswerPair) -> Array:
    """Return the numbers of each position of all samples, one row each."""
    values = np.asarray(answers.values)
    return values.reshape(-1, values.shape[2])


def _rows(array: Array, which: NDArray[np.int64]) -> Array:
    """Return some rows: a view where they follow one another."""
    whole = len(which) and which[-1] - which[0] + 1 == len(which)
    return array[which[0] : which[-1] + 1] if whole else array[which]


def _losses(golden: Answers, answers: Answers | AnswerPair) -> Losses:
    """Return the losses of a run: infinite where a scored token has none."""
    where, n = golden.once(scored), len(golden.values)
    found = -_positions(answers)[where.places, OWN].astype(np.float64)
    found[np.isnan(found)] = math.inf
    tokens = np.bincount(where.samples, minlength=n)
    return Losses(tokens, np.bincount(where.samples, weights=found, minlength=n).astype(np.float64))


def golden_losses(golden: Answers) -> Losses:
    """Return the losses of the golden run."""
    return _losses(golden, golden)


def losses(pair: AnswerPair) -> Losses:
    """Return the losses of the faulty run."""
    return _losses(pair.golden, pair)


def golden_shares(golden: Answers) -> Floats:
    """Return the golden probabilities of the tokens that are kept, of the scored positions ([M, kept])."""
    return np.exp(_positions(golden)[golden.once(scored).places, KEPT:].astype(np.float64))


@dataclass(frozen=True)
class Differences:
    """For each sample the tokens of another top-1 ([N]); and the divergences of the positions that differ."""

    changed: NDArray[np.int64]
    divergences: Floats


def differences(pair: AnswerPair) -> Differences:
    """Return how the scored tokens of both runs differ."""
    where, golden, faulty = pair.golden.once(scored), _positions(pair.golden), _positions(pair)
    mine = np.flatnonzero((pair.differ > 0)[where.samples])
    other, parts = np.zeros(len(where.places), np.bool_), [np.zeros(0)]
    step = max(1, BLOCK // golden.shape[1])
    for first in range(0, len(mine), step):
        some = mine[first : first + step]
        g, f = (_rows(one, where.places[some]) for one in (golden, faulty))
        other[some] = (g[:, TOP] != f[:, TOP]) | (f[:, TOP] < 0)
        differ = differing(g, f).any(axis=1)
        if 2 * np.count_nonzero(differ) < len(some):  # to look at a few that are the same is cheaper than a copy
            g, f, some = g[differ], f[differ], some[differ]
        parts.append(divergences(g[:, KEPT:], f[:, KEPT:], _rows(pair.golden.once(golden_shares), some)))
    return Differences(np.bincount(where.samples[other], minlength=len(pair.differ)), np.concatenate(parts))


def nll(pair: AnswerPair) -> float:
    """Mean negative log-likelihood of the tokens, in nats."""
    return pair.once(losses).mean


def perplexity(pair: AnswerPair) -> float:
    """Exponential of the mean negative log-likelihood."""
    return _exp(nll(pair))


def perplexity_ratio(pair: AnswerPair) -> float:
    """Faulty perplexity over the golden one."""
    return _exp(nll(pair) - pair.golden.once(golden_losses).mean)


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


def mean_divergence(pair: AnswerPair) -> float:
    """Mean divergence of the golden probabilities from the faulty ones over all scored tokens, in nats."""
    return float(pair.once(differences).divergences.sum() / pair.golden.once(golden_losses).tokens.sum())


def high_divergence(pair: AnswerPair) -> float:
    """Least divergence in nats that 99 % of the scored tokens do not exceed."""
    found, tokens = pair.once(differences).divergences, int(pair.golden.once(golden_losses).tokens.sum())
    beyond = tokens - math.ceil(QUANTILE * tokens)
    return float(np.sort(found)[-1 - beyond]) if len(found) > beyond else 0.0


def top1_agreement(pair: AnswerPair) -> float:
    """Share of the scored tokens whose top-1 is that of the golden run."""
    return float(1 - pair.once(differences).changed.sum() / pair.golden.once(golden_losses).tokens.sum())


def _changed_share(pair: AnswerPair) -> Floats:
    return pair.once(differences).changed / np.maximum(pair.golden.once(golden_losses).tokens, 1)


@dataclass(frozen=True)
class Items:
    """The rows of each multiple-choice item, and the number of the right one among them (-1: not among the data)."""

    rows: tuple[NDArray[np.int64], ...]
    right: NDArray[np.int64]

    def answers(self, scores: Floats) -> NDArray[np.int64]:
        """Return the answer to each item, -1 where no choice has a score."""
        found = [-1 if np.isneginf(scores[rows]).all() else int(scores[rows].argmax()) for rows in self.rows]
        return np.array(found, np.int64)


def items(golden: Answers) -> Items:
    """Return the items that labels say."""
    code = np.full(len(golden.values), NOT_SCORED) if golden.labels is None else golden.labels[:, 0]
    rows = tuple(np.flatnonzero(code // 2 == item) for item in np.unique(code[code >= 0] // 2))
    right = [np.flatnonzero(code[one] % 2) for one in rows]
    return Items(rows, np.array([at[0] if at.size else -1 for at in right], np.int64))


def _golden_answers(golden: Answers) -> NDArray[np.int64]:
    return golden.once(items).answers(golden.once(golden_losses).of_choices)


def _answers(pair: AnswerPair) -> NDArray[np.int64]:
    return pair.golden.once(items).answers(pair.once(losses).of_choices)


def has_items(labels: Labels) -> bool:
    """Return true if some rows are choices of items whose right one is among them."""
    return bool(((labels[:, 0] >= 0) & (labels[:, 0] % 2 == 1)).any())


def _item_shares(pair: AnswerPair, of: Callable[[Flags, Flags, Flags], Flags]) -> float:
    """Return a share of the items with a right choice: of whether golden is right, faulty is right, and they differ."""
    truth = pair.golden.once(items).right
    golden, faulty = pair.golden.once(_golden_answers), pair.once(_answers)
    found = of(golden == truth, faulty == truth, golden != faulty)[truth >= 0]
    return float(found.mean()) if found.size else math.nan


def answer_accuracy(pair: AnswerPair) -> float:
    """Share of the items that are answered right."""
    return _item_shares(pair, lambda golden, faulty, other: faulty)


def answers_changed(pair: AnswerPair) -> float:
    """Share of the items with another answer than in the golden run."""
    return _item_shares(pair, lambda golden, faulty, other: other)


def flips_to_wrong(pair: AnswerPair) -> float:
    """Share of the items whose golden answer is right and whose faulty one is wrong."""
    return _item_shares(pair, lambda golden, faulty, other: golden & ~faulty)


def flips_to_right(pair: AnswerPair) -> float:
    """Share of the items whose golden answer is wrong and whose faulty one is right."""
    return _item_shares(pair, lambda golden, faulty, other: ~golden & faulty)


def _right(golden: Answers) -> float:
    known = golden.once(items).right
    return float(np.mean((golden.once(_golden_answers) == known)[known >= 0]))


def wrong(pair: AnswerPair, limit: float) -> Flags:
    """Return the samples that are wrong ([N])."""
    found = _changed_share(pair) > limit
    held = pair.golden.once(items)
    if pair.golden.whole is None or len(pair.golden.values) > 1:  # a sample alone is no whole item
        other = pair.golden.once(_golden_answers) != pair.once(_answers)
        for rows, flipped in zip(held.rows, other.tolist(), strict=True):
            found[rows] = flipped
    return np.asarray(found)


def _kept(outputs: Outputs) -> Array:
    if NAME not in outputs.arrays:
        raise DataError("language-model scores the logits of one model; a pipeline has none")
    return outputs.arrays[NAME]


def _output(declared: ModelOutputs) -> tuple[str, ...]:
    """Return the output of the logits: that of ``--output``, else `logits`, else the only one of such scores."""
    if declared.asked is not None:
        return (named_output(declared.ports, declared.asked, declared.non_tensors),)
    if any(port.name == "logits" and _may_be_logits(port) for port in declared.ports):
        return ("logits",)
    return only_output(declared, _may_be_logits, "logits, [N,T,vocabulary]")


def _may_be_logits(port: Port) -> bool:
    return "float" in port.dtype and (port.shape is None or len(port.shape) == 3)


def _misfit(run: Sequence[Outputs], data: Data, kind: str) -> str:
    """Return why a golden run is none of a language model; empty if it is."""
    kept = [_kept(outputs) for outputs in run]
    if data.labels is not None:
        as_kind("tokens", data.labels)
    if not any((one[..., TARGET] >= 0).any() for one in kept):
        return "no token is scored: each is -100 in the labels, or rows have one token"
    return ""


def _of_tokens(name: str, function: Callable[[AnswerPair], float], label: str, unit: str = "", **more: Any) -> Metric:
    given: dict[str, Any] = {"bounds": (0.0, math.inf), "failed": math.inf} | more
    return Metric(name, function, label=label, per="set", unit=unit, **given)


def _of_items(name: str, function: Callable[[AnswerPair], float], label: str, **more: Any) -> Metric:
    return Metric(
        name, function, label=label, axis=f"{label[:1].upper()}{label[1:]} (%)", per="set", needs_labels=True,
        needs_all=True, defined=has_items, **more,
    )  # fmt: skip


def language_model(changed: float = 0.01) -> Task:
    """Return the task of a language model that is fed the right tokens.

    Parameters
    ----------
    changed : float
        The share of changed top-1 tokens beyond which a sample is wrong: 0.01 is 1 % of them.

    Raises
    ------
    InputError
        If it is out of range.

    Examples
    --------
    >>> [metric.name for metric in language_model().metrics[7:13]]
    ['nll', 'perplexity', 'perplexity_ratio', 'kl_mean', 'kl_p99', 'top1_agreement']
    """
    if not isinstance(changed, int | float) or not 0 <= changed < 1:
        raise InputError(f"changed must be in [0, 1), got {changed}")
    over = partial(wrong, limit=changed)
    golden: dict[str, Any] = {"golden": True, "unchanged": None}
    return Task(
        "language-model",
        (
            _of_tokens("nll", nll, "negative log-likelihood", "nats", **golden),
            _of_tokens("perplexity", perplexity, "perplexity", **golden),
            _of_tokens("perplexity_ratio", perplexity_ratio, "perplexity ratio", unchanged=1.0),
            _of_tokens("kl_mean", mean_divergence, "divergence, mean", "nats"),
            _of_tokens("kl_p99", high_divergence, "divergence, p99", "nats"),
            _of_tokens(
                "top1_agreement", top1_agreement, "top-1 agreement", "%", axis="Top-1 agreement (%)",
                bounds=(0.0, 1.0), better="higher", unchanged=1.0, failed=0.0,
            ),
            _of_items("answer_accuracy", answer_accuracy, "answers right", better="higher", failed=0.0, **golden),
            _of_items("answers_changed", answers_changed, "answers changed"),
            _of_items("flips_to_wrong", flips_to_wrong, "right answers turned wrong", failed=_right),
            _of_items("flips_to_right", flips_to_right, "wrong answers turned right", failed=0.0),
        ),
        columns=(
            ("top1_agreement",), ("answers_changed", "perplexity_ratio"), ("kl_mean",), ("sdc_samples",), ("sdc",),
            ("due",),
        ),
        page_columns=(
            "top1_agreement", "perplexity", "perplexity_ratio", "kl_mean", "kl_p99", "answers_changed", "sdc_samples",
            "sdc", "due", "masked",
        ),
        curves=("top1_agreement", "sdc"),
        absent="the output is not read as logits of tokens; name the task with --task language-model",
        labels="tokens",
        takes_tolerance=False,
        masked=lambda pair: ~over(pair),
        decode=_kept,
        reads=_output,
        keeps=TokenScores.of_data,
        misfit=_misfit,
    )  # fmt: skip
