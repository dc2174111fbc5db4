"""An engine whose sessions generate: a decoder with its loop, fed with prompts, gives tokens.

It stands where the runtime stands, so that whatever runs a model runs the loop: an evaluation, a campaign, a worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import ClassVar

import numpy as np

from onnxfi.errors import DataError, EngineError, InputError
from onnxfi.runtime.engine.ports import Array, Port
from onnxfi.runtime.engine.protocols import Engine, Session
from onnxfi.runtime.engine.recently_used import RecentlyUsed
from onnxfi.runtime.generation.cache_ports import check_sizes
from onnxfi.runtime.generation.decoder_stages import PROMPTS, DecoderStage, EncoderStage, Part, part_of
from onnxfi.runtime.generation.greedy_loop import (
    NO_TOKEN,
    DecoderLoop,
    Generated,
    LoopSettings,
    Progress,
    Prompt,
    check_prompt,
)

#: The outputs of a generating session.
TOKENS, SCORE = "tokens", "score"
#: Bytes of what an encoder made of prompts that are kept.
_ENCODED_BYTES = 1 << 26


@dataclass(frozen=True)
class GenerationSession:
    """A session that takes prompts and gives tokens, and the score of each.

    Attributes
    ----------
    loop : DecoderLoop
        The loop.
    own : Session
        The session of the model that was asked for, among those of the loop.
    """

    loop: DecoderLoop
    own: Session
    non_tensors: Mapping[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The prompts, [N, T], with -1 behind the last token of each; or the numbers that an encoder takes."""
        encoder = self.loop.encoder
        if encoder is not None and encoder.prompts.name != PROMPTS:
            return (encoder.prompts,)
        return (Port(PROMPTS, "int64", ("N", "T")),)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The tokens and their scores, [N, tokens]."""
        count = self.loop.how.tokens
        return (Port(TOKENS, "int64", ("N", count)), Port(SCORE, "float32", ("N", count)))

    @property
    def provider(self) -> str:
        """The provider of the model."""
        return self.own.provider

    @property
    def note(self) -> str:
        """The provider, and the loop."""
        how = self.loop.how
        kind = "the highest score" if not how.temperature else f"temperature {how.temperature:g}, seed {how.seed}"
        return f"{self.own.note}; a loop of up to {how.tokens} tokens a prompt, each by {kind}"

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Generate from each prompt; return tokens (-1 behind the end) and scores."""
        found = [self.generated(prompt) for prompt in self.prompts(feeds)]
        arrays = laid_out([one.last for one in found], self.loop.how.tokens)
        return {name: arrays[name] for name in outputs or arrays}

    def prompts(self, feeds: Mapping[str, Array]) -> list[Prompt]:
        """Return the prompts of a batch ([T] each, or the numbers of each), checked."""
        how, vocabulary = self.loop.how, self.loop.decode.vocabulary
        found, [port] = list[Prompt](), self.inputs
        if port.name != PROMPTS:
            return list(np.asarray(feeds[port.name]))
        for number, row in enumerate(np.asarray(feeds[PROMPTS], np.int64)):
            ends = np.flatnonzero(row != NO_TOKEN)
            prompt = row[: ends[-1] + 1] if len(ends) else row[:0]
            check_prompt(prompt, number, how, vocabulary)
            found.append(prompt)
        return found

    def generated(self, prompt: Prompt) -> Generated:
        """Generate from a prompt without faults."""
        return self.loop.run(prompt, self.shared(prompt))

    def shared(self, prompt: Prompt) -> Progress | None:
        """Return the state behind the shared prefix, which runs once; None without one."""
        count = self.loop.how.prefix
        if not count:
            return None
        key = prompt[:count].tobytes()
        if key not in self._prefixes:
            if self._prefixes:
                raise DataError(
                    f"prompts differ in their first {count} tokens, which prefix={count} shares; give prompts that "
                    f"begin alike"
                )
            self._prefixes[key] = self.loop.shared(prompt)
        return self._prefixes[key]

    @cached_property
    def _prefixes(self) -> dict[bytes, Progress]:
        return {}


def laid_out(found: Sequence[Progress], count: int) -> dict[str, Array]:
    """Return tokens and scores as arrays [N, count]; behind the end of a text -1 and 0."""
    tokens = np.full((len(found), count), NO_TOKEN, np.int64)
    scores = np.zeros((len(found), count), np.float32)
    for row, one in enumerate(found):
        tokens[row, : len(one.tokens)] = one.tokens
        scores[row, : len(one.scores)] = one.scores
    return {TOKENS: tokens, SCORE: scores}


