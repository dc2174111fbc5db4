"""Shapes of the activations of a decoder: in the run of a prompt, and in the run of a further token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.model.loading import Model, parse
from onnxfi.graph.passes.probes import OutputShapes
from onnxfi.runtime.engine.ports import Array
from onnxfi.runtime.engine.protocols import Session
from onnxfi.runtime.generation.decoder_stages import DecoderStage, Part
from onnxfi.runtime.generation.generation_engine import GenerationSession
from onnxfi.runtime.generation.greedy_loop import DecoderLoop, Prompt
from onnxfi.runtime.inject.shape_query import open_session

_FEW = 3
Shape = tuple[int, ...]


@dataclass(frozen=True)
class LoopShape:
    """The shape of an activation in a loop, without the axis of one sample.

    Attributes
    ----------
    shape : tuple of int
        Its shape for one token.
    axis : int
        The axis of tokens; -1 if it has none.
    prefill, decode : bool
        Whether it is computed for a prompt, and for further tokens.
    """

    shape: Shape
    axis: int
    prefill: bool
    decode: bool


def loop_shapes(
    model: Model, session: GenerationSession, rows: Sequence[Activation], prompt: Prompt,
    custom_ops: Sequence[str] = (),
) -> dict[str, LoopShape]:  # fmt: skip
    """Return the shapes of activations by target id, of those whose shape depends on the number of tokens alone.

    Scores of attention have a place for each position of the cache, so their shape differs from step to step; they are
    left out.
    """
    proto = parse(model)
    names = OutputShapes({(a.path, a.name): None if a.dims is None else len(a.dims) for a in rows}).run(proto)
    made, wanted = names
    probe = open_session(model, made, custom_ops)
    prefill, decode = ([*runs] for runs in _feeds(session, probe, prompt))
    shapes = [[_shapes(probe, fed, wanted) for fed in runs] for runs in (prefill, decode)]
    found = {}
    for a in rows:
        key = (a.path, a.name)
        long, single = ([known.get(key) for known in runs] for runs in shapes)
        one = _loop_shape(long, single)
        if one is not None and one.shape:
            found[a.target.id] = one
    return found


def _feeds(
    session: GenerationSession, probe: Session, prompt: Prompt
) -> tuple[Iterator[dict[str, Array]], Iterator[dict[str, Array]]]:
    """Return what the probed model is fed for prompts of two lengths, and in two further steps."""
    loop = session.loop
    # Numbers that an encoder takes, as those of speech, have a shape of their own.
    few = (prompt, prompt) if prompt.dtype.kind == "f" else (np.resize(prompt, _FEW), np.resize(prompt, _FEW + 1))
    if loop.faulty is Part.ENCODER:
        assert loop.encoder is not None
        return (replace(loop.encoder, session=probe).feeds(one) for one in few), iter(())
    own = replace(loop.decode if loop.faulty is Part.DECODE else (loop.prefill or loop.decode), session=probe)
    return _prompts(loop, own, few), _steps(session, own, prompt)


def _prompts(loop: DecoderLoop, own: DecoderStage, few: Sequence[Prompt]) -> Iterator[dict[str, Array]]:
    if loop.faulty is Part.DECODE and loop.prefill is not None:
        return
    for prompt in few:
        if loop.encoder is None:
            yield own.feeds(prompt, own.empty() if own.cache else {}, 0)
        else:
            start = np.array([loop.how.start], np.int64)
            yield own.feeds(start, own.empty() if own.cache else {}, 0, loop.encoder.run(few[0]))


def _steps(session: GenerationSession, own: DecoderStage, prompt: Prompt) -> Iterator[dict[str, Array]]:
    loop = session.loop
    if loop.faulty is not Part.DECODE:
        return
    found = replace(loop, how=replace(loop.how, tokens=min(3, loop.how.tokens), end=None)).run(
        prompt, session.shared(prompt)
    )
    for step in range(1, found.steps):
        before = found.before(step)
        yield own.feeds(np.array(before.tokens[-1:], np.int64), before.cache, before.seen, before.encoded)


def _shapes(
    probe: Session, fed: Mapping[str, Array], wanted: Mapping[tuple[str, str], str]
) -> dict[tuple[str, str], Shape]:
    found = probe.run(fed, sorted(set(wanted.values())))
    shapes = {}
    for key, name in wanted.items():
        rows = found[name]
        if rows.ndim == 1 and (rows >= 0).all():
            shapes[key] = tuple(rows.tolist())
    return shapes


def _loop_shape(long: Sequence[Shape | None], single: Sequence[Shape | None]) -> LoopShape | None:
    """Return the shape by those in runs of some tokens and of single ones; None if it varies otherwise."""
    first, second = (long[0], long[-1]) if long else (None, None)
    step = single[0] if single else None
    if (first is None) != (second is None) or any(one != step for one in single):
        return None
    axis = -1
    if first is not None and second is not None:
        if len(first) != len(second):
            return None
        grown = [k for k, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
        if len(grown) > 1 or (grown and (first[grown[0]], second[grown[0]]) != (_FEW, _FEW + 1)):
            return None
        axis = grown[0] if grown else -1
        one = tuple(1 if k == axis else n for k, n in enumerate(first))
        if step is not None and step != one:
            return None
        step = one
    if step is None or not all(step):
        return None
    if len(step) > 1 and step[0] == 1 and axis != 0:
        step, axis = step[1:], axis - 1 if axis > 0 else axis
    return LoopShape(step, axis, first is not None, bool(single) and single[0] is not None)
