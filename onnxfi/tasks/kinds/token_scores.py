"""Scores of tokens: what is kept of logits ([n,T,vocabulary]), batch by batch, since those of all samples are many.

Position t of a language model says which token stands at t + 1. Of each position these numbers are kept, as float32:

===== ==============================================================================================
place number
===== ==============================================================================================
0     the token that follows, -1 where the position does not count
1     the token with the highest logit, the first in a tie; -1 where a logit is not finite
2     the log-probability of the token that follows
3…    the log-probabilities of the tokens with the highest golden ones, of a small vocabulary of all
===== ==============================================================================================

Positions that do not count have zeros. Log-probabilities are NaN where a logit is a NaN, +infinity, or -infinity in
more places than in the golden run, which some models have for tokens that are never right.

References
----------
Where not all tokens are kept, the rest counts as one token: by the data processing inequality the divergence of what is
kept is never above that of all (Cover & Thomas, Elements of Information Theory, section 2.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.labels import NOT_SCORED, as_kind
from onnxfi.runtime.data.sample_outputs import KeptInputs, Outputs
from onnxfi.runtime.engine.ports import Array, shape_text
from onnxfi.tasks.answers import BLOCK, Floats

#: The places of the numbers of a position.
TARGET, TOP, OWN, KEPT = 0, 1, 2, 3
#: Vocabularies up to this are kept whole; of larger ones as many golden tokens.
MOST_KEPT = 128
#: The name of what is kept among the outputs.
NAME = "token scores"
_LOWEST = float(np.finfo(np.float32).min)
#: The share of tokens that are not kept is known to this: sums of float32 log-probabilities.
_SURE = 1e-6


@dataclass(frozen=True, eq=False)
class _Known:
    """Facts of the golden run about M positions: how many logits are -infinity ([M]), and the tokens that are kept."""

    below: NDArray[np.int64]
    #: [M, most]; None where all are kept.
    ids: NDArray[np.int64] | None

    @classmethod
    def joined(cls, parts: Sequence[_Known]) -> _Known:
        """Return the facts about the positions of all parts."""
        ids = [part.ids for part in parts if part.ids is not None]
        return cls(np.concatenate([part.below for part in parts]), np.concatenate(ids) if ids else None)

    def of(self, some: slice) -> _Known:
        """Return the facts about some of the positions."""
        return _Known(self.below[some], None if self.ids is None else self.ids[some])

    def split(self, ends: NDArray[np.int64]) -> list[_Known]:
        """Return the facts about the positions in front of each of these ends, and behind the last."""
        edges = [0, *ends.tolist(), len(self.below)]
        return [self.of(slice(*pair)) for pair in pairwise(edges)]


@dataclass(eq=False)
class TokenScores:
    """The reduction of the logits of one set of data.

    Its first run is the golden one: it settles which tokens are kept of a large vocabulary.

    Parameters
    ----------
    targets : sequence of int64 arrays
        For each sample the token that follows each position ([T]), -1 where it does not count.
    most : int
        The number of tokens that are kept.

    Examples
    --------
    >>> reduction = TokenScores(np.array([[2, -1]]))
    >>> kept = reduction(Outputs.of(np.zeros((1, 2, 4), np.float32))).arrays[NAME]
    >>> kept.shape, bool(kept[0, 0, OWN] == np.float32(-np.log(4)))
    ((1, 2, 7), True)
    """

    targets: NDArray[np.int64]
    most: int = MOST_KEPT
    _known: dict[int, _Known] = field(default_factory=dict, repr=False)
    _vocabulary: int = field(default=0, repr=False)

    @classmethod
    def of_data(cls, data: Data) -> TokenScores:
        """Return the reduction for data with tokens as labels, or whose tokens are the only integers [N,T] it feeds.

        Raises
        ------
        DataError
            If neither says which token follows.
        """
        if data.labels is not None:
            labels = as_kind("tokens", data.labels)
            return cls(_following(labels))
        tokens, *mask = _fed(data)
        named = [name for name in (tokens, *mask) if name in data.layout.batched]
        read = KeptInputs.read(data, data.layout.fixed or 64, named)
        rows = [np.asarray(batch[tokens]) for batch in read.batches]
        if len({part.shape[1:] for part in rows}) != 1:
            raise DataError("batches of texts have other lengths; give labels, or rows of one length")
        labels = np.concatenate(rows).astype(np.int64)
        if mask:
            seen = np.concatenate([np.asarray(batch[mask[0]]) for batch in read.batches])
            labels[seen == 0] = NOT_SCORED
        return cls(_following(labels))

    def forget(self) -> None:
        """Let the next run be the golden one."""
        self._known.clear()
        self._vocabulary = 0

    def __call__(self, outputs: Outputs) -> Outputs:
        """Return what is kept of the logits of some samples.

        Raises
        ------
        DataError
            If the output is no logits of these tokens.
        """
        (logits,) = outputs.arrays.values() if len(outputs.arrays) == 1 else (np.zeros(()),)
        targets = self.targets[outputs.samples]
        if (changed := self._of_other_shape(logits, outputs.samples)) is not None:
            return replace(outputs, arrays={NAME: changed})
        self._check(logits, targets)
        n, length, vocabulary = logits.shape
        self._vocabulary = self._vocabulary or vocabulary
        whole = vocabulary <= self.most
        kept = np.zeros((n, length, KEPT + (vocabulary if whole else self.most)), np.float32)
        kept[..., TARGET] = targets
        kept[..., TOP] = -1
        known = np.array([sample in self._known for sample in outputs.samples.tolist()], np.bool_)
        for rows in (np.flatnonzero(~known), np.flatnonzero(known)):
            if (targets[rows] >= 0).any():
                self._keep(kept, logits, rows, outputs.samples[rows].tolist())
        return replace(outputs, arrays={NAME: kept})

    def _of_other_shape(self, logits: Array, samples: NDArray[np.int64]) -> Array | None:
        """Return the scores where a fault changed the shape of the logits: no token is the golden one."""
        length = self.targets.shape[1]
        if not self._vocabulary or logits.shape == (len(samples), length, self._vocabulary):
            return None
        whole = np.full((len(samples), length, KEPT + min(self._vocabulary, self.most)), _LOWEST, np.float32)
        whole[..., TARGET], whole[..., TOP] = self.targets[samples], -1
        return whole

    def _keep(self, kept: Array, logits: Array, rows: NDArray[np.int64], samples: Sequence[int]) -> None:
        """Keep the scores of the positions that count of these rows: all are known from the golden run, or none."""
        vocabulary = logits.shape[2]
        counts = np.zeros(kept.shape[:2], np.bool_)
        counts[rows] = kept[rows, :, TARGET] >= 0
        at = np.flatnonzero(counts)
        known = [self._known[sample] for sample in samples if sample in self._known]
        before = _Known.joined(known) if known else None
        lines, numbers = kept.reshape(-1, kept.shape[2]), np.ascontiguousarray(logits).reshape(-1, vocabulary)
        step, found = max(1, BLOCK // vocabulary), list[_Known]()
        for first in range(0, len(at), step):
            here = slice(first, first + step)
            next_tokens = lines[at[here], TARGET].astype(np.int64)
            lines[at[here]], now = self._scores(next_tokens, numbers[at[here]], before and before.of(here))
            found.append(now)
        if before is None:
            ends = np.cumsum(np.count_nonzero(counts[rows], axis=1))[:-1]
            self._known |= zip(samples, _Known.joined(found).split(ends), strict=True)

    def _scores(self, targets: NDArray[np.int64], values: Array, known: _Known | None) -> tuple[Array, _Known]:
        """Return what is kept of some positions that count, and the facts about them."""
        place = np.arange(len(values))
        values = values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)
        lowest = values.min()  # one look at all, since most logits are finite
        below = np.zeros(len(values), np.int64)
        if not lowest > -np.inf:
            below = np.count_nonzero(np.isneginf(values), axis=1)
        top = values.argmax(axis=1)
        most = values[place, top]
        bad = ~(most < np.inf)  # a NaN is the highest
        if known is not None:
            bad |= below > known.below
        total = log_sum(values, most[:, None])
        lines = np.empty((len(values), KEPT + min(values.shape[1], self.most)), np.float32)
        lines[:, TARGET], lines[:, TOP] = targets, np.where(bad, -1, top)
        lines[:, OWN] = log_shares(values[place, targets][:, None], total, bad)[:, 0]
        ids = None if known is None else known.ids
        if values.shape[1] > self.most:
            ids = highest(values, self.most) if ids is None else ids
            values = np.take_along_axis(values, ids, axis=1)
        lines[:, KEPT:] = log_shares(values, total, bad)
        return lines, _Known(below, ids)

    def _check(self, logits: Array, targets: NDArray[np.int64]) -> None:
        if logits.ndim != 3 or logits.dtype.kind in "OUSTiubc" or len(logits) != len(targets):
            raise DataError(
                f"the output is {logits.dtype.name} {shape_text(logits.shape)} for {len(targets)} samples; a language "
                f"model gives logits [N,T,vocabulary]: name them with --output"
            )
        if logits.shape[1] != targets.shape[1]:
            raise DataError(f"logits have {logits.shape[1]:,} positions, and the labels {targets.shape[1]:,}")
        if not logits.shape[2] or targets.max(initial=-1) >= logits.shape[2]:
            raise DataError(
                f"a token is {targets.max(initial=-1):,}, and the model scores {logits.shape[2]:,}, counted from 0: "
                f"the tokenizer is of another vocabulary"
            )


def _fed(data: Data) -> list[str]:
    """Return the name of the input of the tokens, and of the mask where there is one."""
    first = next(iter(data.batches(data.layout.fixed or 1)))
    whole = [n for n, a in first.feeds.items() if a.ndim == 2 and a.dtype.kind in "iu"]
    mask = [name for name in whole if name == "attention_mask"]
    tokens = [n for n in whole if n == "input_ids"] or [n for n in whole if n not in ("attention_mask", "position_ids")]
    if len(tokens) != 1:
        listed = ", ".join(map(repr, tokens)) or "none"
        raise DataError(f"the tokens are not known: inputs of integers [N,T] are {listed}; give labels [N,T]")
    return [*tokens, *mask]


def _following(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the token that follows each position ([N,T]), -1 where it does not count."""
    found = np.full(labels.shape, -1, np.int64)
    found[:, :-1] = np.where(labels[:, 1:] == NOT_SCORED, -1, labels[:, 1:])
    return found