@dataclass(frozen=True)
class GenerationEngine(Engine):
    """An engine whose sessions generate.

    Parameters
    ----------
    runtime : Engine
        The engine that runs the models.
    how : LoopSettings
        The settings of the loop.
    files : mapping of str to str
        The files of the parts that the model itself does not have: ``encoder``, ``prefill``, ``decode``.

    Examples
    --------
    >>> from onnxfi import OrtEngine
    >>> GenerationEngine(OrtEngine(), LoopSettings(tokens=4)).how.tokens
    4
    """

    runtime: Engine
    how: LoopSettings
    files: Mapping[str, str] = field(default_factory=dict)
    name: ClassVar[str] = "generation"

    @property
    def arithmetic(self) -> Mapping[str, str]:
        """The settings of the runtime that fix the bits of an answer."""
        return self.runtime.arithmetic

    @property
    def version(self) -> str:
        """The runtime and its release."""
        return self.runtime.version

    def prepare(self, model: str | Path | bytes) -> GenerationSession:
        """Load a model and the other parts of its loop."""
        own = self.runtime.prepare(model)
        part = part_of(own, "the model")
        sessions = {part: own, **{p: s for p, s in self._others.items() if p is not part}}
        return GenerationSession(_loop(sessions, self.how, part, self._encoded), own)

    def unoptimized(self) -> Engine:
        """Return the engine that opens a model fastest."""
        return GenerationEngine(self.runtime.unoptimized(), self.how, self.files)

    def for_dry_run(self) -> Engine | None:
        """Return the engine for a trial run in a copy of the process: one token of each prompt."""
        inner = self.runtime.for_dry_run()
        return None if inner is None else GenerationEngine(inner, self.how, self.files)

    @cached_property
    def _others(self) -> dict[Part, Session]:
        """The sessions of the other parts, opened once."""
        found = dict[Part, Session]()
        for name, file in self.files.items():
            try:
                session = self.runtime.prepare(file)
            except EngineError as error:
                raise InputError(f"{name}={file}: {error}") from None
            part = part_of(session, f"{name}={file}")
            if part is not Part(name):
                raise InputError(f"{name}={file} is a model of the part {part.value}; give it as {part.value}={file}")
            found[part] = session
        return found

    @cached_property
    def _encoded(self) -> RecentlyUsed[Array]:
        return RecentlyUsed(_ENCODED_BYTES, attrgetter("nbytes"))

    def __hash__(self) -> int:
        """Return a hash of the settings."""
        return hash((self.runtime, self.how, tuple(sorted(self.files.items()))))


def _loop(sessions: Mapping[Part, Session], how: LoopSettings, own: Part, encoded: RecentlyUsed[Array]) -> DecoderLoop:
    """Return the loop of these sessions; InputError names the part that is missing."""
    if Part.DECODE not in sessions:
        raise InputError(
            f"the model is the {own.value} of a decoder with a cache; give the decoder that takes the cache with "
            f"decode=FILE, as --task generation:decode=decoder_with_past.onnx"
        )
    named = {part: "the model" if part is own else f"{part.value}=" for part in sessions}
    decode = DecoderStage.of(sessions[Part.DECODE], named[Part.DECODE])
    known = decode.vocabulary
    if how.end is not None and known is not None and how.end >= known:
        raise InputError(f"end is {how.end:,}, and the model scores {known:,} tokens, from 0; give the one that ends")
    prefill = None
    if Part.PREFILL in sessions:
        prefill = DecoderStage.of(sessions[Part.PREFILL], named[Part.PREFILL], decode.cache)
        if how.prefix:
            raise InputError(
                "prefix needs a decoder that takes many tokens behind a cache; leave it out beside prefill=FILE"
            )
    else:
        check_sizes(decode.cache, decode.where)
    encoder = None
    if Part.ENCODER in sessions:
        kept = None if own is Part.ENCODER else encoded
        encoder = EncoderStage.of(sessions[Part.ENCODER], named[Part.ENCODER], kept)
        if how.prefix:
            raise InputError("a decoder behind an encoder shares no prefix; leave prefix out")
    elif decode.takes_encoded or (prefill is not None and prefill.takes_encoded):
        raise InputError("the decoder takes what an encoder gives; give that with encoder=FILE")
    return DecoderLoop(how, decode, prefill, encoder, own)
