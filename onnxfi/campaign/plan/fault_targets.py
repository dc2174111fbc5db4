"""Fault targets of a campaign: all tensors that its faults can be injected into, as one sequence.

Weights first, in file order; then, where a campaign selects them, the activations of a run on its data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.plan.generation_targets import check_agrees, check_steps, generation_rows, generation_space, timed
from onnxfi.errors import EngineError, FaultListError, SelectorError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.faultlist import Header
from onnxfi.faults.models import Add, Scale
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.scope import ActivationSpace, FaultScope, with_times
from onnxfi.faults.sites import KV_CACHE
from onnxfi.faults.space import LAST_STEP, FaultSpace, Selector, Target, check_disjoint, refuse_without_sites
from onnxfi.faults.trials import Faults, apply_separately
from onnxfi.faults.words import WORDS
from onnxfi.graph.dataflow.activation_targets import (
    Activation,
    activations,
    inputs_by_default,
    select_activations,
    with_neuron_axes,
)
from onnxfi.graph.dataflow.batch_layout import SampleAxis
from onnxfi.graph.dataflow.sample_placement import one_at_a_time
from onnxfi.graph.model.dequantize import with_dequantized
from onnxfi.graph.model.loading import Model, parse
from onnxfi.graph.model.neuron_table import refuse_whole_tensor_models, step_tensors
from onnxfi.graph.partition.subgraph import half_floats
from onnxfi.graph.passes.instrument import check_value_formats, check_word_formats
from onnxfi.graph.passes.node_builder import opset_of
from onnxfi.graph.write.faulty_copy import bind_models, look_up_words
from onnxfi.runtime.data.open_data import Data
from onnxfi.runtime.engine.ports import ORT_TYPES, shape_text
from onnxfi.runtime.engine.protocols import Session
from onnxfi.runtime.generation.generation_engine import GenerationSession
from onnxfi.runtime.inject.shape_query import complete_by_running, loop_iterations

_READ = {name for name, _ in ORT_TYPES.values()}


@dataclass(frozen=True)
class FaultTargets:
    """The targets of faults in a model.

    `targets` are all weights and activations, `activations` the facts on the latter, by id. `activation_space` binds
    faults in activations to their run (None: there are none). `series` are targets that are one activation in each step
    of an unrolled network, and `steps_of` has those steps. `missed` counts outputs of layers that no fault can be
    injected into: the file does not declare their shape, and the run on the data does not compute them, or computes
    several. `beyond` are all activations that no fault can be injected into.
    """

    model: Model
    targets: tuple[Target, ...] = field(repr=False)
    activations: Mapping[str, Activation] = field(default_factory=dict, repr=False)
    activation_space: ActivationSpace | None = None
    series: Mapping[str, Activation] = field(default_factory=dict, repr=False)
    steps_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    missed: int = 0
    beyond: tuple[Activation, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls, model: Model, scopes: Sequence[FaultScope] = (), data: Data | None = None, listed: Header | None = None,
        custom_ops: Sequence[str] = (), session: Session | None = None, *, scored: Sequence[str] = (),
        full: bool = False,
    ) -> FaultTargets:  # fmt: skip
        """Return the targets of a campaign with these scopes; activations are found in a run on its data.

        Where a list is replayed its header says the scopes, and for how many samples it was drawn. `session` is one of
        the model; of one that generates the targets are those of its loop. `scored` are the outputs that are scored
        (none: all), and `full` says that every trial runs the whole model.
        """
        if listed is not None:
            scopes = () if listed.activations is None else (listed.activations.scope,)
        if not any(scope.includes_activations for scope in scopes):
            return cls(model, model.targets)
        kinds = tuple(dict.fromkeys(kind for scope in scopes for kind in scope.target))
        scope = FaultScope(kinds, scopes[0].persistence, scopes[0].all)
        if isinstance(session, GenerationSession) and data is not None:
            return cls._of_loop(model, session, data, scope, listed, custom_ops)
        if "kv-cache" in kinds:
            raise SelectorError("target kv-cache needs a decoder in its loop; add --task generation")
        plain = {a.target.id: a for a in activations(model)}
        with_samples = activations(model, None if data is None else data.layout)
        completed = complete_by_running(model, parse(model), with_samples, data, custom_ops)
        rows = _readable(model, completed, () if full else scored or model.index.main.output_names)
        steps = _steps(model, rows, data, custom_ops)
        steps |= {name: len(one) for name, one in step_tensors(model.proto).items()}
        shapes = {a.target.id: a.target.shape for a in rows if a.shape_known and not _alike(a, plain.get(a.target.id))}
        places = {a.target.id: _place(a) for a in rows if a.target.id in shapes and not a.axis_unknown_reason}
        untyped = {name for name, a in plain.items() if a.unsupported_reason}
        types = {a.target.id: a.target.dtype for a in rows if a.target.id in untyped and not a.unsupported_reason}
        found = ActivationSpace(scope, data.samples if data else 0, steps, shapes, places, types)
        if listed is not None and listed.activations is not None:
            if listed.activations.samples > found.samples:
                raise FaultListError(
                    f"the list was drawn for {listed.activations.samples:,} samples, the data has {found.samples:,}; "
                    f"give the data that it was drawn for"
                )
            found = listed.activations
        return cls._of_activations(model, rows, found)

    @classmethod
    def _of_loop(
        cls, model: Model, session: GenerationSession, data: Data, scope: FaultScope, listed: Header | None,
        custom_ops: Sequence[str],
    ) -> FaultTargets:  # fmt: skip
        space = generation_space(model, session, data, scope, custom_ops)
        if listed is not None and listed.activations is not None:
            check_agrees(space, listed.activations)
            space = listed.activations
        return cls._of_activations(model, generation_rows(model, space), space)

    @classmethod
    def from_header(cls, model: Model, header: Header) -> FaultTargets:
        """Return the targets of a fault list, by what its header records of the run."""
        space = header.activations
        if space is None:
            return cls(model, model.targets)
        if space.positions:
            return cls._of_activations(model, generation_rows(model, space), space)
        rows = []
        rows_of_file = [_typed(a, space.types) for a in activations(model)]
        for a in _readable(model, rows_of_file, model.index.main.output_names):
            shape, held = space.shapes.get(a.target.id), space.sample_axes.get(a.target.id)
            rows.append(a if shape is None else _said(a, shape, held))
        return cls._of_activations(model, rows, space)

    @classmethod
    def _of_activations(cls, model: Model, rows: Sequence[Activation], space: ActivationSpace) -> FaultTargets:
        stored, rows = {t.id for t in model.targets}, with_neuron_axes(model, rows)
        kept = [a for a in rows if a.shape_known and not a.unsupported_reason and a.target.id not in stored]
        included = {a.target.id: a for a in kept}
        rolls = {name: steps for name, steps in step_tensors(model.proto).items() if included.keys() >= set(steps)}
        rolled = {
            name: replace(included[steps[0]], target=replace(included[steps[0]].target, id=name, node=""))
            for name, steps in rolls.items()
        }
        targets = [replace(a.target, structural=False) for a in (*kept, *rolled.values())]
        missed = sum(
            a.default and not a.shape_known and (not a.unsupported_reason or bool(a.axis_unknown_reason)) for a in rows
        )
        beyond = tuple(a for a in rows if a.target.id not in included and a.target.id not in stored)
        return cls(model, (*model.targets, *targets), included, space, rolled, rolls, missed, beyond)

    @cached_property
    def by_id(self) -> dict[str, int]:
        """The ordinal of each target, by all its ids."""
        return {name: k for k, target in enumerate(self.targets) for name in target.ids}

    def onto(self, faults: Faults) -> Faults:
        """Return the same faults over all targets."""
        ordinals = np.array([self.by_id[t.id] for t in faults.targets], np.int64)
        return replace(faults, targets=self.targets, sites=faults.sites.retarget(ordinals))

    def space(self, selector: Selector, scope: FaultScope, event: FaultModel) -> FaultSpace:
        """Return the sites of a selection; SelectorError if there are none."""
        stored = self.model.targets if "weights" in scope.target else ()
        selector = selector.of_model(event)
        if not scope.includes_activations:
            return selector.space(stored, event)
        candidates = [a for a in self._rolled(selector) if scope.includes(a.target)]
        chosen = self._chosen(candidates, selector, scope)
        self._check(chosen, event)
        kept = [t for t in stored if selector.selects(t)] + [self._timed(a, scope) for a in chosen]
        check_disjoint(kept)
        if not kept:
            for a in self.beyond if not candidates else ():
                if a.default:
                    raise SelectorError(f"no output of a layer is left: {_why_beyond(a)}")
            selector.space([*stored, *(a.target for a in candidates)], event)  # says what matches nothing
            raise SelectorError(
                "the selectors leave no activation; the outputs of layers are taken unless --include names "
                "others or --all takes every one"
            )
        space = FaultSpace.over(kept, event, bits=selector.bits, elements=selector.elements)
        if not space.size:
            refuse_without_sites(kept, event, selector.bits, selector.elements)
        if scope.persistence == "from" and not any(t.steps for t in space.targets):
            raise SelectorError(
                "nothing that is selected lies in a loop, so no fault can begin at a step; "
                "use --persistence permanent or transient"
            )
        return space

    def _rolled(self, selector: Selector) -> Iterator[Activation]:
        """Yield the activations; an unrolled series that is selected takes the place of its steps."""
        taken = {name: steps for name, steps in self.steps_of.items() if selector.selects(self.series[name].target)}
        first = {steps[0]: name for name, steps in taken.items()}
        aside = {step for steps in taken.values() for step in steps}
        for name, a in self.activations.items():
            if name in first:
                yield self.series[first[name]]
            elif name not in aside:
                yield a

    def by_step(self, faults: Faults) -> Faults:
        """Return the same faults, those in a series as faults in its steps; SelectorError for a missing step."""
        if self.activation_space is not None and self.activation_space.positions:
            check_steps(faults, self.activation_space.positions)
            return faults
        if self.steps_of.keys().isdisjoint(faults.targets[k].id for k in np.unique(faults.sites.target).tolist()):
            return faults
        rows, ordinals, when = list[int](), list[int](), list[tuple[int, int, int]]()
        columns = zip(faults.sites.target.tolist(), faults.sites.times_or_all().tolist(), strict=True)
        for row, (target, (sample, first, last)) in enumerate(columns):
            name = faults.targets[target].id
            steps = self.steps_of.get(name)
            if steps is not None and first >= len(steps):
                raise SelectorError(f"{name}@step={first}: there are {len(steps)} steps, 0 to {len(steps) - 1}")
            faulty = (name,) if steps is None else steps[first : last + 1]
            rows += [row] * len(faulty)
            ordinals += [self.by_id[one] for one in faulty]
            when += [(sample, first, last) if steps is None else (sample, 0, LAST_STEP)] * len(faulty)
        found = faults.pick(np.array(rows, np.int64))
        sites = replace(found.sites, target=np.array(ordinals, np.int64), times=np.array(when, np.int64).reshape(-1, 3))
        return replace(found, targets=self.targets, sites=sites)

    def _chosen(self, candidates: Sequence[Activation], selector: Selector, scope: FaultScope) -> Sequence[Activation]:
        """Return the activations of a selector: all inputs, and outputs of layers unless it names others."""
        try:
            return select_activations(inputs_by_default(candidates), selector, every=scope.all).activations
        except SelectorError:
            if "weights" in scope.target:  # the selection may be meant for those
                return ()
            for a in self.beyond if selector.include or selector.op else ():
                if selector.selects(replace(a.target, structural=False)):
                    raise SelectorError(_why_beyond(a)) from None
            raise

    def _check(self, chosen: Sequence[Activation], event: FaultModel) -> None:
        """Refuse fault models of whole stored tensors, and in bodies those that no operator can apply."""
        refuse_whole_tensor_models(self.model.proto, event, [a.target.id for a in chosen])
        halves = bool(half_floats(self.model.proto))
        looped = self.activation_space is not None and bool(self.activation_space.positions)
        for a in chosen:
            if a.target.kind == KV_CACHE:
                continue
            spent = event.draw_parameters(1, a.target.word) if event.is_random else event.element_model
            places = range(a.target.word.bits - spent.width() + 1) if spent.unit == "bit" else (0,)
            able = isinstance(spent, (Scale, Add)) and not check_value_formats([a])[0].unsupported_reason
            if (
                (a.path or halves or looped)
                and not able
                and any(spent.mask(a.target.word, bit) is None for bit in places)
            ):
                where = "body" if a.path else "generation loop" if looped else "model of 16-bit floats"
                raise SelectorError(
                    f"{a.target.id!r} lies in a {where}, where {event} on {a.target.dtype} cannot be fed; leave it out "
                    f"with --exclude, or choose a fault that changes bits, as flip or set-word"
                )

    def _timed(self, a: Activation, scope: FaultScope) -> Target:
        assert self.activation_space is not None
        target = replace(a.target, structural=False)
        if target.positions is not None:
            return timed(target, scope.persistence, self.activation_space)
        if a.axis_unknown_reason and scope.persistence == "transient":
            raise SelectorError(
                f"no sample of {target.id!r} ({shape_text(a.dims)}) can be named: {a.axis_unknown_reason}; "
                f"leave it out with --exclude, or use --persistence permanent{one_at_a_time(a.dims)}"
            )
        steps = self.activation_space.steps.get(target.id, 0)
        if a.loop and not steps and scope.persistence != "permanent":
            raise SelectorError(
                f"the number of iterations of the loop around {target.id!r} is not known, or depends on the number of "
                f"samples, so no step can be drawn; leave it out with --exclude, or use --persistence permanent"
            )
        return with_times(target, scope.persistence, self.activation_space.samples, steps, batched=a.axis is not None)

    def listed(self, header: Header) -> FaultSpace:
        """Return the sites that the recipes of a list draw from."""
        scope = header.activations.scope if header.activations else FaultScope()
        return self.space(header.selector, scope, parse_fault(header.fault))

    def placed(self, faults: Faults, *, each: bool = False) -> Faults:
        """Return faults with the words before and after, where all are in weights; `each` independent of the others."""
        if self.in_activations(faults).any():
            return faults
        found = (
            apply_separately(bind_models(self.model, faults), self.model.stored(faults))
            if each
            else look_up_words(self.model, faults)[0]
        )
        return with_dequantized(self.model, found)

    def in_activations(self, faults: Faults) -> NDArray[np.bool_]:
        """Return a mask of the faults in activations ([n])."""
        kinds = np.array([t.is_activation for t in faults.targets], np.bool_)
        return kinds[faults.sites.target] if len(faults) else np.zeros(0, np.bool_)


def _why_beyond(a: Activation) -> str:
    """Say why no fault can be injected into an activation."""
    unknown = "its shape on this data is not known, or not one"
    if a.path and not a.unsupported_reason:
        unknown += " (of tensors in branches and loops only the shapes that inference finds are)"
    return f"{a.target.id!r} ({shape_text(a.dims)}) cannot be injected into: {a.unsupported_reason or unknown}"


def _place(a: Activation) -> tuple[int, ...]:
    """Return the sample axis as a fault list records it."""
    return () if a.place is None else (a.place.axis, a.place.outer, a.place.inner)


def _alike(a: Activation, plain: Activation | None) -> bool:
    """Return True if all facts on an activation follow from the file alone."""
    same = plain is not None and plain.shape_known and plain.target.shape == a.target.shape
    return same and plain is not None and (plain.place, plain.axis_unknown_reason) == (a.place, a.axis_unknown_reason)


def _typed(a: Activation, types: Mapping[str, str]) -> Activation:
    """Return an activation with the number format of a list, where the model file does not give it."""
    dtype = types.get(a.target.id)
    return a if dtype is None else replace(a, unsupported_reason="", target=replace(a.target, word=WORDS[dtype]))


def _said(a: Activation, shape: tuple[int, ...], held: tuple[int, ...] | None) -> Activation:
    """Return an activation with the shape and the sample axis that a list records."""
    place = a.place if held is None else SampleAxis(*held) if held else None
    dims: tuple[int | None, ...] = shape
    if place is not None:
        own = 1 if place.rows > 1 else 0
        dims = (*shape[: place.axis], None, *shape[place.axis + own :])
    axis_unknown_reason = a.axis_unknown_reason if held is None else ""
    return replace(
        a, dims=dims, place=place, axis_unknown_reason=axis_unknown_reason, target=replace(a.target, shape=shape)
    )


def _readable(model: Model, rows: Sequence[Activation], ends: Collection[str]) -> list[Activation]:
    """Mark the activations that no run can inject into: some formats, and what needs operators that an opset lacks.

    Into an activation in front of one of the `ends` a fault is injected between two sessions. Others need an operator,
    as do those in bodies and in models of 16-bit floats, which may have to run as a whole.
    """
    opset, halves, in_front = opset_of(model.proto), bool(half_floats(model.proto)), _in_front(model, ends)
    out = []
    for a in rows:
        if a.unsupported_reason:
            out.append(a)
        elif a.path or halves or a.name not in in_front:
            out += check_word_formats([a], opset)
        else:
            out.append(
                a if a.target.dtype in _READ else replace(a, unsupported_reason="its format cannot be read from a run")
            )
    return out


def _in_front(model: Model, ends: Collection[str]) -> set[str]:
    """Return these tensors of the main graph with all that they are computed from.

    Unlike the live values of a model these include tensors of which only the shape is read: segments compute them too.
    """
    main, todo, found = model.index.main, [*ends], set[str]()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += main.reads[main.producers[name]] if name in main.producers else ()
    return found


def _steps(model: Model, rows: Sequence[Activation], data: Data | None, custom_ops: Sequence[str]) -> dict[str, int]:
    """Return the iterations of the loops around targets by target id, where known and the same for each batch."""
    if not any(a.loop for a in rows):
        return {}
    try:
        turns = loop_iterations(model, data, custom_ops, steady=True)
    except EngineError:
        return {}
    return {a.target.id: turns[a.path] for a in rows if turns.get(a.path)}
