"""The route of a trial: which part of a model is executed for its faults, decided from static facts alone.

Every route shorter than the whole model has a fault-free run of its own. The route is used only if that run gives the
golden outputs bit for bit; otherwise the trial takes the next longer one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Route(StrEnum):
    """The part of a model that one trial executes.

    Attributes
    ----------
    CHANNEL_DELTA : Route
        The output channels of one operator that depend on the faulty weights, then the nodes that these channels reach.
    PARTIAL : Route
        The nodes that one faulty weight tensor, or the faulty activations, can reach; the faulty values are fed.
    REBUILT : Route
        The segments that hold the faulty weights, rebuilt with them, then the nodes that these reach.
    SINGLE_SAMPLE : Route
        The nodes that one faulty activation can reach, for the one sample in which it is faulty.
    STEPS : Route
        The steps of a generation loop from the first faulty one on, from the golden cache in front of it.
    SPLIT : Route
        The nodes that the faulty activations can reach, in the model split at them, which has a golden run of its own.
    PROVED : Route
        Nothing: the classes of all samples were proved.
    FULL : Route
        The whole model: a faulty copy, with fault operators for faulty activations.
    """

    CHANNEL_DELTA = "channel-delta"
    PARTIAL = "partial"
    REBUILT = "rebuilt"
    SINGLE_SAMPLE = "single-sample"
    STEPS = "steps"
    SPLIT = "split"
    PROVED = "proved"
    FULL = "full"


@dataclass(frozen=True)
class TrialFacts:
    """Static facts about the faults of one trial.

    Attributes
    ----------
    weights : int
        Number of faulty weight tensors.
    in_segments : bool
        Whether each faulty weight tensor can be fed to the segments that read it, or built into them.
    constant : bool
        Whether the faulty weight tensor must be a constant of the executed model, since a runtime packs it.
    channels : bool
        Whether each output channel of the one operator that reads it depends on one slice of the tensor.
    activations : bool
        Whether activations are faulty.
    nested : bool
        Whether some faulty activation lies in the body of an `If`, `Loop` or `Scan`.
    one_sample : bool
        Whether the faults lie in one activation of one sample, a row of it.
    in_loop : bool
        Whether the model generates in a loop, of which faults name the step.
    """

    weights: int = 0
    in_segments: bool = True
    constant: bool = False
    channels: bool = False
    activations: bool = False
    nested: bool = False
    one_sample: bool = False
    in_loop: bool = False


@dataclass(frozen=True)
class RouteContext:
    """Static facts about the model and the campaign of a trial.

    Attributes
    ----------
    segments : int
        Number of segments of the model; 0 if it is executed as a whole.
    late_start : bool
        Whether a trial may start at its faults.
    splittable : bool
        Whether the model may be split at any activation: no activation is a 16-bit float computed in float32, which a
        split would round.
    inexact : frozenset of Route
        Routes whose fault-free run differs from the golden run of the whole model for this trial, or cannot be made.
    """

    segments: int
    late_start: bool = True
    splittable: bool = True
    inexact: frozenset[Route] = frozenset()


def route_of(trial: TrialFacts, context: RouteContext) -> Route:
    """Return the shortest route of a trial.

    Examples
    --------
    >>> route_of(TrialFacts(weights=1, channels=True), RouteContext(segments=4)).value
    'channel-delta'
    >>> inexact = frozenset([Route.CHANNEL_DELTA, Route.PARTIAL])
    >>> route_of(TrialFacts(weights=1, channels=True), RouteContext(segments=4, inexact=inexact)).value
    'rebuilt'
    """
    routes = _activation_routes(trial, context) if trial.activations else _weight_routes(trial, context)
    return next((route for route in routes if route not in context.inexact), Route.FULL)


def _weight_routes(trial: TrialFacts, context: RouteContext) -> Iterator[Route]:
    """Yield the routes of faults in weights, the shortest first."""
    if not context.segments or not trial.in_segments:
        return
    if trial.channels:
        yield Route.CHANNEL_DELTA
    if trial.weights == 1 and not trial.constant:
        yield Route.PARTIAL
    if trial.weights > 1 or trial.constant or context.segments > 1:
        yield Route.REBUILT


def _activation_routes(trial: TrialFacts, context: RouteContext) -> Iterator[Route]:
    """Yield the routes of faults in activations, and perhaps weights as well, the shortest first."""
    if trial.in_loop:
        yield Route.STEPS
        return
    if trial.nested:
        return
    if context.segments and not trial.weights:
        if trial.one_sample and context.late_start:
            yield Route.SINGLE_SAMPLE
        yield Route.PARTIAL
    if context.splittable and (not trial.weights or trial.in_segments):
        yield Route.SPLIT
