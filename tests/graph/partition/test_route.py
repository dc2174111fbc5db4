from __future__ import annotations

from itertools import product

import pytest

from onnxfi.graph.partition.route import Route, RouteContext, TrialFacts, route_of

WEIGHT = TrialFacts(weights=1)
ACTIVATION = TrialFacts(activations=True)
SEGMENTS = RouteContext(segments=4)


def routes(trial: TrialFacts, context: RouteContext) -> list[str]:
    """Return the routes that a trial takes one after the other, each being inexact."""
    found: list[Route] = []
    while not found or found[-1] is not Route.FULL:
        inexact = frozenset(found)
        found.append(route_of(trial, RouteContext(context.segments, context.late_start, context.splittable, inexact)))
    return [route.value for route in found]


@pytest.mark.parametrize(
    ("trial", "context", "expected"),
    [
        (WEIGHT, SEGMENTS, ["partial", "rebuilt", "full"]),
        (WEIGHT, RouteContext(segments=1), ["partial", "full"]),
        (WEIGHT, RouteContext(segments=0), ["full"]),
        (TrialFacts(weights=1, channels=True), SEGMENTS, ["channel-delta", "partial", "rebuilt", "full"]),
        (TrialFacts(weights=1, channels=True, constant=True), SEGMENTS, ["channel-delta", "rebuilt", "full"]),
        (TrialFacts(weights=1, constant=True), RouteContext(segments=1), ["rebuilt", "full"]),
        (TrialFacts(weights=3), RouteContext(segments=1), ["rebuilt", "full"]),
        (TrialFacts(weights=3, in_segments=False), SEGMENTS, ["full"]),
        (ACTIVATION, SEGMENTS, ["partial", "split", "full"]),
        (ACTIVATION, RouteContext(segments=0), ["split", "full"]),
        (TrialFacts(activations=True, one_sample=True), SEGMENTS, ["single-sample", "partial", "split", "full"]),
        (
            TrialFacts(activations=True, one_sample=True),
            RouteContext(4, late_start=False),
            ["partial", "split", "full"],
        ),
        (TrialFacts(activations=True, weights=2), SEGMENTS, ["split", "full"]),
        (TrialFacts(activations=True, weights=2, in_segments=False), SEGMENTS, ["full"]),
        (TrialFacts(activations=True, nested=True), SEGMENTS, ["full"]),
        (ACTIVATION, RouteContext(4, splittable=False), ["partial", "full"]),
    ],
)
def test_routes_from_the_shortest_to_the_longest(trial: TrialFacts, context: RouteContext, expected: list[str]) -> None:
    assert routes(trial, context) == expected


def test_every_trial_has_a_route_and_ends_with_the_whole_model() -> None:
    for weights, *flags in product((0, 1, 2), *[(False, True)] * 6):
        for segments, late, splittable in product((0, 1, 3), (False, True), (False, True)):
            found = routes(TrialFacts(weights, *flags), RouteContext(segments, late, splittable))
            assert len(found) == len(set(found)) <= len(Route) and found[-1] == "full"
