"""The canary: a fault that must change an answer, by each kind of route that trials take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from onnxfi.campaign.execute.trial_executor import PreparedTrial, TrialExecutor, cause_of
from onnxfi.campaign.plan.open_model import beside
from onnxfi.errors import EngineError, NoCanaryError, RouteError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.models import Set
from onnxfi.faults.space import Sites, Target
from onnxfi.faults.trials import Faults
from onnxfi.faults.words import Mask, Word
from onnxfi.graph.model.graph_index import all_nodes
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.data.sample_outputs import same_outputs, same_runs
from onnxfi.runtime.engine.cuda import same_bits_remedy

#: Elements of a tensor that the canary sets, at most.
_ELEMENTS = 1 << 16
#: Tensors of each further route in which a canary is looked for.
_TRIES = 3


@dataclass
class Check:
    """Asks for canaries in this process."""

    executor: TrialExecutor

    def shows(self, target: Target, batches: int) -> bool:
        """Return whether a canary in a target is seen in the first batches; RouteError if a shorter route hides it."""
        return notices(self.executor, target, batches)

    def route(self, target: Target) -> Route:
        """Return the kind of route of faults in a target."""
        return route_of_target(self.executor, target)


def prove(executor: TrialExecutor, targets: Sequence[Target], check: Check | None = None) -> dict[str, Any]:
    """Inject a canary into one target after the other until a change is seen, by each kind of route that there is.

    The answers of the first batch may be such that no fault changes them, as in an image without a detection: where no
    target shows a canary there, twice as many batches run, and so on, up to all of them.

    Parameters
    ----------
    executor : TrialExecutor
        The executor of the campaign.
    targets : sequence of Target
        The targets of the campaign. Those with the most elements come first: most trials inject there, so what is
        opened for the canary is used again.
    check : Check, optional
        Asks for the canary; by default in this process.

    Raises
    ------
    NoCanaryError
        If no canary is seen.
    """
    check = check or Check(executor)
    order = sorted(targets, key=lambda target: -target.size)
    batches, every = 1, -(-executor.opened.data.samples // executor.opened.size)
    while (found := _seen(check, order, batches))["seen"] is None and batches < every:
        batches = min(2 * batches, every)
    if found["seen"] is not None:
        return found
    output, unseen = executor.opened.output, found["unseen"]
    raise NoCanaryError(
        f"no canary was seen: all exponent bits set in {', '.join(unseen[:5])} changed nothing in "
        f"{f'output {output!r}' if output else 'the outputs'}, so faults there cannot either; "
        f"select other targets, or score another --output{_ran_with(executor)}"
    )


def _seen(check: Check, targets: Sequence[Target], batches: int) -> dict[str, Any]:
    """Return where a canary is seen in the first batches, by each kind of route, and where it is not."""
    seen, unseen, routes, tries = None, list[str](), dict[str, str](), Counter[str]()
    for target in targets:
        # To know the route opens the segments: the whole model comes first, so that it is open once.
        route = None if seen is None else check.route(target)
        if route is not None:
            if route is Route.FULL or route in routes or tries[route] == _TRIES:
                continue
            tries[route] += 1
        if check.shows(target, batches):
            seen, routes = seen or target.id, {**routes, route or check.route(target): target.id}
        elif seen is None:
            unseen.append(target.id)
    return {"seen": seen, "unseen": unseen, "routes": routes}


def _ran_with(executor: TrialExecutor) -> str:
    """Return the options of a device under which the canary ran, and what to do with them; nothing without one."""
    fixed = executor.opened.campaign.engine.open().arithmetic
    ran = f"{executor.opened.provider} ran with {', '.join(map('='.join, fixed.items()))}"
    return f"; {ran}: {same_bits_remedy(fixed)}" if fixed else ""


def notices(executor: TrialExecutor, target: Target, batches: int = 1) -> bool:
    """Return whether a canary changes an answer in the first batches; RouteError if a shorter route does not show it.

    Where the segments are open, the whole model is asked only about what they do not show.
    """
    first = executor.is_segmented and executor.shorter(_canary(executor, target)) is not None
    if first and shown(executor, target, batches):
        return True
    if first and not beside(executor.opened.model, executor.kept_bytes):
        executor.close_segments()
    seen = changes_answer(executor, target, batches)
    return held(executor, target, seen, seen and (first or not shown(executor, target, batches)))


def changes_answer(executor: TrialExecutor, target: Target, batches: int = 1) -> bool:
    """Return whether a canary changes an answer of the whole model in the first batches."""
    canary, opened = _canary(executor, target), executor.opened
    try:
        if target.is_activation:
            own, faulty = executor.longest(canary, batches=batches)
            return not same_runs(faulty, own[: len(faulty)])
        golden = executor.golden_runs.first_batches(batches)
        return not same_runs(opened.run(opened.faulty_session(canary.faults), batches=batches), golden)
    except (EngineError, MemoryError) as error:
        cause_of(error)
        return True


def shown(executor: TrialExecutor, target: Target, batches: int = 1) -> bool:
    """Return whether the shorter route of a target, where it has one, shows a canary there in the first batches."""
    canary = _canary(executor, target)
    found = executor.shorter(canary)
    if found is None:
        return True
    reexecution, faults = found
    try:
        some = islice(reexecution.golden.batches(), batches)
        return any(not same_outputs(reexecution.outputs(k, faults), reexecution.outputs(k)) for k, _ in some)
    except (EngineError, MemoryError) as error:
        cause_of(error)
        return True


def held(executor: TrialExecutor, target: Target, seen: bool, blind: bool) -> bool:
    """Return whether a canary was `seen`; RouteError if it was, and the route is `blind` to it."""
    if seen and blind:
        raise RouteError(
            f"a canary in {target.id!r} is seen by the whole model, and not by the shorter route of faults there; "
            f"run the campaign with --route full{_ran_with(executor)}"
        )
    return seen


def _canary(executor: TrialExecutor, target: Target) -> PreparedTrial:
    """Return a canary in a target as a trial."""
    fault_targets, faults = executor.opened.fault_targets, set_exponents(target)
    if not target.is_activation:
        return PreparedTrial(faults, [target])
    return PreparedTrial(fault_targets.by_step(faults), [], tuple(fault_targets.steps_of.get(target.id, (target.id,))))


def may_hang(executor: TrialExecutor, target: Target) -> bool:
    """Return whether a fault could hang or kill the process: in a structural target, or where there is a loop."""
    proto = executor.opened.model.proto
    looped = _has_loop(proto.graph.node) or any(_has_loop(function.node) for function in proto.functions)
    return target.structural or looped


def route_of_target(executor: TrialExecutor, target: Target) -> Route:
    """Return the kind of route of faults in a target."""
    if not target.is_activation:
        return executor.route(executor.facts(_canary(executor, target)))
    segmentation = executor.segmentation
    return Route.PARTIAL if segmentation is not None and segmentation.steps else Route.SPLIT


@dataclass(frozen=True)
class _Canary(FaultModel):
    """All exponent bits set (integers: all bits)."""

    name = "canary"

    def mask(self, word: Word, bit: int) -> Mask:
        bits = sum(1 << b for b in word.field("exponent")) or word.full
        return Mask(word.full & ~bits, bits)


def set_exponents(target: Target) -> Faults:
    """Return faults that set all exponent bits in the first elements of a target.

    >>> from onnxfi.graph.model.loading import load
    >>> len(set_exponents(load("models/fashion_cnn.onnx").targets[0]))
    144
    """
    n = min(target.size, _ELEMENTS)
    sites = Sites(np.zeros(n, np.int64), np.arange(n, dtype=np.int64), np.full(n, -1, np.int16))
    # The output of a neuron is NaN if nothing is injected, whatever else its exponent bits are.
    return Faults((target,), sites, (Set(1.0) if target.role == "spike" else _Canary(),))


def _has_loop(nodes: Iterable[Any]) -> bool:
    """Return whether there is a loop among these nodes, or in their bodies."""
    return any(node.op_type == "Loop" for node in all_nodes(nodes))
