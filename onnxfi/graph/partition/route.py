"""The route of a trial: which part of the model is executed again for its faults."""

from __future__ import annotations

from enum import StrEnum


class Route(StrEnum):
    """The part of a model that one trial executes, from the shortest route to the longest.

    Attributes
    ----------
    CHANNEL_DELTA : Route
        The output channels of one operator that depend on the faulty weights, then what these channels reach.
    PARTIAL : Route
        What one faulty weight tensor, or the faulty activations, can reach; these are fed to it.
    REBUILT : Route
        The segments that hold the faulty weights, built anew with them.
    SINGLE_SAMPLE : Route
        What a faulty activation can reach, for the one sample in which it is faulty.
    SPLIT : Route
        The whole model, split at the faulty activations.
    FULL : Route
        The whole model, from a faulty copy.
    """

    CHANNEL_DELTA = "channel-delta"
    PARTIAL = "partial"
    REBUILT = "rebuilt"
    SINGLE_SAMPLE = "single-sample"
    SPLIT = "split"
    FULL = "full"
