"""Targets of a decoder in its loop: the cache of keys and values, and activations, at each step of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxfi.errors import FaultListError, SelectorError
from onnxfi.faults.scope import ActivationSpace, FaultScope
from onnxfi.faults.sites import KV_CACHE, Target
from onnxfi.faults.token_positions import Positions
from onnxfi.faults.trials import Faults
from onnxfi.faults.words import WORDS
from onnxfi.graph.dataflow.activation_targets import Activation, activations
from onnxfi.graph.model.loading import Model
from onnxfi.graph.passes.instrument import check_word_formats
from onnxfi.graph.passes.node_builder import opset_of
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.generation.activation_shapes import LoopShape, loop_shapes
from onnxfi.runtime.generation.cache_ports import CacheTensor
from onnxfi.runtime.generation.decoder_stages import Part
from onnxfi.runtime.generation.generation_engine import GenerationSession
from onnxfi.runtime.generation.greedy_loop import Prompt


def generation_space(
    model: Model, session: GenerationSession, data: Data, scope: FaultScope, custom_ops: Sequence[str] = ()
) -> ActivationSpace:
    """Return the positions of the cache and of activations, from the prompts and the golden texts.

    Where a token ends a text, its number of steps follows from a golden run of all prompts.
    """
    prompts = [prompt for batch in data.batches(1) for prompt in session.prompts(batch.feeds)]
    how = session.loop.how
    steps = tuple(how.tokens if how.end is None else session.generated(prompt).steps for prompt in prompts)
    shapes, positions, types = dict[str, tuple[int, ...]](), dict[str, Positions](), dict[str, str]()
    if scope.target == ("kv-cache",) and max(steps) <= 1:
        raise SelectorError(
            "the cache is read from step 1 on, and the texts have one step, that of the prompt; give more tokens, as "
            "--task generation:tokens=2"
        )
    if "kv-cache" in scope.target and max(steps) > 1:
        for one, (heads, encoded, size) in _cache_sizes(session, prompts[0]):
            held = _cache_positions(one, session, prompts, steps, encoded)
            name = one.past.name
            shapes[name], positions[name] = (heads, int(held.counts.max()), size), held
            types[name] = one.past.dtype
    kinds = {"activation": "activations", "input": "inputs"}
    rows = [a for a in activations(model) if kinds.get(a.target.kind) in scope.target and not a.unsupported_reason]
    rows = [a for a in rows if a.name not in positions]
    if rows:
        for name, found in loop_shapes(model, session, rows, prompts[0], custom_ops).items():
            held = _activation_positions(found, session, prompts, steps)
            most = max(int(held.counts.max()), 1)
            shapes[name] = tuple(most if k == found.axis else n for k, n in enumerate(found.shape))
            positions[name] = held
    return ActivationSpace(scope, len(prompts), {}, shapes, {}, types, positions)


def _cache_sizes(session: GenerationSession, prompt: Prompt) -> list[tuple[CacheTensor, tuple[int, int, int]]]:
    """Return the tensors of the cache with the numbers of heads, of positions and of a head, as a run shows them."""
    loop = session.loop
    few = replace(loop, how=replace(loop.how, tokens=1, end=None))
    cache = few.run(prompt, session.shared(prompt)).last.cache
    return [(one, cache[one.past.name].shape[1:]) for one in loop.decode.cache]


def _cache_positions(
    one: CacheTensor, session: GenerationSession, prompts: Sequence[Prompt], steps: tuple[int, ...], encoded: int
) -> Positions:
    """Return the positions of a tensor of the cache; of numbers an encoder makes `encoded` ones."""
    if session.loop.encoder is not None and not one.cross:
        begun = (1,) * len(prompts)
    else:
        begun = tuple(encoded if prompt.dtype.kind == "f" else len(prompt) for prompt in prompts)
    first = (0 if one.cross else session.loop.how.prefix,) * len(prompts)
    return Positions(1, first, begun, 0 if one.cross else 1, steps, cache=True)


def _activation_positions(
    found: LoopShape, session: GenerationSession, prompts: Sequence[Prompt], steps: tuple[int, ...]
) -> Positions:
    loop = session.loop
    single = loop.encoder is not None and loop.faulty is not Part.ENCODER
    run = (1 if single or found.axis < 0 else len(prompt) - loop.how.prefix for prompt in prompts)
    first = tuple(n if found.prefill else 0 for n in run)
    return Positions(found.axis, first, (int(found.decode),) * len(prompts), 0, steps)


def generation_rows(model: Model, space: ActivationSpace) -> list[Activation]:
    """Return the activations of a decoder in its loop, and its cache, as a space records them."""
    rows = []
    for a in check_word_formats(activations(model), opset_of(model.proto)):
        held = space.positions.get(a.target.id)
        if held is None or held.cache:
            continue
        shape = space.shapes[a.target.id]
        target = replace(a.target, shape=shape, positions=held)
        # Samples run one at a time, so that none is named in a run.
        rows.append(replace(a, target=target, dims=shape, place=None, axis_unknown_reason="", shape_inferred=False))
    for name, held in space.positions.items():
        if held.cache:
            target = Target(
                name, WORDS[space.types[name]], space.shapes[name], KV_CACHE, layer=cache_layer(name), positions=held
            )
            rows.append(Activation(target, "", name, space.shapes[name], default=True))
    return rows


def cache_layer(name: str) -> str:
    """Return the layer of a tensor of the cache, as reports call it.

    >>> cache_layer("past_key_values.3.value"), cache_layer("past_key_values.0.encoder.key")
    ('cache.3.V', 'cache.0.encoder.K')
    """
    parts = [{"key": "K", "value": "V"}.get(part, part) for part in name.split(".")[1:]]
    return ".".join(["cache", *parts]) if parts else name


def timed(target: Target, persistence: str, space: ActivationSpace) -> Target:
    """Return a target of a loop with the times at which it can be faulty."""
    held = target.positions
    assert held is not None
    if persistence == "permanent":
        return replace(target, positions=held.in_all(), samples=0, steps=0, onwards=False)
    if held.cache:
        if persistence == "from":
            raise SelectorError(
                f"a fault in {target.id!r} stays in the cache by itself, from its step on; leave --persistence out, or "
                f"use permanent for a fault in that place for every sample"
            )
        return replace(target, samples=space.samples, steps=held.most_steps, onwards=True)
    if persistence == "from":
        shared = held.from_step()
        return replace(target, positions=shared, samples=0, steps=shared.most_steps, onwards=True)
    return replace(target, samples=space.samples, steps=held.most_steps, onwards=False)


def check_agrees(space: ActivationSpace, listed: ActivationSpace) -> None:
    """Refuse a list that was drawn for other prompts or golden texts; FaultListError."""
    for name, held in listed.positions.items():
        if name not in space.positions:
            raise FaultListError(
                f"the list has faults in {name!r}, which this loop does not have; give the model and the task "
                f"that it was drawn for"
            )
        if held != space.positions[name]:
            raise FaultListError(
                f"the list was drawn for prompts or golden texts of other lengths ({held.samples:,} samples of up to "
                f"{held.most_steps:,} steps); give the data and the task that it was drawn for"
            )


def check_steps(faults: Faults, positions: Mapping[str, Positions]) -> None:
    """Refuse faults at a step, or in a position, that the golden text does not have; SelectorError names the site."""
    columns = zip(
        faults.sites.target.tolist(), faults.sites.index.tolist(), faults.sites.times_or_all().tolist(), strict=True
    )
    for ordinal, index, (sample, step, _) in columns:
        target = faults.targets[ordinal]
        held = positions.get(target.id)
        if held is None or sample < 0:
            continue
        if sample >= held.samples or step >= held.steps[sample]:
            known = (
                f"has {held.steps[sample]} steps, 0 to {held.steps[sample] - 1}"
                if sample < held.samples
                else "is none of the prompts"
            )
            raise SelectorError(f"{target.id}@sample={sample}@from={step}: sample {sample} {known}")
        count = held.at(sample, step)
        place = int(np.unravel_index(index, target.axes or (1,))[held.axis]) if held.axis >= 0 else 0
        if place >= count:
            what = "the cache holds" if held.cache else "it has"
            raise SelectorError(
                f"{target.id}[{index}]@sample={sample}: {what} {count} positions in front of step {step}, and the site "
                f"is in position {place}"
            )