def log_sum(values: Array, most: Array) -> Floats:
    """Return the logarithm of the sum of the exponentials of each row ([M,1]), of which `most` are the highest.

    Powers are in the type of the values.

    >>> np.exp(log_sum(np.array([[0.0, 0.0, -np.inf]]), np.zeros((1, 1)))).round(3).tolist()
    [[2.0]]
    """
    with np.errstate(all="ignore"):
        powers = np.exp(values - most)
        return np.asarray(most + np.log(powers.sum(axis=1, keepdims=True, dtype=np.float64)))


def log_shares(values: Array, total: Floats, bad: NDArray[np.bool_]) -> Array:
    """Return the log-probabilities of values as float32; -infinity as the lowest number, NaN in bad rows."""
    found = np.empty(values.shape, np.float32)
    with np.errstate(all="ignore"):
        np.subtract(values, total, out=found, dtype=np.float64, casting="same_kind")
        if not found.min() >= _LOWEST:
            np.maximum(found, np.float32(_LOWEST), out=found)
    found[bad] = np.nan
    return found


def highest(values: Array, most: int) -> NDArray[np.int64]:
    """Return the `most` tokens of each row with the highest values, in a tie the first, in order of their numbers.

    >>> highest(np.array([[1.0, 3.0, 2.0, 2.0]]), 2)
    array([[1, 2]])
    """
    place = np.argpartition(-values, most - 1, axis=1)[:, most - 1 : most]
    least = np.take_along_axis(values, place, axis=1)
    found = np.empty((len(values), most), np.int64)
    for row, (line, limit) in enumerate(zip(values, least, strict=True)):
        above, equal = np.flatnonzero(line > limit), np.flatnonzero(line == limit)
        found[row] = np.sort(np.concatenate([above, equal[: most - len(above)]]))
    return found


def divergences(golden: Array, faulty: Array, shares: Floats | None = None) -> Floats:
    """Return the Kullback-Leibler divergence of each position in nats ([M]), from kept log-probabilities ([M,K]).

    Infinite where the faulty ones are NaN. The tokens that are not kept count as one. `shares` are the probabilities of
    the golden ones, where they are known already.

    >>> half = np.log([[0.5, 0.5]])
    >>> divergences(half, np.log([[0.25, 0.75]])).round(4)
    array([0.1438])
    """
    with np.errstate(all="ignore"):
        shares = np.exp(golden.astype(np.float64)) if shares is None else shares
        away = np.subtract(golden, faulty, dtype=np.float64)
        away *= shares
        found = np.asarray(away.sum(axis=1))
        rest = 1.0 - shares.sum(axis=1)
        some = rest > _SURE
        if some.any():
            other = 1.0 - np.exp(faulty[some].astype(np.float64)).sum(axis=1)
            found[some] += rest[some] * np.log(rest[some] / np.maximum(other, _SURE))
    return np.where(np.isnan(found), np.inf, np.maximum(found, 0.0))
