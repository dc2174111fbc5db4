"""The models of a language model that generates: an encoder, a decoder of the prompt, and one of single tokens.

One file is often all of them: a decoder that takes an empty cache, or a merged one that takes `use_cache_branch`. The
part that a model has follows from its inputs and outputs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from onnxfi.errors import InputError
from onnxfi.runtime.engine.ports import Array, Port, element_type
from onnxfi.runtime.engine.protocols import Session
from onnxfi.runtime.engine.recently_used import RecentlyUsed
from onnxfi.runtime.generation.cache_ports import CacheTensor, is_past, is_present, listed, match_cache

#: The input of prompts of tokens.
PROMPTS = "input_ids"
_IDS = (PROMPTS, "decoder_input_ids")
_MASK = ("attention_mask", "decoder_attention_mask")
_ENCODED, _ENCODED_MASK = "encoder_hidden_states", "encoder_attention_mask"
_POSITIONS, _SLOTS, _BRANCH, _TYPES = "position_ids", "cache_position", "use_cache_branch", "token_type_ids"
#: Inputs of fault operators, which the loop is given.
_FAULTS = re.compile(r"onnxfi\d*\.")
_KNOWN = (*_IDS, *_MASK, _ENCODED, _ENCODED_MASK, _POSITIONS, _SLOTS, _BRANCH, _TYPES)


class Part(StrEnum):
    """The part that a model has in a generation loop."""

    ENCODER = "encoder"
    PREFILL = "prefill"
    DECODE = "decode"


def part_of(session: Session, where: str) -> Part:
    """Return the part of a model, from its inputs and outputs; InputError if it has none."""
    if any(is_past(port) for port in session.inputs):
        return Part.DECODE
    if any(is_present(port) for port in session.outputs):
        return Part.PREFILL
    if any(port.name == "logits" for port in session.outputs):
        raise InputError(
            f"{where} gives logits and no cache: its inputs are {listed(session.inputs)}, its outputs "
            f"{listed(session.outputs)}; export the decoder with past key values (present.N.key, present.N.value)"
        )
    if any(len(port.shape or ()) == 3 and "float" in port.dtype for port in session.outputs):
        return Part.ENCODER
    raise InputError(
        f"{where} is no decoder with a cache: its inputs are {listed(session.inputs)}, its outputs "
        f"{listed(session.outputs)}; a decoder takes input_ids and past_key_values.N.key, and gives logits and "
        f"present.N.key"
    )


@dataclass(frozen=True)
class DecoderStage:
    """A session of a decoder, and what it is fed and gives.

    Attributes
    ----------
    session : Session
        The session.
    where : str
        Its name in messages.
    cache : tuple of CacheTensor
        The cache that it takes; none for a decoder of the prompt.
    presents : mapping of str to str
        The outputs that are a cache, by the name of the input that takes each.
    logits : str
        The output of scores of tokens.
    """

    session: Session
    where: str
    cache: tuple[CacheTensor, ...] = ()
    presents: Mapping[str, str] = field(default_factory=dict)
    logits: str = "logits"

    @classmethod
    def of(cls, session: Session, where: str, named: tuple[CacheTensor, ...] = ()) -> DecoderStage:
        """Return the stage of a session; a decoder of the prompt feeds the cache `named` by the other decoder."""
        cache = match_cache(session.inputs, session.outputs, where)
        for port in session.inputs:
            if port.name not in _KNOWN and not is_past(port) and not _FAULTS.match(port.name):
                raise InputError(f"{where}: input {port} is none that a generation loop feeds; it feeds input_ids, "
                                 f"attention_mask, position_ids, use_cache_branch and the cache")  # fmt: skip
        outputs = {port.name for port in session.outputs}
        presents = {one.past.name: one.present for one in cache if one.present is not None}
        if not cache:
            presents = {}
            for one in named:
                present = one.present or one.past.name.replace("past_key_values", "present", 1)
                if present not in outputs:
                    raise InputError(
                        f"{where}: the cache cannot be matched: {one.past.name!r} of the decoder of single tokens "
                        f"needs the output {present!r}; outputs {listed(session.outputs)}"
                    )
                presents[one.past.name] = present
        return cls(session, where, cache, presents, _logits_of(session, where))

    def has(self, name: str) -> bool:
        """Return true if the model has an input of this name."""
        return any(port.name == name for port in self.session.inputs)

    @property
    def takes_encoded(self) -> bool:
        """True for the decoder of an encoder."""
        return self.has(_ENCODED) or self.has(_ENCODED_MASK) or any(one.cross for one in self.cache)

    @property
    def alone(self) -> bool:
        """True if it can take a prompt without a past."""
        return bool(self.cache)

    @property
    def vocabulary(self) -> int | None:
        """The number of tokens that the model declares to score; None if it declares none."""
        shape = next(port.shape for port in self.session.outputs if port.name == self.logits)
        last = shape[-1] if shape else None
        return last if isinstance(last, int) else None

    def feeds(
        self, tokens: Array, past: Mapping[str, Array], seen: int, encoded: Array | None = None
    ) -> dict[str, Array]:
        """Return what the model is fed: tokens ([T]) after `seen` positions, the cache, and what the encoder gave."""
        count, fed = len(tokens), dict[str, Array]()
        for port in self.session.inputs:
            kind = port.dtype if port.is_tensor else "int64"
            if port.name in past:
                fed[port.name] = past[port.name]
            elif port.name in _IDS:
                fed[port.name] = tokens[None].astype(element_type(kind))
            elif port.name in _MASK:
                fed[port.name] = np.ones((1, seen + count), element_type(kind))
            elif port.name == _POSITIONS:
                fed[port.name] = np.arange(seen, seen + count, dtype=element_type(kind))[None]
            elif port.name == _SLOTS:
                fed[port.name] = np.arange(seen, seen + count, dtype=element_type(kind))
            elif port.name == _TYPES:
                fed[port.name] = np.zeros((1, count), element_type(kind))
            elif port.name == _BRANCH:
                fed[port.name] = np.array([seen > 0])
            elif port.name == _ENCODED and encoded is not None:
                fed[port.name] = encoded
            elif port.name == _ENCODED_MASK and encoded is not None:
                fed[port.name] = np.ones(encoded.shape[:2], element_type(kind))
        return fed

    def empty(self) -> dict[str, Array]:
        """Return a cache without positions."""
        return {one.past.name: one.empty() for one in self.cache}


def _logits_of(session: Session, where: str) -> str:
    scores = [p for p in session.outputs if "float" in p.dtype and not is_present(p) and len(p.shape or ()) in (0, 3)]
    named = [port.name for port in scores if port.name == "logits"] or [port.name for port in scores]
    if len(named) != 1:
        raise InputError(
            f"{where}: the scores of tokens [samples,positions,tokens] are none of its outputs, or several: "
            f"{listed(session.outputs)}; name them logits"
        )
    return named[0]


@dataclass(frozen=True)
class EncoderStage:
    """A session of an encoder, and its input of prompts: `input_ids`, or numbers as those of speech and images.

    What it makes of prompts without faults may be `kept`: it is the same in every trial.
    """

    session: Session
    where: str
    prompts: Port
    kept: RecentlyUsed[Array] | None = None

    @classmethod
    def of(cls, session: Session, where: str, kept: RecentlyUsed[Array] | None = None) -> EncoderStage:
        """Return the stage of a session; InputError if no one input takes the prompts."""
        named = [p for p in session.inputs if p.name not in (*_MASK, _TYPES) and not _FAULTS.match(p.name)]
        tokens = [port for port in named if port.name == PROMPTS]
        numbers = [port for port in named if "float" in port.dtype and len(port.shape or ()) > 1]
        if not tokens and (len(named) > 1 or not numbers):
            raise InputError(
                f"{where}: its inputs are {listed(session.inputs)}, and a generation loop feeds an encoder input_ids, "
                f"or one input of numbers, as input_features of speech, and attention_mask"
            )
        return cls(session, where, (tokens or numbers)[0], kept)

    def run(self, prompt: Array, extra: Mapping[str, Array] | None = None) -> Array:
        """Return what the encoder makes of a prompt ([T] tokens, or numbers): [1, positions, size]."""
        name = next(p.name for p in self.session.outputs if "float" in p.dtype)

        def encoded() -> Array:
            return self.session.run(self.feeds(prompt, extra), [name])[name]

        if self.kept is None:
            return encoded()
        return self.kept.of(hashlib.blake2b(prompt.tobytes(), digest_size=16).digest(), encoded)

    def feeds(self, prompt: Array, extra: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Return what the encoder is fed: a prompt ([T] tokens, or numbers), and further inputs."""
        fed = dict[str, Array](extra or {})
        for port in self.session.inputs:
            if port.name == self.prompts.name:
                fed[port.name] = prompt[None].astype(element_type(port.dtype))
            elif port.name in (*_MASK, _TYPES):
                fed[port.name] = np.full((1, prompt.shape[-1]), port.name != _TYPES, element_type(port.dtype))
            elif port.name not in fed:
                raise InputError(f"{self.where}: input {port} is none that a generation loop feeds; it feeds input_ids "
                                 f"and attention_mask")  # fmt: skip
        return fed
