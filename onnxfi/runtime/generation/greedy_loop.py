"""The loop over one prompt: a run of the prompt, then one run for each further token, with the cache carried between.

Step 0 is the run of the prompt (prefill), which gives the first token; step s gives token s, from a cache of all
positions before it. One prompt runs at a time, so what a prompt gives does not depend on others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, EngineError
from onnxfi.faults import sampling
from onnxfi.runtime.engine.ports import Array, same_bytes
from onnxfi.runtime.generation.decoder_stages import DecoderStage, EncoderStage, Part

#: Stands for a token behind the end of a text, or of a prompt.
NO_TOKEN = -1
#: A prompt: tokens ([T] of int64), or the numbers that an encoder takes.
Prompt = NDArray[Any]
#: Changes the cache in front of a step: the number of the step, and the cache by input.
EditCache = Callable[[int, Mapping[str, Array]], Mapping[str, Array]]
#: Further inputs of the model with faults, by the number of the step and the positions that it runs.
FedFaults = Callable[[int, int], Mapping[str, Array]]
_BEYOND = re.compile(r"idx=(-?\d+) must be within the inclusive range \[(-?\d+),(-?\d+)\]")


@dataclass(frozen=True)
class LoopSettings:
    """Settings of a generation loop.

    Attributes
    ----------
    tokens : int
        The number of tokens that are generated at most.
    end : int or None
        The token that ends a text.
    start : int
        The token that a decoder behind an encoder begins with.
    prefix : int
        The number of first tokens that all prompts share: they run once, and their cache is shared.
    temperature : float
        0 for the highest score; above it tokens are drawn, with chances exp(score / temperature).
    seed : int or None
        The seed of the draws.
    """

    tokens: int = 32
    end: int | None = None
    start: int = 0
    prefix: int = 0
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Progress:
    """The state in front of a step.

    Attributes
    ----------
    step : int
        The step that comes next.
    tokens, scores : tuple
        The tokens so far, and the score of each.
    cache : mapping of str to array
        The cache by input.
    seen : int
        The positions that it holds.
    encoded : array, optional
        What the encoder gave.
    """

    step: int = 0
    tokens: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    cache: Mapping[str, Array] = field(default_factory=dict, repr=False)
    seen: int = 0
    encoded: Array | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Generated:
    """Text that a prompt gave: the state behind the last step, and what is needed to go back.

    Attributes
    ----------
    last : Progress
        The state behind the last step.
    first : int
        The positions that the cache holds behind step 0.
    fixed : frozenset of str
        The tensors of the cache that do not grow.
    reusable : bool
        Whether each step only appends to the cache, so that an earlier one is a part of the last.
    """

    last: Progress
    first: int
    fixed: frozenset[str]
    reusable: bool = True

    @property
    def steps(self) -> int:
        """The number of steps that ran."""
        return self.last.step

    def before(self, step: int) -> Progress:
        """Return the state in front of a step from 1 on: the earlier part of the cache."""
        seen, last = self.first + step - 1, self.last
        cache = {
            name: array if name in self.fixed else array[:, :, :seen] for name, array in last.cache.items()
        }  # fmt: skip
        return Progress(step, last.tokens[:step], last.scores[:step], cache, seen, last.encoded)


@dataclass(frozen=True)
class DecoderLoop:
    """The models of a loop, and its settings.

    Attributes
    ----------
    how : LoopSettings
        The settings.
    decode : DecoderStage
        The decoder of single tokens; without `prefill` also of the prompt.
    prefill : DecoderStage, optional
        The decoder of the prompt.
    encoder : EncoderStage, optional
        The encoder, which takes the prompt.
    faulty : Part
        The model that further inputs of faults are fed to.
    """

    how: LoopSettings
    decode: DecoderStage
    prefill: DecoderStage | None = None
    encoder: EncoderStage | None = None
    faulty: Part = Part.DECODE

    @property
    def fixed(self) -> frozenset[str]:
        """The tensors of the cache that do not grow: those of the encoder."""
        return frozenset(one.past.name for one in self.decode.cache if one.cross)

    def decoder_of(self, step: int) -> DecoderStage:
        """Return the decoder that runs a step."""
        return self.prefill if step == 0 and self.prefill is not None else self.decode

    def run(
        self,
        prompt: Prompt,
        begin: Progress | None = None,
        *,
        edit: EditCache | None = None,
        fed: FedFaults | None = None,
    ) -> Generated:
        """Generate from a prompt ([T]), or from the state in front of a step.

        Parameters
        ----------
        prompt : array
            The tokens of the prompt ([T] of int64), or the numbers that the encoder takes.
        begin : Progress, optional
            The state to begin with; by default step 0 without a past.
        edit : callable, optional
            Changes the cache in front of each step; what it changes stays.
        fed : callable, optional
            Gives further inputs of the faulty model at each step.

        Raises
        ------
        EngineError
            If a run fails; the message says at which step.
        """
        state, reusable = begin or Progress(), True
        first = 1 if self.encoder is not None else len(prompt)
        while state.step < self.how.tokens:
            cache = state.cache if edit is None else edit(state.step, state.cache)
            state, appended = self.step(prompt, replace(state, cache=cache), fed)
            reusable &= appended
            if state.tokens[-1] == self.how.end:
                break
        return Generated(state, first, self.fixed, reusable)

    def shared(self, prompt: Prompt) -> Progress:
        """Return the state in front of step 0 behind the shared prefix of a prompt."""
        count = self.how.prefix
        decoder = self.decode
        cache, _ = self._cache(decoder, self._run(decoder, prompt[:count], decoder.empty(), 0, None, {}), {}, 0)
        return Progress(cache=cache, seen=count)

    def step(self, prompt: Prompt, state: Progress, fed: FedFaults | None) -> tuple[Progress, bool]:
        """Run a step; return the state behind it, and whether it only appended to the cache."""
        step, decoder, encoded = state.step, self.decoder_of(state.step), state.encoded
        tokens = np.array(state.tokens[-1:], np.int64) if step else prompt[state.seen :]
        if step == 0 and self.encoder is not None:
            extra = {} if fed is None or self.faulty is not Part.ENCODER else fed(0, len(prompt))
            with _at(0, _Given(prompt, 0)):
                encoded = self.encoder.run(prompt, extra)
            tokens = np.array([self.how.start], np.int64)
        faulty = self.faulty is not Part.ENCODER and (
            self.prefill is None or (self.faulty is Part.PREFILL) == (step == 0)
        )
        extra = {} if fed is None or not faulty else fed(step, len(tokens))
        past = state.cache or (decoder.empty() if decoder.cache else {})
        begun = prompt if self.encoder is None else np.array([self.how.start], np.int64)
        given = _Given(begun, self.how.tokens, behind=self.encoder is not None)
        with _at(step, given):
            found = self._run(decoder, tokens, past, state.seen, encoded, extra)
        cache, appended = self._cache(decoder, found, state.cache, state.seen)
        token, score = self._next(found[decoder.logits], prompt, step)
        return (
            Progress(
                step + 1, (*state.tokens, token), (*state.scores, score), cache, state.seen + len(tokens), encoded
            ),
            appended,
        )

    def _run(
        self, decoder: DecoderStage, tokens: NDArray[np.int64], past: Mapping[str, Array], seen: int,
        encoded: Array | None, extra: Mapping[str, Array],
    ) -> dict[str, Array]:  # fmt: skip
        fed = decoder.feeds(tokens, past, seen, encoded)
        return decoder.session.run(fed | dict(extra), [decoder.logits, *decoder.presents.values()])

    def _cache(
        self, decoder: DecoderStage, found: Mapping[str, Array], before: Mapping[str, Array], seen: int
    ) -> tuple[dict[str, Array], bool]:
        """Return the cache behind a run, and whether the run only appended to it."""
        cache, appended = dict(before), True
        for past, present in decoder.presents.items():
            if past in self.fixed and past in before:  # of the encoder: it stays, and merged decoders give none
                continue
            cache[past] = found[present]
            if before and past not in self.fixed:
                appended &= same_bytes(
                    np.ascontiguousarray(found[present][:, :, :seen]), np.ascontiguousarray(before[past])
                )
        return cache, appended

    def _next(self, logits: Array, prompt: Prompt, step: int) -> tuple[int, float]:
        """Return the next token and its score: NaN if some score is not finite."""
        row = np.asarray(logits).reshape(-1, logits.shape[-1])[-1].astype(np.float32)
        finite = bool(np.isfinite(row).all())
        best = int(row.argmax())  # NaN counts as the highest, as in PyTorch
        if self.how.temperature > 0 and finite:
            chances = np.exp((row.astype(np.float64) - float(row.max())) / self.how.temperature)
            best = drawn(chances, self.how.seed or 0, prompt, step)
        return best, float(row[best]) if finite else float("nan")


def drawn(chances: NDArray[np.float64], seed: int, prompt: Prompt, step: int) -> int:
    """Return a token drawn with these chances; the draw follows from the seed, the prompt and the step alone.

    >>> drawn(np.array([0.0, 1.0, 0.0]), 7, np.array([3, 1]), 0)
    1
    """
    little = prompt.astype("<i8" if prompt.dtype.kind in "iu" else prompt.dtype.newbyteorder("<"))
    key = hashlib.blake2b(little.tobytes(), digest_size=8).digest()
    raw = sampling.raw_words(seed, int.from_bytes(key, "little"), sampling.CHOICE, 1, skip=step)
    ends = np.cumsum(chances)
    place = np.searchsorted(ends, sampling.uniform(raw)[0] * ends[-1], side="right")
    return int(min(place, len(ends) - 1))


@dataclass(frozen=True)
class _Given:
    """A prompt and the tokens that are generated `behind` an encoder or it; 0 for the encoder itself."""

    prompt: Prompt
    tokens: int
    behind: bool = False


@contextmanager
def _at(step: int, given: _Given) -> Iterator[None]:
    """Say at which step a run failed, and the reason that no fault has."""
    try:
        yield
    except EngineError as error:
        raise type(error)(f"step {step} of the generation: {_reason(error, given) or error}") from error


def _reason(error: EngineError, given: _Given) -> str:
    """Return why an index is beyond a table, of tokens or of positions; empty if that is not known."""
    found = _BEYOND.search(str(error))
    if found is None or given.prompt.dtype.kind == "f":
        return ""
    index, limit, count = int(found[1]), int(found[3]) + 1, len(given.prompt)
    if index in given.prompt:
        if given.behind:
            return f"the decoder begins with token {index:,}, and knows {limit:,}; give the one that it has, as start=0"
        return f"the prompt has token {index:,}, and the model knows {limit:,}; the tokenizer is of another vocabulary"
    if index != limit:
        return ""
    if given.behind:
        return (
            f"the decoder has {limit:,} positions, and {given.tokens:,} tokens need {given.tokens:,}; take fewer, as "
            f"tokens={limit}"
        )
    if given.tokens and count > limit:
        return f"the model has {limit:,} positions, and a prompt has {count:,} tokens; take shorter ones"
    if not given.tokens:
        return f"the encoder has {limit:,} positions, and a prompt has {count:,} tokens; take shorter ones"
    return (
        f"the model has {limit:,} positions, and a prompt of {count:,} tokens with {given.tokens:,} more needs "
        f"{count + given.tokens - 1:,}; take shorter prompts, or fewer tokens, as tokens={max(1, limit - count + 1)}"
    )


def check_prompt(prompt: Prompt, number: int, how: LoopSettings, vocabulary: int | None) -> None:
    """Refuse a prompt that no loop can run; DataError names it."""
    if not len(prompt):
        raise DataError(f"prompt {number} has no token; leave it out")
    if (prompt < 0).any():
        raise DataError(
            f"prompt {number} has the token {int(prompt.min())}; tokens are numbers from 0, and -1 stands "
            f"behind the last"
        )
    if vocabulary is not None and int(prompt.max()) >= vocabulary:
        raise DataError(
            f"prompt {number} has token {int(prompt.max()):,}, and the model scores {vocabulary:,} tokens; the "
            f"tokenizer is of another vocabulary"
        )
    if how.prefix and len(prompt) <= how.prefix:
        raise DataError(
            f"prompt {number} has {len(prompt):,} tokens, none behind the shared prefix of {how.prefix:,}; give longer "
            f"ones, or a shorter prefix"
        )
