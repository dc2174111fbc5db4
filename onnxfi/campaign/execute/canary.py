"""The canary: a fault that any runtime must see, and by each kind of route that trials take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxfi.campaign.execute.trial_executor import Bench, cause_of
from onnxfi.errors import CampaignError, EngineError, RouteError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.models import Set
from onnxfi.faults.space import Sites, Target
from onnxfi.faults.trials import Faults
from onnxfi.faults.words import Mask, Word
from onnxfi.graph.model.graph_index import all_nodes
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.engine.model_io import same_bytes

#: Elements of a tensor that the canary sets, at most.
_ELEMENTS = 1 << 16
#: Tensors of each further route in which a canary is looked for.
_TRIES = 3


def prove(bench: Bench, targets: Sequence[Target], asked: Callable[[Target], bool] | None = None) -> dict[str, Any]:
    """Set one tensor after the other until a change is seen, by each kind of route that there is.

    Those with the most elements first: most trials strike there, so what is opened for the canary is used again.
    `asked` asks elsewhere, where what is struck could hang or kill this process. CampaignError where none is seen.
    """
    seen, unseen, routes, tries = None, list[str](), dict[str, str](), Counter[str]()
    for target in sorted(targets, key=lambda target: -target.size):
        kind = _kind(bench, target)
        if seen is not None and (kind == Route.FULL or kind in routes or tries[kind] == _TRIES):
            continue
        tries[kind] += 1
        if asked(target) if asked is not None else notices(bench, target):
            seen, routes = seen or target.id, {**routes, kind: target.id}
        elif seen is None:
            unseen.append(target.id)
    if seen is not None:
        return {"seen": seen, "unseen": unseen, "routes": routes}
    raise CampaignError(
        f"no canary was seen: all exponent bits set in {', '.join(unseen[:5])} changed nothing in "
        f"{f'output {bench.output!r}' if bench.output else 'the outputs'}, so faults there cannot either; "
        f"select other targets, or score another --output"
    )


def notices(bench: Bench, target: Target) -> bool:
    """Whether a canary changes an answer; RouteError where a shortcut does not show it."""
    seen = changes(bench, target)
    return held(target, seen, seen and not shown(bench, target))


def changes(bench: Bench, target: Target) -> bool:
    """Whether a canary changes an answer of the whole model."""
    canary, flown = _canary(bench, target)
    try:
        if target.is_activation:
            whole = bench.flown(flown)
            return not same_bytes(whole.scores(canary, batches=1), whole.scores(None, batches=1))
        golden = bench.first()
        return not same_bytes(bench.scores(bench.struck(canary), batches=1), golden)
    except (EngineError, MemoryError) as error:
        cause_of(error)
        return True


def shown(bench: Bench, target: Target) -> bool:
    """Whether the shorter route of a target, where it has one, shows a canary there."""
    canary, flown = _canary(bench, target)
    if bench.shortcuts is None:
        return True
    rerun = bench.flying(canary, flown) if target.is_activation else bench.shortcuts.of(canary)
    if rerun is None:
        return True
    change = bench.flown_change(canary) if target.is_activation else bench.shortcuts.change(canary)
    try:
        return not same_bytes(rerun.scores(0, change), rerun.scores(0))
    except (EngineError, MemoryError) as error:
        cause_of(error)
        return True


def held(target: Target, seen: bool, blind: bool) -> bool:
    """Whether it was `seen`; RouteError where it was, and the route is `blind` to it."""
    if seen and blind:
        raise RouteError(
            f"a canary in {target.id!r} is seen by the whole model, and not by the shorter route of faults there; "
            f"run the campaign with --route full"
        )
    return seen


def _canary(bench: Bench, target: Target) -> tuple[Faults, tuple[str, ...]]:
    """A canary in a target, and the values in flight through which its route leads."""
    return bench.reach.by_step(set_exponents(target)), bench.reach.steps_of.get(target.id, (target.id,))


def may_hang(bench: Bench, target: Target) -> bool:
    """Whether a fault in a target could hang or kill who asks: in what is structural, or where there is a loop."""
    proto = bench.model.proto
    looped = _has_loop(proto.graph.node) or any(_has_loop(function.node) for function in proto.functions)
    return target.structural or looped


def _kind(bench: Bench, target: Target) -> Route:
    """By which kind of route faults in a target go."""
    if target.is_activation:
        return Route.PARTIAL if bench.routes is not None and bench.routes.steps else Route.SPLIT
    route = bench.routes.of([target]) if bench.routes is not None else None
    return Route.FULL if route is None else route.route


@dataclass(frozen=True)
class _Canary(FaultModel):
    """All exponent bits set (integers: all bits)."""

    name = "canary"

    def mask(self, word: Word, bit: int) -> Mask:
        bits = sum(1 << b for b in word.field("exponent")) or word.full
        return Mask(word.full & ~bits, bits)


def set_exponents(target: Target) -> Faults:
    """All exponent bits set in the first elements of a target.

    >>> from onnxfi.graph.model.loading import load
    >>> len(set_exponents(load("models/fashion_cnn.onnx").targets[0]))
    144
    """
    n = min(target.size, _ELEMENTS)
    sites = Sites(np.zeros(n, np.int64), np.arange(n, dtype=np.int64), np.full(n, -1, np.int16))
    # What a neuron puts out is NaN, which is what it computes, whatever else its exponent bits are.
    return Faults((target,), sites, (Set(1.0) if target.role == "spike" else _Canary(),))


def _has_loop(nodes: Iterable[Any]) -> bool:
    """Whether there is a loop among these nodes, or in their bodies."""
    return any(node.op_type == "Loop" for node in all_nodes(nodes))
